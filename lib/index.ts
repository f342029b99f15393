/** The front door: everything that is public, and nothing else. And the end: who makes a thing ends it, here. */

import { CLOSE_MS, Closing, Deadline, type Shutdown } from './base/index.ts'
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
/** @deprecated since 0.7: it is called `Hold`. */
export type { Grant, Hold, Hold as Held, LockState } from './lease/index.ts'
export type { AcquireOptions, Locks, TransactionOptions, TransactionWork, TryOptions } from './lock/index.ts'
export type { Reading, ReadyOptions, Time, TimeOptions, TimeSource, TimeStatus } from './time/index.ts'
export { cristian, type RemoteTime, type TimeAnswer } from './time/index.ts'

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
  /**
   * Ends all of it: every verb of every room rejects from now on with an `UnavailableError`, "Lockstep was closed", and so does
   * every wait; what this process holds is released; no connection, timer or listener is left. Calling it again does nothing.
   *
   * What is under way gets 5 s: jobs and batches of events one second, as when their worker stops, and until then everything
   * still works for them; transactions of yours, and statements. Then it is cut, also where the database does not answer. A
   * hold that could not be given up by then ends by its ttl, and its signal has aborted.
   */
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
    // What handlers of jobs and events do within their last second may need every room; else it is now.
    const draining = all.flatMap((room) => room.drain() ?? [])
    if (draining.length > 0) await deadline.race(Promise.all(draining))
    closing.close()
    await deadline.race(Promise.allSettled(all.map((room) => room.end(deadline.over))))
    await leaders.close(deadline.over) // before the connection ends by which terms may be held
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
