/**
 * Locks: three ways to hold a name, which all exclude each other.
 *
 * | | lives until | cost |
 * |---|---|---|
 * | `acquire(name)` | release, or this process or its connection dies | a round trip, nothing written |
 * | `acquire(name, { ttlMs })` | release, or `ttlMs` without renewal | a row, kept by renewals |
 * | `transaction(name, work)` | the transaction ends | a round trip in the transaction |
 *
 * The first needs a connection of one's own. Where there is none, behind a transaction pooler, it is a lease with the
 * default ttl; `held.kind` tells. What is promised of a hold is told in lease/leases.ts, who is served when in wait-queue.ts.
 */
import { sql } from 'kysely'
import type { Closing } from '../base/index.ts'
import {
  checkMs,
  checkOptions,
  checkText,
  checkToken,
  ForbiddenError,
  freshHolder,
  LeaseHeldError,
  LIMITS,
  metaText,
  optionsAndWork,
  Stopwatch,
  WAIT,
} from '../base/index.ts'
import type { Database, SessionPool } from '../database/index.ts'
import { countdown, sharedSession } from '../database/index.ts'
import {
  type Grant,
  type GrantRequest,
  type Hold,
  LeaseHold,
  Leases,
  type LockState,
  listHeld,
  lockState,
  Renewer,
} from '../lease/index.ts'
import type { Contender } from './contender.ts'
import { type TransactionWork, transaction } from './transaction.ts'
import type { Desk } from './wait-queue.ts'
import { Line } from './wait-queue.ts'

export interface TryOptions {
  /**
   * Hold by a lease of so many milliseconds, 1,000–3,600,000, renewed until released. Left out: hold by this process's
   * connection, or where there can be none by a lease of 15,000.
   */
  ttlMs?: number
  /**
   * Who holds: 1–255 characters. Two calls with the same holder are one holder: the second is granted the same lease.
   * @default a fresh one, so that every call is a contender of its own
   */
  holder?: string
  /** JSON of at most 4 KiB that `query` shows. */
  meta?: unknown
}

export interface AcquireOptions extends TryOptions {
  /** Milliseconds to wait while somebody else holds, ≥ 0. @default Infinity */
  waitMs?: number
  /** Ends the wait: the call rejects with `signal.reason`. After the grant it means nothing. */
  signal?: AbortSignal
}

export interface TransactionOptions {
  /** Milliseconds to wait while somebody else holds, or all `max` connections are in use, ≥ 0. @default Infinity */
  waitMs?: number
  /** Ends the wait: the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

export class Locks {
  readonly #database: Database
  readonly #leases: Leases
  readonly #renewer = new Renewer()
  readonly #desk: Desk
  readonly #closing: Closing

  constructor(database: Database, sessions: SessionPool, closing: Closing) {
    this.#database = database
    this.#leases = new Leases(database)
    this.#desk = { database, leases: this.#leases, sessions, lines: new Map() }
    this.#closing = closing
    const { signal } = closing
    signal.addEventListener('abort', () => {
      for (const line of this.#desk.lines.values()) line.close(signal.reason)
    })
  }

  /**
   * Acquires the lock, waiting while another holder has it, first come first served.
   *
   * @param name  1–255 characters, no control characters; shared by all contenders.
   * @returns the hold, with a `token` greater than any before it of this name.
   * @throws {LeaseHeldError} still held after `waitMs`.
   * @throws {UnavailableError} the database cannot be reached.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   * @see etcd client/v3/concurrency/mutex.go · Kleppmann, "How to do distributed locking", 2016 (fencing)
   */
  async acquire(name: string, options: AcquireOptions = {}): Promise<Hold> {
    this.#closing.check()
    checkOptions(options)
    const { waitMs = Infinity, signal, ttlMs } = options
    checkText('name', name)
    checkMs('waitMs', waitMs, WAIT)
    const ask = request(name, options)
    signal?.throwIfAborted()
    const { sessions, lines } = this.#desk
    // Without a wait where none is needed: who calls first shall stand in line first.
    const leased = ttlMs !== undefined || this.#database.pooled
    const left = countdown(waitMs)
    const shared = () => this.#closing.abortable(sharedSession(sessions, left, signal))
    let direct = leased ? null : (sessions.current ?? (await shared()))
    if (direct && waitMs === 0) await this.#settled(name)
    // Where all connection holds together have as many locks of the server as they may, the next one is a lease.
    while (direct && !direct.hasCapacity) {
      if (!(await direct.checkCapacity())) direct = null
      else if (waitMs === 0) await this.#settled(name)
    }
    signal?.throwIfAborted()
    if (!direct) {
      const { grant, attempted } = await this.#lease(ask, options.holder !== undefined, waitMs, signal)
      const hold = new LeaseHold(this.#database, this.#leases, this.#renewer, grant, ask.ttlMs, attempted)
      if (!this.#closing.closed) return hold
      await hold.release().catch(() => {})
      throw this.#closing.signal.reason
    }
    this.#closing.check()
    const hold = await this.#wait<Hold>(name, waitMs > 0 ? Math.max(left(), 1) : 0, signal, (granted, failed) => {
      const contender: Contender = {
        kind: 'connection',
        holder: ask.holder,
        meta: options.meta,
        patient: waitMs > 0,
        granted,
        failed,
      }
      const line = lines.get(name)
      if (line && waitMs > 0) line.join(contender)
      else if (!line) Line.open(this.#desk, name, contender, direct)
      else failed(new LeaseHeldError(name, 0))
      return contender
    })
    if (!hold) throw new LeaseHeldError(name, waitMs)
    return hold
  }

  /**
   * Acquires the lock if nobody has it and nobody waits for it.
   * @returns the hold, or `null`: an expected refusal is an answer.
   * @throws {UnavailableError | TypeError | RangeError} as {@link acquire}.
   */
  async tryAcquire(name: string, options: TryOptions = {}): Promise<Hold | null> {
    try {
      return await this.acquire(name, { ...options, waitMs: 0 })
    } catch (error) {
      if (error instanceof LeaseHeldError) return null
      throw error
    }
  }

  /**
   * Runs `work` under the lock and releases it, also when `work` throws.
   * @returns what `work` returned.
   * @throws {LeaseLostError} `work` ended well, but the hold had been lost before; and as {@link acquire}.
   */
  using<T>(name: string, work: (held: Hold) => Promise<T> | T): Promise<T>
  using<T>(name: string, options: AcquireOptions, work: (held: Hold) => Promise<T> | T): Promise<T>
  async using<T>(name: string, ...rest: unknown[]): Promise<T> {
    const [options, work] = optionsAndWork<AcquireOptions, (held: Hold) => Promise<T> | T>(rest)
    await using held = await this.acquire(name, options)
    const result = await work(held)
    await held.release()
    return result
  }

  /**
   * Runs `work` in a transaction that holds the lock until it ends; committed when `work` returns, rolled back when it
   * throws. READ COMMITTED. May write to fenced tables. Works everywhere, also behind a pooler.
   *
   * @returns what `work` returned.
   * @throws as {@link acquire}; {UnavailableError} all `max` stay in use; {TransactionEndedError} `work` has ended it.
   */
  transaction<T>(name: string, work: TransactionWork<T>): Promise<T>
  transaction<T>(name: string, options: TransactionOptions, work: TransactionWork<T>): Promise<T>
  async transaction<T>(name: string, ...rest: unknown[]): Promise<T> {
    const [options, work] = optionsAndWork<TransactionOptions, TransactionWork<T>>(rest)
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
    // The line tells when it is our turn in this process; from there on the transaction's own connection waits.
    const turn = await this.#wait<() => void>(name, waitMs, signal, (granted, failed) => {
      const enter = () => new Promise<void>((over) => granted(over))
      const contender: Contender = { kind: 'transaction', enter, failed }
      const line = this.#desk.lines.get(name)
      if (!line) Line.open(this.#desk, name, contender)
      else if (waitMs > 0) line.join(contender)
      else failed(new LeaseHeldError(name, 0))
      return contender
    })
    if (!turn) throw new LeaseHeldError(name, waitMs)
    try {
      return await transaction(this.#desk, name, left, signal, (trx, hold) => {
        begun()
        return work(trx, hold)
      })
    } finally {
      turn()
    }
  }

  /** Who has a name and how many wait. One statement. */
  async query(name: string): Promise<LockState> {
    this.#closing.check()
    checkText('name', name)
    return lockState(this.#database, name, this.#desk.lines.get(name)?.length ?? 0, this.#desk.sessions.waitingPids)
  }

  /**
   * Names held by a lease, or by a connection that a fence has asked for, in the order of their code points.
   * @param options.limit  1–1,000. @default 100
   * @param options.after  the last name of the page before.
   */
  async list(options: { prefix?: string; limit?: number; after?: string } = {}): Promise<Omit<LockState, 'waiting'>[]> {
    this.#closing.check()
    return listHeld(this.#database, options)
  }

  // ── The verbs without memory: for a holder that lives elsewhere, over HTTP ──

  /**
   * Grants a lease that nobody renews by itself; waits at most `waitMs` (default 0). The same `holder` again gets the
   * same grant, renewed: so a call whose answer was lost can be made again.
   * @throws {LeaseHeldError | UnavailableError | TypeError | RangeError} as {@link acquire}.
   */
  async grant(name: string, options: AcquireOptions = {}): Promise<Grant> {
    this.#closing.check()
    checkOptions(options)
    const { waitMs = 0, signal, holder } = options
    checkText('name', name)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    return (await this.#lease(request(name, options), holder !== undefined, waitMs, signal)).grant
  }

  /** Makes a lease last `ttlMs` (default: as before) from now. @throws {LeaseLostError} not held under this token. */
  async renew(name: string, token: bigint, options: { ttlMs?: number } = {}): Promise<Grant> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    checkOptions(options)
    const { ttlMs } = options
    if (ttlMs !== undefined) checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
    return this.#leases.renew(name, token, ttlMs ?? null)
  }

  /** Frees a name held under this token. @throws {LeaseLostError} not held under it, or no longer. */
  async revoke(name: string, token: bigint): Promise<void> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    return this.#leases.revoke(name, token)
  }

  /**
   * Takes a name from whoever has it: a lease loses its row, a connection or transaction hold its connection, and with
   * it all else that this connection held. The one who had it is told as of any loss. Waits at most 10 s for a transaction
   * that is fenced by the hold: its write is not undone.
   * @returns whether somebody had it.
   * @throws {UnavailableError} a transaction fenced by it is still open, or the database cannot be reached.
   * @throws {ForbiddenError} the connection is another database role's, and this one may not end it.
   */
  async forceRevoke(name: string): Promise<boolean> {
    this.#closing.check()
    checkText('name', name)
    const { outcome } = await this.#leases.retryWhileBusy(async () => {
      const [row] = await this.#database.control<{ outcome: string }>(
        sql`select lockstep.force_revoke(${name}) as outcome`,
      )
      return { outcome: row?.outcome ?? 'none' }
    })
    if (outcome === 'forbidden') {
      throw new ForbiddenError(
        `${JSON.stringify(name)} is held by a connection of another database role, which this one may not end: grant it pg_signal_backend, or membership of that role`,
      )
    }
    return outcome === 'forced'
  }

  /** Deletes rows of names that nobody used for a day, at most 1,000. @returns how many. */
  async sweep(): Promise<number> {
    this.#closing.check()
    const [row] = await this.#database.control<{ swept: number }>(sql`select lockstep.sweep() as swept`)
    return row?.swept ?? 0
  }

  /**
   * A part of `lockstep.close()`, which ends the sessions afterwards, and with them what is held by connection. Releases the
   * leases of this process, as far as that is done when `late` resolves.
   */
  async close(late: Promise<void>): Promise<void> {
    this.#closing.close()
    await this.#renewer.close(late)
  }

  // Another try of this process is under way: only if it has success does it answer a second one too.
  async #settled(name: string): Promise<void> {
    for (let line = this.#desk.lines.get(name); line?.opened; line = this.#desk.lines.get(name)) {
      await this.#closing.abortable(line.opened)
    }
  }

  async #lease(ask: GrantRequest, named: boolean, waitMs: number, signal: AbortSignal | undefined) {
    const { lines, leases } = this.#desk
    const { name } = ask
    if (waitMs === 0) await this.#settled(name)
    // A holder that may have it already asks at once, whoever waits: then it is granted the same again.
    if (named && lines.has(name)) {
      const attempted = new Stopwatch()
      const grant = await leases.grant(ask)
      if ('token' in grant) return { grant, attempted }
    }
    const patient = waitMs > 0
    const granted = await this.#wait<{ grant: Grant; attempted: Stopwatch }>(
      name,
      waitMs,
      signal,
      (granted, failed) => {
        const contender = {
          kind: 'lease' as const,
          ask,
          patient,
          granted: (grant: Grant, attempted: Stopwatch) => granted({ grant, attempted }),
          failed,
        }
        const line = lines.get(name)
        if (!line) Line.open(this.#desk, name, contender)
        else if (patient) line.join(contender)
        else failed(new LeaseHeldError(name, 0))
        return contender
      },
    )
    if (!granted) throw new LeaseHeldError(name, waitMs)
    return granted
  }

  // Puts a contender in line; undefined when the wait ran out.
  #wait<T>(
    name: string,
    waitMs: number,
    signal: AbortSignal | undefined,
    enlist: (granted: (result: T) => void, failed: (error: unknown) => void) => Contender,
  ): Promise<T | undefined> {
    if (signal?.aborted) return Promise.reject(signal.reason) // it would not call back any more
    // Most calls can only be granted or refused; they shall not pay for what ends a wait.
    if (!signal && (waitMs === 0 || waitMs === Infinity))
      return new Promise((resolve, reject) => enlist(resolve, reject))
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined
      const finish = (settle: () => void) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', aborted)
        settle()
      }
      const leave = (settle: () => void) => {
        this.#desk.lines.get(name)?.leave(contender)
        finish(settle)
      }
      const aborted = () => leave(() => reject(signal?.reason))
      if (waitMs > 0 && waitMs < 2 ** 31) timer = setTimeout(() => leave(() => resolve(undefined)), waitMs)
      signal?.addEventListener('abort', aborted)
      const contender = enlist(
        (result) => finish(() => resolve(result)),
        (error) => finish(() => reject(error)),
      )
    })
  }
}

function request(name: string, options: TryOptions): GrantRequest {
  const { ttlMs = LIMITS.ttlMs.default, holder = freshHolder(), meta } = options
  checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
  if (options.holder !== undefined) checkText('holder', holder)
  return { name, holder, ttlMs, meta: metaText(meta) }
}
