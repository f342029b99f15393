/**
 * Groups over HTTP: making them, looking after them, and retrying what failed. Consuming: group-consumers.ts.
 *
 *     PUT    /v1/groups/{name}             declare    201 made · 200 changed
 *     GET    /v1/groups/{name}             get        200
 *     DELETE /v1/groups/{name}             end        204
 *     GET    /v1/groups                    list       200
 *     GET    /v1/groups/{name}/lag         lag        200 how far behind it is, and what holds it up
 *     GET    /v1/groups/{name}/parked      parked     200 streams of which an event failed too often
 *     POST   /v1/groups/{name}/redeliver   redeliver  200 how many of them go on
 *
 * A change of a group changes what becomes of the streams that it reads. So a key with a prefix must cover more than the group's
 * name: the group's own prefix, which says what streams it reads, must be under the key's too. Getting a group and listing
 * groups need only the name to be covered. So a caller can find out why the rest is a 403.
 */
import type { Events } from '../../lib/event/index.ts'
import {
  covers,
  described,
  field,
  json,
  List,
  listable,
  Name,
  named,
  optional,
  Problem,
  pageOf,
  problemResponses,
  Router,
  route,
  shape,
  unavailable,
} from '../http/index.ts'
import { bound, coversGroup, Horizon, horizonJson, reading, writing } from './event-schemas.ts'

const Declare = named(
  'DeclareGroup',
  field.object({
    prefix: optional(field.text({ min: 0, max: 255 }), {
      default: '',
      description: 'Of the streams that it reads. It cannot be changed',
    }),
    partitions: optional(field.integer({ min: 1, max: 256 }), {
      default: 8,
      description: 'How many consumers can share the work. It cannot be changed',
    }),
    from: optional(field.decimalOr(1n, 'start', 'end'), {
      default: 'start',
      description: 'Where a new group begins: `end`, or a cursor',
    }),
    retryLimit: optional(field.integer({ min: 0, max: 1_000 }), {
      default: 5,
      description: 'How often an event is tried again before its stream is parked',
    }),
    retryDelayMs: optional(field.integer({ min: 0, max: 3_600_000 }), {
      default: 1_000,
      description: 'Doubled each time, up to a minute',
    }),
  }),
)

const Redeliver = named(
  'Redeliver',
  field.object({
    stream: optional(field.name, 'Left out: all that are parked'),
    skip: optional(field.boolean(), {
      default: false,
      description: 'Passes over the event that failed',
    }),
  }),
)

const Group = named(
  'Group',
  shape.object({
    name: shape.string,
    prefix: shape.string,
    partitions: shape.integer,
    retryLimit: shape.integer,
    retryDelayMs: shape.integer,
  }),
)
const Groups = named('GroupList', shape.object({ groups: shape.array(Group), next: shape.next }))

const Lag = named(
  'GroupLag',
  shape.object({
    group: shape.string,
    behind: described(shape.integer, 'Events; at most 100000 are counted'),
    oldestAt: described(shape.nullable(shape.instant), 'When the oldest of them was appended'),
    partitions: shape.array(
      shape.object({
        partition: shape.integer,
        holder: shape.nullable(shape.string),
        cursor: shape.position,
        behind: shape.integer,
        retrying: described(shape.integer, 'Streams'),
        parked: described(shape.integer, 'Streams'),
      }),
    ),
    horizon: Horizon,
  }),
)

const Parked = named(
  'ParkedStream',
  shape.object({
    stream: shape.string,
    position: shape.position,
    attempts: shape.integer,
    reason: shape.any,
    at: shape.instant,
  }),
)
const AllParked = named('ParkedStreams', shape.object({ parked: shape.array(Parked), next: shape.next }))
const Redelivered = named('Redelivered', shape.object({ redelivered: shape.integer }))

const declare = route({
  id: 'putGroup',
  ...writing,
  method: 'put',
  path: '/{name}',
  summary: 'Make a group, or change how it retries',
  params: Name,
  body: Declare,
  responses: { 201: json(Group, 'Made'), 200: json(Group, 'Changed') },
})

const look = route({
  id: 'getGroup',
  ...reading,
  method: 'get',
  path: '/{name}',
  summary: 'Look at a group',
  params: Name,
  responses: { 200: json(Group, 'As of now'), ...problemResponses(404) },
})

const end = route({
  id: 'deleteGroup',
  ...writing,
  method: 'delete',
  path: '/{name}',
  summary: 'End a group: its progress is forgotten',
  params: Name,
  responses: { 204: { description: 'Ended' }, ...problemResponses(404) },
})

const list = route({
  id: 'listGroups',
  ...reading,
  method: 'get',
  path: '/',
  summary: 'List groups by name',
  query: List,
  responses: { 200: json(Groups, 'A page') },
})

const lag = route({
  id: 'getGroupLag',
  ...reading,
  method: 'get',
  path: '/{name}/lag',
  summary: 'How far behind a group is, and what holds it up',
  params: Name,
  responses: { 200: json(Lag, 'As of now'), ...problemResponses(404) },
})

const parked = route({
  id: 'listParked',
  ...reading,
  method: 'get',
  path: '/{name}/parked',
  summary: 'List streams of which an event failed too often, by name',
  params: Name,
  query: { limit: List.limit, after: List.after },
  responses: { 200: json(AllParked, 'A page'), ...problemResponses(404) },
})

const redeliver = route({
  id: 'redeliverParked',
  ...writing,
  method: 'post',
  path: '/{name}/redeliver',
  summary: 'Try again what is parked',
  params: Name,
  body: Redeliver,
  responses: { 200: json(Redelivered, 'Streams'), ...problemResponses(404) },
})

/** The routes of `/v1/groups` but those for consumers. */
export function groupRouter(events: Events): Router {
  const router = new Router()

  router.on(declare, async (c, { params: { name }, body: options }) => {
    const there = bound(c) ? await events.group(name) : null
    covers(c, there?.prefix)
    const prefix = options.prefix ?? there?.prefix
    covers(c, prefix ?? '')
    const made = await events.declareGroup(name, { ...options, ...(prefix !== undefined && { prefix }) })
    const group = await events.group(name)
    if (!group) throw unavailable('The group was ended in this moment')
    return c.json(group, made ? 201 : 200)
  })

  router.on(look, async (c, { params: { name } }) => {
    const group = await events.group(name)
    if (!group) throw noGroup(name)
    return c.json(group, 200)
  })

  router.on(end, async (c, { params: { name } }) => {
    await coversGroup(c, events, name)
    if (!(await events.deleteGroup(name))) throw noGroup(name)
    return c.body(null, 204)
  })

  router.on(list, async (c, { query: { prefix = '', limit = 100, ...after } }) => {
    const groups = await events.groups({ prefix: listable(c, prefix), limit, ...after })
    const { page, next } = pageOf(groups, limit)
    return c.json({ groups: page, next }, 200)
  })

  router.on(lag, async (c, { params: { name } }) => {
    await coversGroup(c, events, name)
    const { oldestAt, partitions, horizon, ...rest } = await events.lag(name)
    const each = partitions.map(({ cursor, ...partition }) => ({ ...partition, cursor: String(cursor) }))
    const when = oldestAt?.toISOString() ?? null
    return c.json({ ...rest, oldestAt: when, partitions: each, horizon: horizonJson(horizon) }, 200)
  })

  router.on(parked, async (c, { params: { name }, query: { limit = 100, ...after } }) => {
    await coversGroup(c, events, name)
    const all = await events.parked(name, { limit, ...after })
    const each = all.map(({ position, at, reason, ...rest }) => ({
      ...rest,
      position: String(position),
      reason: reason ?? null,
      at: at.toISOString(),
    }))
    const { page, next } = pageOf(each, limit)
    return c.json({ parked: page, next }, 200)
  })

  router.on(redeliver, async (c, { params: { name }, body: options }) => {
    await coversGroup(c, events, name)
    return c.json({ redelivered: await events.redeliver(name, options) }, 200)
  })

  return router
}

function noGroup(name: string): Problem {
  return new Problem(404, 'NOT_FOUND', `There is no group ${JSON.stringify(name)}`)
}
