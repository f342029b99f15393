/**
 * Who wants a name, and what they all share.
 */

import type { Stopwatch } from '../base/index.ts'
import type { Grant, GrantRequest } from '../lease/index.ts'
import type { ConnectionHold } from './connection-hold.ts'

/** One who wants the name. One of its functions is called, once, unless it leaves before. */
export type Contender =
  | {
      kind: 'connection'
      holder: string
      meta: unknown
      /** Whether it waits after its first try. */
      patient: boolean
      granted(hold: ConnectionHold): void
      failed(error: unknown): void
    }
  | {
      kind: 'lease'
      ask: GrantRequest
      patient: boolean
      granted(grant: Grant, attempted: Stopwatch): void
      failed(error: unknown): void
    }
  | { kind: 'transaction'; enter(): Promise<void>; failed(error: unknown): void }

export type ByConnection = Extract<Contender, { kind: 'connection' }>
export type ByLease = Extract<Contender, { kind: 'lease' }>
export type ByTransaction = Extract<Contender, { kind: 'transaction' }>
