/** What is asked of an append: checked, and as the statements take it. */
import { sql } from 'kysely'
import { checkText, type Expected, jsonText, LIMITS, outOfRange, wrongType } from '../../base/index.ts'
import { column, list } from '../../database/index.ts'

export interface NewEvent {
  /** What happened: 1–255 characters, no control characters. */
  type: string
  /** JSON, at most 1 MiB. @default null */
  data?: unknown
  /** JSON, at most 4 KiB: what is about the event and not of it. @default null */
  meta?: unknown
  /**
   * Of the caller's making, 1–255 characters: appended again with the same ids, events are not appended twice. Another for each
   * event of the stream, and for all events of an append, or none.
   */
  id?: string
}

export interface Ask {
  stream: string
  /** null: any; −1: exists. */
  at: bigint | null
  expected: Expected
  count: number
  types: string[]
  /** JSON of their data, separated by commas; and of what is about them, if there is any. */
  data: string
  meta: string | undefined
  ids: string[] | undefined
}
const EVENTS = { min: 1, max: 10_000 }
const APPEND_BYTES = 16_777_216
const EXPECTED = 'a bigint ≥ 0n, none, exists or any'

/** @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`. */
export function askOf(stream: string, events: NewEvent | readonly NewEvent[], expected: Expected): Ask {
  checkText('stream', stream)
  const all = Array.isArray(events) ? (events as readonly NewEvent[]) : [events as NewEvent]
  if (all.length < EVENTS.min || all.length > EVENTS.max) {
    throw outOfRange('events', `${EVENTS.min}–${EVENTS.max} events`, `${all.length} events`)
  }
  const many = Array.isArray(events)
  const parts = all.map((event, i) => contextOf(event, many ? `events.${i}` : 'event'))
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
    at: placeOf(expected),
    expected,
    count: all.length,
    types,
    data,
    meta,
    ids: ids.length > 0 ? ids : undefined,
  }
}

function placeOf(expected: Expected): bigint | null {
  if (expected === 'any') return null
  if (expected === 'none') return 0n
  if (expected === 'exists') return -1n
  if (typeof expected !== 'bigint') throw wrongType('expected', EXPECTED, expected)
  if (expected < 0n || expected >= 2n ** 63n) throw outOfRange('expected', EXPECTED, expected)
  return expected
}

function contextOf(event: NewEvent, at: string) {
  if (typeof event !== 'object' || event === null) throw wrongType(at, 'an object { type, data, meta, id }', event)
  const { type, data = null, meta = null, id } = event
  checkText(`${at}.type`, type)
  if (id !== undefined) checkText(`${at}.id`, id)
  return {
    ...{ type, id },
    data: jsonText(`${at}.data`, data, LIMITS.dataBytes),
    meta: meta === null ? 'null' : jsonText(`${at}.meta`, meta, LIMITS.metaBytes),
  }
}

// ── Statements ──

export type Outcome = 'appended' | 'repeated' | 'reused' | 'conflict' | 'busy'
export interface Answer {
  outcome: Outcome
  first: bigint | null
  last: bigint
}

export const streamOf = ({ stream }: Ask): string => stream

export interface PlainRow {
  befores: (string | null)[]
  heard: boolean
}
export interface Row {
  outcomes: Outcome[]
  firsts: (string | null)[]
  lasts: string[]
  heard: boolean
}

// Asks of one stream follow one another, and the streams are in one order for everybody, so that no two wait crosswise.
export const sorted = (asks: Ask[]): Ask[] =>
  asks.length === 1
    ? asks
    : [...Map.groupBy(asks, streamOf)].sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([, those]) => those)

/** Streams, sorted as the asks are; and which each ask is for, from 1. */
function placed(asks: Ask[]): { streams: string[]; which: number[] } {
  const streams: string[] = []
  const which = asks.map(({ stream }) => (streams.at(-1) === stream ? streams.length : streams.push(stream)))
  return { streams, which }
}

export function plainStatementOf(asks: Ask[], tells: boolean) {
  const { streams, which } = placed(asks)
  const totals = streams.map(() => 0)
  const places: number[] = [] // of the first event of each ask, among those of its stream, from 1
  const ofEvents: number[] = []
  const nths: number[] = []
  for (const [k, { count }] of asks.entries()) {
    const w = which[k] as number
    let nth = totals[w - 1] as number
    places.push(nth + 1)
    for (let i = 0; i < count; i++) {
      ofEvents.push(w)
      nths.push(++nth)
    }
    totals[w - 1] = nth
  }
  const { types, datas, metas } = contentOf(asks)
  const statement = sql<PlainRow>`select * from lockstep.append_any(
    ${list(streams, 'text')}, ${list(totals, 'integer')}, ${list(ofEvents, 'integer')}, ${list(nths, 'integer')},
    ${types}, ${datas}::jsonb, ${metas}::jsonb, ${tells})`
  return { streams, which, places, statement }
}

/** @param waits  milliseconds, for a gate that somebody else has; 0: as the transaction is set; null: not at all. */
export function statementOf(asks: Ask[], { waits, tells }: { waits: number | null; tells: boolean }) {
  const { streams, which } = placed(asks)
  const asked = asks.flatMap(({ count }, i) => Array.from({ length: count }, () => i + 1))
  const nths = asks.flatMap(({ count }) => Array.from({ length: count }, (_, i) => i + 1))
  const { types, datas, metas } = contentOf(asks)
  const keys = asks.some(({ ids }) => ids !== undefined)
    ? asks.flatMap(({ ids, count }) => ids ?? Array.from({ length: count }, () => null))
    : null
  return sql<Row>`select * from lockstep.append(
    ${list(streams, 'text')}, ${list(which, 'integer')}, ${column(asks, 'bigint', ({ at }) => at)},
    ${column(asks, 'integer', ({ count }) => count)}, ${list(asked, 'integer')}, ${list(nths, 'integer')},
    ${types}, ${datas}::jsonb, ${metas}::jsonb, ${keys}::text[], ${waits}::integer, ${tells})`
}

// JSON texts and not arrays of them: nothing is written twice, and Postgres reads it once.
function contentOf(asks: Ask[]) {
  return {
    types: list(
      asks.flatMap(({ types }) => types),
      'text',
    ),
    datas: `[${asks.map(({ data }) => data).join(',')}]`,
    metas: asks.some(({ meta }) => meta !== undefined)
      ? `[${asks.map(({ meta, count }) => meta ?? nulls(count)).join(',')}]`
      : null,
  }
}

const nulls = (count: number): string => Array.from({ length: count }, () => 'null').join(',')

export const answersOf = (row: Row | undefined): Answer[] =>
  (row?.outcomes ?? []).map((outcome, i) => {
    const first = row?.firsts[i]
    return { outcome, first: first ? BigInt(first) : null, last: BigInt(row?.lasts[i] ?? 0) }
  })
