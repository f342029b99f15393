/**
 * What a Lockstep is made of, for the rooms that are not in it: so that a program which only locks does not bundle them.
 */

import type { Closing, Shutdown } from '../base/index.ts'
import { wrongType } from '../base/index.ts'
import type { Database } from './database.ts'
import type { SessionPool } from './session-pool.ts'

export interface Context {
  database: Database
  sessions: SessionPool
  /** Measures true time, where it is due. */
  time: { synchronize(options: { signal?: AbortSignal }): Promise<boolean> }
  closing: Closing
  /** The rooms that were made since, which end before the connections do. */
  rooms: Set<Shutdown>
}

const KEY = Symbol.for('lockstep.parts') // the same in two copies of this package

export function keepContext(lockstep: object, parts: Context): void {
  Object.defineProperty(lockstep, KEY, { value: parts })
}

export function contextOf(lockstep: object): Context {
  const parts = (lockstep as { [KEY]?: Context } | null)?.[KEY]
  if (!parts) throw wrongType('lockstep', 'what createLockstep has made', lockstep)
  return parts
}
