/**
 * Tasks: work that is done once, later, elsewhere, or every night.
 *
 * PROMISE. A job that was sent is on disk, or in your transaction. It runs at least once; with a `transactional` handler its
 * effects in this database happen exactly once. One attempt runs at a time: an attempt that was taken for dead can neither complete
 * nor fail the attempt that follows it. Each slot of a schedule is sent exactly once, however many processes tick.
 *
 *   send ─► created ─► active ─► completed               pg-boss does the queueing (pgboss/adapter.ts). We add: run
 *              ▲  retry ◄─┤ ─► failed (─► dead letter)   (job/outcomes.ts) · attempts that learn when they are lost
 *              └──────────┘ ─► cancelled                 (worker/attempt.ts) · exact cron (schedule/schedules.ts) · ticks where
 *                                                        no process lives on (tick.ts) · claims over HTTP (worker/claims.ts)
 *
 * FAILURES. A worker is killed: its jobs run again when their heartbeats are missed (30 s unless the queue says otherwise) and a
 * process ticks. A worker stops: its jobs go back at once, and this costs no retry. A worker is frozen: its signals abort as soon
 * as it goes on, and what its handlers then return or throw is not used. The answer to a send is lost: send again, with the same
 * `id`.
 *
 * NOT PROMISED. Effects elsewhere (a mail, an API) happen again when a worker dies between the effect and the completion: give them
 * `job.id`, which is the same in every attempt, as their idempotency key. Order: jobs begin in the order of priority and time, but
 * several run at a time.
 *
 * Tasks are not part of `createLockstep` because pg-boss is large: an application that only locks does not bundle it.
 */

import {
  budgeted,
  checkOptions,
  combineSignals,
  GRACE_MS,
  NotFoundError,
  type Page,
  RoomShutdown,
  TRX,
  warn,
  wrongType,
} from '../base/index.ts'
import type { AnyTransaction } from '../database/index.ts'
import type { Lockstep } from '../index.ts'
import type { AnyQueue, Queue, Tasks } from './api.ts'
import { type Counts, type Job, type Outcome, type Pooled, type RunOptions, TICKS } from './job/index.ts'
import { DRAIN, TASKS, type TasksOptions, TICK } from './options.ts'
import { makeParts, type Parts } from './parts.ts'
import { keepBoss } from './pgboss/index.ts'
import type { Handler } from './queue/index.ts'
import {
  checkDefinition,
  checkQueue,
  DECLARE,
  DEFINE,
  type DeclareOptions,
  type DefineOptions,
  type SendOptions,
} from './queue/index.ts'
import type { Schedule, ScheduleOptions } from './schedule/index.ts'
import type { DrainResult, TickResult } from './tick.ts'
import { type Claimed, type ClaimOptions, type Worker, WorkerHandle } from './worker/index.ts'

/**
 * Makes the tasks of a Lockstep. Make one for a process; it is closed with the Lockstep.
 *
 * ```ts
 * await using lockstep = createLockstep({ connectionString: 'postgres://…' })
 * const tasks = createTasks(lockstep)
 * ```
 *
 * @param options.connections  of the pool for jobs, 1–100. @default 4
 * @param options.onError      gets the errors that no caller gets. @default a warning of the process
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function createTasks(lockstep: Lockstep, options: TasksOptions = {}): Tasks {
  checkOptions(options, TASKS)
  return new LockstepTasks(lockstep, options)
}

/** Its methods are documented in api.ts. */
class LockstepTasks implements Tasks {
  readonly #parts: Parts
  readonly #ending: RoomShutdown
  readonly #workers = new Set<Worker>()

  constructor(
    lockstep: Lockstep,
    { connections = 4, onError = (error) => warn('A task failed', error) }: TasksOptions,
  ) {
    const parts = makeParts(lockstep, connections, onError)
    this.#parts = parts
    keepBoss(this, parts.boss)
    this.#ending = new RoomShutdown(parts.closing, parts.rooms, {
      drain: () => this.#drain(),
      end: (late: Promise<void>) => this.#end(late),
    })
    const { signal } = parts.closing
    signal.addEventListener('abort', () => parts.outcomes.close(signal.reason))
  }

  // biome-ignore lint/suspicious/noExplicitAny: typed in api.ts
  define(queue: string, ...rest: any[]): Queue<any, any> {
    this.#parts.closing.check()
    const [handler, options = {}] = typeof rest[0] === 'function' ? rest : [undefined, rest[0] ?? {}]
    checkDefinition(queue, options as DefineOptions, DEFINE)
    if (this.#parts.queues.definitions.has(queue)) throw wrongType('queue', 'defined only once', queue)
    this.#parts.queues.definitions.set(queue, {
      name: queue,
      handler: handler as Handler | undefined,
      options: options as DefineOptions,
    })
    this.#parts.queues.forget(queue)
    return { name: queue }
  }

  async declare(queue: string, options: DeclareOptions = {}): Promise<boolean> {
    this.#parts.closing.check()
    checkDefinition(queue, options, DECLARE)
    return this.#parts.queues.declare(queue, options)
  }

  queues(page: Page = {}): Promise<string[]> {
    return this.#parts.closing.verb(() => this.#parts.queues.list(page))
  }

  send(queue: AnyQueue, data: unknown, options: SendOptions = {}): Promise<string | null> {
    return this.#parts.closing.verb(() => this.#parts.sender.send(nameOf(queue), data, options, randomId))
  }

  sendAll(
    queue: AnyQueue,
    jobs: ({ data: unknown } & Omit<SendOptions, 'trx'>)[],
    options: { trx?: AnyTransaction | undefined } = {},
  ): Promise<(string | null)[]> {
    return this.#parts.closing.verb(() => {
      checkOptions(options, TRX)
      return this.#parts.sender.sendAll(nameOf(queue), jobs, randomId, options.trx)
    })
  }

  // biome-ignore lint/suspicious/noExplicitAny: typed in api.ts
  run(queue: AnyQueue, data: unknown, options: RunOptions & Pooled = {}): Promise<any> {
    return this.#parts.closing.wait(undefined, () => this.#parts.runs.run(nameOf(queue), data, options))
  }

  outcome(queue: AnyQueue, data: unknown, options: RunOptions = {}): Promise<Outcome | null> {
    return this.#parts.closing.wait(undefined, () => this.#parts.runs.outcome(nameOf(queue), data, options))
  }

  async broadcast(queue: AnyQueue, data: unknown): Promise<{ worker: string; id: string }[]> {
    this.#parts.closing.check()
    const name = nameOf(queue)
    checkQueue(name)
    await this.#parts.queues.ensure(name)
    return this.#parts.registry.broadcast(name, data, this.#parts.sender)
  }

  work(queue?: AnyQueue): Worker {
    this.#parts.closing.check()
    const definitions = [...this.#parts.queues.definitions.values()].filter(
      ({ name, handler }) => handler && (queue === undefined || name === nameOf(queue)),
    )
    if (queue !== undefined && definitions.length === 0) {
      throw new NotFoundError(`The queue ${JSON.stringify(nameOf(queue))} was not defined here with a handler`)
    }
    const release = this.#parts.ticker.start()
    const members = definitions.map((definition) => this.#parts.registry.open(definition))
    const worker = new WorkerHandle(members, release, () => this.#workers.delete(worker))
    this.#workers.add(worker)
    return worker
  }

  async drain(
    options: { budgetMs?: number | undefined; queues?: AnyQueue[] | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<DrainResult> {
    const { budgetMs, queues, signal } = budgeted(options, DRAIN)
    if (queues !== undefined && !Array.isArray(queues)) throw wrongType('queues', 'an array', queues)
    return this.#parts.closing.wait(signal, (stop) => this.#parts.ticker.drain(queues?.map(nameOf), budgetMs, stop))
  }

  async tick(options: { budgetMs?: number | undefined; signal?: AbortSignal | undefined } = {}): Promise<TickResult> {
    const { budgetMs, signal } = budgeted(options, TICK)
    return this.#parts.closing.wait(signal, async (stop) => {
      const late = new AbortController()
      const timer = setTimeout(() => late.abort(), budgetMs)
      const until = combineSignals(stop, late.signal)
      try {
        // True time is measured too: where no process lives on, nothing else measures it. `time.now().status` says how that went.
        const measured = this.#parts.time.synchronize({ signal: until.signal }).catch(() => {})
        const result = await this.#parts.ticker.tick(budgetMs, stop)
        await measured
        return result
      } finally {
        clearTimeout(timer)
        until.end()
      }
    })
  }

  get(queue: AnyQueue, id: string): Promise<Job | null> {
    return this.#parts.closing.verb(() => this.#parts.jobs.get(nameOf(queue), id))
  }

  cancel(queue: AnyQueue, id: string): Promise<boolean> {
    return this.#parts.closing.verb(() => this.#parts.jobs.cancel(nameOf(queue), id))
  }

  counts(queue: AnyQueue): Promise<Counts> {
    return this.#parts.closing.verb(() => this.#parts.jobs.counts(nameOf(queue)))
  }

  async schedule(name: string, cron: string, options: ScheduleOptions): Promise<boolean> {
    this.#parts.closing.check()
    const made = await this.#parts.schedules.schedule(name, cron, options)
    await this.#parts.attempts.notify(TICKS) // workers may have to tick sooner
    return made
  }

  unschedule(name: string): Promise<boolean> {
    return this.#parts.closing.verb(() => this.#parts.schedules.unschedule(name))
  }

  getSchedule(name: string): Promise<Schedule | null> {
    return this.#parts.closing.verb(() => this.#parts.schedules.get(name))
  }

  scheduled(name: string): Promise<Schedule | null> {
    return this.getSchedule(name)
  }

  schedules(page: Page & { maxBytes?: number | undefined } = {}): Promise<Schedule[]> {
    return this.#parts.closing.verb(() => this.#parts.schedules.list(page))
  }

  preview(cron: string, timezone?: string, n?: number): Date[] {
    return this.#parts.schedules.preview(cron, timezone, n)
  }

  claim(queue: AnyQueue, options: ClaimOptions = {}): Promise<Claimed[]> {
    return this.#parts.closing.verb(async () => {
      checkOptions(options)
      const name = nameOf(queue)
      return this.#parts.closing.wait(options.signal, async (signal) => {
        const jobs = await this.#parts.claims.claim(name, { ...options, signal })
        // Closed meanwhile: the caller gets an error, and not these jobs.
        if (this.#parts.closing.closed) await this.#parts.claims.handBack(name, jobs).catch(() => {})
        return jobs
      })
    })
  }

  complete(queue: AnyQueue, id: string, token: bigint, output?: unknown): Promise<void> {
    return this.#parts.closing.verb(() => this.#parts.claims.complete(nameOf(queue), id, token, output))
  }

  fail(queue: AnyQueue, id: string, token: bigint, error: unknown): Promise<void> {
    return this.#parts.closing.verb(() => this.#parts.claims.fail(nameOf(queue), id, token, error))
  }

  extend(queue: AnyQueue, id: string, token: bigint, options?: { leaseMs?: number | undefined }): Promise<Date> {
    return this.#parts.closing.verb(() => this.#parts.claims.extend(nameOf(queue), id, token, options))
  }

  progress(queue: AnyQueue, id: string, token: bigint, fraction: number, note?: string): Promise<void> {
    return this.#parts.closing.verb(() => this.#parts.claims.progress(nameOf(queue), id, token, fraction, note))
  }

  handBack(queue: AnyQueue, jobs: { id: string; token: bigint }[]): Promise<void> {
    return this.#parts.closing.verb(() => this.#parts.claims.handBack(nameOf(queue), jobs))
  }

  close(): Promise<void> {
    return this.#ending.now()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #drain(): Promise<void> | undefined {
    for (const worker of this.#workers) void worker.stop({ graceMs: GRACE_MS }).catch(() => {})
    return this.#parts.running.settled(GRACE_MS)
  }

  // Workers and drains give back what still runs. If the database does not answer, it is left.
  async #end(late: Promise<void>): Promise<void> {
    const over = [...[...this.#workers].map((worker) => worker.stop()), this.#parts.closing.settled()]
    await Promise.race([Promise.allSettled(over), late])
    this.#parts.running.close()
    for (const notifier of this.#parts.notifiers) notifier.close()
    await this.#parts.database.drop([this.#parts.pool], late)
  }
}

const randomId = (): string => crypto.randomUUID()
const nameOf = (queue: AnyQueue): string => (typeof queue === 'string' ? queue : queue?.name)
