/**
 * One partition of a group, while this process holds it: a loop that reads the next batch of events and applies it.
 *
 * A batch is applied in one transaction. Its first statement commits the delivery (commit_events): it checks the
 * partition's fencing token and moves the checkpoint. That counts only if the transaction commits, together with the
 * handler's writes. So whatever dies, and whenever: both have happened, or neither.
 *
 * When a handler throws, the whole batch is rolled back. Then the events before the failed one are applied again, and
 * the same transaction records the failure (fail_event): the stream of that event stops, the other streams go on. If
 * only the COMMIT failed, it is not known which event caused it; then the events are applied one by one until it is. An
 * error that the handler did not cause (the database is away, the connection is cut) costs an event no attempt, unless
 * it happens again and again.
 *
 * This process keeps no checkpoint in memory: each read takes it from the database. So an answer that was lost is no
 * special case.
 */
import { type RawBuilder, sql, type Transaction } from 'kysely'
import {
  BackoffDelays,
  combineSignals,
  LeaseLostError,
  onAbort,
  SQLSTATE,
  TransactionEndedError,
  UnavailableError,
} from '../../base/index.ts'
import { type Database, type SupervisedOptions, sqlState } from '../../database/index.ts'
import type { LeaseHold } from '../../lease/index.ts'
import type { StoredEvent, StreamNotifier } from '../stream/index.ts'
import { beginStatement, currentXid, isConnected, isFault, isServerError } from './batch-transaction.ts'
import {
  commitEvents,
  type DeliveredEvent,
  type Delivery,
  type DeliveryEnd,
  failEvent,
  type HeldPartition,
} from './delivery.ts'
import type { Group } from './groups.ts'

/** The second argument of a handler. */
export interface EventContext {
  /**
   * The batch's transaction, on a connection of Lockstep's pool. Its writes commit with the group's progress, or not at
   * all.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  trx: Transaction<any>
  /** Aborts when the partition is lost, `timeoutMs` has passed, or the consumer stops: then the batch is rolled back. */
  signal: AbortSignal
  /** The number of the event's partition, from 0. */
  partition: number
  /** The fencing token of the partition, ≥ 1n: larger for each later holder. */
  token: bigint
  /** The number of this attempt to apply the event: 1 for the first. */
  attempt: number
}
/** Applies an event. If it throws or rejects, the event has failed and is retried later. */
export type EventHandler = (event: StoredEvent, context: EventContext) => Promise<void> | void

export interface PartitionParts {
  database: Database
  notifier: StreamNotifier
  read: (held: HeldPartition) => Promise<Delivery>
  /** Bounds how many partitions of a consumer apply a batch at the same time. */
  limit: { run<T>(work: () => Promise<T>): Promise<T>; full(): boolean }
  handler: EventHandler
  timeoutMs: number
  onError: (error: unknown) => void
}

// How long a handler may take to return after its signal has aborted; then its connection is cut.
const SETTLE_MS = 500
const DELAYS = { firstMs: 100, mostMs: 5_000 }
// So many faults in a row, with one batch, count as a failure of the event.
const MOST_FAULTS = 20
const PASSED_ON: string[] = [SQLSTATE.leaseLost, SQLSTATE.staleBatch, SQLSTATE.notInBatch] // partition or batch

/** An event of a batch failed, by its index in the batch; −1: it is not known which. */
class HandlerFailed extends Error {
  readonly at: number
  constructor(at: number, cause: unknown) {
    super('A handler failed', { cause })
    this.at = at
  }
}
/** The batch was rolled back, and not because of an event in it. */
class BatchAborted extends Error {}

export class Partition {
  readonly index: number
  readonly hold: LeaseHold
  readonly ended: Promise<void>
  readonly #group: Group
  readonly #parts: PartitionParts
  readonly #stop = new AbortController()
  readonly #cut = new AbortController()
  #faults = 0
  /** So many of the next events are applied one by one. */
  #single = 0

  constructor(group: Group, index: number, hold: LeaseHold, parts: PartitionParts) {
    this.index = index
    this.hold = hold
    this.#group = group
    this.#parts = parts
    this.ended = this.#run()
  }

  get stopping(): boolean {
    return this.#stop.signal.aborted
  }

  /** Ends the loop when the batch in progress has been applied. */
  stop(): void {
    this.#stop.abort(new BatchAborted('The consumer stops'))
  }

  /** Aborts the handler's signal; the connection of a handler that does not return is cut. */
  cut(): void {
    this.stop()
    this.#cut.abort(new BatchAborted('The consumer stops'))
  }

  async #run(): Promise<void> {
    const { partitions, prefix } = this.#group
    const { notifier, limit } = this.#parts
    const watch = notifier.watch(
      (stream, bucket) =>
        stream === null || (stream.startsWith(prefix) && (bucket === null || bucket % partitions === this.index)),
    )
    const over = combineSignals(this.#stop.signal, this.hold.signal)
    const off = onAbort(over.signal, () => watch.end())
    const delays = new BackoffDelays(DELAYS)
    while (!over.signal.aborted) {
      try {
        const delivery = await this.#read()
        if (!delivery.held) this.hold.lose('the database says so')
        else if (delivery.events.length > 0) {
          watch.reset()
          // While this partition waits for its turn it keeps no events in memory: there may be 256 partitions.
          if (limit.full()) delivery.events = []
          await limit.run(async () => this.#apply(delivery.events.length > 0 ? delivery : await this.#read()))
          this.#faults = 0
        } else if (!delivery.more) await watch.wait(delivery.undecided, delivery.dueMs)
        delays.reset()
      } catch (error) {
        const state = sqlState(error)
        if (state === SQLSTATE.leaseLost) this.hold.lose('the database says so', error)
        if (error instanceof BatchAborted || error instanceof LeaseLostError || PASSED_ON.includes(state)) continue
        this.#faults++
        if (!isFault(error)) this.#parts.onError(error)
        await watch.pause(delays.next())
      }
    }
    off()
    over.end()
    watch.close()
  }

  #read(): Promise<Delivery> {
    return this.#parts.read({ partition: this.index, token: this.hold.token })
  }

  // Applies the batch; or applies the events before the one that failed, and records its failure.
  async #apply(batch: Delivery): Promise<void> {
    const [first] = batch.events
    if (first === undefined) return // another consumer has applied them since they were first read
    const single = this.#single > 0
    const events = single ? [first] : batch.events
    const end = this.#end(single ? { ...batch, next: first.cursor } : batch)
    try {
      await this.#transaction(events, sql`select ${commitEvents(end, false)} as committed`)
      if (single) this.#single--
    } catch (error) {
      if (!(error instanceof HandlerFailed)) throw error
      await this.#failed(batch, events, error)
    }
  }

  async #failed(batch: Delivery, events: DeliveredEvent[], { at, cause }: HandlerFailed): Promise<void> {
    if (at < 0 && events.length > 1) {
      this.#single = events.length
      return
    }
    this.#single = 0
    const event = events[Math.max(at, 0)] as DeliveredEvent
    const before = events.slice(0, Math.max(at, 0))
    let parked: number | undefined
    try {
      const failure = failEvent(this.#end(batch), event.cursor, cause)
      const [row] = await this.#transaction(before, failure)
      if (row?.due_ms === null) parked = row.attempts
    } catch (error) {
      if (!(error instanceof HandlerFailed)) throw error
      return this.#failed(batch, before, error) // with fewer events each time
    }
    if (parked === undefined) return
    const which = `${JSON.stringify(event.stream)} at ${event.position}`
    const message = `${JSON.stringify(this.#group.name)} has parked ${which}, after ${parked} attempts`
    this.#parts.onError(new Error(message, { cause }))
  }

  #end({ next, turn }: Delivery): DeliveryEnd {
    return { group: this.#group.name, partition: this.index, token: this.hold.token, next, turn }
  }

  // Applies the events and records their outcome, in one transaction.
  async #transaction<R>(events: DeliveredEvent[], outcome: RawBuilder<R>): Promise<R[]> {
    const { database, timeoutMs } = this.#parts
    const stop = this.#stop.signal
    stop.throwIfAborted()
    const timeout = new AbortController()
    // Not AbortSignal.any: a listener that a handler leaves on such a signal is kept for as long as its sources live.
    const work = combineSignals(this.hold.signal, this.#cut.signal, timeout.signal)
    const { signal } = work
    const abandoned = Promise.withResolvers<never>()
    abandoned.promise.catch(() => {}) // perhaps before there is a connection
    const timers: NodeJS.Timeout[] = []
    const off = onAbort(signal, () => timers.push(setTimeout(() => abandoned.reject(signal.reason), SETTLE_MS)))
    // It waits for a connection as long as it holds the partition and the consumer runs: a full pool is no failure of
    // an event.
    const waiting = combineSignals(signal, stop)
    const wait = { signal: waiting.signal, ms: Infinity }
    const how: SupervisedOptions = {
      isolation: 'read committed',
      identified: false,
      abandoned: abandoned.promise,
      ...wait,
    }
    let at = -1 // no event has begun
    let committing = false
    try {
      return await database.users.supervised(async (trx, runWork) => {
        const tooLate = new Error(`The events were not applied within ${timeoutMs} ms`)
        timers.push(setTimeout(() => timeout.abort(tooLate), timeoutMs))
        const { rows } = await beginStatement(outcome, timeoutMs).execute(trx)
        const xid = rows[0]?.xid
        for (at = 0; at < events.length; at++) await runWork(() => this.#handle(events, at, trx, signal), xid)
        if (events.length > 0) await this.#check(trx, xid, events.length)
        signal.throwIfAborted() // the last handler may have returned because of its signal
        committing = true
        return rows
      }, how)
    } catch (error) {
      if (error instanceof TransactionEndedError) {
        // If the handler committed, the events count as applied, and no failure can be recorded for them: so it is
        // reported here.
        this.#parts.onError(error)
        throw new HandlerFailed(at < events.length || events.length === 1 ? Math.min(at, events.length - 1) : -1, error)
      }
      if (signal.aborted && !committing) {
        if (signal.reason !== timeout.signal.reason) {
          throw signal.reason instanceof LeaseLostError ? signal.reason : new BatchAborted('The consumer stops')
        }
        if (at >= 0 && events.length > 0) throw new HandlerFailed(Math.min(at, events.length - 1), signal.reason)
      }
      // A COMMIT, for which the server has no time limit; or another transaction has locked the partition's checkpoint.
      // The next read finds out what became of it.
      if (signal.aborted && !isServerError(error)) {
        const message = `${JSON.stringify(this.#group.name)} waits in the database for longer than ${timeoutMs} ms`
        this.#parts.onError(new Error(message, { cause: error }))
        throw new UnavailableError(message, { cause: error })
      }
      // what the COMMIT refuses (a deferred constraint, a fenced table) is caused by a handler
      throw committing && isServerError(error) && !isFault(error) ? new HandlerFailed(-1, error) : error
    } finally {
      for (const timer of timers) clearTimeout(timer)
      off()
      waiting.end()
      work.end()
    }
  }

  async #handle(events: DeliveredEvent[], at: number, trx: EventContext['trx'], signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const { attempt, ...event } = events[at] as DeliveredEvent
    try {
      await this.#parts.handler(event, { trx, signal, partition: this.index, token: this.hold.token, attempt })
    } catch (error) {
      // Unless the connection is gone, or the database asks to run the transaction again, the handler caused it.
      const fault = /^40/.test(sqlState(error)) || !(await isConnected(trx))
      throw fault && this.#faults < MOST_FAULTS ? error : new HandlerFailed(at, error)
    }
  }

  // A handler may have caught an error of the transaction: then nothing could be committed, again and again. Or it has
  // ended the transaction.
  async #check(trx: EventContext['trx'], xid: string | undefined, count: number): Promise<void> {
    const rows = await currentXid.execute(trx).then(
      ({ rows }) => rows,
      (error) => {
        throw isServerError(error) ? new HandlerFailed(count === 1 ? 0 : -1, error) : error
      },
    )
    if (rows[0]?.xid !== xid) throw new TransactionEndedError('unknown') // database/supervised-transaction.ts finds the outcome
  }
}
