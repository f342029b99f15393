/**
 * Locks: three ways to hold a name, which all exclude each other.
 *
 * | | lives until | cost |
 * |---|---|---|
 * | `acquire(name)` | release, or this process or its connection dies | a round trip, nothing written |
 * | `acquire(name, { ttlMs })` | release, or `ttlMs` without renewal | a row, kept by renewals |
 * | `transaction(name, work)` | the transaction ends | a round trip in the transaction |
 *
 * The first needs a direct connection to the database. Behind a transaction pooler there is none; there the hold is a lease with
 * the default ttl, and `hold.kind` says so. The essay of lease/leases.ts has the promises of a hold, that of wait-queue.ts the order
 * in which callers are served.
 */
import { sql } from 'kysely'
import {
  type Closing,
  checkMs,
  checkOptions,
  checkPage,
  checkText,
  checkToken,
  LeaseHeldError,
  LIMITS,
  onAbort,
  optionsAndWork,
  type Page,
  Stopwatch,
  WAIT,
} from '../base/index.ts'
import { countdown, type Database, type SessionPool, sharedSession } from '../database/index.ts'
import {
  type Grant,
  type GrantRequest,
  type Hold,
  LeaseHold,
  Leases,
  type LockState,
  leasedFor,
  listLocks,
  lockState,
  Renewer,
} from '../lease/index.ts'
import type { LeaseAnswer } from './contender.ts'
import { forceRevoke } from './force-revoke.ts'
import { type AcquireOptions, grantRequest, OPTIONS, type TransactionOptions, type TryOptions } from './options.ts'
import { ShownHolds } from './shown-holds.ts'
import { type TransactionWork, transaction } from './transaction.ts'
import { type WaitOptions, WaitQueues } from './wait-queues.ts'

export class Locks {
  readonly #database: Database
  readonly #leases: Leases
  readonly #renewer = new Renewer()
  readonly #queues: WaitQueues
  readonly #shown: ShownHolds
  readonly #closing: Closing

  constructor(database: Database, sessions: SessionPool, closing: Closing) {
    this.#database = database
    this.#leases = new Leases(database)
    this.#shown = new ShownHolds(database)
    this.#queues = new WaitQueues({ database, leases: this.#leases, sessions, shown: this.#shown })
    this.#closing = closing
    onAbort(closing.signal, () => this.#queues.refuseAll(closing.signal.reason))
  }

  /**
   * Acquires the lock. Waits while another holder has it: first come, first served.
   *
   * @param name  1–255 characters, no control characters.
   * @returns the hold, with a `token` greater than that of any earlier hold of this name.
   * @throws {LeaseHeldError} another holder still has it after `waitMs`.
   * @throws {UnavailableError} the database cannot be reached.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   * @see etcd client/v3/concurrency/mutex.go · Kleppmann, "How to do distributed locking", 2016 (fencing)
   */
  async acquire(name: string, options: AcquireOptions = {}): Promise<Hold> {
    this.#closing.check()
    checkOptions(options, OPTIONS.acquire)
    const { waitMs = Infinity, signal, ttlMs } = options
    checkText('name', name)
    checkMs('waitMs', waitMs, WAIT)
    const request = grantRequest(name, options)
    signal?.throwIfAborted()
    // No `await` where none is needed: the caller that comes first is the first in the queue.
    const { sessions } = this.#queues.context
    const leased = ttlMs !== undefined || this.#database.pooled
    const left = countdown(waitMs)
    if (options.holder !== undefined) {
      const known = this.#queues.heldBy(name, request.holder)
      if (known) return known.again()
      const ms = leased ? undefined : await this.#closing.abortable(leasedFor(this.#database, request))
      if (ms !== undefined) return this.#acquireLease({ ...request, ttlMs: ms }, options, { waitMs, signal })
    }
    const shared = () => this.#closing.abortable(sharedSession(sessions, left, signal))
    let session = leased ? null : (sessions.current ?? (await shared()))
    if (session && waitMs === 0) await this.#firstAttempt(name)
    // Where all connection holds together have as many locks of the server as they may, the next one is a lease.
    while (session && !session.hasCapacity) {
      if (!(await session.checkCapacity())) session = null
      else if (waitMs === 0) await this.#firstAttempt(name)
    }
    signal?.throwIfAborted()
    if (!session) return this.#acquireLease(request, options, { waitMs, signal })
    this.#closing.check()
    const named = options.holder !== undefined
    const want = { kind: 'connection', holder: request.holder, meta: options.meta, named } as const
    return this.#queues.ask(name, want, { waitMs, leftMs: left(), signal, session })
  }

  async #acquireLease(request: GrantRequest, options: AcquireOptions, wait: WaitOptions): Promise<Hold> {
    const { grant, attempted } = await this.#lease(request, options.holder !== undefined, wait)
    const make = () => new LeaseHold(this.#database, this.#leases, this.#renewer, grant, request.ttlMs, attempted)
    const hold = await this.#leases.held(grant, make)
    if (!this.#closing.closed) return hold ?? this.#acquireLease(request, options, wait)
    await hold?.release().catch(() => {})
    throw this.#closing.signal.reason
  }

  /**
   * Acquires the lock if nobody has it and nobody waits for it. One attempt.
   * @returns the hold, or `null` if another holder has it.
   * @throws {UnavailableError | TypeError | RangeError} as {@link acquire}.
   */
  async tryAcquire(name: string, options: TryOptions = {}): Promise<Hold | null> {
    this.#closing.check()
    checkOptions(options, OPTIONS.tryAcquire)
    try {
      return await this.acquire(name, { ...options, waitMs: 0 })
    } catch (error) {
      if (error instanceof LeaseHeldError) return null
      throw error
    }
  }

  /**
   * Runs `work` under the lock and then releases the lock, also when `work` throws.
   * @returns the result of `work`.
   * @throws {LeaseLostError} `work` succeeded, but the hold had been lost meanwhile. Also as {@link acquire}.
   */
  using<T>(name: string, work: (held: Hold) => Promise<T> | T): Promise<T>
  using<T>(name: string, options: AcquireOptions, work: (held: Hold) => Promise<T> | T): Promise<T>
  async using<T>(name: string, ...rest: unknown[]): Promise<T> {
    const [options, work] = optionsAndWork<AcquireOptions, (held: Hold) => Promise<T> | T>(rest, OPTIONS.acquire)
    await using held = await this.acquire(name, options)
    const result = await work(held)
    await held.release()
    return result
  }

  /**
   * Runs `work` in a transaction that holds the lock until it ends. The transaction commits when `work` returns, and rolls back when
   * `work` throws. It is READ COMMITTED, may write to fenced tables, and works behind a pooler too.
   *
   * @returns the result of `work`.
   * @throws {UnavailableError} all `max` connections stay in use. {TransactionEndedError} `work` has ended the transaction. Also as
   * {@link acquire}.
   */
  transaction<T>(name: string, work: TransactionWork<T>): Promise<T>
  transaction<T>(name: string, options: TransactionOptions, work: TransactionWork<T>): Promise<T>
  async transaction<T>(name: string, ...rest: unknown[]): Promise<T> {
    const [options, work] = optionsAndWork<TransactionOptions, TransactionWork<T>>(rest, OPTIONS.transaction)
    const { waitMs = Infinity, signal } = options
    checkText('name', name)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    return this.#closing.wait(signal, (stop, begun) => this.#transaction(name, waitMs, stop, begun, work))
  }

  async #transaction<T>(
    name: string,
    waitMs: number,
    signal: AbortSignal,
    begun: () => void,
    work: TransactionWork<T>,
  ): Promise<T> {
    const left = countdown(waitMs)
    // From our turn on the transaction's own connection waits.
    const turn = await this.#queues.ask(name, { kind: 'transaction' }, { waitMs, signal })
    try {
      return await transaction(this.#queues.context, turn, name, left, signal, (trx, hold) => {
        begun()
        return work(trx, hold)
      })
    } finally {
      turn.end()
    }
  }

  /** The holder of a name, and how many wait for it. */
  async get(name: string): Promise<LockState> {
    this.#closing.check()
    checkText('name', name)
    if (this.#queues.has(name)) await this.#shown.enter(name)
    return lockState(this.#database, name, this.#queues)
  }

  /** @deprecated since 0.7: it is called {@link get}. */
  query(name: string): Promise<LockState> {
    return this.get(name)
  }

  /**
   * The names that are held, by leases, connections and transactions, in the order of their code points. A connection or transaction
   * hold of another process is listed 250 ms after it began.
   * @param options.prefix  of the names. @default all
   * @param options.limit  names in the answer, 1–1,000. @default 100
   * @param options.after  the last name of the page before.
   */
  async list(options: Page = {}): Promise<LockState[]> {
    this.#closing.check()
    const page = checkPage(options)
    await this.#shown.enter(page.prefix)
    return listLocks(this.#database, page, this.#queues)
  }

  // ── Verbs that keep nothing in this process: for a holder that lives elsewhere, over HTTP ──

  /**
   * Grants a lease that this process does not renew. Waits at most `waitMs` (default 0). A call with the same `holder` is granted the
   * same lease again, renewed; so a call whose answer was lost can be repeated.
   * @throws {LeaseHeldError | UnavailableError | TypeError | RangeError} as {@link acquire}.
   */
  async grant(name: string, options: AcquireOptions = {}): Promise<Grant> {
    this.#closing.check()
    checkOptions(options, OPTIONS.acquire)
    const { waitMs = 0, signal, holder } = options
    checkText('name', name)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    return (await this.#lease(grantRequest(name, options), holder !== undefined, { waitMs, signal })).grant
  }

  /** Makes a lease last `ttlMs` from now (default: as long as before). @throws {LeaseLostError} it is not held under this token. */
  async renew(name: string, token: bigint, options: { ttlMs?: number | undefined } = {}): Promise<Grant> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    checkOptions(options, OPTIONS.renew)
    const { ttlMs } = options
    if (ttlMs !== undefined) checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
    return this.#leases.renew(name, token, ttlMs ?? null)
  }

  /** Frees a name that is held under this token. @throws {LeaseLostError} it is not, or no longer. */
  async revoke(name: string, token: bigint): Promise<void> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    return this.#leases.revoke(name, token)
  }

  /**
   * Takes a name from its holder. A lease loses its row. A connection or transaction hold loses its connection, and all else that
   * this connection held is lost with it. The holder learns of it as of any loss. Waits at most 10 s for a transaction that is
   * fenced by the hold, whose write is not undone.
   * @returns whether there was a holder.
   * @throws {UnavailableError} a transaction that is fenced by the hold stays open, or the database cannot be reached.
   * @throws {ForbiddenError} the connection belongs to another database role, and this role may not end it.
   */
  async forceRevoke(name: string): Promise<boolean> {
    this.#closing.check()
    checkText('name', name)
    return forceRevoke(this.#queues.context, name)
  }

  /** Deletes the rows of names that nobody has used for a day, at most 1,000. @returns how many. */
  async sweep(): Promise<number> {
    this.#closing.check()
    const [row] = await this.#database.control<{ swept: number }>(sql`select lockstep.sweep() as swept`)
    return row?.swept ?? 0
  }

  /**
   * A part of `lockstep.close()`: releases the leases of this process, as far as that is done when `late` resolves. Connection holds
   * end with the sessions, which `lockstep.close()` ends afterwards.
   */
  async close(late: Promise<void>): Promise<void> {
    this.#closing.close()
    await Promise.all([this.#renewer.close(late), this.#shown.close(late)])
  }

  // Waits until no other first attempt of this process is under way: if it succeeds, this one is refused; if not, this one asks.
  async #firstAttempt(name: string): Promise<void> {
    const attempt = () => this.#queues.firstAttempt(name)
    for (let next = attempt(); next; next = attempt()) await this.#closing.abortable(next)
  }

  async #lease(request: GrantRequest, named: boolean, wait: WaitOptions): Promise<LeaseAnswer> {
    const { name } = request
    if (wait.waitMs === 0) await this.#firstAttempt(name)
    // A holder that may have it already asks at once, before the callers that wait: then it is granted the same again.
    if (named && this.#queues.has(name)) {
      const attempted = new Stopwatch()
      const grant = await this.#leases.grant(request)
      if ('token' in grant) return { grant, attempted }
    }
    return this.#queues.ask(name, { kind: 'lease', request }, wait)
  }
}
