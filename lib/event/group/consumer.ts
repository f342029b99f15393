/**
 * A consumer: this process's part in a group. It keeps its lease as a member, takes its share of the partitions and gives up what is
 * more than that, and works off those that it holds (partition.ts), a few at a time.
 *
 * TO STOP is: let the batches under way end within the grace; then abort their signals, and roll them back; give up the partitions,
 * and the place as a member. Whoever takes a partition next begins where the last commit left it.
 */
import {
  checkInteger,
  checkMs,
  Deadline,
  fromDatabase,
  LIMITS,
  NotFoundError,
  Stopwatch,
  UnavailableError,
  WAIT,
  Waker,
  wrongType,
} from '../../base/index.ts'
import type { Database, Pool } from '../../database/index.ts'
import { LeaseHold, type Renewer } from '../../lease/index.ts'
import type { StreamNotifier } from '../stream/index.ts'
import { nextOf } from './delivery.ts'
import { checkGroup, type Group, type GroupOptions, type Groups, memberName, pick } from './groups.ts'
import { type EventHandler, Partition, type PartitionParts } from './partition.ts'

export interface ConsumeOptions extends GroupOptions {
  /** Partitions that are worked at a time in this process, each on a connection of Lockstep's pool, 1–256. @default 4 */
  concurrency?: number
  /** Events in a transaction at most, 1–1,000. @default 100 */
  batch?: number
  /** Milliseconds after which another takes over from a consumer that died, 1,000–3,600,000. @default 15_000 */
  ttlMs?: number
  /** Milliseconds for a batch, 1,000–3,600,000; then it is rolled back, and the event at which it was has failed. @default 30_000 */
  timeoutMs?: number
  /** Stops the consumer. */
  signal?: AbortSignal
}

/** What `consume` answers. */
export interface Consumer extends AsyncDisposable {
  /** Its name as a holder of partitions. */
  readonly id: string
  readonly group: string
  /** The partitions that it holds now. */
  readonly partitions: number[]
  /**
   * Resolves when nothing of it runs any more and others can have its partitions.
   * @param options.graceMs  milliseconds for batches under way, ≥ 0. @default 1_000
   */
  stop(options?: { graceMs?: number }): Promise<void>
}

export interface ConsumerParts {
  database: Database
  pool: Pool
  groups: Groups
  renewer: Renewer
  tidings: StreamNotifier
  onError: (error: unknown) => void
}

const CONCURRENCY = { min: 1, max: 256 }
const BATCH = { min: 1, max: 1_000 }
const TIMEOUT = { min: 1_000, max: 3_600_000 }
// How often shares are looked at.
const BALANCE_MS = { least: 200, most: 1_000 }

export class GroupConsumer implements Consumer {
  readonly id = crypto.randomUUID()
  readonly group: string
  readonly #parts: ConsumerParts
  readonly #options: ConsumeOptions
  readonly #handler: EventHandler
  readonly #over: () => void
  readonly #ttlMs: number
  readonly #partitions = new Map<number, Partition>()
  readonly #waker = new Waker()
  readonly #running: Promise<void>
  readonly #applying = new Set<Promise<unknown>>()
  #member: LeaseHold | undefined
  #stopped: Promise<void> | undefined
  #stopping = false

  /** @param over  called when it has stopped. */
  constructor(parts: ConsumerParts, group: string, options: ConsumeOptions, handler: EventHandler, over: () => void) {
    checkConsumer(group, options, handler)
    this.group = group
    this.#parts = parts
    this.#options = options
    this.#handler = handler
    this.#over = over
    this.#ttlMs = options.ttlMs ?? LIMITS.ttlMs.default
    const { signal } = options
    const stop = () => void this.stop()
    if (signal?.aborted) queueMicrotask(stop)
    signal?.addEventListener('abort', stop)
    this.#running = this.#run().finally(() => signal?.removeEventListener('abort', stop))
  }

  get partitions(): number[] {
    return [...this.#partitions.keys()].sort((a, b) => a - b)
  }

  stop({ graceMs = 1_000 }: { graceMs?: number } = {}): Promise<void> {
    checkMs('graceMs', graceMs, WAIT)
    this.#stopped ??= this.#stop(graceMs)
    return this.#stopped
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }

  /** Stops. Resolves when no handler runs any more, or the grace is over; undefined: none runs. */
  rest(graceMs: number): Promise<void> | undefined {
    void this.stop({ graceMs }).catch(() => {})
    if (this.#applying.size === 0) return undefined
    const deadline = new Deadline(graceMs)
    return deadline.race(Promise.allSettled(this.#applying)).finally(() => deadline.clear())
  }

  async #run(): Promise<void> {
    const everyMs = Math.min(Math.max(this.#ttlMs / 10, BALANCE_MS.least), BALANCE_MS.most)
    let parts: PartitionParts | undefined
    for (let pauseMs = 100; !this.#stopping; ) {
      try {
        if (!parts) await this.#parts.groups.declare(this.group, this.#options)
        parts ??= this.#partitionParts()
        await this.#balance(parts)
        pauseMs = 100
        await this.#waker.wait(everyMs * (0.9 + Math.random() / 5))
      } catch (error) {
        const away = fromDatabase(error) instanceof UnavailableError
        if (!away) this.#parts.onError(error)
        // made with other options, or deleted: nothing that would pass
        if (!away && (!parts || error instanceof NotFoundError)) return void this.stop()
        await this.#waker.wait(pauseMs)
        pauseMs = Math.min(pauseMs * 2, 5_000)
      }
    }
  }

  async #balance(parts: PartitionParts): Promise<void> {
    const { groups, database, renewer } = this.#parts
    if (!this.#member?.isTrusted()) {
      const attempted = new Stopwatch()
      const name = memberName(this.group, this.id)
      const grant = await groups.leases.grant({ name, holder: this.id, ttlMs: this.#ttlMs, meta: null })
      if (!('token' in grant)) return // the row is busy: soon again
      this.#member?.lose('it was not renewed in time')
      this.#member = new LeaseHold(database, groups.leases, renewer, grant, this.#ttlMs, attempted)
    }
    const { group, free, quota } = await groups.seats(this.group, this.id)
    if (this.#stopping) return
    const mine = [...this.#partitions.values()].filter(({ stopping }) => !stopping).map(({ index }) => index)
    for (const index of pick(mine, mine.length - quota)) this.#partitions.get(index)?.stop()
    const wanted = pick(
      free.filter((partition) => !this.#partitions.has(partition)),
      quota - this.#partitions.size,
    )
    for (const { partition, grant, attempted } of await groups.take(this.group, wanted, this.id, this.#ttlMs)) {
      const hold = new LeaseHold(database, groups.leases, renewer, grant, this.#ttlMs, attempted)
      if (this.#stopping || this.#partitions.has(partition)) await hold.release().catch(() => {})
      else this.#begin(group, partition, hold, parts)
    }
  }

  #begin(group: Group, index: number, hold: LeaseHold, parts: PartitionParts): void {
    const partition = new Partition(group, index, hold, parts)
    this.#partitions.set(index, partition)
    void partition.ended.then(async () => {
      if (this.#partitions.get(index) === partition) this.#partitions.delete(index)
      if (!hold.signal.aborted) await hold.release().catch(() => {}) // it runs out
      this.#waker.wake()
    })
  }

  #partitionParts(): PartitionParts {
    const { database, pool, tidings, onError } = this.#parts
    const { batch = 100, concurrency = 4, timeoutMs = 30_000 } = this.#options
    return {
      ...{ database, tidings, onError, timeoutMs, handler: this.#handler },
      next: nextOf(pool, this.group, batch),
      turnstile: turnstile(concurrency, this.#applying),
    }
  }

  async #stop(graceMs: number): Promise<void> {
    this.#stopping = true
    this.#waker.wake()
    const all = [...this.#partitions.values()] // and no others any more
    for (const partition of all) partition.stop()
    const timer = setTimeout(() => {
      for (const partition of all) partition.cut()
    }, graceMs)
    await this.#running
    await Promise.all(all.map((partition) => partition.ended))
    clearTimeout(timer)
    await Promise.all(all.map(({ hold }) => hold.release().catch(() => {}))) // lost, or they run out
    await this.#member?.release().catch(() => {})
    this.#over()
  }
}

/** Lets so many work at a time; the others wait, first come first served. @param inside  what is done now. */
function turnstile(most: number, inside: Set<Promise<unknown>>): PartitionParts['turnstile'] {
  const waiting: (() => void)[] = []
  let free = most
  const enter = async <T>(work: () => Promise<T>): Promise<T> => {
    if (free === 0) await new Promise<void>((enter) => waiting.push(enter))
    else free--
    const working = work()
    inside.add(working)
    try {
      return await working
    } finally {
      inside.delete(working)
      const next = waiting.shift()
      if (next) next()
      else free++
    }
  }
  return { enter, full: () => free === 0 }
}

function checkConsumer(group: string, options: ConsumeOptions, handler: unknown): void {
  checkGroup(group, options) // now: nobody hears what `#run` throws
  const { concurrency, batch, ttlMs, timeoutMs } = options
  if (concurrency !== undefined) checkInteger('concurrency', concurrency, CONCURRENCY)
  if (batch !== undefined) checkInteger('batch', batch, BATCH)
  if (ttlMs !== undefined) checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
  if (timeoutMs !== undefined) checkMs('timeoutMs', timeoutMs, TIMEOUT)
  if (typeof handler !== 'function') throw wrongType('handler', 'a function', handler)
}
