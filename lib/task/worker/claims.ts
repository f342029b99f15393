/**
 * Claims: attempts of workers that run elsewhere, over HTTP and in any language. Nothing is remembered here between two calls.
 *
 * A claim is a fetch and a lease, in one statement. The claimer extends the lease in time (`extend`). If it does not, upkeep finds that the lease has
 * run out, and the job goes to another; before that the claimer may still complete it. Ticks that sleep are told of a lease that
 * ends before their next look. If the answer to a claim is lost, the jobs wait until their leases run out. If the answer to a completion or a failure is lost, the call can be made again. An answer that is
 * too large for what carries it would be lost each time, until the jobs have failed; so what would not fit into it is not fetched.
 */
import { sql } from 'kysely'
import {
  checkInteger,
  checkMs,
  checkOptions,
  checkText,
  exact,
  jsonText,
  known,
  LIMITS,
  onAbort,
  Stopwatch,
  WAIT,
  Waker,
  wrongType,
} from '../../base/index.ts'
import type { Notifier } from '../../database/index.ts'
import { column, list, type Pool } from '../../database/index.ts'
import type { Engine, EngineDb } from '../engine.ts'
import { type AttemptKey, type AttemptStore, leaseLost, TICKS, tokenOf } from '../job/index.ts'
import { byPlace, fromBoss } from '../pgboss/index.ts'
import type { Queues } from '../queue/index.ts'
import { checkId, checkQueue } from '../queue/index.ts'
import type { ReadyJobs } from './ready-jobs.ts'

/** A job that was claimed: run it, then complete or fail it; extend the claim before `expiresAt`. */
export interface Claimed {
  /** The job's id, a UUID; the same in every attempt. */
  id: string
  /** What was sent: JSON. */
  data: unknown
  /** The token of this attempt: ≥ 1, larger than that of any earlier attempt of the job. */
  token: bigint
  /** The number of this attempt: 1 for the first. */
  attempt: number
  /** When the lease runs out, on the database's clock. Until then nobody else gets the job. */
  expiresAt: Date
}

/** Options of `claim`. */
export interface ClaimOptions {
  /** Jobs to claim at most, 1–100. @default 1 */
  limit?: number | undefined
  /** A name of the claimer, 1–255 characters; {@link Job.holder} shows it. */
  holder?: string | undefined
  /** Milliseconds that the lease lasts, 1,000–3,600,000; kept in whole seconds. @default 30_000 */
  leaseMs?: number | undefined
  /** Milliseconds to wait for a job, ≥ 0. @default 0 */
  waitMs?: number | undefined
  /** Ends the wait with its reason. */
  signal?: AbortSignal | undefined
}

const CLAIM = known<ClaimOptions>({ limit: true, holder: true, leaseMs: true, waitMs: true, signal: true })
const EXTEND = known<{ leaseMs?: number }>({ leaseMs: true })
const LIMIT = { min: 1, max: 100 }
const LEASE = { min: 1_000, max: 3_600_000 }
const POLL_MS = { withNotifications: 5_000, without: 250 }
// Ticks come at least as often, and find out by themselves when the next lease ends.
const TICK_MS = 30_000
type Leased = { id: string; expires_at: Date }
type FetchedRow = [id: string, attempt: number, data: unknown]
/** `jobs` is the text of FetchedRow[]; null if they did not fit, and so many do. All leases end at once. */
type ClaimRow = { jobs: string | null; fits: number; expires_at: Date | null }

export interface ClaimParts {
  pool: Pool
  boss: () => Engine
  attempts: AttemptStore
  queues: Queues
  queueNotifier: Notifier<null>
  readyJobs: ReadyJobs
}

export class Claims {
  readonly #parts: ClaimParts
  /** When the ticks that were notified here look again, at the latest: they see what ends later. */
  #ticksAt = 0

  constructor(parts: ClaimParts) {
    this.#parts = parts
  }

  /**
   * Claims jobs, the first ones; fewer than `limit` if there are no more, or if the answer would have over 5 MB
   * (`LIMITS.answerBytes`): claim again. Returns none if there are none, and none came within `waitMs`.
   * @throws {NotFoundError | UnavailableError | TypeError | RangeError} and the `signal`'s reason, when it aborts.
   */
  async claim(queue: string, options: ClaimOptions = {}): Promise<Claimed[]> {
    checkOptions(options, CLAIM)
    const { limit = 1, holder, leaseMs = 30_000, waitMs = 0, signal } = options
    checkQueue(queue)
    checkInteger('limit', limit, LIMIT)
    if (holder !== undefined) checkText('holder', holder)
    checkMs('leaseMs', leaseMs, LEASE)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    await this.#parts.queues.ensure(queue)
    const fetch = () => this.#fetch(queue, limit, leaseMs, holder ?? null)
    return waitMs === 0 ? fetch() : this.#wait(queue, fetch, waitMs, signal)
  }

  /** Completes a job; may be repeated. @throws {LeaseLostError} another attempt runs, or the job ended in another way. */
  async complete(queue: string, id: string, token: bigint, output?: unknown): Promise<void> {
    const attempt = attemptOf(queue, id, token)
    const text = jsonText('output', output ?? null, LIMITS.dataBytes)
    if (await this.#parts.attempts.complete(attempt, text)) return
    if (!(await this.#endedAs(attempt, ['completed']))) throw leaseLost(attempt, GONE)
  }

  /**
   * Fails an attempt; may be repeated. The job is tried again by its retry options.
   * @throws {LeaseLostError} another attempt runs, or the job ended in another way.
   */
  async fail(queue: string, id: string, token: bigint, error: unknown): Promise<void> {
    const attempt = attemptOf(queue, id, token)
    await this.#parts.queues.ensure(queue)
    if (await this.#parts.attempts.fail(attempt, error)) return
    if (!(await this.#endedAs(attempt, ['retry', 'failed']))) throw leaseLost(attempt, GONE)
  }

  /** Makes a claim last `leaseMs` from now. Returns when it runs out, on the database's clock. @throws {LeaseLostError} */
  async extend(
    queue: string,
    id: string,
    token: bigint,
    options: { leaseMs?: number | undefined } = {},
  ): Promise<Date> {
    const attempt = attemptOf(queue, id, token)
    checkOptions(options, EXTEND)
    const { leaseMs = 30_000 } = options
    checkMs('leaseMs', leaseMs, LEASE)
    const [row] = await this.#lease(queue, [attempt], leaseMs, null)
    if (!row) throw leaseLost(attempt, GONE)
    return row.expires_at
  }

  /** Shows how far the attempt is, 0–1, with a note of at most 1,000 characters. @throws {LeaseLostError} */
  async progress(queue: string, id: string, token: bigint, fraction: number, note?: string): Promise<void> {
    await this.#parts.attempts.progress(attemptOf(queue, id, token), fraction, note)
  }

  /** Gives jobs back that nobody will run; this costs no retry. Jobs that are over are left alone. */
  async handBack(queue: string, jobs: { id: string; token: bigint }[]): Promise<void> {
    if (!Array.isArray(jobs)) throw wrongType('jobs', 'an array', jobs)
    const attempts = jobs.map((job) => attemptOf(queue, job?.id, job?.token)) // if one is wrong, none is handed back
    await Promise.all(attempts.map((attempt) => this.#parts.attempts.handBack(attempt)))
  }

  // Whether this attempt was the last, and has ended in this way: then the answer to an earlier call was lost.
  async #endedAs({ queue, id, attempt }: AttemptKey, states: string[]): Promise<boolean> {
    const rows = await this.#parts.pool.run(
      sql`select from lockstep_boss.job
           where name = ${queue} and id = ${id} and retry_count = ${attempt} and state::text = any (${list(states, 'text')})`,
    )
    return rows.length > 0
  }

  // Claims as many jobs, the first ones, as one answer may carry. If there are more, the database says how many that is and has
  // fetched none; if others have taken those meanwhile, even fewer may fit, and a single job always does.
  async #fetch(queue: string, limit: number, leaseMs: number, holder: string | null): Promise<Claimed[]> {
    for (let most = limit; ; ) {
      let claim: ClaimRow = { jobs: '[]', fits: 0, expires_at: null }
      const db = this.#claiming(queue, leaseMs, holder, (row) => {
        claim = row
      })
      await this.#parts
        .boss()
        .fetch(queue, { batchSize: most, includeMetadata: true, db })
        .catch((error) => {
          throw fromBoss(error, queue)
        })
      const { jobs, fits, expires_at: expiresAt } = claim
      if (fits === 0 || (jobs !== null && expiresAt === null)) return []
      if (jobs !== null) {
        this.#leased(leaseMs)
        return (JSON.parse(jobs) as FetchedRow[]).map(([id, attempt, data]) =>
          exact({ id, data, token: tokenOf(attempt), attempt: attempt + 1, expiresAt: expiresAt as Date }),
        )
      }
      most = fits
    }
  }

  // Gets pg-boss's statement instead of the database, and returns no rows to pg-boss: `answered` has them.
  #claiming(queue: string, leaseMs: number, holder: string | null, answered: (row: ClaimRow) => void): EngineDb {
    return {
      executeSql: async (text, values = []) => {
        if (values.length > 0) throw new Error('The statement of a fetch has parameters, which it never had')
        const [row] = await this.#parts.pool.run<ClaimRow>(
          sql`select jobs::text, fits, expires_at
                from lockstep.claim_jobs(${byPlace(text)}, ${LIMITS.answerBytes}, ${queue}, ${leaseMs}, ${holder})`,
        )
        if (row) answered(row)
        return { rows: [] }
      },
    }
  }

  async #lease(queue: string, attempts: AttemptKey[], leaseMs: number, holder: string | null): Promise<Leased[]> {
    const ids = column(attempts, 'uuid', ({ id }) => id)
    const numbers = column(attempts, 'integer', ({ attempt }) => attempt)
    const leased = await this.#parts.pool.run<Leased>(
      sql`select * from lockstep.lease_jobs(${queue}, ${ids}, ${numbers}, ${leaseMs}, ${holder})`,
    )
    this.#leased(leaseMs)
    return leased
  }

  // Notifies the ticks of a lease that ends before they look again.
  #leased(leaseMs: number): void {
    const now = performance.now()
    if (leaseMs < TICK_MS && (this.#ticksAt <= now || now + leaseMs < this.#ticksAt)) {
      this.#ticksAt = now + leaseMs
      void this.#parts.attempts.notify(TICKS) // lost: the regular tick finds it
    }
  }

  // Waits as a worker does (fetch-loop.ts), until the first jobs come.
  async #wait(
    queue: string,
    fetch: () => Promise<Claimed[]>,
    waitMs: number,
    signal?: AbortSignal,
  ): Promise<Claimed[]> {
    const since = new Stopwatch()
    const waker = new Waker()
    const { queueNotifier, readyJobs } = this.#parts
    const unsubscribe = queueNotifier.on(queue, () => waker.wake())
    const off = onAbort(signal, () => waker.wake())
    try {
      for (;;) {
        const jobs = await fetch()
        const leftMs = waitMs - since.elapsed()
        if (jobs.length > 0 || leftMs <= 0) return jobs
        signal?.throwIfAborted()
        const inMs = await readyJobs.nextInMs(queue)
        const pollMs = queueNotifier.session ? POLL_MS.withNotifications : POLL_MS.without
        await waker.wait(Math.min(inMs || pollMs, pollMs, leftMs))
        signal?.throwIfAborted()
      }
    } finally {
      unsubscribe()
      off()
    }
  }
}

const GONE = 'it is over, or another attempt runs'
const MOST = 2n ** 31n

function attemptOf(queue: string, id: string, token: bigint): AttemptKey {
  checkQueue(queue)
  checkId(id)
  if (typeof token !== 'bigint' || token < 1n || token >= 2n ** 63n) throw wrongType('token', 'a bigint ≥ 1', token)
  return { queue, id: id.toLowerCase(), attempt: Number(token > MOST ? MOST : token) - 1 }
}
