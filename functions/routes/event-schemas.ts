/**
 * What the routes of events have in common: how an event is shown, where everything stands, and what holds it up.
 *
 * Positions and cursors are decimal strings: JSON numbers lose precision above 2^53.
 */
import { z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import type { Events, Horizon as State, StoredEvent } from '../../lib/event/index.ts'
import { covers, type Env, field, instant, needs, position } from '../http/index.ts'

const common = { tags: ['events'], security: [{ key: [] }] }
export const reading = { ...common, middleware: [needs('streams:read'), field.wellEncoded] }
export const writing = { ...common, middleware: [needs('streams:write'), field.wellEncoded] }

export const Event = z
  .object({
    stream: z.string(),
    position,
    cursor: position.openapi({ description: 'Its place in the order of all streams' }),
    type: z.string(),
    data: z.any(),
    meta: z.any(),
    id: z.string().nullable().openapi({ description: 'If it was appended with one' }),
    at: instant,
  })
  .openapi('Event')

export const Horizon = z
  .object({
    cursor: position.openapi({ description: 'Everything up to here is decided, and can be read in order' }),
    last: position.openapi({ description: 'That was ever given to an event' }),
    holdups: z.array(
      z
        .object({
          pid: z.int().nullable().openapi({ description: 'null: a prepared transaction' }),
          database: z.string(),
          application: z.string().nullable(),
          user: z.string().nullable(),
          state: z.string().nullable(),
          ageMs: z.number().nullable(),
        })
        .openapi('Holdup', { description: 'A transaction that has appended, and is open' }),
    ),
  })
  .openapi('Horizon')

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
