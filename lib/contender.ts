/**
 * Who wants a name, and what they all share.
 */
import type { ConnectionHold } from './connection.ts'
import type { Database } from './db.ts'
import type { Grant, GrantRequest, Leases } from './lease.ts'
import type { Line } from './line.ts'
import type { Sessions } from './sessions.ts'
import type { Moment } from './trust.ts'

/** What all lines of a process share. */
export interface Desk {
  readonly database: Database
  readonly leases: Leases
  readonly sessions: Sessions
  readonly lines: Map<string, Line>
}

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
      granted(grant: Grant, attempted: Moment): void
      failed(error: unknown): void
    }
  | { kind: 'transaction'; enter(): Promise<void>; failed(error: unknown): void }

export type ByConnection = Extract<Contender, { kind: 'connection' }>
export type ByLease = Extract<Contender, { kind: 'lease' }>
export type ByTransaction = Extract<Contender, { kind: 'transaction' }>
