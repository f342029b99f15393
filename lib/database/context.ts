/**
 * What a Lockstep is made of, for the rooms that are not in it: so that a program which only locks does not bundle them.
 */

import type { Closing, Ending } from '../base/index.ts'
import { wrongType } from '../base/index.ts'
import type { Database } from './database.ts'
import type { Sessions } from './session-pool.ts'

export interface Parts {
  database: Database
  sessions: Sessions
  /** Measures true time, where it is due. */
  time: { synchronize(options: { signal?: AbortSignal }): Promise<boolean> }
  closing: Closing
  /** The rooms that were made since, which end before the connections do. */
  rooms: Set<Ending>
}

const KEY = Symbol.for('lockstep.parts') // the same in two copies of this package

export function keepParts(lockstep: object, parts: Parts): void {
  Object.defineProperty(lockstep, KEY, { value: parts })
}

export function partsOf(lockstep: object): Parts {
  const parts = (lockstep as { [KEY]?: Parts } | null)?.[KEY]
  if (!parts) throw wrongType('lockstep', 'what createLockstep has made', lockstep)
  return parts
}
