/**
 * The parts of a Lockstep, for the rooms that are made separately (tasks, events). They are separate so that a program which only
 * uses locks does not bundle them.
 */

import type { Closing, Shutdown } from '../base/index.ts'
import { wrongType } from '../base/index.ts'
import type { Database } from './database.ts'
import type { SessionPool } from './session-pool.ts'

export interface Context {
  database: Database
  sessions: SessionPool
  /** Measures true time, if a measurement is due. */
  time: { synchronize(options: { signal?: AbortSignal | undefined }): Promise<boolean> }
  closing: Closing
  /** The rooms that were made later. They are closed before the connections are. */
  rooms: Set<Shutdown>
}

const KEY = Symbol.for('lockstep.parts') // the same in two copies of this package

/** Attaches its parts to a Lockstep, for {@link contextOf}. */
export function keepContext(lockstep: object, parts: Context): void {
  Object.defineProperty(lockstep, KEY, { value: parts })
}

/** The parts of a Lockstep. @throws {TypeError} `code` INVALID_ARGUMENT, `field` lockstep: createLockstep has not made it. */
export function contextOf(lockstep: object): Context {
  const parts = (lockstep as { [KEY]?: Context } | null)?.[KEY]
  if (!parts) throw wrongType('lockstep', 'what createLockstep has made', lockstep)
  return parts
}
