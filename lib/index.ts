/** The front door: everything that is public, and nothing else. */
import { type ConnectOptions, Database } from './db.ts'
import { Locks } from './lock.ts'

export type { AnyTransaction, ConnectOptions, Tables } from './db.ts'
export { type ErrorCode, type InvalidArgument, LeaseHeldError, LeaseLostError, UnavailableError } from './errors.ts'
export type { Grant, Held } from './lease.ts'
export type { AcquireOptions, Locks, TransactionOptions, TryOptions } from './lock.ts'
export type { LockState } from './look.ts'
export { LIMITS } from './options.ts'
export type { TransactionWork } from './transaction.ts'

export interface Lockstep extends AsyncDisposable {
  readonly locks: Locks
  /** Lockstep's pool, for your own transactions. */
  readonly kysely: Database['kysely']
  /**
   * Resolves when the database answers and has the schema. One statement.
   * @throws {UnavailableError}
   */
  ready(): Promise<void>
  /** Releases what this process holds, rejects who waits, ends the connections. Calling it again does nothing. */
  close(): Promise<void>
}

/**
 * Makes the one object of a process. Connects at first use, and again by itself after any fault.
 *
 * ```ts
 * await using lockstep = createLockstep({ connectionString: 'postgres://…' })
 * await using held = await lockstep.locks.acquire('nightly-report')
 * ```
 *
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function createLockstep(options: ConnectOptions): Lockstep {
  const database = new Database(options)
  const locks = new Locks(database)
  let closed: Promise<void> | undefined
  const close = () => {
    closed ??= locks.close().then(() => database.close())
    return closed
  }
  return { locks, kysely: database.kysely, ready: () => database.ready(), close, [Symbol.asyncDispose]: close }
}
