/**
 * A consumer: this process as a member of a group. It renews its lease as a member, takes its quota of the partitions,
 * gives up partitions beyond that, and applies the events of those it holds (partition.ts), a few partitions at a time.
 *
 * TO STOP: the batches in progress may end within the grace period; then their signals abort and they are rolled back;
 * then the partitions and the membership are released. The next holder of a partition begins at the last checkpoint
 * that was committed.
 */
import {
  BackoffDelays,
  checkInteger,
  checkMs,
  checkOptions,
  Deadline,
  fromDatabase,
  GRACE,
  known,
  LIMITS,
  NotFoundError,
  onAbort,
  Stopwatch,
  UnavailableError,
  WAIT,
  Waker,
  wrongType,
} from '../../base/index.ts'
import type { Database, Pool } from '../../database/index.ts'
import { LeaseHold, type Renewer } from '../../lease/index.ts'
import type { StreamNotifier } from '../stream/index.ts'
import { partitionReader } from './delivery.ts'
import { checkGroup, GROUP_NAMES, type Group, type GroupOptions, type Groups, memberName, pick } from './groups.ts'
import { type EventHandler, Partition, type PartitionParts } from './partition.ts'

/** Options of `consume`: those of the group, which is made if it does not exist, and those of this consumer. */
export interface ConsumeOptions extends GroupOptions {
  /**
   * How many partitions this process works on at the same time, each on a connection of Lockstep's pool, 1–256.
   * @default 4
   */
  concurrency?: number | undefined
  /** The most events of one transaction, 1–1,000. @default 100 */
  batch?: number | undefined
  /** Milliseconds after which other consumers take over from one that died, 1,000–3,600,000. @default 15_000 */
  ttlMs?: number | undefined
  /**
   * Milliseconds for a batch, 1,000–3,600,000. After that it is rolled back, and the event that was being handled has
   * failed.
   * @default 30_000
   */
  timeoutMs?: number | undefined
  /** Stops the consumer, as `stop()` does. */
  signal?: AbortSignal | undefined
}

/** A running consumer, as `consume` returns it. */
export interface Consumer extends AsyncDisposable {
  /** The consumer's name as a holder of partitions: a random UUID. */
  readonly id: string
  /** The group's name. */
  readonly group: string
  /** The numbers of the partitions that it holds now, in rising order. */
  readonly partitions: number[]
  /**
   * Stops the consumer. Resolves when none of its handlers runs and other consumers can take its partitions. A second call
   * returns the promise of the first.
   * @param options.graceMs  milliseconds in which batches in progress may end, ≥ 0; then they are rolled back. @default 1_000
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  stop(options?: { graceMs?: number | undefined }): Promise<void>
}

export interface ConsumerParts {
  database: Database
  pool: Pool
  groups: Groups
  renewer: Renewer
  notifier: StreamNotifier
  onError: (error: unknown) => void
}

const CONSUME = known<ConsumeOptions>({
  ...{ ...GROUP_NAMES, concurrency: true, batch: true, ttlMs: true, timeoutMs: true, signal: true },
})
const CONCURRENCY = { min: 1, max: 256 }
const BATCH = { min: 1, max: 1_000 }
const TIMEOUT = { min: 1_000, max: 3_600_000 }
// How often the assignment of partitions is checked: a tenth of the ttl, within these bounds.
const BALANCE_MS = { least: 200, most: 1_000 }
const DELAYS = { firstMs: 100, mostMs: 5_000 }

export class GroupConsumer implements Consumer {
  readonly id = crypto.randomUUID()
  readonly group: string
  readonly #parts: ConsumerParts
  readonly #options: ConsumeOptions
  readonly #handler: EventHandler
  readonly #onStopped: () => void
  readonly #ttlMs: number
  readonly #partitions = new Map<number, Partition>()
  readonly #waker = new Waker()
  readonly #running: Promise<void>
  readonly #applying = new Set<Promise<unknown>>()
  #member: LeaseHold | undefined
  #stopped: Promise<void> | undefined
  #stopping = false

  /** @param onStopped  called when the consumer has stopped. */
  constructor(
    parts: ConsumerParts,
    group: string,
    options: ConsumeOptions,
    handler: EventHandler,
    onStopped: () => void,
  ) {
    checkConsumer(group, options, handler)
    this.group = group
    this.#parts = parts
    this.#options = options
    this.#handler = handler
    this.#onStopped = onStopped
    this.#ttlMs = options.ttlMs ?? LIMITS.ttlMs.default
    this.#running = this.#run().finally(() => off())
    const off = onAbort(options.signal, () => void this.stop())
  }

  get partitions(): number[] {
    return [...this.#partitions.keys()].sort((a, b) => a - b)
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

  /** Stops the consumer. Resolves when no handler runs any more or the grace period is over; undefined: none runs. */
  rest(graceMs: number): Promise<void> | undefined {
    void this.stop({ graceMs }).catch(() => {})
    if (this.#applying.size === 0) return undefined
    const deadline = new Deadline(graceMs)
    return deadline.race(Promise.allSettled(this.#applying)).finally(() => deadline.clear())
  }

  async #run(): Promise<void> {
    const everyMs = Math.min(Math.max(this.#ttlMs / 10, BALANCE_MS.least), BALANCE_MS.most)
    let parts: PartitionParts | undefined
    const delays = new BackoffDelays(DELAYS)
    while (!this.#stopping) {
      try {
        if (!parts) await this.#parts.groups.declare(this.group, this.#options, CONSUME)
        parts ??= this.#partitionParts()
        await this.#balance(parts)
        delays.reset()
        await this.#waker.wait(everyMs * (0.9 + Math.random() / 5))
      } catch (error) {
        const away = fromDatabase(error) instanceof UnavailableError
        if (!away) this.#parts.onError(error)
        // the group has other options, or was deleted: a retry would not help
        if (!away && (!parts || error instanceof NotFoundError)) return void this.stop()
        await this.#waker.wait(delays.next())
      }
    }
  }

  async #balance(parts: PartitionParts): Promise<void> {
    const { groups, database, renewer } = this.#parts
    if (!this.#member?.isTrusted()) {
      const attempted = new Stopwatch()
      const name = memberName(this.group, this.id)
      const grant = await groups.leases.grant({ name, holder: this.id, ttlMs: this.#ttlMs, meta: null })
      if (!('token' in grant)) return // the row is locked: the next round tries again
      this.#member?.lose('it was not renewed in time')
      this.#member = new LeaseHold(database, groups.leases, renewer, grant, this.#ttlMs, attempted)
    }
    const { group, free, quota } = await groups.assignment(this.group, this.id)
    if (this.#stopping) return
    const mine = [...this.#partitions.values()].filter(({ stopping }) => !stopping).map(({ index }) => index)
    for (const index of pick(mine, mine.length - quota)) this.#partitions.get(index)?.stop()
    const wanted = pick(
      free.filter((partition) => !this.#partitions.has(partition)),
      quota - this.#partitions.size,
    )
    for (const { partition, grant, attempted } of await groups.take(this.group, wanted, this.id, this.#ttlMs)) {
      const take = () => new LeaseHold(database, groups.leases, renewer, grant, this.#ttlMs, attempted)
      const hold = await groups.leases.held(grant, take)
      if (!hold) continue // given back by this consumer a moment ago: the next round tries again
      if (this.#stopping || this.#partitions.has(partition)) await hold.release().catch(() => {})
      else this.#begin(group, partition, hold, parts)
    }
  }

  #begin(group: Group, index: number, hold: LeaseHold, parts: PartitionParts): void {
    const partition = new Partition(group, index, hold, parts)
    this.#partitions.set(index, partition)
    void partition.ended.then(async () => {
      if (this.#partitions.get(index) === partition) this.#partitions.delete(index)
      if (!hold.signal.aborted) await hold.release().catch(() => {}) // or it expires
      this.#waker.wake()
    })
  }

  #partitionParts(): PartitionParts {
    const { database, pool, notifier, onError } = this.#parts
    const { batch = 100, concurrency = 4, timeoutMs = 30_000 } = this.#options
    return {
      ...{ database, notifier, onError, timeoutMs, handler: this.#handler },
      read: partitionReader(pool, this.group, batch),
      limit: concurrencyLimit(concurrency, this.#applying),
    }
  }

  async #stop(graceMs: number): Promise<void> {
    this.#stopping = true
    this.#waker.wake()
    const all = [...this.#partitions.values()] // #stopping: no partition is added any more
    for (const partition of all) partition.stop()
    const timer = setTimeout(() => {
      for (const partition of all) partition.cut()
    }, graceMs)
    await this.#running
    await Promise.all(all.map((partition) => partition.ended))
    clearTimeout(timer)
    await Promise.all(all.map(({ hold }) => hold.release().catch(() => {}))) // lost, or they expire
    await this.#member?.release().catch(() => {})
    this.#onStopped()
  }
}

/**
 * Runs at most `most` pieces of work at a time; the others wait, first come, first served.
 * @param running  holds the work in progress.
 */
function concurrencyLimit(most: number, running: Set<Promise<unknown>>): PartitionParts['limit'] {
  const waiting: (() => void)[] = []
  let free = most
  const run = async <T>(work: () => Promise<T>): Promise<T> => {
    if (free === 0) await new Promise<void>((enter) => waiting.push(enter))
    else free--
    const working = work()
    running.add(working)
    try {
      return await working
    } finally {
      running.delete(working)
      const next = waiting.shift()
      if (next) next()
      else free++
    }
  }
  return { run, full: () => free === 0 }
}

function checkConsumer(group: string, options: ConsumeOptions, handler: unknown): void {
  checkGroup(group, options, CONSUME) // here, since an error of `#run` does not reach the caller
  const { concurrency, batch, ttlMs, timeoutMs } = options
  if (concurrency !== undefined) checkInteger('concurrency', concurrency, CONCURRENCY)
  if (batch !== undefined) checkInteger('batch', batch, BATCH)
  if (ttlMs !== undefined) checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
  if (timeoutMs !== undefined) checkMs('timeoutMs', timeoutMs, TIMEOUT)
  if (typeof handler !== 'function') throw wrongType('handler', 'a function', handler)
}
