/** The requests of an append: checked, and written as the arguments of the SQL functions. */
import { sql } from 'kysely'
import {
  checkOptions,
  checkText,
  type Expected,
  jsonText,
  known,
  LIMITS,
  outOfRange,
  wrongType,
} from '../../base/index.ts'
import { column, list, nullable } from '../../database/index.ts'

/** An event to append. */
export interface NewEvent {
  /** What happened, as a name: 1–255 characters, no control characters. */
  type: string
  /** The event's content: any JSON value, at most 1 MiB. @default null */
  data?: unknown
  /** Data about the event, for example a trace id: any JSON value, at most 4 KiB. @default null */
  meta?: unknown
  /**
   * The caller's idempotency key, 1–255 characters: events that are appended again with the same ids are not stored
   * twice. Each event of a stream needs a different id. In one append either every event has an id, or none has.
   * @default none
   */
  id?: string | undefined
}

export interface AppendRequest {
  stream: string
  /** `expected` as SQL takes it: a position; null: any; −1: exists. */
  at: bigint | null
  expected: Expected
  count: number
  types: string[]
  /** The JSON of the data of all events, separated by commas; and of their meta, if any event has one. */
  data: string
  meta: string | undefined
  ids: string[] | undefined
}
const EVENT = known<NewEvent>({ type: true, data: true, meta: true, id: true })
const EVENTS = { min: 1, max: 10_000 }
const APPEND_BYTES = 16_777_216
const EXPECTED = 'a bigint ≥ 0n, none, exists or any'

/** @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function appendRequest(
  stream: string,
  events: NewEvent | readonly NewEvent[],
  expected: Expected,
): AppendRequest {
  checkText('stream', stream)
  const all = Array.isArray(events) ? (events as readonly NewEvent[]) : [events as NewEvent]
  if (all.length < EVENTS.min || all.length > EVENTS.max) {
    throw outOfRange('events', `${EVENTS.min}–${EVENTS.max} events`, `${all.length} events`)
  }
  const many = Array.isArray(events)
  const parts = all.map((event, i) => eventParts(event, many ? `events.${i}` : 'event'))
  const ids = parts.flatMap(({ id }) => id ?? [])
  if (ids.length > 0) {
    if (ids.length < all.length) throw wrongType('id', 'given for all events of an append, or for none', undefined)
    if (new Set(ids).size < all.length) throw wrongType('id', 'another for each event', 'the same twice')
  }
  const data = parts.map(({ data }) => data).join(',')
  const meta = parts.some(({ meta }) => meta !== 'null') ? parts.map(({ meta }) => meta).join(',') : undefined
  const size = data.length + (meta?.length ?? 0)
  if (size > APPEND_BYTES) throw outOfRange('events', `at most ${APPEND_BYTES} bytes of JSON together`, size)
  const types = parts.map(({ type }) => type)
  return {
    stream,
    at: expectedPosition(expected),
    expected,
    count: all.length,
    types,
    data,
    meta,
    ids: ids.length > 0 ? ids : undefined,
  }
}

function expectedPosition(expected: Expected): bigint | null {
  if (expected === 'any') return null
  if (expected === 'none') return 0n
  if (expected === 'exists') return -1n
  if (typeof expected !== 'bigint') throw wrongType('expected', EXPECTED, expected)
  if (expected < 0n || expected >= 2n ** 63n) throw outOfRange('expected', EXPECTED, expected)
  return expected
}

function eventParts(event: NewEvent, field: string) {
  if (typeof event !== 'object' || event === null) throw wrongType(field, 'an object { type, data, meta, id }', event)
  checkOptions(event, EVENT, field)
  const { type, data = null, meta = null, id } = event
  checkText(`${field}.type`, type)
  if (id !== undefined) checkText(`${field}.id`, id)
  return {
    ...{ type, id },
    data: jsonText(`${field}.data`, data, LIMITS.dataBytes),
    meta: meta === null ? 'null' : jsonText(`${field}.meta`, meta, LIMITS.metaBytes),
  }
}

// ── Statements ──

export type AppendOutcome = 'appended' | 'repeated' | 'reused' | 'conflict' | 'busy'
export interface AppendAnswer {
  outcome: AppendOutcome
  first: bigint | null
  last: bigint
}

export const streamOf = ({ stream }: AppendRequest): string => stream

/** The answer of append_any: of each stream the position before the append, or null; `heard`: somebody listens. */
export interface PlainRow {
  befores: (string | null)[]
  heard: boolean
}
/** The answer of append. */
export interface AppendRow {
  outcomes: AppendOutcome[]
  firsts: (string | null)[]
  lasts: string[]
  heard: boolean
}

// Requests for one stream follow one another. All statements lock streams in the same order, so that two statements
// cannot deadlock.
export const sorted = (requests: AppendRequest[]): AppendRequest[] =>
  requests.length === 1
    ? requests
    : [...Map.groupBy(requests, streamOf)].sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([, ofOne]) => ofOne)

/** The streams of sorted requests, each once, in the same order; and of each request the index of its stream, from 1. */
function indexStreams(requests: AppendRequest[]): { streams: string[]; indexes: number[] } {
  const streams: string[] = []
  const indexes = requests.map(({ stream }) => (streams.at(-1) === stream ? streams.length : streams.push(stream)))
  return { streams, indexes }
}

/** @param notify  the transaction sends the NOTIFY itself. */
export function plainStatement(requests: AppendRequest[], notify: boolean) {
  const { streams, indexes } = indexStreams(requests)
  const totals = streams.map(() => 0)
  const offsets: number[] = [] // of each request's first event among the new events of its stream, from 1
  const streamIndexes: number[] = [] // of each event
  const nths: number[] = []
  for (const [k, { count }] of requests.entries()) {
    const index = indexes[k] as number
    let nth = totals[index - 1] as number
    offsets.push(nth + 1)
    for (let i = 0; i < count; i++) {
      streamIndexes.push(index)
      nths.push(++nth)
    }
    totals[index - 1] = nth
  }
  const { types, datas, metas } = contentOf(requests)
  const statement = sql<PlainRow>`select * from lockstep.append_any(
    ${list(streams, 'text')}, ${list(totals, 'integer')}, ${list(streamIndexes, 'integer')}, ${list(nths, 'integer')},
    ${types}, ${datas}::jsonb, ${metas}::jsonb, ${notify})`
  return { streams, indexes, offsets, statement }
}

/**
 * @param waitMs  milliseconds to wait for a stream that another transaction has locked; 0: as the transaction's lock_timeout says;
 *   null: not at all.
 * @param notify  the transaction sends the NOTIFY itself.
 */
export function appendStatement(
  requests: AppendRequest[],
  { waitMs, notify }: { waitMs: number | null; notify: boolean },
) {
  const { streams, indexes } = indexStreams(requests)
  const requestIndexes = requests.flatMap(({ count }, i) => Array.from({ length: count }, () => i + 1))
  const nths = requests.flatMap(({ count }) => Array.from({ length: count }, (_, i) => i + 1))
  const { types, datas, metas } = contentOf(requests)
  const keys = requests.some(({ ids }) => ids !== undefined)
    ? requests.flatMap(({ ids, count }) => ids ?? Array.from({ length: count }, () => null))
    : null
  return sql<AppendRow>`select * from lockstep.append(
    ${list(streams, 'text')}, ${list(indexes, 'integer')}, ${nullable(
      requests.map(({ at }) => at),
      'bigint',
    )},
    ${column(requests, 'integer', ({ count }) => count)}, ${list(requestIndexes, 'integer')}, ${list(nths, 'integer')},
    ${types}, ${datas}::jsonb, ${metas}::jsonb, ${keys && nullable(keys, 'text')}, ${waitMs}::integer, ${notify})`
}

// One JSON text and not an array of texts: nothing is escaped twice, and Postgres parses it once.
function contentOf(requests: AppendRequest[]) {
  return {
    types: list(
      requests.flatMap(({ types }) => types),
      'text',
    ),
    datas: `[${requests.map(({ data }) => data).join(',')}]`,
    metas: requests.some(({ meta }) => meta !== undefined)
      ? `[${requests.map(({ meta, count }) => meta ?? nulls(count)).join(',')}]`
      : null,
  }
}

const nulls = (count: number): string => Array.from({ length: count }, () => 'null').join(',')

export const answersOf = (row: AppendRow | undefined): AppendAnswer[] =>
  (row?.outcomes ?? []).map((outcome, i) => {
    const first = row?.firsts[i]
    return { outcome, first: first ? BigInt(first) : null, last: BigInt(row?.lasts[i] ?? 0) }
  })
