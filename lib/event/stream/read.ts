/**
 * Reading: pages of a stream by position, and of all streams by cursor.
 *
 * A stream's positions have no gaps and follow its commits, so a page of it is complete as it is. The order of all streams has
 * gaps, of what was rolled back and of what has not committed yet; a page of it ends at the horizon (0007_event.sql), before the
 * first event that may still commit. A page is one JSON text: a third of the time of a row for each event.
 */
import { type RawBuilder, sql } from 'kysely'
import { checkInteger, checkPage, checkText, outOfRange, wrongType } from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'

/** An event as it is kept. */
export interface StoredEvent {
  stream: string
  /** In its stream: 1, 2, 3 … */
  position: bigint
  /** In the order of all streams: rising, with gaps. */
  cursor: bigint
  type: string
  data: unknown
  /** null: none. */
  meta: unknown
  /** What the caller gave; null: nothing. */
  id: string | null
  /** When it was appended, on the database's clock. Events that were appended at the same time may be in another order. */
  at: Date
}

export interface EventPage {
  /** Perhaps fewer than asked for: a page has at most 4 MiB, too, but one event always. */
  events: StoredEvent[]
  /** Where to read on; null: backwards, and there is nothing before. */
  next: bigint | null
}

/** Where a stream stands. */
export interface StreamState {
  name: string
  /** Of the first event that is still there, or of the next if none is. */
  first: bigint
  /** Of the last event. */
  position: bigint
}

/** What is read of a stream at once: `more` may be there already. */
export interface Chunk {
  events: StoredEvent[]
  next: bigint
  more: boolean
  /** What has been appended may still commit: look again soon. */
  waits: boolean
}

/** What is read within so many bytes: the JSON of each event, not parsed; at least one, unless that `wants` more. */
export interface Texts {
  events: { place: bigint; json: string; bytes: number }[]
  next: bigint
  more: boolean
  waits: boolean
  /** Bytes that the first takes, which was not given for want of room. */
  wants: number | undefined
}

export const LIMIT = { min: 1, max: 1_000, default: 100 }

export class Reader {
  readonly #pool: Pool

  constructor(pool: Pool) {
    this.#pool = pool
  }

  /** Of one stream, from a position on. */
  async stream(stream: string, from: bigint, limit: number): Promise<Chunk> {
    const { events, last, first, stands } = await this.#stream(stream, from, limit, false)
    // nothing: at the end, or what was there was removed
    const next = last !== undefined ? last + 1n : first > from ? first : from
    return { events, next, more: next <= stands, waits: false }
  }

  /** Of one stream, from a position back to its beginning. */
  async backwards(stream: string, from: bigint, limit: number): Promise<EventPage> {
    const { events, last, first } = await this.#stream(stream, from, limit, true)
    return { events, next: last === undefined || last <= first ? null : last - 1n }
  }

  /** Of all streams under a prefix, from a cursor on. A chunk may be empty though there is more. */
  async all(prefix: string, from: bigint, limit: number): Promise<Chunk> {
    const [row] = await this.#pool.run<AllRow>(
      sql`select events::text, next, more, waits from lockstep.read_all(${prefix}, ${from - 1n}, ${limit})`,
    )
    const { events, next, more, waits } = row as AllRow
    return { events: eventsOf(events), next: BigInt(next) + 1n, more, waits }
  }

  /** Of one stream, from a position on, within so many bytes. */
  async streamTexts(stream: string, from: bigint, room: number): Promise<Texts> {
    return textsOf(
      await this.#pool.run<TextRow>(sql`select * from lockstep.try_read_stream(${stream}, ${from}, ${TEXTS}, ${room})`),
      0n,
    )
  }

  /** Of all streams under a prefix, from a cursor on, within so many bytes. */
  async allTexts(prefix: string, from: bigint, room: number): Promise<Texts> {
    return textsOf(
      await this.#pool.run<TextRow>(
        sql`select * from lockstep.try_read_all(${prefix}, ${from - 1n}, ${TEXTS}, ${room})`,
      ),
      1n,
    )
  }

  /** The cursor of what will be appended from now on. */
  async end(): Promise<bigint> {
    const [row] = await this.#pool.run<{ horizon: string }>(sql`select horizon from lockstep.event_horizon()`)
    return BigInt(row?.horizon ?? 0) + 1n
  }

  async state(stream: string): Promise<StreamState | null> {
    checkText('stream', stream)
    return (await this.#states(sql`name = ${stream}`, 1))[0] ?? null
  }

  states(page: { prefix?: string; limit?: number; after?: string }): Promise<StreamState[]> {
    const { prefix, limit, after } = checkPage(page)
    return this.#states(sql`name > ${after} and name >= ${prefix} and starts_with(name, ${prefix})`, limit)
  }

  async #states(which: RawBuilder<unknown>, limit: number): Promise<StreamState[]> {
    const rows = await this.#pool.run<{ name: string; first: string; position: string }>(
      sql`select name, first, position from lockstep.stream where position > 0 and ${which} order by name limit ${limit}`,
    )
    return rows.map(({ name, first, position }) => ({ name, first: BigInt(first), position: BigInt(position) }))
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
      stands: BigInt(stands),
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
const TEXTS = 1_000

// The last row is none of an event.
function textsOf(rows: TextRow[], after: bigint): Texts {
  const { next, more, waits, bytes } = rows.pop() as TextRow
  const events = rows.map(({ place, event, bytes }) => ({
    place: BigInt(place as string),
    json: event,
    bytes: Number(bytes),
  }))
  const wants = bytes === null ? undefined : Number(bytes)
  return { events, next: BigInt(next) + after, more, waits, wants }
}

/** An event of its JSON, as over HTTP. */
export function storedOf(json: string): StoredEvent {
  const { stream, position, cursor, type, data, meta, id, at } = JSON.parse(json)
  return { stream, position: BigInt(position), cursor: BigInt(cursor), type, data, meta, id, at: new Date(at) }
}

type Shown = [string, string, string, string, unknown, unknown, string | null, number, number | null]

/** The events of a page, as lockstep.shown writes them. */
export function eventsOf(page: string | null): StoredEvent[] {
  return page === null ? [] : (JSON.parse(page) as Shown[]).map(eventOf)
}

export const eventOf = ([stream, position, cursor, type, data, meta, id, at]: Shown): StoredEvent => ({
  stream,
  position: BigInt(position),
  cursor: BigInt(cursor),
  type,
  data,
  meta,
  id,
  at: new Date(at),
})

/** As {@link eventsOf}, with how often each is tried. */
export const attemptsOf = (page: string | null): (StoredEvent & { attempt: number })[] =>
  page === null ? [] : (JSON.parse(page) as Shown[]).map((shown) => ({ ...eventOf(shown), attempt: shown[8] ?? 1 }))

const PLACE = 'a bigint, 1n–9223372036854775807n'
export const MOST_PLACE = 2n ** 63n - 1n

/** A position or a cursor. @throws {TypeError | RangeError} */
export function checkPlace(field: string, value: unknown): asserts value is bigint {
  if (typeof value !== 'bigint') throw wrongType(field, PLACE, value)
  if (value < 1n || value > MOST_PLACE) throw outOfRange(field, PLACE, value)
}

/** @throws {TypeError | RangeError} */
export function checkLimit(limit: number): void {
  checkInteger('limit', limit, LIMIT)
}
