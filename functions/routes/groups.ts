/**
 * Groups over HTTP: who makes them, looks after them, and sees to what failed. Who consumes: group-consumers.ts.
 *
 *     PUT    /v1/groups/{name}             declare    201 made · 200 changed
 *     GET    /v1/groups/{name}             look       200
 *     DELETE /v1/groups/{name}             end        204
 *     GET    /v1/groups                    list       200
 *     GET    /v1/groups/{name}/lag         lag        200 how far behind it is, and what holds it up
 *     GET    /v1/groups/{name}/parked      parked     200 streams of which an event failed too often
 *     POST   /v1/groups/{name}/redeliver   redeliver  200 how many of them go on
 *
 * What is done to a group is done to the streams that it reads. So for a key that is bound to names it is not enough that the
 * group has such a name: the group's own prefix, which says what streams those are, must be under the key's too. To look what
 * a group is, and to list them, is bound by its name alone: so one finds out why the rest is a 403.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { Events } from '../../lib/event/index.ts'
import {
  body,
  covers,
  defined,
  type Env,
  field,
  instant,
  json,
  List,
  listable,
  Name,
  NoQuery,
  next,
  nextOf,
  Problem,
  position,
  problems,
  unavailable,
} from '../http/index.ts'
import { bound, coversGroup, Horizon, reading, stands, writing } from './event-schemas.ts'

const Declare = field
  .strict({
    prefix: field
      .text({ min: 0, max: 255 })
      .openapi({ default: '', description: 'Of the streams that it reads. It cannot be changed' })
      .optional(),
    partitions: field
      .integer({ min: 1, max: 256 })
      .openapi({ default: 8, description: 'How many consumers can share the work. It cannot be changed' })
      .optional(),
    from: field
      .decimalOr(1n, 'start', 'end')
      .openapi({ default: 'start', description: 'Where a new group begins: `end`, or a cursor' })
      .optional(),
    retryLimit: field
      .integer({ min: 0, max: 1_000 })
      .openapi({ default: 5, description: 'How often an event is tried again before its stream is parked' })
      .optional(),
    retryDelayMs: field
      .integer({ min: 0, max: 3_600_000 })
      .openapi({ default: 1_000, description: 'Doubled each time, up to a minute' })
      .optional(),
  })
  .openapi('DeclareGroup')

const Redeliver = field
  .strict({
    stream: field.text({ min: 1, max: 255 }).openapi({ description: 'Left out: all that are parked' }).optional(),
    skip: z
      .boolean({ error: 'true or false' })
      .openapi({ default: false, description: 'Passes over the event that failed' })
      .optional(),
  })
  .openapi('Redeliver')

const Group = z
  .object({
    name: z.string(),
    prefix: z.string(),
    partitions: z.int(),
    retryLimit: z.int(),
    retryDelayMs: z.int(),
  })
  .openapi('Group')
const Groups = z.object({ groups: z.array(Group), next }).openapi('GroupList')

const Lag = z
  .object({
    group: z.string(),
    behind: z.int().openapi({ description: 'Events; at most 100000 are counted' }),
    oldestAt: instant.nullable().openapi({ description: 'When the oldest of them was appended' }),
    partitions: z.array(
      z.object({
        partition: z.int(),
        holder: z.string().nullable(),
        cursor: position,
        behind: z.int(),
        retrying: z.int().openapi({ description: 'Streams' }),
        parked: z.int().openapi({ description: 'Streams' }),
      }),
    ),
    horizon: Horizon,
  })
  .openapi('GroupLag')

const Parked = z
  .object({ stream: z.string(), position, attempts: z.int(), reason: z.any(), at: instant })
  .openapi('ParkedStream')
const AllParked = z.object({ parked: z.array(Parked), next }).openapi('ParkedStreams')
const Redelivered = z.object({ redelivered: z.int() }).openapi('Redelivered')

const declare = createRoute({
  ...writing,
  method: 'put',
  path: '/{name}',
  summary: 'Make a group, or change how it retries',
  request: { params: Name, query: NoQuery, body: body('DeclareGroup', false) },
  responses: { 201: json(Group, 'Made'), 200: json(Group, 'Changed'), ...problems(400, 401, 403, 413, 500, 503) },
})

const look = createRoute({
  ...reading,
  method: 'get',
  path: '/{name}',
  summary: 'Look at a group',
  request: { params: Name, query: NoQuery },
  responses: { 200: json(Group, 'As of now'), ...problems(400, 401, 403, 404, 500, 503) },
})

const end = createRoute({
  ...writing,
  method: 'delete',
  path: '/{name}',
  summary: 'End a group: its progress is forgotten',
  request: { params: Name, query: NoQuery },
  responses: { 204: { description: 'Ended' }, ...problems(400, 401, 403, 404, 500, 503) },
})

const list = createRoute({
  ...reading,
  method: 'get',
  path: '/',
  summary: 'List groups by name',
  request: { query: List },
  responses: { 200: json(Groups, 'A page'), ...problems(400, 401, 403, 500, 503) },
})

const lag = createRoute({
  ...reading,
  method: 'get',
  path: '/{name}/lag',
  summary: 'How far behind a group is, and what holds it up',
  request: { params: Name, query: NoQuery },
  responses: { 200: json(Lag, 'As of now'), ...problems(400, 401, 403, 404, 500, 503) },
})

const parked = createRoute({
  ...reading,
  method: 'get',
  path: '/{name}/parked',
  summary: 'List streams of which an event failed too often, by name',
  request: { params: Name, query: List.omit({ prefix: true }) },
  responses: { 200: json(AllParked, 'A page'), ...problems(400, 401, 403, 404, 500, 503) },
})

const redeliver = createRoute({
  ...writing,
  method: 'post',
  path: '/{name}/redeliver',
  summary: 'Try again what is parked',
  request: { params: Name, query: NoQuery, body: body('Redeliver', false) },
  responses: { 200: json(Redelivered, 'Streams'), ...problems(400, 401, 403, 404, 413, 500, 503) },
})

/** The router of `/v1/groups`, but for who consumes. */
export function groupRouter(events: Events): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  router.openAPIRegistry.register('DeclareGroup', Declare)
  router.openAPIRegistry.register('Redeliver', Redeliver)

  router.openapi(declare, async (c) => {
    const { name } = c.req.valid('param')
    const options = defined(await field.readBody(c, Declare))
    const there = bound(c) ? await events.group(name) : null
    covers(c, there?.prefix)
    const prefix = options.prefix ?? there?.prefix
    covers(c, prefix ?? '')
    const made = await events.declareGroup(name, { ...options, ...(prefix !== undefined && { prefix }) })
    const group = await events.group(name)
    if (!group) throw unavailable('The group was ended in this moment')
    return c.json(group, made ? 201 : 200)
  })

  router.openapi(look, async (c) => {
    const { name } = c.req.valid('param')
    const group = await events.group(name)
    if (!group) throw noGroup(name)
    return c.json(group, 200)
  })

  router.openapi(end, async (c) => {
    const { name } = c.req.valid('param')
    await coversGroup(c, events, name)
    if (!(await events.deleteGroup(name))) throw noGroup(name)
    return c.body(null, 204)
  })

  router.openapi(list, async (c) => {
    const { prefix = '', limit = 100, after } = c.req.valid('query')
    const groups = await events.groups({ prefix: listable(c, prefix), limit, ...(after !== undefined && { after }) })
    return c.json({ groups, next: nextOf(groups, limit) }, 200)
  })

  router.openapi(lag, async (c) => {
    const { name } = c.req.valid('param')
    await coversGroup(c, events, name)
    const { oldestAt, partitions, horizon, ...rest } = await events.lag(name)
    const each = partitions.map(({ cursor, ...partition }) => ({ ...partition, cursor: String(cursor) }))
    const when = oldestAt?.toISOString() ?? null
    return c.json({ ...rest, oldestAt: when, partitions: each, horizon: stands(horizon) }, 200)
  })

  router.openapi(parked, async (c) => {
    const { name } = c.req.valid('param')
    const { limit = 100, after } = c.req.valid('query')
    await coversGroup(c, events, name)
    const page = await events.parked(name, { limit, ...(after !== undefined && { after }) })
    const streams = page.map(({ stream }) => stream)
    const each = page.map(({ position, at, reason, ...rest }) => ({
      ...rest,
      position: String(position),
      reason: reason ?? null,
      at: at.toISOString(),
    }))
    return c.json({ parked: each, next: nextOf(streams, limit) }, 200)
  })

  router.openapi(redeliver, async (c) => {
    const { name } = c.req.valid('param')
    const options = defined(await field.readBody(c, Redeliver))
    await coversGroup(c, events, name)
    return c.json({ redelivered: await events.redeliver(name, options) }, 200)
  })

  return router
}

function noGroup(name: string): Problem {
  return new Problem(404, 'NOT_FOUND', `There is no group ${JSON.stringify(name)}`)
}
