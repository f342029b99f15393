/**
 * Attempts for workers that live elsewhere, over HTTP and in any language: the verbs without memory.
 *
 * A claim is a fetch and a lease. Whoever has claimed shows in time that it lives (`extend`), or the job goes to another
 * when upkeep finds the lease run out; it may still complete it before that. The answer to a claim may be lost: then the
 * jobs wait for their leases to run out. The answer to a completion or a failure may be lost: then it can be made again.
 */
import { sql } from 'kysely'
import {
  checkInteger,
  checkMs,
  checkOptions,
  checkText,
  jsonText,
  LIMITS,
  Stopwatch,
  WAIT,
  Waker,
  wrongType,
} from '../../base/index.ts'
import type { Notifier } from '../../database/index.ts'
import { column, list, type Pool } from '../../database/index.ts'
import { type AttemptOf, lost, type Settle, tokenOf } from '../job/index.ts'
import type { Engine } from '../pgboss/index.ts'
import { fromBoss } from '../pgboss/index.ts'
import type { Queues } from '../queue/index.ts'
import { checkId, checkQueue } from '../queue/index.ts'
import type { Lookout } from './fetch-loop.ts'

/** A job that was claimed. */
export interface Claimed {
  id: string
  data: unknown
  /** The token of this attempt: ≥ 1, greater than that of any earlier attempt of the job. */
  token: bigint
  /** 1 for the first. */
  attempt: number
  /** On the database's clock. Until then nobody else gets it. */
  expiresAt: Date
}

export interface ClaimOptions {
  /** Jobs, 1–100. @default 1 */
  limit?: number
  /** Shown to whoever looks at the job. 1–255 characters. */
  holder?: string
  /** 1,000–3,600,000, kept in whole seconds. @default 30_000 */
  leaseMs?: number
  /** Milliseconds to wait for a job, ≥ 0. @default 0 */
  waitMs?: number
  /** Ends the wait. */
  signal?: AbortSignal
}

const LIMIT = { min: 1, max: 100 }
const LEASE = { min: 1_000, max: 3_600_000 }
const POLL_MS = { news: 5_000, none: 250 }
type Leased = { id: string; expires_at: Date }

export interface ClaimParts {
  pool: Pool
  boss: () => Engine
  settle: Settle
  queues: Queues
  news: Notifier<null>
  look: Lookout
}

export class Claims {
  readonly #parts: ClaimParts

  constructor(parts: ClaimParts) {
    this.#parts = parts
  }

  /**
   * Jobs to run, none if there are none, or came while it waited.
   * @throws {NotFoundError | UnavailableError | TypeError | RangeError} and the `signal`'s reason, when it aborts.
   */
  async claim(queue: string, options: ClaimOptions = {}): Promise<Claimed[]> {
    checkOptions(options)
    const { limit = 1, holder, leaseMs = 30_000, waitMs = 0, signal } = options
    checkQueue(queue)
    checkInteger('limit', limit, LIMIT)
    if (holder !== undefined) checkText('holder', holder)
    checkMs('leaseMs', leaseMs, LEASE)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    await this.#parts.queues.ensure(queue)
    const ask = () => this.#fetch(queue, limit, leaseMs, holder ?? null)
    return waitMs === 0 ? ask() : this.#wait(queue, ask, waitMs, signal)
  }

  /** Completes a job. Again is as good as once. @throws {LeaseLostError} another attempt runs, or it is over otherwise. */
  async complete(queue: string, id: string, token: bigint, output?: unknown): Promise<void> {
    const attempt = attemptOf(queue, id, token)
    const text = jsonText('output', output ?? null, LIMITS.dataBytes)
    if (await this.#parts.settle.complete(attempt, text)) return
    if (!(await this.#is(attempt, ['completed']))) throw lost(attempt, GONE)
  }

  /**
   * Fails an attempt: it is tried again as its queue says. Again is as good as once.
   * @throws {LeaseLostError} another attempt runs, or it is over otherwise.
   */
  async fail(queue: string, id: string, token: bigint, error: unknown): Promise<void> {
    const attempt = attemptOf(queue, id, token)
    await this.#parts.queues.ensure(queue)
    if (await this.#parts.settle.fail(attempt, error)) return
    if (!(await this.#is(attempt, ['retry', 'failed']))) throw lost(attempt, GONE)
  }

  /** Makes a claim last `leaseMs` from now. Until when, on the database's clock. @throws {LeaseLostError} */
  async extend(queue: string, id: string, token: bigint, options: { leaseMs?: number } = {}): Promise<Date> {
    const attempt = attemptOf(queue, id, token)
    checkOptions(options)
    const { leaseMs = 30_000 } = options
    checkMs('leaseMs', leaseMs, LEASE)
    const [row] = await this.#lease(queue, [attempt], leaseMs, null)
    if (!row) throw lost(attempt, GONE)
    return row.expires_at
  }

  /** Shows how far it is, 0–1, with a note of at most 1,000 characters. @throws {LeaseLostError} */
  async progress(queue: string, id: string, token: bigint, fraction: number, note?: string): Promise<void> {
    await this.#parts.settle.progress(attemptOf(queue, id, token), fraction, note)
  }

  /** Gives jobs back that were claimed for nobody; they cost no retry. Those that are over are left alone. */
  async handBack(queue: string, jobs: { id: string; token: bigint }[]): Promise<void> {
    if (!Array.isArray(jobs)) throw wrongType('jobs', 'an array', jobs)
    const attempts = jobs.map((job) => attemptOf(queue, job?.id, job?.token)) // all of them right, or none is given back
    await Promise.all(attempts.map((attempt) => this.#parts.settle.handBack(attempt)))
  }

  // Whether this attempt was the last, and ended so: then the answer that said so was lost.
  async #is({ queue, id, attempt }: AttemptOf, states: string[]): Promise<boolean> {
    const rows = await this.#parts.pool.run(
      sql`select from lockstep_boss.job
           where name = ${queue} and id = ${id} and retry_count = ${attempt} and state::text = any (${list(states, 'text')})`,
    )
    return rows.length > 0
  }

  async #fetch(queue: string, limit: number, leaseMs: number, holder: string | null): Promise<Claimed[]> {
    const jobs = await this.#parts
      .boss()
      .fetch(queue, { batchSize: limit, includeMetadata: true })
      .catch((error) => {
        throw fromBoss(error, queue)
      })
    if (jobs.length === 0) return []
    jobs.sort((a, b) => (b.priority ?? 0) - (a.priority ?? 0) || Number(a.createdOn) - Number(b.createdOn))
    const attempts = jobs.map(({ id, retryCount }) => ({ queue, id, attempt: retryCount }))
    const leased = await this.#lease(queue, attempts, leaseMs, holder).catch((error) => {
      // Nobody knows of them; and should this fail too, their heartbeat runs out.
      for (const attempt of attempts) this.#parts.settle.handBack(attempt).catch(() => {})
      throw error
    })
    const leases = new Map(leased.map((row) => [row.id, row.expires_at]))
    return jobs.flatMap(({ id, data, retryCount }) => {
      const expiresAt = leases.get(id) // none: cancelled meanwhile
      return expiresAt ? [{ id, data, token: tokenOf(retryCount), attempt: retryCount + 1, expiresAt }] : []
    })
  }

  #lease(queue: string, attempts: AttemptOf[], leaseMs: number, holder: string | null): Promise<Leased[]> {
    const ids = column(attempts, 'uuid', ({ id }) => id)
    const numbers = column(attempts, 'integer', ({ attempt }) => attempt)
    return this.#parts.pool.run<Leased>(
      sql`select * from lockstep.lease_jobs(${queue}, ${ids}, ${numbers}, ${leaseMs}, ${holder})`,
    )
  }

  // As a worker waits (fetch-loop.ts), but for the first that comes.
  async #wait(queue: string, ask: () => Promise<Claimed[]>, waitMs: number, signal?: AbortSignal): Promise<Claimed[]> {
    const since = new Stopwatch()
    const waker = new Waker()
    const wake = () => waker.wake()
    const unsubscribe = this.#parts.news.on(queue, wake)
    signal?.addEventListener('abort', wake)
    try {
      for (;;) {
        const jobs = await ask()
        const leftMs = waitMs - since.elapsed()
        if (jobs.length > 0 || leftMs <= 0) return jobs
        signal?.throwIfAborted()
        const inMs = await this.#parts.look.ask(queue)
        const pollMs = this.#parts.news.session ? POLL_MS.news : POLL_MS.none
        await waker.wait(Math.min(inMs || pollMs, pollMs, leftMs))
        signal?.throwIfAborted()
      }
    } finally {
      unsubscribe()
      signal?.removeEventListener('abort', wake)
    }
  }
}

const GONE = 'it is over, or was given to another'
const MOST = 2n ** 31n

function attemptOf(queue: string, id: string, token: bigint): AttemptOf {
  checkQueue(queue)
  checkId(id)
  if (typeof token !== 'bigint' || token < 1n || token >= 2n ** 63n) throw wrongType('token', 'a bigint ≥ 1', token)
  return { queue, id: id.toLowerCase(), attempt: Number(token > MOST ? MOST : token) - 1 }
}
