/**
 * Tasks: work that is done once, later, elsewhere, or every night.
 *
 * PROMISE. A job that was sent is on disk, or in your transaction. It runs at least once; with a `transactional` handler its
 * effects in this database happen exactly once. One attempt at a time: an attempt that was taken for dead can neither
 * complete nor fail the one that follows. Each slot of a schedule is sent exactly once, however many tick.
 *
 *   send ─► created ─► active ─► completed            pg-boss does the queueing (task/pgboss/adapter.ts); what we add:
 *              ▲  retry ◄─┤ ─► failed (─► dead letter)   run (task/job/outcomes.ts) · attempts that know when they are lost
 *              └──────────┘ ─► cancelled                 (task/worker/attempt.ts) · exact cron (task/schedule/schedules.ts) · ticks without a process
 *                                                        that lives on (tick.ts) · claims over HTTP (task/worker/claims.ts)
 *
 * FAILURES. A worker is killed: its jobs run again when their heartbeat is missed (30 s unless the queue says otherwise)
 * and somebody ticks. It stops: they go back at once and cost no retry. It is frozen: its signals abort as soon as it comes
 * to itself, and what it then does is not taken. The answer to a send is lost: send with an `id` of your own, and again.
 *
 * NOT PROMISED. Effects elsewhere (a mail, an API) happen once more when a worker dies between them and the completion:
 * give them `job.id`, which is the same in every attempt, as their key for once. Order: jobs begin in the order of priority and time, but
 * several run at a time.
 *
 * This room is apart from `createLockstep`, because pg-boss is large: who only locks does not bundle it.
 */

import {
  budgeted,
  Closing,
  checkInteger,
  checkOptions,
  combineSignals,
  GRACE_MS,
  NotFoundError,
  RoomShutdown,
  UnavailableError,
  warn,
  wrongType,
} from '../base/index.ts'
import type { AnyTransaction, Context, Database, Pool } from '../database/index.ts'
import { contextOf, Notifier } from '../database/index.ts'
import type { Lockstep } from '../index.ts'
import type { AnyQueue, Page, Queue, Tasks } from './api.ts'
import {
  type Counts,
  JOB_CHANNEL,
  type Job,
  Jobs,
  type Outcome,
  type Pooled,
  QUEUE_CHANNEL,
  Results,
  type RunOptions,
  Runs,
  Settle,
} from './job/index.ts'
import { keepBoss, makeBoss } from './pgboss/index.ts'
import type { Handler } from './queue/index.ts'
import {
  checkDefinition,
  checkQueue,
  type DeclareOptions,
  type DefineOptions,
  Queues,
  Sender,
  type SendOptions,
} from './queue/index.ts'
import { Cron, type Schedule, type ScheduleOptions } from './schedule/index.ts'
import { type DrainResult, SCHEDULES, type TickResult, Ticks } from './tick.ts'
import {
  type Claimed,
  type ClaimOptions,
  Claims,
  Lookout,
  Members,
  Pulse,
  type Worker,
  type WorkerParts,
  Working,
} from './worker/index.ts'

export interface TasksOptions {
  /** Connections for jobs, 1–100. @default 4 */
  connections?: number
  /** Hears of what no caller is there to hear. @default a warning of the process */
  onError?: (error: unknown) => void
}

/**
 * Makes the tasks of a Lockstep. One for a process; it is closed with it.
 *
 * ```ts
 * await using lockstep = createLockstep({ connectionString: 'postgres://…' })
 * const tasks = createTasks(lockstep)
 * ```
 *
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function createTasks(lockstep: Lockstep, options: TasksOptions = {}): Tasks {
  checkOptions(options)
  return new Room(lockstep, options)
}

/** Its verbs are told in api.ts. */
class Room implements Tasks {
  readonly #database: Database
  readonly #closing: Closing
  readonly #ending: RoomShutdown
  readonly #notifier: Notifier<null>[]
  readonly #pulse: Pulse
  readonly #queues: Queues
  readonly #sender: Sender
  readonly #settle: Settle
  readonly #runs: Runs
  readonly #jobs: Jobs
  readonly #claims: Claims
  readonly #cron: Cron
  readonly #members: Members
  readonly #ticks: Ticks
  readonly #results: Results
  readonly #pool: Pool
  readonly #time: Context['time']
  readonly #working = new Set<Worker>()

  constructor(
    lockstep: Lockstep,
    { connections = 4, onError = (error) => warn('A task failed', error) }: TasksOptions,
  ) {
    const { database, sessions, time, closing, rooms } = contextOf(lockstep)
    checkInteger('connections', connections, { min: 1, max: 100 })
    if (typeof onError !== 'function') throw wrongType('onError', 'a function', onError)
    const pool = database.pool(connections, 'raise `connections` of createTasks')
    // What an end cuts short is no news.
    const told = (error: unknown) => {
      if (!(this.#closing.closed && error instanceof UnavailableError)) onError(error)
    }
    let made: ReturnType<typeof makeBoss> | undefined
    const boss = () => {
      made ??= makeBoss(pool, told)
      return made
    }
    keepBoss(this, boss)
    const jobs = news(sessions, JOB_CHANNEL)
    const queues = news(sessions, QUEUE_CHANNEL)
    this.#notifier = [jobs, queues]
    this.#database = database
    this.#closing = new Closing(closing)
    const look = new Lookout(pool)
    const settle = new Settle(pool, boss)
    const known = new Queues(pool, boss, () => {
      made = undefined // another, with nothing in mind
    })
    this.#settle = settle
    this.#pulse = new Pulse(jobs)
    const work: WorkerParts = { database, pool, boss, settle, queues, known, look, pulse: this.#pulse, onError: told }
    this.#pool = pool
    this.#time = time
    this.#queues = known
    this.#sender = new Sender(this.#queues, boss)
    this.#results = new Results(pool, jobs)
    this.#jobs = new Jobs(pool, boss, this.#queues, settle)
    this.#runs = new Runs(this.#sender, this.#results, this.#jobs)
    this.#claims = new Claims({ pool, boss, settle, queues: this.#queues, news: queues, look })
    this.#cron = new Cron({ pool, boss, ensure: (queue) => this.#queues.ensure(queue) })
    this.#members = new Members(work)
    this.#ticks = new Ticks({ pool, boss, cron: this.#cron, members: this.#members, queues: this.#queues, jobs, work })
    const how = { drain: () => this.#rest(), end: (late: Promise<void>) => this.#end(late) }
    this.#ending = new RoomShutdown(this.#closing, rooms, how)
    const { signal } = this.#closing
    signal.addEventListener('abort', () => this.#results.close(signal.reason))
  }

  // biome-ignore lint/suspicious/noExplicitAny: typed in the words
  define(queue: string, ...rest: any[]): Queue<any, any> {
    this.#closing.check()
    const [handler, options = {}] = typeof rest[0] === 'function' ? rest : [undefined, rest[0] ?? {}]
    checkDefinition(queue, options as DefineOptions)
    if (this.#queues.definitions.has(queue)) throw wrongType('queue', 'defined only once', queue)
    this.#queues.definitions.set(queue, {
      name: queue,
      handler: handler as Handler | undefined,
      options: options as DefineOptions,
    })
    this.#queues.forget(queue)
    return { name: queue }
  }

  async declare(queue: string, options: DeclareOptions = {}): Promise<boolean> {
    this.#closing.check()
    checkDefinition(queue, options)
    return this.#queues.declare(queue, options)
  }

  queues(page: Page = {}): Promise<string[]> {
    return this.#closing.verb(() => this.#queues.list(page))
  }

  send(queue: AnyQueue, data: unknown, options: SendOptions = {}): Promise<string | null> {
    return this.#closing.verb(() => this.#sender.send(nameOf(queue), data, options, randomId))
  }

  sendAll(
    queue: AnyQueue,
    jobs: ({ data: unknown } & Omit<SendOptions, 'trx'>)[],
    options?: { trx?: AnyTransaction },
  ): Promise<(string | null)[]> {
    return this.#closing.verb(() => this.#sender.sendAll(nameOf(queue), jobs, randomId, options?.trx))
  }

  // biome-ignore lint/suspicious/noExplicitAny: typed in the words
  run(queue: AnyQueue, data: unknown, options: RunOptions & Pooled = {}): Promise<any> {
    return this.#closing.wait(undefined, () => this.#runs.run(nameOf(queue), data, options))
  }

  outcome(queue: AnyQueue, data: unknown, options: RunOptions = {}): Promise<Outcome | null> {
    return this.#closing.wait(undefined, () => this.#runs.outcome(nameOf(queue), data, options))
  }

  async broadcast(queue: AnyQueue, data: unknown): Promise<{ worker: string; id: string }[]> {
    this.#closing.check()
    const name = nameOf(queue)
    checkQueue(name)
    await this.#queues.ensure(name)
    return this.#members.broadcast(name, data, this.#sender)
  }

  work(queue?: AnyQueue): Worker {
    this.#closing.check()
    const definitions = [...this.#queues.definitions.values()].filter(
      ({ name, handler }) => handler && (queue === undefined || name === nameOf(queue)),
    )
    if (queue !== undefined && definitions.length === 0) {
      throw new NotFoundError(`The queue ${JSON.stringify(nameOf(queue))} was not defined here with a handler`)
    }
    const release = this.#ticks.keep()
    const members = definitions.map((definition) => this.#members.open(definition))
    const worker = new Working(members, release, () => this.#working.delete(worker))
    this.#working.add(worker)
    return worker
  }

  async drain(options: { budgetMs?: number; queues?: AnyQueue[]; signal?: AbortSignal } = {}): Promise<DrainResult> {
    const { budgetMs, queues, signal } = budgeted(options)
    if (queues !== undefined && !Array.isArray(queues)) throw wrongType('queues', 'an array', queues)
    return this.#closing.wait(signal, (stop) => this.#ticks.drain(queues?.map(nameOf), budgetMs, stop))
  }

  async tick(options: { budgetMs?: number; signal?: AbortSignal } = {}): Promise<TickResult> {
    const { budgetMs, signal } = budgeted(options)
    return this.#closing.wait(signal, async (stop) => {
      const late = new AbortController()
      const timer = setTimeout(() => late.abort(), budgetMs)
      const until = combineSignals(stop, late.signal)
      try {
        // True time is measured beside the rest: where nothing lives on, nobody else would. `status` tells how that went.
        const measured = this.#time.synchronize({ signal: until.signal }).catch(() => {})
        const result = await this.#ticks.tick(budgetMs, stop)
        await measured
        return result
      } finally {
        clearTimeout(timer)
        until.end()
      }
    })
  }

  get(queue: AnyQueue, id: string): Promise<Job | null> {
    return this.#closing.verb(() => this.#jobs.get(nameOf(queue), id))
  }

  cancel(queue: AnyQueue, id: string): Promise<boolean> {
    return this.#closing.verb(() => this.#jobs.cancel(nameOf(queue), id))
  }

  counts(queue: AnyQueue): Promise<Counts> {
    return this.#closing.verb(() => this.#jobs.counts(nameOf(queue)))
  }

  async schedule(name: string, cron: string, options: ScheduleOptions): Promise<boolean> {
    this.#closing.check()
    const made = await this.#cron.schedule(name, cron, options)
    await this.#settle.tellAll(SCHEDULES) // whoever ticks may have to tick sooner
    return made
  }

  unschedule(name: string): Promise<boolean> {
    return this.#closing.verb(() => this.#cron.unschedule(name))
  }

  scheduled(name: string): Promise<Schedule | null> {
    return this.#closing.verb(() => this.#cron.scheduled(name))
  }

  schedules(page: Page = {}): Promise<Schedule[]> {
    return this.#closing.verb(() => this.#cron.schedules(page))
  }

  preview(cron: string, timezone?: string, n?: number): Date[] {
    return this.#cron.preview(cron, timezone, n)
  }

  claim(queue: AnyQueue, options: ClaimOptions = {}): Promise<Claimed[]> {
    return this.#closing.verb(async () => {
      checkOptions(options)
      const name = nameOf(queue)
      return this.#closing.wait(options.signal, async (signal) => {
        const jobs = await this.#claims.claim(name, { ...options, signal })
        if (this.#closing.closed) await this.#claims.handBack(name, jobs).catch(() => {}) // nobody is there to have them
        return jobs
      })
    })
  }

  complete(queue: AnyQueue, id: string, token: bigint, output?: unknown): Promise<void> {
    return this.#closing.verb(() => this.#claims.complete(nameOf(queue), id, token, output))
  }

  fail(queue: AnyQueue, id: string, token: bigint, error: unknown): Promise<void> {
    return this.#closing.verb(() => this.#claims.fail(nameOf(queue), id, token, error))
  }

  extend(queue: AnyQueue, id: string, token: bigint, options?: { leaseMs?: number }): Promise<Date> {
    return this.#closing.verb(() => this.#claims.extend(nameOf(queue), id, token, options))
  }

  progress(queue: AnyQueue, id: string, token: bigint, fraction: number, note?: string): Promise<void> {
    return this.#closing.verb(() => this.#claims.progress(nameOf(queue), id, token, fraction, note))
  }

  handBack(queue: AnyQueue, jobs: { id: string; token: bigint }[]): Promise<void> {
    return this.#closing.verb(() => this.#claims.handBack(nameOf(queue), jobs))
  }

  close(): Promise<void> {
    return this.#ending.now()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #rest(): Promise<void> | undefined {
    for (const worker of this.#working) void worker.stop({ graceMs: GRACE_MS }).catch(() => {})
    return this.#pulse.settled(GRACE_MS)
  }

  // What still runs is given back by its worker or its drain; where the database does not answer it is left.
  async #end(late: Promise<void>): Promise<void> {
    const over = [...[...this.#working].map((worker) => worker.stop()), this.#closing.settled()]
    await Promise.race([Promise.allSettled(over), late])
    this.#pulse.close()
    for (const news of this.#notifier) news.close()
    await this.#database.drop([this.#pool], late)
  }
}

const randomId = (): string => crypto.randomUUID()
const nameOf = (queue: AnyQueue): string => (typeof queue === 'string' ? queue : queue?.name)

// What is told is only that it is worth a look.
const news = (sessions: ReturnType<typeof contextOf>['sessions'], channel: string): Notifier<null> =>
  new Notifier(sessions, channel, (message) => [{ name: message, payload: null }])
