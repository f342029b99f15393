/**
 * Reading: pages of a stream by position, and of all streams by cursor.
 *
 * A stream's positions have no gaps and follow its commits, so a page of a stream is complete. The order of all streams
 * has gaps: of events that were rolled back, and of events that have not committed yet. So a page of it ends at the
 * horizon (0007_event.sql), before the first event that may still commit. A page is one JSON text: that takes a third
 * of the time of one row for each event.
 */
import { type RawBuilder, sql } from 'kysely'
import { checkInteger, checkPage, checkText, exact, outOfRange, type Page, wrongType } from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'

/** An event as it is stored. It never changes. In JSON its position and its cursor are decimal strings. */
export interface StoredEvent {
  /** The name of its stream. */
  stream: string
  /** Its position in the stream: 1, 2, 3 … without gaps, in the order of commits. */
  position: bigint
  /** Its cursor: its place in the order of all streams, rising, with gaps. */
  cursor: bigint
  /** What happened, as a name: 1–255 characters. */
  type: string
  /** The event's content, parsed from JSON; null if none was given. */
  data: unknown
  /** Data about the event, parsed from JSON; null if none was given. */
  meta: unknown
  /** The id that the caller gave (idempotency key); null if none was given. */
  id: string | null
  /**
   * When it was appended, by the database's clock. Use positions and cursors for order: events that are appended at the
   * same time may have times in another order, and clocks are set.
   */
  at: Date
}

/** A page of events, as `read` and `readAll` return it. */
export interface EventPage {
  /**
   * The events, in order. There may be fewer than `limit`: a page has at most 5 MB as it is sent over HTTP
   * (`LIMITS.answerBytes`), but always one event if there is one.
   */
  events: StoredEvent[]
  /**
   * Where the next page begins: pass it as `from`. null: the page was read backwards, and it ends at the stream's first
   * event.
   */
  next: bigint | null
}

/** The state of a stream. */
export interface StreamState {
  /** The stream's name. */
  name: string
  /** The position of the first event that is still stored; if none is, of the next event. */
  first: bigint
  /** The position of the last event that was appended. */
  position: bigint
}

/** A page as it is read internally. */
export interface Chunk {
  events: StoredEvent[]
  next: bigint
  /** There may be more to read at once. */
  more: boolean
  /** An append is in an open transaction, and may still commit: read again soon. */
  undecided: boolean
}

/** The JSON of an event, not parsed, and its position (or cursor). */
export interface EventText {
  position: bigint
  json: string
  bytes: number
}

/** A page of at most so many bytes: at least one event, unless the first is larger than that. */
export interface TextPage {
  events: EventText[]
  next: bigint
  more: boolean
  undecided: boolean
  /** The bytes of the first event, when it was not returned because it is too large. */
  neededBytes: number | undefined
}

export const LIMIT = { min: 1, max: 1_000, default: 100 }

export class Reader {
  readonly #pool: Pool

  constructor(pool: Pool) {
    this.#pool = pool
  }

  /** Events of one stream, from a position on. */
  async stream(stream: string, from: bigint, limit: number): Promise<Chunk> {
    const { events, last, first, position } = await this.#stream(stream, from, limit, false)
    // no events: `from` is behind the end, or the events there were removed
    const next = last !== undefined ? last + 1n : first > from ? first : from
    return { events, next, more: next <= position, undecided: false }
  }

  /** Events of one stream, from a position back to its beginning. */
  async backwards(stream: string, from: bigint, limit: number): Promise<EventPage> {
    const { events, last, first } = await this.#stream(stream, from, limit, true)
    return exact({ events, next: last === undefined || last <= first ? null : last - 1n })
  }

  /** Events of all streams under a prefix, from a cursor on. A chunk may be empty though there is more. */
  async all(prefix: string, from: bigint, limit: number): Promise<Chunk> {
    const [row] = await this.#pool.run<AllRow>(
      sql`select events::text, next, more, waits from lockstep.read_all(${prefix}, ${from - 1n}, ${limit})`,
    )
    const { events, next, more, waits } = row as AllRow
    return { events: eventsOf(events), next: BigInt(next) + 1n, more, undecided: waits }
  }

  /** The JSON of events of one stream, from a position on. */
  async streamTexts(stream: string, from: bigint, maxBytes: number): Promise<TextPage> {
    return textPage(
      await this.#pool.run<TextRow>(
        sql`select * from lockstep.try_read_stream(${stream}, ${from}, ${MOST_TEXTS}, ${maxBytes})`,
      ),
      0n,
    )
  }

  /** The JSON of events of all streams under a prefix, from a cursor on. */
  async allTexts(prefix: string, from: bigint, maxBytes: number): Promise<TextPage> {
    return textPage(
      await this.#pool.run<TextRow>(
        sql`select * from lockstep.try_read_all(${prefix}, ${from - 1n}, ${MOST_TEXTS}, ${maxBytes})`,
      ),
      1n,
    )
  }

  /** The cursor from which on events are read that are appended from now on. */
  async end(): Promise<bigint> {
    const [row] = await this.#pool.run<{ horizon: string }>(sql`select horizon from lockstep.event_horizon()`)
    return BigInt(row?.horizon ?? 0) + 1n
  }

  async state(stream: string): Promise<StreamState | null> {
    checkText('stream', stream)
    return (await this.#states(sql`name = ${stream}`, 1))[0] ?? null
  }

  states(page: Page): Promise<StreamState[]> {
    const { prefix, limit, after } = checkPage(page)
    return this.#states(sql`name > ${after} and name >= ${prefix} and starts_with(name, ${prefix})`, limit)
  }

  async #states(which: RawBuilder<unknown>, limit: number): Promise<StreamState[]> {
    const rows = await this.#pool.run<{ name: string; first: string; position: string }>(
      sql`select name, first, position from lockstep.stream where position > 0 and ${which} order by name limit ${limit}`,
    )
    return rows.map(({ name, first, position }) => exact({ name, first: BigInt(first), position: BigInt(position) }))
  }

  async #stream(stream: string, from: bigint, limit: number, backwards: boolean) {
    const [row] = await this.#pool.run<StreamRow>(
      sql`select events::text, last, first, stands from lockstep.read_stream(${stream}, ${from}, ${limit}, ${backwards})`,
    )
    const { events, last, first, stands } = row as StreamRow
    return {
      events: eventsOf(events),
      last: last === null ? undefined : BigInt(last),
      first: BigInt(first),
      position: BigInt(stands),
    }
  }
}
type AllRow = { events: string | null; next: string; more: boolean; waits: boolean }
type StreamRow = { events: string | null; last: string | null; first: string; stands: string }

type TextRow = {
  place: string | null
  event: string
  bytes: string | null
  next: string
  more: boolean
  waits: boolean
}
// Events in a page of texts.
const MOST_TEXTS = 1_000

// The last row describes the page and not an event.
function textPage(rows: TextRow[], afterNext: bigint): TextPage {
  const { next, more, waits, bytes } = rows.pop() as TextRow
  const events = rows.map(({ place, event, bytes }) => ({
    position: BigInt(place as string),
    json: event,
    bytes: Number(bytes),
  }))
  const neededBytes = bytes === null ? undefined : Number(bytes)
  return { events, next: BigInt(next) + afterNext, more, undecided: waits, neededBytes }
}

/** Parses the JSON of an event, as HTTP shows it. */
export function storedOf(json: string): StoredEvent {
  const { stream, position, cursor, type, data, meta, id, at } = JSON.parse(json)
  return exact({ stream, position: BigInt(position), cursor: BigInt(cursor), type, data, meta, id, at: new Date(at) })
}

type EventRow = [string, string, string, string, unknown, unknown, string | null, number, number | null]

/** Parses the events of a page, as lockstep.shown writes them. */
export function eventsOf(page: string | null): StoredEvent[] {
  return page === null ? [] : (JSON.parse(page) as EventRow[]).map(eventOf)
}

export const eventOf = ([stream, position, cursor, type, data, meta, id, at]: EventRow): StoredEvent =>
  exact({ stream, position: BigInt(position), cursor: BigInt(cursor), type, data, meta, id, at: new Date(at) })

/** As {@link eventsOf}, with the number of the attempt of each event, from 1. */
export const attemptsOf = (page: string | null): (StoredEvent & { attempt: number })[] =>
  page === null
    ? []
    : (JSON.parse(page) as EventRow[]).map((row) => Object.assign(eventOf(row), { attempt: row[8] ?? 1 }))

const POSITION = 'a bigint, 1n–9223372036854775807n'
export const MAX_POSITION = 2n ** 63n - 1n

/** Checks a position or a cursor. @throws {TypeError | RangeError} */
export function checkPosition(field: string, value: unknown): asserts value is bigint {
  if (typeof value !== 'bigint') throw wrongType(field, POSITION, value)
  if (value < 1n || value > MAX_POSITION) throw outOfRange(field, POSITION, value)
}

/** @throws {TypeError | RangeError} */
export function checkLimit(limit: number): void {
  checkInteger('limit', limit, LIMIT)
}
