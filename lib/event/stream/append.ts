/**
 * Appending: what many callers append at once goes in one statement.
 *
 * The first goes at once; what comes while it is under way goes together in the next (base/batch.ts), also what is for one stream. The
 * statement gains the gates of its streams, checks what each caller expects, and gives out positions (append, in
 * 0007_event.sql). It waits for nobody: a stream whose gate somebody else has, in a transaction that may last, is skipped, and
 * asked for by a statement of its own that waits. Should a shared statement fail, nothing of it was appended, and each is asked
 * again by itself, so that what is wrong with one fails no other.
 *
 * Whoever listens is told after the commit, by a statement of its own: a NOTIFY within would hold one lock of the whole
 * database through the commit's fsync. One caller alone is spared that round trip: its NOTIFY is in the transaction.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import {
  batched,
  checkOptions,
  type Expected,
  fromDatabase,
  PositionConflictError,
  SQLSTATE,
  Stopwatch,
  UnavailableError,
  wrongType,
} from '../../base/index.ts'
import { type AnyTransaction, checkTransaction, list, type Pool, sqlState, within } from '../../database/index.ts'
import {
  type Answer,
  type Ask,
  answersOf,
  askOf,
  type NewEvent,
  type PlainRow,
  plainStatementOf,
  type Row,
  sorted,
  statementOf,
  streamOf,
} from './append-statement.ts'

export interface AppendOptions {
  /**
   * Where the stream has to be: at a position (0n: empty), `none` (empty), `exists` (not empty), `any`. For who has read it, and
   * decided by what was there.
   * @default 'any'
   */
  expected?: Expected
  /** A transaction of yours, with which they are appended, or not. The stream is locked until it ends. */
  trx?: AnyTransaction
}

export interface Appended {
  /** The position of the first. */
  first: bigint
  /** And of the last. */
  last: bigint
  /** Events with these ids were there already: these are their positions. */
  repeated: boolean
}

// Asks in a statement; and how large one may be to share it.
const MOST = 128
const SHARED = { events: 100, bytes: 65_536 }
// For how long an append waits for another transaction on its stream; and for how many streams in the database's queue.
const WAIT_MS = 10_000
export const WAITERS = 4

export class Appender {
  readonly #pool: Pool
  readonly #waiters: Pool
  readonly #told: (streams: string[]) => void
  readonly #shared: (ask: Ask) => Promise<Result>
  readonly #tell: (streams: string[]) => Promise<undefined>
  /** Of streams that somebody else has locked: who waits for them. */
  readonly #lines = new Map<string, { waiting: number; wait: (ask: Ask) => Promise<Result> }>()

  /**
   * @param waiters  connections for appends that wait, so that they hold up no other.
   * @param told     hears what this process has appended.
   */
  constructor(pool: Pool, waiters: Pool, told: (streams: string[]) => void) {
    this.#pool = pool
    this.#waiters = waiters
    this.#told = told
    this.#shared = batched((asks) => this.#run(asks), streamOf, MOST, true)
    this.#tell = batched(
      async (calls) => {
        const streams = [...new Set(calls.flat())]
        await this.#pool.run(sql`select lockstep.tell_events(${list(streams, 'text')})`)
        return calls.map(() => undefined)
      },
      () => '',
      MOST,
      true,
    )
  }

  async append(stream: string, events: NewEvent | readonly NewEvent[], options: AppendOptions = {}): Promise<Appended> {
    checkOptions(options)
    if (options.trx !== undefined) checkTransaction(options.trx)
    const ask = askOf(stream, events, options.expected ?? 'any')
    const { outcome, first, last } =
      options.trx !== undefined ? await this.#inside(ask, options.trx) : await this.#alone(ask)
    if (outcome === 'conflict') throw new PositionConflictError(stream, ask.expected, last)
    if (outcome === 'reused') throw wrongType('id', 'of no other event of the stream', 'one that is')
    return { first: first as bigint, last, repeated: outcome === 'repeated' }
  }

  async #alone(ask: Ask): Promise<Answer> {
    const large = ask.count > SHARED.events || ask.data.length > SHARED.bytes
    let result = large ? (await this.#run([ask]))[0] : await this.#shared(ask)
    if (result && 'outcome' in result && result.outcome === 'busy') result = await this.#wait(ask)
    if (!result) throw new Error('append did not answer')
    if ('error' in result) throw result.error
    return result
  }

  async #inside(ask: Ask, trx: AnyTransaction): Promise<Answer> {
    try {
      const [row] = await within<Row>(trx, statementOf([ask], { waits: 0, tells: true }))
      return answersOf(row)[0] as Answer
    } catch (error) {
      throw /^40/.test(sqlState(error)) ? error : explained(error) // 40: the transaction is its owner's to try again
    }
  }

  // What is usual first: to streams that are there, wherever they are. Then what that leaves out, and all else.
  async #run(asks: Ask[]): Promise<Result[]> {
    const plain = asks.every(({ at, ids }) => at === null && ids === undefined)
    const results = plain ? await each(asks, (some) => this.#runPlain(some)) : new Map<Ask, Result>()
    const rest = asks.filter((ask) => !results.has(ask))
    const others = rest.length > 0 ? await each(rest, (some) => this.#runAny(some)) : results
    return asks.map((ask) => (results.get(ask) ?? others.get(ask)) as Result)
  }

  async #runPlain(asks: Ask[]): Promise<(Answer | undefined)[]> {
    const { streams, which, places, statement } = plainStatementOf(asks, asks.length === 1)
    const [row] = await this.#pool.run<PlainRow>(statement)
    const befores = row?.befores.map((before) => (before === null ? undefined : BigInt(before))) ?? []
    const there = streams.filter((_, i) => befores[i] !== undefined)
    this.#hear(there, row?.heard)
    return asks.map(({ count }, k) => {
      const before = befores[(which[k] as number) - 1]
      if (before === undefined) return undefined
      const first = before + BigInt(places[k] as number)
      return { outcome: 'appended', first, last: first + BigInt(count - 1) }
    })
  }

  async #runAny(asks: Ask[]): Promise<Answer[]> {
    const [row] = await this.#pool.run<Row>(statementOf(asks, { waits: null, tells: asks.length === 1 }))
    const answers = answersOf(row)
    this.#hear(written(asks, answers), row?.heard)
    return answers
  }

  #hear(streams: string[], untold = false): void {
    if (streams.length === 0) return
    this.#told(streams)
    if (untold) void this.#tell(streams).catch(() => {}) // they look by themselves too
  }

  // Behind another transaction: in the database's queue, with all others of this process that wait for the stream; or by asking
  // again, where as many streams are waited for as there are connections for it.
  async #wait(ask: Ask): Promise<Result> {
    const { stream } = ask
    let line = this.#lines.get(stream)
    if (!line && this.#lines.size >= WAITERS) return this.#askAgain(ask)
    line ??= { waiting: 0, wait: batched((asks: Ask[]) => this.#runWaiting(asks), streamOf, MOST, true) }
    this.#lines.set(stream, line)
    line.waiting++
    try {
      return await line.wait(ask)
    } finally {
      if (--line.waiting === 0) this.#lines.delete(stream)
    }
  }

  // In one statement and not in a transaction of ours: should the network break, nothing stays locked.
  async #runWaiting(asks: Ask[]): Promise<Result[]> {
    const results = await each(asks, async (some) => {
      const [row] = await this.#waiters.run<Row>(statementOf(some, { waits: WAIT_MS, tells: true }))
      const answers = answersOf(row)
      this.#hear(written(some, answers))
      return answers
    })
    return asks.map((ask) => results.get(ask) as Result)
  }

  async #askAgain(ask: Ask): Promise<Result> {
    const since = new Stopwatch()
    for (let pauseMs = 10; ; pauseMs = Math.min(pauseMs * 1.5, 250)) {
      await sleep(pauseMs)
      const [result] = await this.#run([ask])
      if (!result || 'error' in result || result.outcome !== 'busy') return result as Result
      if (since.elapsed() > WAIT_MS) return { error: late() }
    }
  }
}

type Result = Answer | { error: unknown }

// One statement for all, in their order; if it fails, for it says of nobody whose fault it was, one for each.
async function each(asks: Ask[], run: (asks: Ask[]) => Promise<(Answer | undefined)[]>): Promise<Map<Ask, Result>> {
  const inOrder = sorted(asks)
  try {
    const answers = await run(inOrder)
    return new Map(inOrder.flatMap((ask, i) => (answers[i] ? [[ask, answers[i]] as const] : [])))
  } catch (error) {
    // Others wait for each other, and this one stood in the line between them: nothing was done, and it is not its doing.
    if (sqlState(error) === '40P01') return each(asks, run)
    if (asks.length === 1 || error instanceof UnavailableError || isLate(error)) {
      return new Map(asks.map((ask) => [ask, { error: explained(error) }]))
    }
    const results = await Promise.all(asks.map((ask) => each([ask], run)))
    return new Map(results.flatMap((result) => [...result]))
  }
}

const written = (asks: Ask[], answers: Answer[]): string[] => [
  ...new Set(asks.filter((_, i) => answers[i]?.outcome === 'appended').map(streamOf)),
]

// SQLSTATE of lock_timeout.
const isLate = (error: unknown): boolean => sqlState(error) === '55P03'

const late = (cause?: unknown) =>
  new UnavailableError(`Another transaction that appends to the stream has been open for ${WAIT_MS} ms`, { cause })

function explained(cause: unknown): unknown {
  if (isLate(cause)) return late(cause)
  if (sqlState(cause) !== SQLSTATE.sequenceBehind) return fromDatabase(cause)
  const why = 'The sequences of the database are behind its rows, as after a restore: run the migrations'
  return new UnavailableError(why, { cause })
}
