/** The suites through a transaction pooler: nothing is granted twice there, and no job is lost. */
import { describe } from 'vitest'
import { pgbouncerAvailable } from './database.ts'
import { eventSuite } from './event.suite.ts'
import { groupSuite } from './group.suite.ts'
import { leaderSuite } from './leader.suite.ts'
import { lockSuite } from './lock.suite.ts'
import { taskSuite } from './task.suite.ts'
import { timeSuite } from './time.suite.ts'

describe.skipIf(!pgbouncerAvailable())('through PgBouncer in transaction mode', () => {
  describe('locks', () => lockSuite({ pooled: true }))
  describe('leaders', () => leaderSuite({ pooled: true }))
  describe('tasks', () => taskSuite({ pooled: true }))
  describe('events', () => eventSuite({ pooled: true }))
  describe('groups', () => groupSuite({ pooled: true }))
  describe('time', () => timeSuite({ pooled: true }))
})
