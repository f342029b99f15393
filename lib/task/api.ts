/**
 * The words of tasks: everything that can be done with jobs, queues and schedules. What is promised is told in tasks.ts,
 * where they are put together.
 */

import type { AnyTransaction } from '../database/index.ts'
import type { Counts, Job, Outcome, RunOptions } from './job/index.ts'
import type { DeclareOptions, DefineOptions, HandlerContext, SendOptions, TransactionalContext } from './queue/index.ts'
import type { Schedule, ScheduleOptions } from './schedule/index.ts'
import type { DrainResult, TickResult } from './tick.ts'
import type { Claimed, ClaimOptions, Worker } from './worker/index.ts'

/** A queue, with the types of its jobs. */
export interface Queue<Input = unknown, Output = unknown> {
  readonly name: string
  /** For the types only. */
  readonly '~types'?: { input: Input; output: Output }
}
// biome-ignore lint/suspicious/noExplicitAny: any queue
export type AnyQueue = string | Queue<any, any>
// biome-ignore lint/suspicious/noExplicitAny: named by a string, it can be anything
type InputOf<Q> = Q extends Queue<infer I, any> ? I : any
// biome-ignore lint/suspicious/noExplicitAny: as above
type OutputOf<Q> = Q extends Queue<any, infer O> ? O : any

/** Of a list, in the order of code points. */
export interface Page {
  /** What names begin with. */
  prefix?: string
  /** 1–1,000. @default 100 */
  limit?: number
  /** The last name of the page before. */
  after?: string
}

/** The jobs of one process. Made by `createTasks`. */
export interface Tasks extends AsyncDisposable {
  // ── Defining ──

  /**
   * Defines a queue: how its jobs are run here, and how they are tried. Without a handler it is only sent to from here. The
   * queue is made, or changed to what is said here, at its first use.
   *
   * ```ts
   * const mail = tasks.define('mail', async ({ to }: { to: string }, { signal }) => deliver(to, signal))
   * ```
   *
   * @param queue  1–255 letters, digits, or _ - . /
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  define<I, O>(
    queue: string,
    handler: (data: I, context: TransactionalContext) => Promise<O> | O,
    options: DefineOptions<I> & { transactional: true },
  ): Queue<I, O>
  define<I, O>(
    queue: string,
    handler: (data: I, context: HandlerContext) => Promise<O> | O,
    options?: DefineOptions<I> & { transactional?: false },
  ): Queue<I, O>
  define<I = unknown, O = unknown>(queue: string, options?: DefineOptions<I>): Queue<I, O>

  /**
   * Makes a queue now, or changes one, whoever works it.
   * @returns whether it was made.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  declare(queue: string, options?: DeclareOptions): Promise<boolean>

  /** Names of queues, in the order of their code points. @param page.limit  1–1,000. @default 100 */
  queues(page?: Page): Promise<string[]>

  // ── Sending ──

  /**
   * Sends a job: it is on disk when this resolves; with `trx`, when that commits. Sends of a moment share an insert.
   *
   * @param data  JSON, at most 1 MiB.
   * @returns its id; null: refused, by the queue's policy, a throttle, or because the `id` was used.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError} the database cannot be asked; it may have been sent. With an `id`, send it again.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`; also when the data does not fit the schema.
   */
  send<Q extends AnyQueue>(queue: Q, data: InputOf<Q>, options?: SendOptions): Promise<string | null>

  /** Sends many in one statement: all, or none. Null for each that is refused. @throws as {@link send}. */
  sendAll<Q extends AnyQueue>(
    queue: Q,
    jobs: ({ data: InputOf<Q> } & Omit<SendOptions, 'trx'>)[],
    options?: { trx?: AnyTransaction },
  ): Promise<(string | null)[]>

  /**
   * Sends a job and waits for its output. With `pool: n`, n copies, and their outputs.
   *
   * A worker that dies does not end the wait: the job is tried again. Aborting the `signal` cancels the job. When `waitMs`
   * runs out it goes on.
   *
   * @param options.waitMs  ≥ 0. @default Infinity
   * @returns what the handler returned.
   * @throws {JobFailedError} it failed for good, or was cancelled: with the handler's message and cause.
   * @throws {AggregateError} with `pool`: one for each that failed, when all are over.
   * @throws {RunTimeoutError} with the id. And the `signal`'s reason; and as {@link send}, where null would be refused.
   */
  run<Q extends AnyQueue>(queue: Q, data: InputOf<Q>, options: RunOptions & { pool: number }): Promise<OutputOf<Q>[]>
  run<Q extends AnyQueue>(queue: Q, data: InputOf<Q>, options?: RunOptions): Promise<OutputOf<Q>>

  /** As {@link run}, but a failure is an answer, null: refused; and the `signal` ends only the wait. */
  outcome(queue: AnyQueue, data: unknown, options?: RunOptions): Promise<Outcome | null>

  /**
   * One job for each live worker of a queue (of each `work`, in any process); a worker that begins later gets none.
   * @returns the workers and the jobs, which are in queues of their own: `get('lockstep.worker/' + worker, id)`.
   */
  broadcast<Q extends AnyQueue>(queue: Q, data: InputOf<Q>): Promise<{ worker: string; id: string }[]>

  // ── Working ──

  /**
   * Works a queue that was defined with a handler, or all of them; and ticks by itself, for schedules and upkeep.
   *
   * @throws {NotFoundError} it was not defined here with a handler.
   */
  work(queue?: AnyQueue): Worker

  /**
   * Works what is ready in the queues that were defined with a handler until there is nothing more, or the budget ends: then
   * what still runs is asked to stop, and given back. For a process that does not live on.
   *
   * @param options.budgetMs  100–86,400,000; a fifth of it, two seconds at most, is for stopping. @default 10_000
   * @throws {UnavailableError} also when the database has not answered a second after the budget ended: what is under way goes on.
   */
  drain(options?: { budgetMs?: number; queues?: AnyQueue[]; signal?: AbortSignal }): Promise<DrainResult>

  /**
   * Does what is due, from anywhere and from many places at once: sends slots, gives the jobs of dead workers to others,
   * unblocks flows, deletes what was kept long enough, then drains.
   *
   * @param options.budgetMs  100–86,400,000. @default 10_000
   * @throws {UnavailableError} as {@link drain}.
   */
  tick(options?: { budgetMs?: number; signal?: AbortSignal }): Promise<TickResult>

  // ── Looking ──

  /** A job; null: there is none, or it was deleted after its time. @throws {NotFoundError} no such queue. */
  get(queue: AnyQueue, id: string): Promise<Job | null>

  /** Cancels a job; if it runs, its signal aborts. @returns whether this did it: it was not over before. */
  cancel(queue: AnyQueue, id: string): Promise<boolean>

  /** How many jobs there are. @throws {NotFoundError} */
  counts(queue: AnyQueue): Promise<Counts>

  // ── Schedules ──

  /**
   * Sends a job at every slot, exactly once, while anything ticks. The same name again changes it; while `cron` and
   * `timezone` are the same no slot is lost or shifted.
   *
   * @param cron  `minute hour day month weekday`, with seconds before them if there are six.
   * @returns whether it was made.
   * @throws {NotFoundError} there is no such queue.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  schedule(name: string, cron: string, options: ScheduleOptions): Promise<boolean>

  /** Ends a schedule. What it has sent stays. @returns whether there was one. */
  unschedule(name: string): Promise<boolean>

  /** A schedule; null: there is none. */
  scheduled(name: string): Promise<Schedule | null>

  /** Schedules, in the order of their names' code points. @param page.limit  1–1,000. @default 100 */
  schedules(page?: Page): Promise<Schedule[]>

  /** The next n slots, from now on the local clock. @param n  1–1,000. @default 5 */
  preview(cron: string, timezone?: string, n?: number): Date[]

  // ── The verbs without memory: for a worker that lives elsewhere ──

  /**
   * Jobs to run, none if there are none, or none came while it waited. Whoever has claimed extends in time, or completes.
   * @throws {NotFoundError | UnavailableError | TypeError | RangeError} and the `signal`'s reason, when it aborts.
   */
  claim(queue: AnyQueue, options?: ClaimOptions): Promise<Claimed[]>

  /** Completes a job. Again is as good as once. @throws {LeaseLostError} another attempt runs, or it is over otherwise. */
  complete(queue: AnyQueue, id: string, token: bigint, output?: unknown): Promise<void>

  /** Fails an attempt: it is tried again as its queue says. Again is as good as once. @throws {LeaseLostError} */
  fail(queue: AnyQueue, id: string, token: bigint, error: unknown): Promise<void>

  /** Makes a claim last `leaseMs` from now. Until when, on the database's clock. @throws {LeaseLostError} */
  extend(queue: AnyQueue, id: string, token: bigint, options?: { leaseMs?: number }): Promise<Date>

  /** Shows how far it is, 0–1, with a note of at most 1,000 characters. @throws {LeaseLostError} */
  progress(queue: AnyQueue, id: string, token: bigint, fraction: number, note?: string): Promise<void>

  /** Gives jobs back that were claimed for nobody; they cost no retry. Those that are over are left alone. */
  handBack(queue: AnyQueue, jobs: { id: string; token: bigint }[]): Promise<void>

  /** Stops the workers, which give back what runs; every verb and every wait rejects. Done by `lockstep.close()` too. */
  close(): Promise<void>
}
