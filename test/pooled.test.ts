/** The suite of locks through a transaction pooler: nothing is granted twice there. */
import { describe } from 'vitest'
import { pgbouncerAvailable } from './database.ts'
import { lockSuite } from './lock.suite.ts'

describe.skipIf(!pgbouncerAvailable())('through PgBouncer in transaction mode', () => {
  lockSuite({ pooled: true })
})
