/**
 * Waiting for jobs to be over.
 *
 * All waits of a process share one statement that looks at their jobs. It runs when the database notifies that a job is over, and
 * also at intervals: a notification can be lost, and a job that pg-boss's upkeep fails is not notified. A notification only
 * asks to look. The outcome is read from the job's row, so that nobody can forge it.
 */
import { sql } from 'kysely'
import { BackoffDelays, NotFoundError, Waker } from '../../base/index.ts'
import type { Notifier } from '../../database/index.ts'
import { list, type Pool } from '../../database/index.ts'

/** How a job ended. */
export interface Outcome {
  /** The job's id, a UUID. */
  id: string
  /** How it ended: `completed`, `failed` for good, or `cancelled`. */
  state: 'completed' | 'failed' | 'cancelled'
  /** Completed: what the handler returned. Failed: the error, as `{ name, message, stack, … }`. Cancelled: null, or the last error. */
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

/** With notifications: looks again in case one was lost. Without them: polls, with growing pauses. */
const LOOK_AGAIN_MS = 1_000
const POLL_MS = { firstMs: 20, mostMs: 500 }

export class Outcomes {
  readonly #pool: Pool
  readonly #notifier: Notifier<null>
  readonly #waiting = new Set<Waiter>()
  readonly #waker = new Waker()
  #polling = false
  #closed: unknown

  constructor(pool: Pool, notifier: Notifier<null>) {
    this.#pool = pool
    this.#notifier = notifier
  }

  /**
   * Subscribes to the end of a job. Call it before the job is sent, so that nothing is missed; when it is sent, `wait`; and `end`
   * in any case.
   */
  subscribe(queue: string, id: string): { wait: () => Promise<Outcome>; end: () => void } {
    const { promise, resolve, reject } = Promise.withResolvers<Outcome>()
    const waiter = { queue, id, resolve, reject }
    let notified = false
    const unsubscribe = this.#notifier.on(id, () => {
      notified = true
      this.#waker.wake()
    })
    const wait = () => {
      if (this.#closed) throw this.#closed
      this.#waiting.add(waiter)
      if (notified) this.#waker.wake()
      if (!this.#polling) void this.#poll()
      return promise
    }
    const end = () => {
      unsubscribe()
      this.#waiting.delete(waiter)
      if (this.#waiting.size === 0) this.#waker.wake()
    }
    return { wait, end }
  }

  /** Rejects all waits. */
  close(reason: unknown): void {
    this.#closed = reason
    for (const { reject } of this.#waiting) reject(reason)
    this.#waiting.clear()
    this.#waker.wake()
  }

  async #poll(): Promise<void> {
    this.#polling = true
    const delays = new BackoffDelays(POLL_MS)
    while (this.#waiting.size > 0) {
      const pauseMs = delays.next()
      if (await this.#waker.wait(this.#notifier.session ? LOOK_AGAIN_MS : pauseMs)) delays.reset()
      const waiters = [...this.#waiting]
      if (waiters.length === 0) break
      try {
        for (const { i, state, output } of await this.#rows(waiters)) {
          const waiter = waiters[Number(i) - 1] as Waiter
          if (state === null) waiter.reject(new NotFoundError(`The job ${waiter.id} was deleted`))
          else waiter.resolve({ id: waiter.id, state: state as Outcome['state'], output: outputOf(state, output) })
          this.#waiting.delete(waiter)
        }
      } catch {
        // the database cannot be reached: the callers go on waiting
      }
    }
    this.#polling = false
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

/** A job's output. When pg-boss's upkeep fails a job that timed out, it stores the error as { value }; that is unwrapped. */
export function outputOf(state: string, output: unknown): unknown {
  const { value } = (output ?? {}) as { value?: { message?: unknown } }
  return state !== 'completed' && typeof value?.message === 'string' ? value : output
}
