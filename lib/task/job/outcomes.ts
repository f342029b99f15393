/**
 * Waiting for jobs to be over.
 *
 * However many wait in this process, they are looked at in one statement: when the database tells that a job is worth a
 * look, and now and then by themselves, for what is told can be lost, and a job that upkeep fails tells nobody. What is
 * told is only that: the outcome is read from the job, so that nobody can forge it.
 */
import { sql } from 'kysely'
import { NotFoundError, Waker } from '../../base/index.ts'
import type { Notifier } from '../../database/index.ts'
import { list, type Pool } from '../../database/index.ts'

/** How a job ended. */
export interface Outcome {
  id: string
  state: 'completed' | 'failed' | 'cancelled'
  output: unknown
}

interface Waiter {
  queue: string
  id: string
  resolve: (outcome: Outcome) => void
  reject: (error: unknown) => void
}
interface Row {
  i: string
  state: string | null
  output: unknown
}

/** With news: in case it was lost. Without: at first, and at most. */
const LOOK_AGAIN_MS = 1_000
const POLL_MS = { first: 20, most: 500 }

export class Results {
  readonly #pool: Pool
  readonly #jobs: Notifier<null>
  readonly #waiting = new Set<Waiter>()
  readonly #waker = new Waker()
  #looking = false
  #closed: unknown

  constructor(pool: Pool, jobs: Notifier<null>) {
    this.#pool = pool
    this.#jobs = jobs
  }

  /**
   * Hears of a job from now on: begun before it is sent, so that nothing is missed. When it is sent, `wait` for it; `end` in
   * any case.
   */
  hear(queue: string, id: string): { wait: () => Promise<Outcome>; end: () => void } {
    const { promise, resolve, reject } = Promise.withResolvers<Outcome>()
    const waiter = { queue, id, resolve, reject }
    let heard = false
    const unsubscribe = this.#jobs.on(id, () => {
      heard = true
      this.#waker.wake()
    })
    const wait = () => {
      if (this.#closed) throw this.#closed
      this.#waiting.add(waiter)
      if (heard) this.#waker.wake()
      if (!this.#looking) void this.#look()
      return promise
    }
    const end = () => {
      unsubscribe()
      this.#waiting.delete(waiter)
      if (this.#waiting.size === 0) this.#waker.wake()
    }
    return { wait, end }
  }

  /** Rejects whoever waits. */
  close(reason: unknown): void {
    this.#closed = reason
    for (const { reject } of this.#waiting) reject(reason)
    this.#waiting.clear()
    this.#waker.wake()
  }

  async #look(): Promise<void> {
    this.#looking = true
    for (let pauseMs = POLL_MS.first; this.#waiting.size > 0; ) {
      const most = this.#jobs.session ? LOOK_AGAIN_MS : POLL_MS.most
      if (await this.#waker.wait(this.#jobs.session ? most : pauseMs)) pauseMs = POLL_MS.first
      else pauseMs = Math.min(pauseMs * 2, most)
      const waiters = [...this.#waiting]
      if (waiters.length === 0) break
      try {
        for (const { i, state, output } of await this.#rows(waiters)) {
          const waiter = waiters[Number(i) - 1] as Waiter
          if (state === null) waiter.reject(new NotFoundError(`The job ${waiter.id} is not there any more`))
          else waiter.resolve({ id: waiter.id, state: state as Outcome['state'], output: outputOf(state, output) })
          this.#waiting.delete(waiter)
        }
      } catch {
        // the database is away: they wait on
      }
    }
    this.#looking = false
  }

  #rows(waiters: Waiter[]): Promise<Row[]> {
    const queues = list(
      waiters.map(({ queue }) => queue),
      'text',
    )
    const ids = list(
      waiters.map(({ id }) => id),
      'uuid',
    )
    return this.#pool.run<Row>(
      sql`select a.i, j.state, j.output
            from unnest(${queues}, ${ids}) with ordinality a(queue, id, i)
            left join lateral (select x.state, x.output from lockstep_boss.job x
                                where x.name = a.queue and x.id = a.id limit 1) j on true
           where j.state is null or j.state > 'active'`,
    )
  }
}

/** Of a job that failed: its error. What pg-boss's upkeep says of one that timed out it keeps as { value }. */
export function outputOf(state: string, output: unknown): unknown {
  const { value } = (output ?? {}) as { value?: { message?: unknown } }
  return state !== 'completed' && typeof value?.message === 'string' ? value : output
}
