/**
 * A worker: fetches the jobs of one queue, as many as it has places for, and runs them.
 *
 * It fetches again at once while fetches come back full. Otherwise it waits: for news of the queue where there is a direct
 * connection, and for the moment when the next job that waits is due (a delay, a retry); where there is no news it looks
 * once a poll. All workers of a process look together, in one statement, so that an idle process costs one statement a
 * poll, however many queues it works.
 *
 * Looking is not fetching: a policy can keep back jobs that look ready. When a fetch has been in vain it is not repeated
 * before the next poll, or until something has changed.
 *
 * TO STOP is: fetch no more; let what runs end within the grace; abort its signals; give back what has not ended a moment
 * later. What is given back is ready at once, for whoever works the queue.
 */

import { sql } from 'kysely'
import { batched, NotFoundError, Stopwatch, Waker } from '../../base/index.ts'
import type { Notifier } from '../../database/index.ts'
import { column, list, type Pool } from '../../database/index.ts'
import type { Engine, FetchedJob } from '../pgboss/index.ts'
import { fromBoss } from '../pgboss/index.ts'
import type { Definition, Queues } from '../queue/index.ts'
import { type Fate, Running, type RunningParts } from './attempt.ts'

export interface WorkerParts extends RunningParts {
  pool: Pool
  boss: () => Engine
  queues: Notifier<null>
  look: Lookout
  known: Queues
}

// Fetched at a time, and by how many besides the first. Of raw pg-boss with four loops of 100: alone 0.8, so 0.94.
const BATCH = 200
const HELPERS = 1
const POLL_MS = { news: 5_000, none: 1_000 }
const SETTLE_MS = 500

export class Loop {
  readonly #parts: WorkerParts
  readonly #definition: Definition
  readonly #queue: string
  readonly #running = new Set<Running>()
  readonly #waker = new Waker()
  readonly #unsubscribe: () => void
  readonly #fates: Record<Fate, number> = { completed: 0, failed: 0, 'handed back': 0, lost: 0 }
  /** Ends when there is nothing to do, instead of waiting. */
  readonly #once: boolean
  readonly #helpers = new Set<Promise<void>>()
  /** Places that a fetch under way may fill. */
  #asked = 0
  #stopping = false
  #free = Promise.withResolvers<void>()
  readonly #ended: Promise<void>

  constructor(parts: WorkerParts, definition: Definition, { queue = definition.name, once = false } = {}) {
    this.#parts = parts
    this.#definition = definition
    this.#queue = queue
    this.#once = once
    this.#unsubscribe = once ? () => {} : parts.queues.on(queue, () => this.#waker.wake())
    this.#ended = this.#run().finally(this.#unsubscribe)
  }

  /** What became of the jobs that it ran. */
  get fates(): Readonly<Record<Fate, number>> {
    return this.#fates
  }

  /** Resolves when it has stopped, or with `once`, when there is nothing to do any more; and nothing runs. */
  get ended(): Promise<void> {
    return this.#ended
  }

  /**
   * Resolves when nothing runs here any more.
   * @param graceMs   for which what runs may go on.
   * @param settleMs  for a handler that heeds its signal to say so.
   */
  async stop(graceMs: number, why: string, settleMs = SETTLE_MS): Promise<void> {
    this.#stopping = true
    this.#waker.wake()
    this.#free.resolve()
    const idle = this.#ended
    if (await within(idle, graceMs)) return
    for (const running of this.#running) running.interrupt(why)
    if (await within(idle, settleMs)) return
    for (const running of this.#running) running.giveBack()
    await idle
  }

  // Whether one job that runs may keep others back, so that its end is worth a fetch.
  get #exclusive(): boolean {
    const { policy = 'standard', groupConcurrency } = this.#definition.options
    return policy !== 'standard' || groupConcurrency !== undefined
  }

  async #run(): Promise<void> {
    let vain = false
    let pauseMs = 100
    let failure: { error: unknown } | undefined
    while (!this.#stopping && !failure) {
      if (this.#room <= 0) {
        await this.#free.promise
        continue
      }
      let full = false
      let fetched = 0
      try {
        ;({ full, fetched } = await this.#fetch())
        pauseMs = 100
      } catch (error) {
        if (this.#once) failure = { error }
        // A worker's own queue is deleted with it when it is taken for dead, and made anew when it shows itself (workers.ts).
        else if (!(error instanceof NotFoundError && this.#queue !== this.#definition.name)) this.#parts.onError(error)
        if (!failure) await this.#waker.wait(pauseMs)
        pauseMs = Math.min(pauseMs * 2, 5_000)
        continue
      }
      if (full) this.#helpOut()
      else if (!this.#once) vain = await this.#wait(vain && fetched === 0)
      else if (this.#running.size > 0)
        await this.#free.promise // what ends may let another one run
      else if (fetched === 0) break
    }
    await Promise.all([...this.#helpers, ...[...this.#running].map(({ fate }) => fate)])
    if (failure) throw failure.error
  }

  // While there is plenty several fetch side by side: the database finds the next jobs while the last ones are ended.
  #helpOut(): void {
    if (this.#helpers.size >= HELPERS || this.#room <= 0) return
    const helper = this.#help().finally(() => this.#helpers.delete(helper))
    this.#helpers.add(helper)
  }

  async #help(): Promise<void> {
    while (!this.#stopping) {
      if (this.#room <= 0) await this.#free.promise
      else if (!(await this.#fetch().catch(() => ({ full: false }))).full) break // the others hear what is wrong
    }
  }

  /** How many may be fetched now. */
  get #room(): number {
    const { concurrency = 5 } = this.#definition.options
    return Math.min(concurrency - this.#running.size - this.#asked, BATCH)
  }

  // Until there may be something to fetch. Whether that is only what looks ready: if that is in vain, it need not be asked
  // for before the next poll.
  async #wait(vain: boolean): Promise<boolean> {
    for (let first = true; !this.#stopping; first = false) {
      const pollMs = this.#parts.queues.session ? POLL_MS.news : POLL_MS.none
      const inMs = await this.#parts.look.ask(this.#queue).catch(() => null)
      if (inMs === 0 && !(vain && first)) return true
      // all queues of a process at the same instants, so that they share a statement
      const untilPoll = pollMs - (performance.now() % pollMs)
      if (await this.#waker.wait(inMs ? Math.min(inMs, untilPoll) : untilPoll)) return false
    }
    return false
  }

  async #fetch(): Promise<{ full: boolean; fetched: number }> {
    const room = this.#room
    this.#asked += room
    try {
      const fetched = await this.#fetchSome(room)
      return { full: fetched === room, fetched }
    } finally {
      this.#asked -= room
    }
  }

  async #fetchSome(room: number): Promise<number> {
    const { groupConcurrency } = this.#definition.options
    const { boss, known } = this.#parts
    await known.ensure(this.#queue)
    const asked = new Stopwatch()
    const options = { batchSize: room, ...(groupConcurrency !== undefined && { groupConcurrency }) }
    const jobs: FetchedJob[] = await boss()
      .fetch(this.#queue, options)
      .catch((error) => {
        const failure = fromBoss(error, this.#queue)
        if (failure instanceof NotFoundError) known.forget(this.#queue)
        throw failure
      })
    await this.#unlease(jobs)
    for (const job of jobs) {
      if (this.#stopping) {
        const attempt = { queue: this.#queue, id: job.id, attempt: job.retryCount }
        await this.#parts.settle.handBack(attempt).catch(this.#parts.onError)
        continue
      }
      const running = new Running(this.#parts, this.#definition, this.#queue, job, asked)
      this.#running.add(running)
      void running.fate.then((fate) => {
        this.#fates[fate] += 1
        this.#running.delete(running)
        if (this.#exclusive) this.#waker.wake()
        this.#free.resolve()
        this.#free = Promise.withResolvers()
      })
    }
    return jobs.length
  }

  // A lease of another length, from a claim before, is not for a worker that shows all the time that it lives.
  async #unlease(jobs: FetchedJob[]): Promise<void> {
    const again = jobs.filter(({ retryCount }) => retryCount > 0)
    if (again.length === 0) return
    const ids = column(again, 'uuid', ({ id }) => id)
    const own = this.#parts.pool.run<{ id: string; heartbeat: number | null }>(
      sql`select * from lockstep.unlease_jobs(${this.#queue}, ${ids})`,
    )
    // they are ours already: should this fail, they run all the same, with the heartbeat that they have
    for (const { id, heartbeat } of await own.catch(() => [])) {
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

/** When the next job of a queue may be fetched; those who ask at a time ask together. */
export class Lookout {
  readonly #ask: (queue: string) => Promise<number | null>

  constructor(pool: Pool) {
    this.#ask = batched(
      async (queues) => {
        const rows = await pool.run<{ queue: string; in_ms: number | null }>(
          sql`select * from lockstep.ready_jobs(${list(queues, 'text')})`,
        )
        return rows.map(({ in_ms }) => in_ms)
      },
      (queue) => queue,
      1_000,
    )
  }

  /** Milliseconds, 0: now; null: none waits. */
  ask(queue: string): Promise<number | null> {
    return this.#ask(queue)
  }
}
