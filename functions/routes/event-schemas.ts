/**
 * What the routes of events have in common: events as JSON, pages of them, and the horizon, up to which their order is decided.
 *
 * Positions and cursors are decimal strings: JSON numbers lose precision above 2^53.
 */
import type { Context } from 'hono'
import type { EventPage, EventPiece, Events, Horizon as State, StoredEvent } from '../../lib/event/index.ts'
import { LIMITS } from '../../lib/index.ts'
import { covers, described, type Env, field, invalid, named, optional, type Piece, shape } from '../http/index.ts'

export const reading = { tags: ['events'], scope: 'streams:read' } as const
export const writing = { tags: ['events'], scope: 'streams:write' } as const

export const Event = named(
  'Event',
  shape.object({
    stream: shape.string,
    position: shape.position,
    cursor: described(shape.position, 'Its place in the order of all streams'),
    type: shape.string,
    data: shape.any,
    meta: shape.any,
    id: described(shape.nullable(shape.string), 'If it was appended with one'),
    at: shape.instant,
  }),
)

export const Horizon = named(
  'Horizon',
  shape.object({
    cursor: described(shape.position, 'Everything up to here is decided, and can be read in order'),
    last: described(shape.position, 'The largest cursor that an event has'),
    holdups: shape.array(
      named(
        'Holdup',
        shape.object({
          pid: described(shape.nullable(shape.integer), 'null: a prepared transaction'),
          database: shape.string,
          application: shape.nullable(shape.string),
          user: shape.nullable(shape.string),
          state: shape.nullable(shape.string),
          ageMs: shape.nullable(shape.number),
        }),
        'A transaction that has appended, and is open',
      ),
    ),
  }),
)

const Page = named(
  'EventPage',
  shape.object({
    events: shape.array(Event),
    next: described(
      shape.nullable(shape.position),
      '`from` of the next page. null: the beginning is reached, backwards',
    ),
  }),
)

const from = optional(field.decimalOr(1n, 'end'), {
  default: '1',
  description: 'The first to read; `end`: what is appended from now on',
})
export const paged = {
  from,
  limit: optional(field.digits({ min: 1, max: 1000 }), {
    default: 100,
    description: 'The most of a page, which ends earlier at 5 MB, or where it had to look at too many others',
  }),
  waitMs: optional(field.digits(LIMITS.waitMs), 'Waits so long for an event'),
}
export const Seen = {
  // one more is a position still
  'last-event-id': optional(field.decimal(2n ** 63n - 2n), 'With `Accept: text/event-stream`: begins after it'),
}

export const pageOrStream = {
  description: 'A page; or the events that are there, and then those that follow',
  content: { 'application/json': { schema: Page.json }, 'text/event-stream': { schema: shape.string.json } },
}

/** An event as JSON. */
export function eventJson({ stream, position, cursor, type, data, meta, id, at }: StoredEvent) {
  const place = { stream, position: String(position), cursor: String(cursor) }
  return { ...place, type, data, meta: meta ?? null, id, at: at.toISOString() }
}

/** The horizon as JSON. */
export function horizonJson({ cursor, last, holdups }: State) {
  return { cursor: String(cursor), last: String(last), holdups }
}

/** Whether the request's key has a name prefix. */
export const bound = (c: Context<Env>): boolean => Boolean(c.get('key')?.prefix)

/** Throws a 403 unless the request's key may touch all that a group reads. A group that does not exist passes. */
export async function coversGroup(c: Context<Env>, events: Events, name: string): Promise<void> {
  if (bound(c)) covers(c, (await events.group(name))?.prefix)
}

export function page({ events, next }: EventPage) {
  return { events: events.map(eventJson), next: next === null ? null : String(next) }
}

/**
 * Where a stream of events begins: after the last event that the client saw. Throws a 400 for the other fields of a page.
 * @param end  reads a page from the end. That is known before the answer begins: a client that has its headers misses nothing.
 */
export async function beginning(
  { from = 1n, ...others }: { from?: bigint | 'end' | undefined },
  seen: bigint | undefined,
  end: () => Promise<{ next: bigint | null }>,
): Promise<bigint> {
  const [field] = Object.entries(others).find(([, value]) => value !== undefined) ?? []
  if (field) throw invalid({ field, expected: 'left out where events are followed' })
  if (seen !== undefined) return seen + 1n
  return from === 'end' ? ((await end()).next ?? 1n) : from
}

/** Turns pieces of events into what is sent: the first piece of each event has its name and id. */
export function pieces(): (piece: EventPiece) => Piece {
  let begins = true
  return ({ place, bytes, last }) => {
    const id = begins ? String(place) : undefined
    begins = last
    return { bytes, begins: id === undefined ? undefined : { event: 'event', id }, ends: last }
  }
}
