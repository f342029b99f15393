/**
 * Consumers over HTTP: they share the events of a group, each in its own time, in any language.
 *
 *     POST /v1/groups/{name}/poll     poll    200 batches, perhaps none
 *     POST /v1/groups/{name}/commit   commit  204 · 409 lost
 *     POST /v1/groups/{name}/fail     fail    200 how it goes on · 409 lost
 *     POST /v1/groups/{name}/leave    leave   204
 *
 * As with locks there is no session: whoever polls has a place in the group, and its share of the partitions, until `leaseMs`
 * after the last poll. A consumer that is silent for longer is taken for dead: others go on where it had committed, under
 * larger tokens, and what it still commits is a 409.
 *
 * An answer may get lost. What was polled and not committed is given again, to whoever has the partition then; to commit the
 * same batch again is 204 as before. So there is nothing to take back when a client hangs up while it polls: its leases end by
 * themselves, and should it come again as the same `holder`, it has them still.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { Events } from '../../lib/event/index.ts'
import {
  body,
  covers,
  defined,
  documented,
  type Env,
  field,
  instant,
  json,
  Name,
  NoQuery,
  problems,
  token,
  waiting,
} from '../http/index.ts'
import { coversGroup, Event, shown, writing } from './event-schemas.ts'

const holder = field.holder.openapi({ description: 'Who consumes: one that does one thing at a time' })

const Poll = field
  .strict({
    holder,
    limit: field.integer({ min: 1, max: 1_000 }).openapi({ default: 100, description: 'Of each partition' }).optional(),
    leaseMs: field.integer({ min: 1_000, max: 3_600_000 }).openapi({ default: 30_000 }).optional(),
    waitMs: field.waitMs.openapi({ default: 0, description: 'Waits so long for an event' }).optional(),
  })
  .openapi('PollGroup')

const batch = {
  partition: field.integer({ min: 0, max: 255 }),
  token: field.token,
  next: field.text({ min: 1, max: 255 }).openapi({ description: 'As the batch has it' }),
}
const Commit = field.strict(batch).openapi('CommitBatch')
const Fail = field
  .strict({
    ...batch,
    event: field.position.openapi({ description: 'The cursor of the event that failed' }),
    reason: field.json.openapi({ default: null, description: 'For whoever looks. 4 KiB are kept' }).optional(),
  })
  .openapi('FailEvent')
const Leave = field.strict({ holder }).openapi('LeaveGroup')
const Batch = z
  .object({
    partition: z.int(),
    token,
    events: z.array(Event.extend({ attempt: z.int().openapi({ description: '1, 2, …' }) }).openapi('GivenEvent')),
    next: z.string().openapi({ description: 'To be given back' }),
  })
  .openapi('EventBatch')
const Batches = z.object({ batches: z.array(Batch) }).openapi('EventBatches', { description: 'None: nothing came' })

const Failed = z
  .object({
    attempts: z.int(),
    parked: z.boolean().openapi({ description: 'Its stream waits to be redelivered' }),
    retryAt: instant.nullable().openapi({ description: 'null: it is parked' }),
  })
  .openapi('FailedEvent')

const lost = documented(409, 'LEASE_LOST: the partition passed on, or this is not its last batch: poll again')

const poll = createRoute({
  ...writing,
  method: 'post',
  path: '/{name}/poll',
  summary: 'Take a fair share of the partitions, and what is next of each',
  request: { params: Name, query: NoQuery, body: body('PollGroup', true) },
  responses: { 200: json(Batches, 'What is next, perhaps nothing'), ...problems(400, 401, 403, 404, 413, 500, 503) },
})

const commit = createRoute({
  ...writing,
  method: 'post',
  path: '/{name}/commit',
  summary: 'Say that a batch was applied',
  request: { params: Name, query: NoQuery, body: body('CommitBatch', true) },
  responses: { 204: { description: 'Committed' }, ...problems(400, 401, 403, 413, 500, 503), 409: lost },
})

const fail = createRoute({
  ...writing,
  method: 'post',
  path: '/{name}/fail',
  summary: 'Say that an event of a batch failed, and that those before it were applied',
  request: { params: Name, query: NoQuery, body: body('FailEvent', true) },
  responses: { 200: json(Failed, 'How it goes on'), ...problems(400, 401, 403, 404, 413, 500, 503), 409: lost },
})

const leave = createRoute({
  ...writing,
  method: 'post',
  path: '/{name}/leave',
  summary: 'Give up the partitions of a consumer, so that others have them at once',
  request: { params: Name, query: NoQuery, body: body('LeaveGroup', true) },
  responses: { 204: { description: 'Given up' }, ...problems(400, 401, 403, 404, 413, 500, 503) },
})

/** What consumers need of `/v1/groups`. `stopping` ends every wait. */
export function pollRouter(events: Events, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  for (const [name, schema] of Object.entries({
    PollGroup: Poll,
    CommitBatch: Commit,
    FailEvent: Fail,
    LeaveGroup: Leave,
  })) {
    router.openAPIRegistry.register(name, schema)
  }

  router.openapi(poll, async (c) => {
    const { name } = c.req.valid('param')
    const asked = defined(await field.readBody(c, Poll))
    await coversGroup(c, events, name)
    const given = await waiting(c, asked.waitMs, stopping, (until) => events.poll(name, { ...asked, ...until }))
    // While it waited, another group of this name may have been made, that reads more.
    for (const { stream } of given.flatMap((batch) => batch.events)) covers(c, stream)
    const batches = given.map(({ partition, token, events, next }) => ({
      partition,
      token: String(token),
      events: events.map((event) => ({ ...shown(event), attempt: event.attempt })),
      next,
    }))
    return c.json({ batches }, 200)
  })

  router.openapi(commit, async (c) => {
    const { name } = c.req.valid('param')
    const batch = await field.readBody(c, Commit)
    await coversGroup(c, events, name)
    await events.commit(name, batch)
    return c.body(null, 204)
  })

  router.openapi(fail, async (c) => {
    const { name } = c.req.valid('param')
    const { reason = null, ...batch } = await field.readBody(c, Fail)
    await coversGroup(c, events, name)
    const { retryAt, ...rest } = await events.fail(name, { ...batch, reason })
    return c.json({ ...rest, retryAt: retryAt?.toISOString() ?? null }, 200)
  })

  router.openapi(leave, async (c) => {
    const { name } = c.req.valid('param')
    const { holder } = await field.readBody(c, Leave)
    await coversGroup(c, events, name)
    await events.leave(name, holder)
    return c.body(null, 204)
  })

  return router
}
