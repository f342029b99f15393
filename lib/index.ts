/** The front door: everything that is public, and nothing else. */
import { type ConnectOptions, Database } from './db.ts'
import { Leaders } from './leader.ts'
import { Locks } from './lock.ts'
import { keepParts } from './parts.ts'
import { Sessions } from './sessions.ts'
import { Time, type TimeOptions } from './time.ts'

export { cristian, type RemoteTime, type TimeAnswer } from './cristian.ts'
export type { AnyTransaction, ClientInTransaction, ConnectOptions, Tables } from './db.ts'
export {
  type EndedOutcome,
  type ErrorCode,
  type Expected,
  ForbiddenError,
  HandedBackError,
  type InvalidArgument,
  JobFailedError,
  LeaseHeldError,
  LeaseLostError,
  NotFoundError,
  PositionConflictError,
  RunTimeoutError,
  TransactionEndedError,
  UnavailableError,
} from './errors.ts'
export type { Backoff, LeadWork } from './lead.ts'
export type { CampaignOptions, Leaders, LeadOptions, Members, TryCampaignOptions } from './leader.ts'
export type { Grant, Held } from './lease.ts'
export type { AcquireOptions, Locks, TransactionOptions, TryOptions } from './lock.ts'
export type { LockState } from './look.ts'
export { LIMITS } from './options.ts'
export type { Reading, TimeSource, TimeStatus } from './reading.ts'
export type { Term } from './term.ts'
export type { ReadyOptions, Time, TimeOptions } from './time.ts'
export type { TransactionWork } from './transaction.ts'
export type { Candidate, ElectionState, Leader } from './watch.ts'

export interface LockstepOptions extends ConnectOptions {
  /** How time is defined, and who measures it. */
  time?: TimeOptions
}

export interface Lockstep extends AsyncDisposable {
  readonly locks: Locks
  readonly leaders: Leaders
  readonly time: Time
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
export function createLockstep(options: LockstepOptions): Lockstep {
  const database = new Database(options)
  const sessions = new Sessions(database)
  const locks = new Locks(database, sessions)
  const leaders = new Leaders(database, sessions)
  const time = new Time(database, options.time)
  const closing = new Set<() => Promise<void>>()
  const closeAll = async () => {
    time.close()
    await Promise.all([...closing].map((room) => room()))
    await leaders.close() // before the connection ends by which terms may be held
    await locks.close()
    await database.close()
  }
  let closed: Promise<void> | undefined
  const close = () => {
    closed ??= closeAll()
    return closed
  }
  const { kysely } = database
  const ready = () => database.ready()
  const lockstep = { locks, leaders, time, kysely, ready, close, [Symbol.asyncDispose]: close }
  keepParts(lockstep, { database, sessions, time, closing })
  return lockstep
}
