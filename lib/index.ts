/** The front door: all public names, how a Lockstep is made, and how it is closed. */

import { CLOSE_MS, Closing, checkOptions, Deadline, known, type Shutdown } from './base/index.ts'
import { type ConnectOptions, Database, keepContext, SessionPool } from './database/index.ts'
import { Leaders } from './leader/index.ts'
import { Locks } from './lock/index.ts'
import { Time, type TimeOptions } from './time/index.ts'

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
  LIMITS,
  NotFoundError,
  type Page,
  PositionConflictError,
  RunTimeoutError,
  TransactionEndedError,
  UnavailableError,
} from './base/index.ts'
export type { AnyTransaction, ClientInTransaction, ConnectOptions, Tables } from './database/index.ts'
export type {
  Backoff,
  CampaignOptions,
  Candidate,
  ElectionState,
  Leader,
  Leaders,
  LeadOptions,
  LeadWork,
  Members,
  Term,
  TryCampaignOptions,
} from './leader/index.ts'
/** `Held` is deprecated since 0.7: it is called `Hold`. */
export type { Grant, Hold, Hold as Held, LockHolder, LockState } from './lease/index.ts'
export type { AcquireOptions, Locks, TransactionOptions, TransactionWork, TryOptions } from './lock/index.ts'
export type { Reading, ReadyOptions, Time, TimeOptions, TimeSource, TimeStatus } from './time/index.ts'
export { cristian, type RemoteTime, type TimeAnswer } from './time/index.ts'

/** How to reach the database, and how to measure time. */
export interface LockstepOptions extends ConnectOptions {
  /** What true time is, and how it is measured. Each option has a default. */
  time?: TimeOptions | undefined
}

const LOCKSTEP = known<LockstepOptions>({
  ...{ connectionString: true, directConnectionString: true, password: true, applicationName: true },
  ...{ max: true, maxWaiting: true, shared: true, volatile: true, time: true },
})

/** Locks, elections and time on one database. Close it at the end, or declare it by `await using`. */
export interface Lockstep extends AsyncDisposable {
  /** Locks. */
  readonly locks: Locks
  /** Leader elections. */
  readonly leaders: Leaders
  /** True time. */
  readonly time: Time
  /** A Kysely on Lockstep's pool, for your own transactions. */
  readonly kysely: Database['kysely']
  /**
   * Resolves when the database answers, is supported, and has the schema that this version needs. One statement.
   * @throws {UnavailableError} one sentence that says what is wrong.
   */
  ready(): Promise<void>
  /**
   * Closes Lockstep. From now on every verb and every wait rejects with an `UnavailableError`, "Lockstep was closed". All holds of
   * this process are released; no connection, timer or listener is left. A second call does nothing.
   *
   * Work that is under way gets at most 5 s. Handlers of jobs and of events get one second of it, as when their worker stops, and
   * until then everything still works for them. Your transactions, and statements, may go on for the rest. Then the connections are
   * destroyed, also when the database does not answer. A hold that could not be released by then ends by its ttl, and its signal
   * has aborted.
   */
  close(): Promise<void>
}

/**
 * Makes a Lockstep; one is enough for a process. It connects at first use, and reconnects by itself after any fault.
 *
 * ```ts
 * await using lockstep = createLockstep({ connectionString: 'postgres://…' })
 * await using held = await lockstep.locks.acquire('nightly-report')
 * ```
 *
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function createLockstep(options: LockstepOptions): Lockstep {
  checkOptions(options, LOCKSTEP)
  const closing = new Closing()
  const database = new Database(options, closing)
  const sessions = new SessionPool(database)
  const locks = new Locks(database, sessions, closing)
  const leaders = new Leaders(database, sessions, closing)
  const time = new Time(database, closing, options.time)
  const rooms = new Set<Shutdown>()
  const closeAll = async () => {
    const deadline = new Deadline(CLOSE_MS)
    const all = [...rooms]
    // Handlers of jobs and events may need every room during their last second; so the rest is closed after them.
    const draining = all.flatMap((room) => room.drain() ?? [])
    if (draining.length > 0) await deadline.race(Promise.all(draining))
    closing.close()
    await deadline.race(Promise.allSettled(all.map((room) => room.end(deadline.over))))
    await leaders.close(deadline.over) // before the sessions: a term may end with its connection
    await locks.close(deadline.over)
    await deadline.race(closing.settled())
    await deadline.race(sessions.close())
    await database.close(deadline.over)
    deadline.clear()
  }
  let closed: Promise<void> | undefined
  const close = () => {
    closed ??= closeAll()
    return closed
  }
  const { kysely } = database
  const ready = () => closing.verb(() => database.ready())
  const lockstep = { locks, leaders, time, kysely, ready, close, [Symbol.asyncDispose]: close }
  keepContext(lockstep, { database, sessions, time, closing, rooms })
  return lockstep
}
