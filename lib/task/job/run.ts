/**
 * Run: send a job and wait for its outcome. This is Task.Run of go-micro's sync: what the handler throws is thrown here. A worker
 * that dies does not end the wait. Two runs at once do not count each other's results: each waits for its own jobs, by their ids.
 */
import {
  checkInteger,
  checkMs,
  checkOptions,
  JobFailedError,
  onAbort,
  outOfRange,
  RunTimeoutError,
  WAIT,
  wrongType,
} from '../../base/index.ts'
import { RUN, type Sender, type SendOptions } from '../queue/index.ts'
import { awaitedId } from './attempts.ts'
import type { Jobs } from './jobs.ts'
import type { Outcome, Outcomes } from './outcomes.ts'

/** Options of `run` and `outcome`: those of the job, except `trx` and `replace`, and those of the wait. */
export interface RunOptions extends Omit<SendOptions, 'trx' | 'replace'> {
  /** Milliseconds to wait, ≥ 0. When they run out a RunTimeoutError is thrown, and the job goes on. @default Infinity */
  waitMs?: number | undefined
  /** Ends the wait with its reason. `run` also cancels the job; `outcome` does not. */
  signal?: AbortSignal | undefined
}
export interface Pooled {
  /** How many copies of the job are sent, 1–1,000. */
  pool?: number | undefined
}

export class Runs {
  readonly #sender: Sender
  readonly #outcomes: Outcomes
  readonly #jobs: Jobs

  constructor(sender: Sender, outcomes: Outcomes, jobs: Jobs) {
    this.#sender = sender
    this.#outcomes = outcomes
    this.#jobs = jobs
  }

  async run(queue: string, data: unknown, all: RunOptions & Pooled): Promise<unknown> {
    checkOptions(all, RUN)
    const { pool, ...options } = all
    if (pool === undefined) {
      const outcome = await this.#one(queue, data, options, true)
      if (!outcome) throw await this.#refused(queue, options.id)
      return outputOf(queue, outcome)
    }
    checkInteger('pool', pool, { min: 1, max: 1_000 })
    const { waitMs, signal, ...rest } = options
    if (rest.id !== undefined) throw outOfRange('id', 'left out: each copy gets its own id', rest.id)
    const copies = Array.from({ length: pool }, () => ({ ...rest, id: awaitedId(), data }))
    const outcomes = await this.#wait(queue, copies, waitMs, signal, true)
    const failures = outcomes.flatMap((outcome) => {
      if (!outcome) return [refused(queue)]
      return outcome.state === 'completed' ? [] : [failed(queue, outcome)]
    })
    if (failures.length > 0) throw new AggregateError(failures, `${failures.length} of ${pool} jobs failed`)
    return outcomes.map((outcome) => outcome?.output)
  }

  /** How a job ended; null: it was refused. The signal ends the wait only. */
  async outcome(queue: string, data: unknown, options: RunOptions): Promise<Outcome | null> {
    checkOptions(options, RUN)
    const { pool } = options as Pooled
    if (pool !== undefined) throw wrongType('pool', 'left out: run takes it', pool)
    return this.#one(queue, data, options, false)
  }

  // A job with an id of the caller's is refused most often because it was sent before.
  async #refused(queue: string, id: string | undefined): Promise<Error> {
    const job = id === undefined ? null : await this.#jobs.get(queue, id)
    if (job === null) return refused(queue)
    return outOfRange('id', `one that no job of the queue has (this one is ${job.state}: get shows it)`, id)
  }

  // With the caller's own id it works too, but such a job is not notified: the wait polls.
  async #one(queue: string, data: unknown, options: RunOptions, cancels: boolean): Promise<Outcome | null> {
    const { waitMs, signal, ...rest } = options
    return (
      (await this.#wait(queue, [{ ...rest, id: rest.id ?? awaitedId(), data }], waitMs, signal, cancels))[0] ?? null
    )
  }

  async #wait(
    queue: string,
    jobs: ({ id: string; data: unknown } & Omit<SendOptions, 'trx'>)[],
    waitMs = Infinity,
    signal: AbortSignal | undefined,
    cancels: boolean,
  ): Promise<(Outcome | null)[]> {
    checkMs('waitMs', waitMs, WAIT)
    const replace = jobs.find((job) => job.replace !== undefined)?.replace
    if (replace !== undefined) throw wrongType('replace', 'left out: what is waited for is a job of its own', replace)
    signal?.throwIfAborted()
    const subscriptions = jobs.map(({ id }) => this.#outcomes.subscribe(queue, id))
    const over = Promise.withResolvers<never>()
    over.promise.catch(() => {})
    const left = new Set(jobs.map(({ id }) => id))
    const stop = () => {
      over.reject(signal?.reason)
      if (!cancels) return
      for (const id of left) void this.#jobs.cancel(queue, id).catch(() => {})
    }
    let unsubscribe = () => {}
    let timer: NodeJS.Timeout | undefined
    try {
      const [first] = jobs
      const ids =
        jobs.length === 1 && first
          ? [await this.#sender.send(queue, first.data, without(first), awaitedId)]
          : await this.#sender.sendAll(queue, jobs, awaitedId)
      if (waitMs < 2 ** 31) {
        timer = setTimeout(() => over.reject(new RunTimeoutError(queue, [...left], waitMs)), waitMs)
      }
      unsubscribe = onAbort(signal, stop) // at once, if it aborted while the jobs were sent
      const outcomes = ids.map(async (id, i) => {
        const outcome = id === null ? null : ((await subscriptions[i]?.wait()) ?? null)
        left.delete(jobs[i]?.id as string)
        return outcome
      })
      return await Promise.race([Promise.all(outcomes), over.promise])
    } finally {
      clearTimeout(timer)
      unsubscribe()
      for (const { end } of subscriptions) end()
    }
  }
}

function without({ data: _, ...options }: { data: unknown } & Omit<SendOptions, 'trx'>): SendOptions {
  return options
}

function outputOf(queue: string, outcome: Outcome): unknown {
  if (outcome.state === 'completed') return outcome.output
  throw failed(queue, outcome)
}

function failed(queue: string, { id, state, output }: Outcome): JobFailedError {
  return new JobFailedError(queue, id, state as 'failed' | 'cancelled', output)
}

function refused(queue: string): Error {
  return outOfRange('queue', 'one that takes this job: its policy, a throttle or a used id refuses it', queue)
}
