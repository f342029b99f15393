/**
 * What the routes of events have in common: how an event is shown, where everything stands, and what holds it up.
 *
 * Positions and cursors are decimal strings: JSON numbers lose precision above 2^53.
 */
import type { Context } from 'hono'
import type { Events, Horizon as State, StoredEvent } from '../../lib/event/index.ts'
import { covers, described, type Env, named, shape } from '../http/index.ts'

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
    last: described(shape.position, 'That was ever given to an event'),
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

/** An event as an answer says it. */
export function shown({ stream, position, cursor, type, data, meta, id, at }: StoredEvent) {
  const place = { stream, position: String(position), cursor: String(cursor) }
  return { ...place, type, data, meta: meta ?? null, id, at: at.toISOString() }
}

/** What is decided, as an answer says it. */
export function stands({ cursor, last, holdups }: State) {
  return { cursor: String(cursor), last: String(last), holdups }
}

/** Whether the request's key is bound to names. */
export const bound = (c: Context<Env>): boolean => Boolean(c.get('key')?.prefix)

/** Throws a 403 unless the request's key may touch all that a group reads. Whether there is such a group is not its matter. */
export async function coversGroup(c: Context<Env>, events: Events, name: string): Promise<void> {
  if (bound(c)) covers(c, (await events.group(name))?.prefix)
}
