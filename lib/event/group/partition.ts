/**
 * One partition of a group, while this process holds it: read what is next, apply it, and again.
 *
 * A batch is applied in one transaction that begins with the commit of the batch's end (commit_events): that fences it by the
 * partition's token and moves the checkpoint, and it counts only if the handler's writes commit with it. So whatever dies, and
 * whenever: both have happened, or neither.
 *
 * When a handler throws, all of the batch is rolled back. What came before the event that failed is applied again, and in the same
 * transaction it is told that the event failed (fail_event): its stream stands still, the others go on. Where it is not known
 * which event it was, since only the commit refused what was done, they are applied one by one until it is. What is not the
 * handler's doing (the database is away, the connection is cut) costs an event no attempt, unless it happens again and again.
 *
 * Nothing here remembers where the partition stands: each read asks the database. So an answer that was lost is no special case.
 */
import { type RawBuilder, sql, type Transaction } from 'kysely'
import { fromDatabase, LeaseLostError, TransactionEndedError, UnavailableError } from '../../base/index.ts'
import { type Database, sqlState } from '../../database/index.ts'
import type { LeaseHold } from '../../lease/index.ts'
import type { StoredEvent, StreamNotifier } from '../stream/index.ts'
import { commitEvents, failEvent, type Given, type GivenEvent, type Next } from './delivery.ts'
import type { Group } from './groups.ts'

/** What a handler is given besides the event. */
export interface EventContext {
  /** Of Lockstep's pool. What is written in it commits with the group's progress, or not at all. */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  trx: Transaction<any>
  /** Aborts when the partition is lost, the time is up, or the consumer stops: then nothing of the batch is kept. */
  signal: AbortSignal
  partition: number
  /** The fencing token of the partition. */
  token: bigint
  /** 1 for the first. */
  attempt: number
}
export type EventHandler = (event: StoredEvent, context: EventContext) => Promise<void> | void

export interface PartitionParts {
  database: Database
  tidings: StreamNotifier
  next: (ask: { partition: number; token: bigint }) => Promise<Next>
  /** Lets so many work at a time. */
  turnstile: { enter<T>(work: () => Promise<T>): Promise<T>; full(): boolean }
  handler: EventHandler
  timeoutMs: number
  onError: (error: unknown) => void
}

// A handler that heeds its signal has so long to say so; then its connection is cut.
const SETTLE_MS = 500
// In which the server sees that it was.
const CHECK_MS = 1_000
const PAUSE_MS = { first: 100, most: 5_000 }
// Faults in a row, with one batch, after which they count as the event's.
const MOST_FAULTS = 20

/** An event of a batch failed, by its place in it; −1: which of them it was is not known. */
class HandlerFailed extends Error {
  readonly at: number
  constructor(at: number, cause: unknown) {
    super('A handler failed', { cause })
    this.at = at
  }
}
/** The batch was given up, and not because of an event in it. */
class GivenUp extends Error {}

export class Partition {
  readonly index: number
  readonly hold: LeaseHold
  readonly ended: Promise<void>
  readonly #group: Group
  readonly #parts: PartitionParts
  readonly #stop = new AbortController()
  readonly #cut = new AbortController()
  #faults = 0
  /** So many events are applied one by one. */
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

  /** Ends when the batch that is under way has been applied. */
  stop(): void {
    this.#stop.abort()
  }

  /** Aborts the handler's signal; what does not heed it loses its connection. */
  cut(): void {
    this.stop()
    this.#cut.abort(new GivenUp('The consumer stops'))
  }

  async #run(): Promise<void> {
    const { partitions, prefix } = this.#group
    const lookout = this.#parts.tidings.watch(
      (stream, bucket) =>
        stream === null || (stream.startsWith(prefix) && (bucket === null || bucket % partitions === this.index)),
    )
    const wake = () => lookout.end()
    const over = [this.#stop.signal, this.hold.signal]
    for (const signal of over) signal.addEventListener('abort', wake)
    let pauseMs = PAUSE_MS.first
    while (!over.some(({ aborted }) => aborted)) {
      try {
        const { turnstile } = this.#parts
        const next = await this.#next()
        if (!next.held) this.hold.lose('the database says so')
        else if (next.events.length > 0) {
          lookout.found()
          // While it waits for its turn it keeps nothing in memory: there may be 256 partitions.
          if (turnstile.full()) next.events = []
          await turnstile.enter(async () => this.#apply(next.events.length > 0 ? next : await this.#next()))
          this.#faults = 0
        } else if (!next.more) await lookout.wait(next.waits, next.dueMs)
        pauseMs = PAUSE_MS.first
      } catch (error) {
        const state = sqlState(error)
        if (state === 'LS001') this.hold.lose('the database says so', error)
        if (error instanceof GivenUp || error instanceof LeaseLostError || /^LS00[157]$/.test(state)) continue
        this.#faults++
        if (!isFault(error)) this.#parts.onError(error)
        await lookout.pause(pauseMs)
        pauseMs = Math.min(pauseMs * 2, PAUSE_MS.most)
      }
    }
    for (const signal of over) signal.removeEventListener('abort', wake)
    lookout.leave()
  }

  #next(): Promise<Next> {
    return this.#parts.next({ partition: this.index, token: this.hold.token })
  }

  // All of a batch; or what came before the event that failed, and that it failed.
  async #apply(batch: Next): Promise<void> {
    const [first] = batch.events
    if (first === undefined) return // nothing any more, since it was looked at
    const single = this.#single > 0
    const events = single ? [first] : batch.events
    const given = this.#given(single ? { ...batch, next: first.cursor } : batch)
    try {
      await this.#transaction(events, sql`select ${commitEvents(given, false)} as committed`)
      if (single) this.#single--
    } catch (error) {
      if (!(error instanceof HandlerFailed)) throw error
      await this.#failed(batch, events, error)
    }
  }

  async #failed(batch: Next, events: GivenEvent[], { at, cause }: HandlerFailed): Promise<void> {
    if (at < 0 && events.length > 1) {
      this.#single = events.length
      return
    }
    this.#single = 0
    const event = events[Math.max(at, 0)] as GivenEvent
    const before = events.slice(0, Math.max(at, 0))
    let parked: number | undefined
    try {
      const failure = failEvent(this.#given(batch), event.cursor, cause)
      const [row] = await this.#transaction(before, failure)
      if (row?.due_ms === null) parked = row.attempts
    } catch (error) {
      if (!(error instanceof HandlerFailed)) throw error
      return this.#failed(batch, before, error) // of fewer events
    }
    if (parked === undefined) return
    const which = `${JSON.stringify(event.stream)} at ${event.position}`
    const message = `${JSON.stringify(this.#group.name)} has parked ${which}, after ${parked} attempts`
    this.#parts.onError(new Error(message, { cause }))
  }

  #given({ next, turn }: Next): Given {
    return { group: this.#group.name, partition: this.index, token: this.hold.token, next, turn }
  }

  // The events, and what the group is told of them: together, or not at all.
  async #transaction<R>(events: GivenEvent[], told: RawBuilder<R>): Promise<R[]> {
    const { database, timeoutMs } = this.#parts
    if (this.#stop.signal.aborted) throw new GivenUp('The consumer stops')
    const late = new AbortController()
    // One of its own, and not AbortSignal.any: what a handler leaves on such a one is kept for as long as the others live.
    const own = new AbortController()
    const { signal } = own
    const sources = [this.hold.signal, this.#cut.signal, late.signal]
    const pass = () => own.abort(sources.find(({ aborted }) => aborted)?.reason)
    for (const source of sources) source.addEventListener('abort', pass)
    const abandoned = Promise.withResolvers<never>()
    abandoned.promise.catch(() => {}) // perhaps before there is a connection
    const timers: NodeJS.Timeout[] = []
    const aborted = () => timers.push(setTimeout(() => abandoned.reject(signal.reason), SETTLE_MS))
    signal.addEventListener('abort', aborted)
    if (sources.some(({ aborted }) => aborted)) pass()
    // For a connection it waits as long as it has the partition and shall go on: that all are in use is no failure of an event.
    const waiting = new AbortController()
    const leave = () => waiting.abort(signal.aborted ? signal.reason : new GivenUp('The consumer stops'))
    for (const source of [signal, this.#stop.signal]) source.addEventListener('abort', leave)
    if (signal.aborted) leave()
    const wait = { signal: waiting.signal, ms: Infinity }
    const how = { isolation: 'read committed', identified: false, abandoned: abandoned.promise, ...wait } as const
    let at = -1 // it has not begun
    let committing = false
    try {
      return await database.users.supervised(async (trx, runWork) => {
        const tooLate = new Error(`The events were not applied within ${timeoutMs} ms`)
        timers.push(setTimeout(() => late.abort(tooLate), timeoutMs))
        const { rows } = await beginning(told, timeoutMs).execute(trx)
        const xid = rows[0]?.xid
        for (at = 0; at < events.length; at++) await runWork(() => this.#handle(events, at, trx, signal), xid)
        if (events.length > 0) await this.#check(trx, xid, events.length)
        signal.throwIfAborted() // the last may only have stopped in time
        committing = true
        return rows
      }, how)
    } catch (error) {
      if (error instanceof TransactionEndedError) {
        // If it was committed the events of the batch count as applied, and nothing can be told of them: so it is told here.
        this.#parts.onError(error)
        throw new HandlerFailed(at < events.length || events.length === 1 ? Math.min(at, events.length - 1) : -1, error)
      }
      if (signal.aborted && !committing) {
        if (signal.reason !== late.signal.reason) {
          throw signal.reason instanceof LeaseLostError ? signal.reason : new GivenUp('The consumer stops')
        }
        if (at >= 0 && events.length > 0) throw new HandlerFailed(Math.min(at, events.length - 1), signal.reason)
      }
      // A COMMIT, for which the server has no limit; or something else has the partition's checkpoint locked. What came of it is
      // read anew.
      if (signal.aborted && !answered(error)) {
        const message = `${JSON.stringify(this.#group.name)} waits in the database for longer than ${timeoutMs} ms`
        this.#parts.onError(new Error(message, { cause: error }))
        throw new UnavailableError(message, { cause: error })
      }
      // what the commit refuses (a deferred constraint, a fenced table) is the handler's doing
      throw committing && answered(error) && !isFault(error) ? new HandlerFailed(-1, error) : error
    } finally {
      for (const timer of timers) clearTimeout(timer)
      for (const source of sources) source.removeEventListener('abort', pass)
      for (const source of [signal, this.#stop.signal]) source.removeEventListener('abort', leave)
    }
  }

  async #handle(events: GivenEvent[], at: number, trx: EventContext['trx'], signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const { attempt, ...event } = events[at] as GivenEvent
    try {
      await this.#parts.handler(event, { trx, signal, partition: this.index, token: this.hold.token, attempt })
    } catch (error) {
      // Unless the connection is gone, or the database asks that the transaction be tried again, it is the handler's own.
      const fault = /^40/.test(sqlState(error)) || !(await lives(trx))
      throw fault && this.#faults < MOST_FAULTS ? error : new HandlerFailed(at, error)
    }
  }

  // A handler may have swallowed an error of it; then nothing would be committed, again and again. Or it has ended it.
  async #check(trx: EventContext['trx'], xid: string | undefined, count: number): Promise<void> {
    const rows = await current.execute(trx).then(
      ({ rows }) => rows,
      (error) => {
        throw answered(error) ? new HandlerFailed(count === 1 ? 0 : -1, error) : error
      },
    )
    if (rows[0]?.xid !== xid) throw new TransactionEndedError('unknown') // database/supervised-transaction.ts finds out the rest
  }
}

// With the server's own limits: for a process that stands still, for what waits in the database, for a connection that is cut.
const beginning = <R>(told: RawBuilder<R>, timeoutMs: number) => sql<R & { xid: string }>`
  with told as materialized (${told})
  select told.*, pg_current_xact_id()::text as xid,
         set_config('idle_in_transaction_session_timeout', ${`${timeoutMs}ms`}, true),
         set_config('statement_timeout', ${`${timeoutMs}ms`}, true),
         set_config('client_connection_check_interval', ${`${CHECK_MS}ms`}, true)
    from told`

const current = sql<{ xid: string | null }>`select pg_current_xact_id_if_assigned()::text as xid`

/** Whether the connection of a transaction lives, whatever became of the transaction. */
const lives = (trx: EventContext['trx']): Promise<boolean> => current.execute(trx).then(() => true, answered)

/** Whether the server itself said so. */
const answered = (error: unknown): boolean => (error as { severity?: unknown }).severity !== undefined

/**
 * The database is away, or asks that the transaction be tried again (40001, 40P01). Not what a handler's own statements may bring
 * about each time: that it was too slow (57014), waited for a lock (55P03), or met a fault (58, XX).
 */
const isFault = (error: unknown): boolean =>
  fromDatabase(error) instanceof UnavailableError && !/^(55P03|57014|58|XX)/.test(sqlState(error))
