/**
 * The rows of lockstep.lease on the simulated server, with their versions and locks: a transaction sees what was committed and what it
 * has written itself, and what it has locked stays locked until it ends.
 */
import type { Backend } from './backend.ts'
import type { Blocked } from './locks.ts'

export interface LeaseRow {
  readonly holder: string | null
  readonly token: bigint
  readonly grantedAt: number
  /** Milliseconds since 1970; Infinity: as long as a connection. */
  readonly expiresAt: number
  readonly ttlMs: number | null
  readonly meta: string | null
  // Of an election only.
  readonly witness?: string | null
  readonly deposed?: boolean
  /** When it was first found expired. */
  readonly overAt?: number | null
  readonly revision?: bigint
}

/** FOR KEY SHARE, FOR NO KEY UPDATE, FOR UPDATE. */
export type RowLock = 'key share' | 'no key update' | 'update'
const CONFLICTS: Record<RowLock, RowLock[]> = {
  'key share': ['update'],
  'no key update': ['no key update', 'update'],
  update: ['key share', 'no key update', 'update'],
}

export class Transaction {
  readonly xid: string
  readonly backend: Backend
  readonly writes = new Map<string, LeaseRow>()
  readonly locked = new Map<string, RowLock>()
  readonly notifies = new Map<string, { channel: string; payload: string }>()
  /** The writes to a fenced table: the name and the token under which they were made. */
  readonly effects: { name: string; token: bigint }[] = []
  /** idle_in_transaction_session_timeout, as a gated candidate that waits for a lease sets it. */
  idleTimeout = '0'
  /** What takes back its changes of other tables. */
  readonly undo: (() => void)[] = []

  constructor(xid: string, backend: Backend) {
    this.xid = xid
    this.backend = backend
  }
}

export class LeaseTable {
  readonly #rows = new Map<string, LeaseRow>()
  readonly #locks = new Map<string, Map<Transaction, RowLock>>()

  /** What a transaction sees; undefined: only what was committed. */
  get(name: string, by?: Transaction): LeaseRow | undefined {
    return by?.writes.get(name) ?? this.#rows.get(name)
  }

  /** Writes a row that the transaction has locked, or that was not there. */
  write(name: string, row: LeaseRow, by: Transaction): void {
    by.writes.set(name, row)
  }

  /** Locks a row, or says that another transaction has it (SKIP LOCKED). */
  tryLock(name: string, mode: RowLock, by: Transaction): boolean {
    const locks = this.#locks.get(name) ?? new Map<Transaction, RowLock>()
    this.#locks.set(name, locks)
    const blocked = [...locks].some(([other, held]) => other !== by && CONFLICTS[mode].includes(held))
    if (blocked) return false
    const held = locks.get(by)
    if (held === undefined || CONFLICTS[mode].length > CONFLICTS[held].length) locks.set(by, mode)
    by.locked.set(name, mode)
    return true
  }

  *lock(name: string, mode: RowLock, by: Transaction): Generator<Blocked, void> {
    while (!this.tryLock(name, mode, by)) yield 'row'
  }

  end(by: Transaction, commit: boolean): void {
    if (commit) for (const [name, row] of by.writes) this.#rows.set(name, row)
    for (const name of by.locked.keys()) {
      const locks = this.#locks.get(name)
      locks?.delete(by)
      if (locks?.size === 0) this.#locks.delete(name)
    }
  }

  /** Whether a transaction other than `by` has a lock on the row. */
  isLocked(name: string): boolean {
    return this.#locks.has(name)
  }

  get names(): string[] {
    return [...this.#rows.keys()]
  }
}
