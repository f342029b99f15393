/** What the enumeration of verbs needs of each verb: how to prepare it, how to call it, and what must be true then. */
import type pg from 'pg'
import type { Events } from '../../../lib/event/index.ts'
import type { Lockstep } from '../../../lib/index.ts'
import type { Tasks } from '../../../lib/task/index.ts'

/** One process: a Lockstep with all rooms. */
export interface Rooms {
  lockstep: Lockstep
  tasks: Tasks
  events: Events
}

export interface Stage {
  /** The process whose statements fail. */
  a: Rooms
  /** Another process, whose statements do not. */
  b: Rooms
  /** The connection string on which statements fail, for a Lockstep that has other options; `also` closes it at the end. */
  url: string
  also<L extends Lockstep>(lockstep: L): L
  /** A name for the locks, queues, streams and groups of this run. */
  name: string
  pool: pg.Pool
}

export interface Call {
  /** The call that meets the fault. */
  act(): Promise<unknown>
  /** The same again, without a fault: it must succeed by and by. @default act */
  again?(): Promise<unknown>
  /** Fails if this is not what the call may be answered. */
  is?(answer: unknown): void
  /** Codes that are right too: what was done before the fault may not be done twice. */
  or?: readonly string[]
  /** What must be true when it has succeeded. */
  afterwards?(): Promise<unknown>
}

export type Verb = (stage: Stage) => Promise<Call> | Call
