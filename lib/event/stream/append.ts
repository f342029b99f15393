/**
 * Appending: events that many callers append at the same time go in one statement.
 *
 * The first call goes at once. Calls that arrive while its statement is in flight go together in the next statement
 * (base/batch.ts), also calls for the same stream. The statement locks its streams (an advisory lock for each, `gate`
 * in SQL), checks what each caller expects, and assigns the positions (append, in 0007_event.sql). It never waits for a
 * lock: a stream that another transaction has locked is skipped, since that transaction may last, and the request is
 * sent again in a statement of its own that waits. If a shared statement fails, nothing of it was appended. Each
 * request is then sent again alone, so that an error in one request fails no other.
 *
 * Listeners are notified after the commit, by a second statement: a NOTIFY within the transaction would hold one lock
 * of the whole database through the commit's fsync. A call that shares its statement with no other is spared that round
 * trip: its NOTIFY is in the transaction.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import {
  BackoffDelays,
  batched,
  checkOptions,
  type Expected,
  exact,
  fromDatabase,
  known,
  PositionConflictError,
  Stopwatch,
  UnavailableError,
  wrongType,
} from '../../base/index.ts'
import { type AnyTransaction, checkTransaction, list, type Pool, sqlState, within } from '../../database/index.ts'
import {
  type AppendAnswer,
  type AppendRequest,
  type AppendRow,
  answersOf,
  appendRequest,
  appendStatement,
  type NewEvent,
  type PlainRow,
  plainStatement,
  sorted,
  streamOf,
} from './append-statement.ts'

/** Options of `append`. */
export interface AppendOptions {
  /**
   * The stream's last position, as the caller has read it; the append fails with a PositionConflictError if the stream
   * is elsewhere. A position (0n: no events), `none` (no events), `exists` (at least one event) or `any` (no check).
   * @default 'any'
   */
  expected?: Expected | undefined
  /**
   * The caller's open transaction: the events are appended if it commits, and not if it rolls back. The stream is
   * locked until it ends.
   * @default a transaction of Lockstep's own
   */
  trx?: AnyTransaction | undefined
}

/** Where the events of an append are in their stream. */
export interface Appended {
  /** The position of the first event. */
  first: bigint
  /** The position of the last event; all events between are of the same append. */
  last: bigint
  /** Whether events with these ids were appended before: then nothing was appended now, and these are their positions. */
  repeated: boolean
}

const APPEND = known<AppendOptions>({ expected: true, trx: true })
// Requests in a statement; and the largest request that shares a statement.
const MOST_REQUESTS = 128
const SHARED = { events: 100, bytes: 65_536 }
// How long an append waits for another transaction on its stream.
const WAIT_MS = 10_000
/** Connections for appends that wait: of so many streams at a time the appends wait in the database's queue. */
export const WAIT_CONNECTIONS = 4

export class Appender {
  readonly #pool: Pool
  readonly #waitPool: Pool
  readonly #onAppended: (streams: string[]) => void
  readonly #shared: (request: AppendRequest) => Promise<Result>
  readonly #notify: (streams: string[]) => Promise<undefined>
  /** By stream that another transaction has locked: the requests of this process that wait for it. */
  readonly #waitQueues = new Map<string, { waiting: number; wait: (request: AppendRequest) => Promise<Result> }>()

  /**
   * @param waitPool    connections for appends that wait, so that they hold up no other append.
   * @param onAppended  called with the streams that this process has appended to.
   */
  constructor(pool: Pool, waitPool: Pool, onAppended: (streams: string[]) => void) {
    this.#pool = pool
    this.#waitPool = waitPool
    this.#onAppended = onAppended
    this.#shared = batched((requests) => this.#run(requests), streamOf, MOST_REQUESTS, true)
    this.#notify = batched(
      async (calls) => {
        const streams = [...new Set(calls.flat())]
        await this.#pool.run(sql`select lockstep.tell_events(${list(streams, 'text')})`)
        return calls.map(() => undefined)
      },
      () => '',
      MOST_REQUESTS,
      true,
    )
  }

  async append(stream: string, events: NewEvent | readonly NewEvent[], options: AppendOptions = {}): Promise<Appended> {
    checkOptions(options, APPEND)
    if (options.trx !== undefined) checkTransaction(options.trx)
    const request = appendRequest(stream, events, options.expected ?? 'any')
    const { outcome, first, last } =
      options.trx !== undefined ? await this.#appendIn(options.trx, request) : await this.#append(request)
    if (outcome === 'conflict') throw new PositionConflictError(stream, request.expected, last)
    if (outcome === 'reused') throw wrongType('id', 'of no other event of the stream', 'one that is')
    return exact({ first: first as bigint, last, repeated: outcome === 'repeated' })
  }

  async #append(request: AppendRequest): Promise<AppendAnswer> {
    const large = request.count > SHARED.events || request.data.length > SHARED.bytes
    let result = large ? (await this.#run([request]))[0] : await this.#shared(request)
    if (result && 'outcome' in result && result.outcome === 'busy') result = await this.#wait(request)
    if (!result) throw new Error('append did not answer')
    if ('error' in result) throw result.error
    return result
  }

  async #appendIn(trx: AnyTransaction, request: AppendRequest): Promise<AppendAnswer> {
    try {
      const [row] = await within<AppendRow>(trx, appendStatement([request], { waitMs: 0, notify: true }))
      return answersOf(row)[0] as AppendAnswer
    } catch (error) {
      throw /^40/.test(sqlState(error)) ? error : explained(error) // 40: the caller has to run its transaction again
    }
  }

  // The usual case first: streams that exist, at any position. Then the requests that this leaves out, and all others.
  async #run(requests: AppendRequest[]): Promise<Result[]> {
    const plain = requests.every(({ at, ids }) => at === null && ids === undefined)
    const results = plain ? await each(requests, (some) => this.#runPlain(some)) : new Map<AppendRequest, Result>()
    const rest = requests.filter((request) => !results.has(request))
    const others = rest.length > 0 ? await each(rest, (some) => this.#runAny(some)) : results
    return requests.map((request) => (results.get(request) ?? others.get(request)) as Result)
  }

  async #runPlain(requests: AppendRequest[]): Promise<(AppendAnswer | undefined)[]> {
    const { streams, indexes, offsets, statement } = plainStatement(requests, requests.length === 1)
    const [row] = await this.#pool.run<PlainRow>(statement)
    const befores = row?.befores.map((before) => (before === null ? undefined : BigInt(before))) ?? []
    const appended = streams.filter((_, i) => befores[i] !== undefined)
    this.#announce(appended, row?.heard)
    return requests.map(({ count }, k) => {
      const before = befores[(indexes[k] as number) - 1]
      if (before === undefined) return undefined
      const first = before + BigInt(offsets[k] as number)
      return { outcome: 'appended', first, last: first + BigInt(count - 1) }
    })
  }

  async #runAny(requests: AppendRequest[]): Promise<AppendAnswer[]> {
    const [row] = await this.#pool.run<AppendRow>(
      appendStatement(requests, { waitMs: null, notify: requests.length === 1 }),
    )
    const answers = answersOf(row)
    this.#announce(appendedStreams(requests, answers), row?.heard)
    return answers
  }

  /** @param unnotified  another process listens, and the transaction has sent no NOTIFY. */
  #announce(streams: string[], unnotified = false): void {
    if (streams.length === 0) return
    this.#onAppended(streams)
    if (unnotified) void this.#notify(streams).catch(() => {}) // listeners poll too
  }

  // Waits for another transaction: in the database's queue, with all other requests of this process for the stream; or
  // by trying again, when as many streams are waited for as there are connections for it.
  async #wait(request: AppendRequest): Promise<Result> {
    const { stream } = request
    let queue = this.#waitQueues.get(stream)
    if (!queue && this.#waitQueues.size >= WAIT_CONNECTIONS) return this.#retry(request)
    queue ??= {
      waiting: 0,
      wait: batched((some: AppendRequest[]) => this.#runWaiting(some), streamOf, MOST_REQUESTS, true),
    }
    this.#waitQueues.set(stream, queue)
    queue.waiting++
    try {
      return await queue.wait(request)
    } finally {
      if (--queue.waiting === 0) this.#waitQueues.delete(stream)
    }
  }

  // In one statement and not in a transaction of several: if the network breaks, nothing stays locked.
  async #runWaiting(requests: AppendRequest[]): Promise<Result[]> {
    const results = await each(requests, async (some) => {
      const [row] = await this.#waitPool.run<AppendRow>(appendStatement(some, { waitMs: WAIT_MS, notify: true }))
      const answers = answersOf(row)
      this.#announce(appendedStreams(some, answers), row?.heard)
      return answers
    })
    return requests.map((request) => results.get(request) as Result)
  }

  async #retry(request: AppendRequest): Promise<Result> {
    const since = new Stopwatch()
    const delays = new BackoffDelays({ firstMs: 10, mostMs: 250, factor: 1.5 })
    for (;;) {
      await sleep(delays.next())
      const [result] = await this.#run([request])
      if (!result || 'error' in result || result.outcome !== 'busy') return result as Result
      if (since.elapsed() > WAIT_MS) return { error: streamLocked() }
    }
  }
}

type Result = AppendAnswer | { error: unknown }

// One statement for all requests, in their order. An error does not say which request caused it: then one statement for
// each.
async function each(
  requests: AppendRequest[],
  run: (requests: AppendRequest[]) => Promise<(AppendAnswer | undefined)[]>,
): Promise<Map<AppendRequest, Result>> {
  const inOrder = sorted(requests)
  try {
    const answers = await run(inOrder)
    return new Map(inOrder.flatMap((request, i) => (answers[i] ? [[request, answers[i]] as const] : [])))
  } catch (error) {
    // A deadlock of other transactions, with this statement queued between them: nothing was done, and no request
    // caused it.
    if (sqlState(error) === '40P01') return each(requests, run)
    if (requests.length === 1 || error instanceof UnavailableError || isLockTimeout(error)) {
      return new Map(requests.map((request) => [request, { error: explained(error) }]))
    }
    const results = await Promise.all(requests.map((request) => each([request], run)))
    return new Map(results.flatMap((result) => [...result]))
  }
}

const appendedStreams = (requests: AppendRequest[], answers: AppendAnswer[]): string[] => [
  ...new Set(requests.filter((_, i) => answers[i]?.outcome === 'appended').map(streamOf)),
]

const isLockTimeout = (error: unknown): boolean => sqlState(error) === '55P03'

const streamLocked = (cause?: unknown) =>
  new UnavailableError(`Another transaction that appends to the stream has been open for ${WAIT_MS} ms`, { cause })

function explained(cause: unknown): unknown {
  if (isLockTimeout(cause)) return streamLocked(cause)
  return fromDatabase(cause)
}
