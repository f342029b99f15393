/**
 * Workers, and the registry of live workers in the database, for broadcasts.
 *
 * Each worker of a queue also has its own queue, and runs every job of it. So a broadcast is one ordinary job for each live worker:
 * it is tried again, expires and is kept as any other job. A worker that stops deletes its queue. A worker that dies is removed by
 * a tick after a minute. A worker that was frozen for so long and comes back makes its queue again.
 */
import { sql } from 'kysely'
import { checkMs, checkOptions, GRACE, NotFoundError, WAIT } from '../../base/index.ts'
import { list } from '../../database/index.ts'
import type { Sender } from '../queue/index.ts'
import { type Definition, type RetryOptions, WORKER_QUEUES } from '../queue/index.ts'
import { FetchLoop, type WorkerParts } from './fetch-loop.ts'

/** A worker of this process, made by `work`. `await using` stops it. */
export interface Worker extends AsyncDisposable {
  /** A UUID of this worker. */
  readonly id: string
  /** The names of all queues that it works. */
  readonly queues: readonly string[]
  /**
   * Stops the worker. What runs may end within `graceMs`; then its signals abort; what has not ended half a second later is handed
   * back, and runs again soon, perhaps elsewhere. A second call answers as the first one.
   *
   * @param options.graceMs  milliseconds, ≥ 0. @default 1_000
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field` graceMs.
   */
  stop(options?: { graceMs?: number | undefined }): Promise<void>
}

const REGISTRY_HEARTBEAT_MS = 10_000
const LIVE_SECONDS = 30
const KEPT_SECONDS = 3_600

export class WorkerRegistry {
  readonly #parts: WorkerParts
  readonly #workers = new Map<string, QueueWorker>()
  #timer: NodeJS.Timeout | undefined

  constructor(parts: WorkerParts) {
    this.#parts = parts
  }

  /** Begins to work a queue. */
  open(definition: Definition): QueueWorker {
    const worker = new QueueWorker(this.#parts, definition, () => {
      this.#workers.delete(worker.id)
      if (this.#workers.size > 0) return
      clearInterval(this.#timer)
      this.#timer = undefined
    })
    this.#workers.set(worker.id, worker)
    this.#timer ??= setInterval(() => void this.#heartbeat(), REGISTRY_HEARTBEAT_MS) // keeps the process alive while it works
    return worker
  }

  /** Sends one job to each live worker of a queue. */
  async broadcast(queue: string, data: unknown, sender: Sender): Promise<{ worker: string; id: string }[]> {
    const sent = (await this.#live(queue)).map(async (worker) => {
      const own = WORKER_QUEUES + worker
      try {
        return [{ worker, id: (await sender.send(own, data, {}, () => crypto.randomUUID())) as string }]
      } catch (error) {
        if (error instanceof NotFoundError) return [] // it has just stopped
        throw error
      } finally {
        this.#parts.queues.forget(own)
      }
    })
    return (await Promise.all(sent)).flat()
  }

  /** Removes workers that have died, and their queues. */
  async removeDead(ids: string[]): Promise<void> {
    const removed = await this.#parts.pool.run<{ id: string }>(
      sql`delete from lockstep.worker
           where id = any (${list(ids, 'uuid')}) and seen_at < clock_timestamp() - interval '1 minute' returning id`,
    )
    for (const { id } of removed) await this.#parts.boss().deleteQueue(WORKER_QUEUES + id)
  }

  async #live(queue: string): Promise<string[]> {
    const rows = await this.#parts.pool.run<{ id: string }>(
      sql`select id from lockstep.worker
           where queue = ${queue} and seen_at > clock_timestamp() - ${LIVE_SECONDS} * interval '1 s' order by id`,
    )
    return rows.map(({ id }) => id)
  }

  async #heartbeat(): Promise<void> {
    const registered = [...this.#workers.values()].filter(({ registered }) => registered)
    const seen = await this.#parts.pool
      .run<{ id: string }>(
        sql`update lockstep.worker set seen_at = clock_timestamp()
             where id = any (${list(
               registered.map(({ id }) => id),
               'uuid',
             )}) returning id`,
      )
      .catch(() => undefined)
    if (!seen) return
    const there = new Set(seen.map(({ id }) => id))
    for (const worker of this.#workers.values()) if (!there.has(worker.id)) void worker.register()
  }
}

/** A worker of one queue: a fetch loop for the queue, and one for the worker's own queue. */
class QueueWorker {
  readonly id = crypto.randomUUID()
  readonly queue: string
  registered = false
  readonly #parts: WorkerParts
  readonly #definition: Definition
  readonly #loop: FetchLoop
  readonly #onStop: () => void
  #ownLoop: FetchLoop | undefined
  #registering: Promise<void> | undefined
  #stopped: Promise<void> | undefined

  constructor(parts: WorkerParts, definition: Definition, onStop: () => void) {
    this.queue = definition.name
    this.#parts = parts
    this.#definition = definition
    this.#onStop = onStop
    this.#loop = new FetchLoop(parts, definition)
    void this.register()
  }

  /** Makes the worker's own queue and its row. Called again when that failed, or when the worker was taken for dead. */
  async register(): Promise<void> {
    if (this.#stopped) return
    this.#registering ??= this.#register().finally(() => {
      this.#registering = undefined
    })
    await this.#registering
  }

  stop(graceMs: number): Promise<void> {
    this.#stopped ??= this.#stop(graceMs)
    return this.#stopped
  }

  async #register(): Promise<void> {
    const own = WORKER_QUEUES + this.id
    const { policy: _, partition: _p, groupConcurrency: _g, ...options } = this.#definition.options
    try {
      const kept: RetryOptions = {
        retentionSeconds: KEPT_SECONDS,
        deleteAfterSeconds: KEPT_SECONDS,
        heartbeatMs: 30_000,
      }
      await this.#parts.queues.declare(own, { ...options, ...kept })
      await this.#parts.pool.run(
        sql`insert into lockstep.worker (id, queue, seen_at) values (${this.id}, ${this.queue}, clock_timestamp())
            on conflict (id) do update set seen_at = excluded.seen_at`,
      )
      this.registered = true
      if (!this.#stopped) this.#ownLoop ??= new FetchLoop(this.#parts, { ...this.#definition, options }, { queue: own })
    } catch (error) {
      this.#parts.onError(error) // tried again at the next heartbeat
    }
  }

  async #stop(graceMs: number): Promise<void> {
    this.#onStop()
    const why = 'The worker stops'
    await Promise.all([this.#loop.stop(graceMs, why), this.#registering])
    await this.#ownLoop?.stop(0, why)
    if (!this.registered) return
    try {
      await this.#parts.pool.run(sql`delete from lockstep.worker where id = ${this.id}`)
      await this.#parts.boss().deleteQueue(WORKER_QUEUES + this.id)
      this.#parts.queues.forget(WORKER_QUEUES + this.id)
    } catch {} // a tick does it
  }
}

/** The worker that `work` returns: one or more workers of one queue each. */
export class WorkerHandle implements Worker {
  readonly id = crypto.randomUUID()
  readonly queues: readonly string[]
  readonly #workers: QueueWorker[]
  readonly #stopTicking: () => Promise<void>
  readonly #onStopped: () => void
  #stopped: Promise<void> | undefined

  constructor(workers: QueueWorker[], stopTicking: () => Promise<void>, onStopped: () => void) {
    this.queues = workers.map(({ queue }) => queue)
    this.#workers = workers
    this.#stopTicking = stopTicking
    this.#onStopped = onStopped
  }

  stop(options: { graceMs?: number | undefined } = {}): Promise<void> {
    checkOptions(options, GRACE)
    const { graceMs = 1_000 } = options
    checkMs('graceMs', graceMs, WAIT)
    this.#stopped ??= this.#stop(graceMs)
    return this.#stopped
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }

  async #stop(graceMs: number): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.stop(graceMs)))
    await this.#stopTicking()
    this.#onStopped()
  }
}
