/** The suites of all rooms through a transaction pooler: nothing is granted twice there, and no job is lost. */
import { describe } from 'vitest'
import { groupSuite } from '../event/group.suite.ts'
import { eventSuite } from '../event/stream.suite.ts'
import { leaderSuite } from '../leader/leader.suite.ts'
import { lockSuite } from '../lock/lock.suite.ts'
import { pgbouncerAvailable } from '../support/database.ts'
import { taskSuite } from '../task/task.suite.ts'
import { timeSuite } from '../time/time.suite.ts'

describe.skipIf(!pgbouncerAvailable())('through PgBouncer in transaction mode', () => {
  describe('locks', () => lockSuite({ pooled: true }))
  describe('leaders', () => leaderSuite({ pooled: true }))
  describe('tasks', () => taskSuite({ pooled: true }))
  describe('events', () => eventSuite({ pooled: true }))
  describe('groups', () => groupSuite({ pooled: true }))
  describe('time', () => timeSuite({ pooled: true }))
})
