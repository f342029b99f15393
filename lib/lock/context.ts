/** What the parts of this room share. */
import type { Database, SessionPool } from '../database/index.ts'
import type { Leases } from '../lease/index.ts'
import type { ShownHolds } from './shown-holds.ts'

/** What all wait queues of a process share, and the transactions that hold. */
export interface LockContext {
  readonly database: Database
  readonly leases: Leases
  readonly sessions: SessionPool
  readonly shown: ShownHolds
}
