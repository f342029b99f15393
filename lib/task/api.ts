/**
 * The interface of tasks: everything that can be done with jobs, queues and schedules. What is promised is said in tasks.ts.
 */

import type { Page } from '../base/index.ts'
import type { AnyTransaction } from '../database/index.ts'
import type { Counts, Job, Outcome, RunOptions } from './job/index.ts'
import type { DeclareOptions, DefineOptions, HandlerContext, SendOptions, TransactionalContext } from './queue/index.ts'
import type { Schedule, ScheduleOptions } from './schedule/index.ts'
import type { DrainResult, TickResult } from './tick.ts'
import type { Claimed, ClaimOptions, Worker } from './worker/index.ts'

/** A queue, with the types of its jobs. `define` returns one; a queue's name does as well wherever a queue is expected. */
export interface Queue<Input = unknown, Output = unknown> {
  /** The queue's name, 1–255 letters, digits, or _ - . / */
  readonly name: string
  /** The types of data and output, for TypeScript only; it is never set. */
  readonly '~types'?: { input: Input; output: Output }
}
// biome-ignore lint/suspicious/noExplicitAny: any queue
export type AnyQueue = string | Queue<any, any>
// biome-ignore lint/suspicious/noExplicitAny: named by a string, it can be anything
type InputOf<Q> = Q extends Queue<infer I, any> ? I : any
// biome-ignore lint/suspicious/noExplicitAny: as above
type OutputOf<Q> = Q extends Queue<any, infer O> ? O : any

/** The jobs, queues and schedules of one process. Made by `createTasks`. */
export interface Tasks extends AsyncDisposable {
  // ── Defining ──

  /**
   * Defines a queue in this process: its handler, and how its jobs are tried.
   *
   * Without a handler this process only sends to the queue. At its first use the queue is made in the database, or changed to these
   * options.
   *
   * ```ts
   * const mail = tasks.define('mail', async ({ to }: { to: string }, { signal }) => deliver(to, signal))
   * ```
   *
   * @param queue    1–255 letters, digits, or _ - . /
   * @param handler  gets the data and a {@link HandlerContext}. It returns the job's output, JSON; if it throws, the attempt fails.
   * @param options  see {@link DefineOptions}.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`; also when the queue was defined already.
   */
  define<I, O>(
    queue: string,
    handler: (data: I, context: TransactionalContext) => Promise<O> | O,
    options: DefineOptions<I> & { transactional: true },
  ): Queue<I, O>
  define<I, O>(
    queue: string,
    handler: (data: I, context: HandlerContext) => Promise<O> | O,
    options?: DefineOptions<I> & { transactional?: false | undefined },
  ): Queue<I, O>
  define<I = unknown, O = unknown>(queue: string, options?: DefineOptions<I>): Queue<I, O>

  /**
   * Makes a queue in the database now, or changes its options. It needs no handler.
   *
   * @param queue    1–255 letters, digits, or _ - . /
   * @param options  see {@link DeclareOptions}; what is left out is not changed.
   * @returns whether the queue was made.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  declare(queue: string, options?: DeclareOptions): Promise<boolean>

  /**
   * Lists the names of queues, in the order of their code points.
   *
   * @param page  see {@link Page}.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  queues(page?: Page): Promise<string[]>

  // ── Sending ──

  /**
   * Sends a job.
   *
   * When this resolves the job is on disk; with `trx`, when that transaction commits. Sends that are made at the same time share an
   * insert.
   *
   * @param data     JSON, at most 1 MiB.
   * @param options  see {@link SendOptions}.
   * @returns the job's id; null: it was refused, by the queue's policy, by a throttle, or because the `id` was used already.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError} the database could not be reached; the job may have been sent. With an `id`, send it again.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`; also when the data does not match the schema.
   */
  send<Q extends AnyQueue>(queue: Q, data: InputOf<Q>, options?: SendOptions): Promise<string | null>

  /**
   * Sends many jobs in one statement: all of them, or none.
   *
   * @param jobs         each with its `data`, and {@link SendOptions} of its own.
   * @param options.trx  sends them in this transaction.
   * @returns the ids in the order of `jobs`; null for each job that was refused.
   * @throws as {@link send}.
   */
  sendAll<Q extends AnyQueue>(
    queue: Q,
    jobs: ({ data: InputOf<Q> } & Omit<SendOptions, 'trx'>)[],
    options?: { trx?: AnyTransaction | undefined },
  ): Promise<(string | null)[]>

  /**
   * Sends a job and waits for its output. With `pool: n` it sends n copies and waits for all of them.
   *
   * A worker that dies does not end the wait: the job is tried again. When the `signal` aborts, the job is cancelled. When `waitMs`
   * runs out, the job goes on.
   *
   * @param options.waitMs  milliseconds, ≥ 0. @default Infinity
   * @param options.signal  ends the wait, and cancels the job.
   * @param options.pool    copies, 1–1,000.
   * @returns what the handler returned; with `pool`, the outputs of all copies.
   * @throws {JobFailedError} the job failed for good, or was cancelled. It has the handler's message, and its error as `cause`.
   * @throws {AggregateError} with `pool`: when all copies are over, with an error for each that failed.
   * @throws {RunTimeoutError} `waitMs` ran out; it has the id.
   * @throws the `signal`'s reason; and as {@link send}. A refused job is a RangeError here.
   */
  run<Q extends AnyQueue>(queue: Q, data: InputOf<Q>, options: RunOptions & { pool: number }): Promise<OutputOf<Q>[]>
  run<Q extends AnyQueue>(queue: Q, data: InputOf<Q>, options?: RunOptions): Promise<OutputOf<Q>>

  /**
   * Sends a job and waits for its end, as {@link run} does. A failure is returned and not thrown, and the `signal` ends only the
   * wait.
   *
   * @returns how the job ended; null: it was refused.
   * @throws {RunTimeoutError} `waitMs` ran out. And the `signal`'s reason; and as {@link send}.
   */
  outcome(queue: AnyQueue, data: unknown, options?: RunOptions): Promise<Outcome | null>

  /**
   * Sends one job to each live worker of a queue: to each `work` of it, in any process. A worker that begins later gets none.
   *
   * @returns the workers and the jobs. Each job is in the worker's own queue: `get('lockstep.worker/' + worker, id)`.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  broadcast<Q extends AnyQueue>(queue: Q, data: InputOf<Q>): Promise<{ worker: string; id: string }[]>

  // ── Working ──

  /**
   * Starts a worker of one queue, or of all queues that are defined here with a handler. It also ticks, for schedules and upkeep.
   *
   * @throws {NotFoundError} the queue was not defined here with a handler.
   */
  work(queue?: AnyQueue): Worker

  /**
   * Runs the jobs that are ready in queues that are defined here with a handler, until there are no more or the budget ends. Then
   * what still runs is asked to stop, and is given back. For a process that does not live on.
   *
   * @param options.budgetMs  milliseconds, 100–86,400,000. A fifth of it, but at most two seconds, is kept for stopping. @default 10_000
   * @param options.queues    only these queues. @default all that are defined with a handler
   * @param options.signal    ends the drain as the end of the budget does.
   * @throws {UnavailableError} also when the database has not answered a second after the budget ended; what is under way goes on.
   */
  drain(options?: {
    budgetMs?: number | undefined
    queues?: AnyQueue[] | undefined
    signal?: AbortSignal | undefined
  }): Promise<DrainResult>

  /**
   * Does what is due: sends slots of schedules, gives the jobs of dead workers to others, unblocks flows, deletes jobs that were
   * kept long enough, then drains. It may be called from anywhere, and from many processes at once.
   *
   * @param options.budgetMs  milliseconds, 100–86,400,000. @default 10_000
   * @param options.signal    ends the tick as the end of the budget does.
   * @throws {UnavailableError} as {@link drain}.
   */
  tick(options?: { budgetMs?: number | undefined; signal?: AbortSignal | undefined }): Promise<TickResult>

  // ── Looking ──

  /**
   * Reads a job.
   * @returns the job; null: there is none, or it was deleted when it was kept long enough.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  get(queue: AnyQueue, id: string): Promise<Job | null>

  /**
   * Cancels a job. If it runs, its signal aborts.
   * @returns whether this call cancelled it; false: it was over, or there is none.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  cancel(queue: AnyQueue, id: string): Promise<boolean>

  /** Counts the jobs of a queue by state. @throws {NotFoundError | UnavailableError | TypeError | RangeError} */
  counts(queue: AnyQueue): Promise<Counts>

  // ── Schedules ──

  /**
   * Makes a schedule, or changes it: a job is sent at every slot, exactly once, while any process ticks. While `cron` and
   * `timezone` stay the same, a change loses and shifts no slot.
   *
   * @param name     1–255 characters; it does not begin with `pg-boss:`.
   * @param cron     `minute hour day month weekday`; with six fields the first is seconds. Also `@daily`, `L`, `15W`, `MON#1`, …
   * @param options  see {@link ScheduleOptions}.
   * @returns whether the schedule was made.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  schedule(name: string, cron: string, options: ScheduleOptions): Promise<boolean>

  /** Removes a schedule. Its jobs stay. @returns whether there was one. @throws {UnavailableError | TypeError | RangeError} */
  unschedule(name: string): Promise<boolean>

  /** Reads a schedule. @returns the schedule; null: there is none. @throws {UnavailableError | TypeError | RangeError} */
  getSchedule(name: string): Promise<Schedule | null>

  /** @deprecated since 0.7: it is called {@link getSchedule}. */
  scheduled(name: string): Promise<Schedule | null>

  /**
   * Lists schedules, in the order of their names' code points.
   * @param page  see {@link Page}. `maxBytes`: of the page as JSON in JSON, but one schedule at least; then the last page is empty.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  schedules(page?: Page & { maxBytes?: number | undefined }): Promise<Schedule[]>

  /**
   * Computes the next n slots of a cron expression, from now on, by the local clock. It needs no database.
   *
   * @param timezone  an IANA name. @default 'UTC'
   * @param n         1–1,000. @default 5
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  preview(cron: string, timezone?: string, n?: number): Date[]

  // ── Claims: for workers that run elsewhere. Nothing is remembered here between two calls. ──

  /**
   * Claims jobs to run. The claimer extends each claim in time, and completes or fails the job.
   *
   * @param options  see {@link ClaimOptions}.
   * @returns the jobs; none, if there are none and none came within `waitMs`.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError | TypeError | RangeError} and the `signal`'s reason.
   */
  claim(queue: AnyQueue, options?: ClaimOptions): Promise<Claimed[]>

  /**
   * Completes a claimed job. It may be called again if the answer was lost.
   *
   * @param token   of the {@link Claimed} job.
   * @param output  JSON, at most 1 MiB. @default null
   * @throws {LeaseLostError} another attempt runs, or the job ended in another way.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  complete(queue: AnyQueue, id: string, token: bigint, output?: unknown): Promise<void>

  /**
   * Fails an attempt: the job is tried again by its retry options. It may be called again if the answer was lost.
   *
   * @param token  of the {@link Claimed} job.
   * @param error  anything; it is the job's output: `{ name, message, stack, … }`.
   * @throws {LeaseLostError} another attempt runs, or the job ended in another way.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  fail(queue: AnyQueue, id: string, token: bigint, error: unknown): Promise<void>

  /**
   * Makes a claim last `leaseMs` from now.
   *
   * @param options.leaseMs  milliseconds, 1,000–3,600,000. @default 30_000
   * @returns when it runs out, on the database's clock.
   * @throws {LeaseLostError} the attempt is over.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  extend(queue: AnyQueue, id: string, token: bigint, options?: { leaseMs?: number | undefined }): Promise<Date>

  /**
   * Stores how far a claimed job is; {@link get} shows it.
   *
   * @param fraction  the part that is done, 0–1.
   * @param note      at most 1,000 characters.
   * @throws {LeaseLostError} the attempt is over.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  progress(queue: AnyQueue, id: string, token: bigint, fraction: number, note?: string): Promise<void>

  /** Gives claimed jobs back, at no retry. Jobs that are over stay so. @throws {UnavailableError | TypeError | RangeError} */
  handBack(queue: AnyQueue, jobs: { id: string; token: bigint }[]): Promise<void>

  /** Stops the workers, which hand back what runs. Every later call and every wait rejects. `lockstep.close()` does it too. */
  close(): Promise<void>
}
