/**
 * The live workers of a queue, and what is sent to each of them.
 *
 * Each worker has a queue of its own besides, of which it runs every job. So a broadcast is one ordinary job for each live
 * worker: tried again, expired and kept as any other. A worker that stops takes its queue with it; one that dies is found
 * by a tick after a minute. One that was frozen so long and comes back makes its queue anew.
 */
import { sql } from 'kysely'
import { checkMs, NotFoundError, WAIT } from '../../base/index.ts'
import { list } from '../../database/index.ts'
import type { Sender } from '../queue/index.ts'
import { type Definition, type RetryOptions, WORKER_QUEUES } from '../queue/index.ts'
import { Loop, type WorkerParts } from './fetch-loop.ts'

/** A worker of this process. */
export interface Worker extends AsyncDisposable {
  readonly id: string
  /** Every queue it works. */
  readonly queues: readonly string[]
  /**
   * Stops: what runs may end within `graceMs`, then its signals abort, and what has not ended half a second later is given
   * back, to run again soon elsewhere. Calling it again answers as the first call did.
   *
   * @param options.graceMs  ≥ 0. @default 1_000
   */
  stop(options?: { graceMs?: number }): Promise<void>
}

const SEEN_EVERY_MS = 10_000
const LIVES_SECONDS = 30
const KEPT_SECONDS = 3_600

export class Members {
  readonly #parts: WorkerParts
  readonly #members = new Map<string, Member>()
  #timer: NodeJS.Timeout | undefined

  constructor(parts: WorkerParts) {
    this.#parts = parts
  }

  /** Begins to work a queue. */
  open(definition: Definition): Member {
    const member = new Member(this.#parts, definition, () => {
      this.#members.delete(member.id)
      if (this.#members.size > 0) return
      clearInterval(this.#timer)
      this.#timer = undefined
    })
    this.#members.set(member.id, member)
    this.#timer ??= setInterval(() => void this.#beSeen(), SEEN_EVERY_MS).unref()
    return member
  }

  /** Live workers of a queue. */
  async of(queue: string): Promise<string[]> {
    const rows = await this.#parts.pool.run<{ id: string }>(
      sql`select id from lockstep.worker
           where queue = ${queue} and seen_at > clock_timestamp() - ${LIVES_SECONDS} * interval '1 s' order by id`,
    )
    return rows.map(({ id }) => id)
  }

  /** One job for each live worker. */
  async broadcast(queue: string, data: unknown, sender: Sender): Promise<{ worker: string; id: string }[]> {
    const sent = (await this.of(queue)).map(async (worker) => {
      const own = WORKER_QUEUES + worker
      try {
        return [{ worker, id: (await sender.send(own, data, {}, () => crypto.randomUUID())) as string }]
      } catch (error) {
        if (error instanceof NotFoundError) return [] // it has just stopped
        throw error
      } finally {
        this.#parts.known.forget(own)
      }
    })
    return (await Promise.all(sent)).flat()
  }

  /** Removes workers that have died. */
  async bury(ids: string[]): Promise<void> {
    const buried = await this.#parts.pool.run<{ id: string }>(
      sql`delete from lockstep.worker
           where id = any (${list(ids, 'uuid')}) and seen_at < clock_timestamp() - interval '1 minute' returning id`,
    )
    for (const { id } of buried) await this.#parts.boss().deleteQueue(WORKER_QUEUES + id)
  }

  async #beSeen(): Promise<void> {
    const joined = [...this.#members.values()].filter(({ joined }) => joined)
    const seen = await this.#parts.pool
      .run<{ id: string }>(
        sql`update lockstep.worker set seen_at = clock_timestamp()
             where id = any (${list(
               joined.map(({ id }) => id),
               'uuid',
             )}) returning id`,
      )
      .catch(() => undefined)
    if (!seen) return
    const there = new Set(seen.map(({ id }) => id))
    for (const member of this.#members.values()) if (!there.has(member.id)) void member.join()
  }
}

/** One worker of one queue: its loop, and that of its own queue. */
export class Member {
  readonly id = crypto.randomUUID()
  readonly queue: string
  joined = false
  readonly #parts: WorkerParts
  readonly #definition: Definition
  readonly #loop: Loop
  readonly #left: () => void
  #own: Loop | undefined
  #joining: Promise<void> | undefined
  #stopped: Promise<void> | undefined

  constructor(parts: WorkerParts, definition: Definition, left: () => void) {
    this.queue = definition.name
    this.#parts = parts
    this.#definition = definition
    this.#left = left
    this.#loop = new Loop(parts, definition)
    void this.join()
  }

  /** Makes its queue, and is seen. Asked again when that failed, or somebody took it for dead. */
  async join(): Promise<void> {
    if (this.#stopped) return
    this.#joining ??= this.#join().finally(() => {
      this.#joining = undefined
    })
    await this.#joining
  }

  stop(graceMs: number): Promise<void> {
    this.#stopped ??= this.#stop(graceMs)
    return this.#stopped
  }

  async #join(): Promise<void> {
    const own = WORKER_QUEUES + this.id
    const { policy: _, partition: _p, groupConcurrency: _g, ...options } = this.#definition.options
    try {
      const kept: RetryOptions = {
        retentionSeconds: KEPT_SECONDS,
        deleteAfterSeconds: KEPT_SECONDS,
        heartbeatMs: 30_000,
      }
      await this.#parts.known.declare(own, { ...options, ...kept })
      await this.#parts.pool.run(
        sql`insert into lockstep.worker (id, queue, seen_at) values (${this.id}, ${this.queue}, clock_timestamp())
            on conflict (id) do update set seen_at = excluded.seen_at`,
      )
      this.joined = true
      if (!this.#stopped) this.#own ??= new Loop(this.#parts, { ...this.#definition, options }, { queue: own })
    } catch (error) {
      this.#parts.onError(error) // asked again when it is next to be seen
    }
  }

  async #stop(graceMs: number): Promise<void> {
    this.#left()
    const why = 'The worker stops'
    await Promise.all([this.#loop.stop(graceMs, why), this.#joining])
    await this.#own?.stop(0, why)
    if (!this.joined) return
    try {
      await this.#parts.pool.run(sql`delete from lockstep.worker where id = ${this.id}`)
      await this.#parts.boss().deleteQueue(WORKER_QUEUES + this.id)
      this.#parts.known.forget(WORKER_QUEUES + this.id)
    } catch {} // a tick does it
  }
}

/** What `work` answers. */
export class Working implements Worker {
  readonly id = crypto.randomUUID()
  readonly queues: readonly string[]
  readonly #members: Member[]
  readonly #release: () => Promise<void>
  readonly #over: () => void
  #stopped: Promise<void> | undefined

  constructor(members: Member[], release: () => Promise<void>, over: () => void) {
    this.queues = members.map(({ queue }) => queue)
    this.#members = members
    this.#release = release
    this.#over = over
  }

  stop({ graceMs = 1_000 }: { graceMs?: number } = {}): Promise<void> {
    checkMs('graceMs', graceMs, WAIT)
    this.#stopped ??= this.#stop(graceMs)
    return this.#stopped
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }

  async #stop(graceMs: number): Promise<void> {
    await Promise.all(this.#members.map((member) => member.stop(graceMs)))
    await this.#release()
    this.#over()
  }
}
