/**
 * A fetch loop: fetches the jobs of one queue, as many at a time as it has free slots, and runs them.
 *
 * While fetches come back full it fetches again at once. Otherwise it waits: for a notification of the queue, if there is a direct
 * connection, and until the next job is due (a delay, a retry). Without notifications it asks once a poll interval. All loops of a
 * process ask together, in one statement: an idle process costs one statement a poll interval, however many queues it works.
 *
 * To ask is not to fetch: a job that looks ready may be kept back by its queue's policy. A fetch that returned nothing is not
 * repeated before the next poll, or before something has changed.
 *
 * STOPPING is: fetch no more; let what runs end within the grace; abort its signals; half a second later hand back what has not
 * ended. What is handed back is ready at once, for any worker of the queue.
 */

import { sql } from 'kysely'
import { BackoffDelays, NotFoundError, Stopwatch, Waker } from '../../base/index.ts'
import type { Notifier } from '../../database/index.ts'
import { column, type Pool } from '../../database/index.ts'
import type { Engine, FetchedJob } from '../engine.ts'
import { fetching, fromBoss } from '../pgboss/index.ts'
import type { Definition, Queues } from '../queue/index.ts'
import { type AttemptParts, type AttemptResult, RunningAttempt } from './attempt.ts'
import type { ReadyJobs } from './ready-jobs.ts'

export interface WorkerParts extends AttemptParts {
  pool: Pool
  boss: () => Engine
  queues: Queues
  queueNotifier: Notifier<null>
  readyJobs: ReadyJobs
}

// Jobs in one fetch, and fetches beside the first. Beside pg-boss alone with four loops of 100: without a helper 0.8 of its rate,
// with one 0.94.
const MAX_BATCH = 200
const MAX_HELPERS = 1
const POLL_MS = { withNotifications: 5_000, without: 1_000 }
const SETTLE_MS = 500

export class FetchLoop {
  readonly #parts: WorkerParts
  readonly #definition: Definition
  readonly #queue: string
  readonly #running = new Set<RunningAttempt>()
  readonly #waker = new Waker()
  readonly #unsubscribe: () => void
  readonly #results: Record<AttemptResult, number> = { completed: 0, failed: 0, 'handed back': 0, lost: 0 }
  /** Ends when there is nothing to do, instead of waiting. */
  readonly #once: boolean
  readonly #helpers = new Set<Promise<void>>()
  /** Slots that fetches under way may fill. */
  #reserved = 0
  #stopping = false
  #slotFreed = Promise.withResolvers<void>()
  readonly #ended: Promise<void>

  constructor(parts: WorkerParts, definition: Definition, { queue = definition.name, once = false } = {}) {
    this.#parts = parts
    this.#definition = definition
    this.#queue = queue
    this.#once = once
    this.#unsubscribe = once ? () => {} : parts.queueNotifier.on(queue, () => this.#waker.wake())
    this.#ended = this.#run().finally(this.#unsubscribe)
  }

  /** How many attempts ended, by how they ended. */
  get results(): Readonly<Record<AttemptResult, number>> {
    return this.#results
  }

  /** Resolves when the loop has stopped and nothing runs. With `once` it stops when there is nothing more to do. */
  get ended(): Promise<void> {
    return this.#ended
  }

  /**
   * Resolves when nothing runs here any more.
   * @param graceMs   how long what runs may go on.
   * @param settleMs  how long handlers may take to stop after their signals have aborted.
   */
  async stop(graceMs: number, why: string, settleMs = SETTLE_MS): Promise<void> {
    this.#stopping = true
    this.#waker.wake()
    this.#slotFreed.resolve()
    const idle = this.#ended
    if (await within(idle, graceMs)) return
    for (const attempt of this.#running) attempt.interrupt(why)
    if (await within(idle, settleMs)) return
    for (const attempt of this.#running) attempt.handBack()
    await idle
  }

  // Whether a job that runs can keep others back. Then its end is a reason to fetch.
  get #exclusive(): boolean {
    const { policy = 'standard', groupConcurrency } = this.#definition.options
    return policy !== 'standard' || groupConcurrency !== undefined
  }

  async #run(): Promise<void> {
    const delays = new BackoffDelays({ firstMs: 100, mostMs: 5_000 })
    let inVain = false
    let failure: { error: unknown } | undefined
    while (!this.#stopping && !failure) {
      if (this.#freeSlots <= 0) {
        await this.#slotFreed.promise
        continue
      }
      let full = false
      let fetched = 0
      try {
        ;({ full, fetched } = await this.#fetch())
        delays.reset()
      } catch (error) {
        if (this.#once) failure = { error }
        // A worker that is taken for dead loses its own queue, and makes it again at its next heartbeat (workers.ts).
        else if (!(error instanceof NotFoundError && this.#queue !== this.#definition.name)) this.#parts.onError(error)
        if (!failure) await this.#waker.wait(delays.next())
        continue
      }
      if (full) this.#addHelper()
      else if (!this.#once) inVain = await this.#wait(inVain && fetched === 0)
      else if (this.#running.size > 0)
        await this.#slotFreed.promise // the end of one job may make another one ready
      else if (fetched === 0) break
    }
    await Promise.all([...this.#helpers, ...[...this.#running].map(({ result }) => result)])
    if (failure) throw failure.error
  }

  // While there are many jobs, two fetch side by side: the database finds the next jobs while the last ones are completed.
  #addHelper(): void {
    if (this.#helpers.size >= MAX_HELPERS || this.#freeSlots <= 0) return
    const helper = this.#help().finally(() => this.#helpers.delete(helper))
    this.#helpers.add(helper)
  }

  async #help(): Promise<void> {
    while (!this.#stopping) {
      if (this.#freeSlots <= 0) await this.#slotFreed.promise
      else if (!(await this.#fetch().catch(() => ({ full: false }))).full) break // the main loop reports what is wrong
    }
  }

  /** How many jobs may be fetched now. */
  get #freeSlots(): number {
    const { concurrency = 5 } = this.#definition.options
    return Math.min(concurrency - this.#running.size - this.#reserved, MAX_BATCH)
  }

  // Waits until there may be something to fetch. Returns true if a job only looks ready: if the fetch is in vain then, it is not
  // repeated before the next poll.
  async #wait(inVain: boolean): Promise<boolean> {
    for (let first = true; !this.#stopping; first = false) {
      const pollMs = this.#parts.queueNotifier.session ? POLL_MS.withNotifications : POLL_MS.without
      const inMs = await this.#parts.readyJobs.nextInMs(this.#queue).catch(() => null)
      if (inMs === 0 && !(inVain && first)) return true
      // all queues of a process at the same instants, so that they share a statement
      const untilPoll = pollMs - (performance.now() % pollMs)
      if (await this.#waker.wait(inMs ? Math.min(inMs, untilPoll) : untilPoll)) return false
    }
    return false
  }

  async #fetch(): Promise<{ full: boolean; fetched: number }> {
    const slots = this.#freeSlots
    this.#reserved += slots
    try {
      const fetched = await this.#fetchSome(slots)
      return { full: fetched === slots, fetched }
    } finally {
      this.#reserved -= slots
    }
  }

  async #fetchSome(slots: number): Promise<number> {
    const { groupConcurrency } = this.#definition.options
    const { attempts, boss, onError, pool, queues } = this.#parts
    await queues.ensure(this.#queue)
    const sent = new Stopwatch()
    const options = {
      batchSize: slots,
      ...(groupConcurrency !== undefined && { groupConcurrency }),
      db: fetching(pool),
    }
    const jobs: FetchedJob[] = await boss()
      .fetch(this.#queue, options)
      .catch((error) => {
        const failure = fromBoss(error, this.#queue)
        if (failure instanceof NotFoundError) queues.forget(this.#queue)
        throw failure
      })
    await this.#restoreHeartbeats(jobs)
    for (const job of jobs) {
      if (this.#stopping) {
        await attempts.handBack({ queue: this.#queue, id: job.id, attempt: job.retryCount }).catch(onError)
        continue
      }
      const attempt = new RunningAttempt(this.#parts, this.#definition, this.#queue, job, sent)
      this.#running.add(attempt)
      void attempt.result.then((result) => {
        this.#results[result] += 1
        this.#running.delete(attempt)
        if (this.#exclusive) this.#waker.wake()
        this.#slotFreed.resolve()
        this.#slotFreed = Promise.withResolvers()
      })
    }
    return jobs.length
  }

  // A claim over HTTP gives a job a heartbeat of the length of its lease. Here the job gets its own heartbeat back.
  async #restoreHeartbeats(jobs: FetchedJob[]): Promise<void> {
    const again = jobs.filter(({ retryCount }) => retryCount > 0)
    if (again.length === 0) return
    const ids = column(again, 'uuid', ({ id }) => id)
    const restored = this.#parts.pool.run<{ id: string; heartbeat: number | null }>(
      sql`select * from lockstep.unlease_jobs(${this.#queue}, ${ids})`,
    )
    // The jobs are fetched already. If this fails they run all the same, with the heartbeat that they have.
    for (const { id, heartbeat } of await restored.catch(() => [])) {
      const job = again.find((each) => each.id === id)
      if (job) job.heartbeatSeconds = heartbeat
    }
  }
}

async function within(ended: Promise<void>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(resolve, ms, false)
  })
  const done = await Promise.race([ended.then(() => true), late])
  clearTimeout(timer)
  return done
}
