/**
 * Consumers over HTTP: they share the events of a group, each at its own pace, in any language.
 *
 *     POST /v1/groups/{name}/poll     poll    200 batches, perhaps none
 *     POST /v1/groups/{name}/commit   commit  204 · 409 lost
 *     POST /v1/groups/{name}/fail     fail    200 how it goes on · 409 lost
 *     POST /v1/groups/{name}/leave    leave   204
 *
 * As with locks there is no session: a consumer that polls is a member of the group, and has its share of the partitions, until
 * `leaseMs` after its last poll. A consumer that is silent for longer is considered dead: others continue where it had committed,
 * under larger tokens, and its later commits are 409.
 *
 * An answer may get lost. Events that were polled and not committed are delivered again, to the consumer that has the partition
 * then. To commit the same batch again is 204 as before. So nothing has to be taken back when a client hangs up while it polls:
 * its leases end by themselves, and if it comes again as the same `holder`, it still has them.
 */
import type { Events } from '../../lib/event/index.ts'
import {
  covers,
  described,
  field,
  json,
  Name,
  named,
  optional,
  problemResponse,
  problemResponses,
  Router,
  route,
  shape,
  waiting,
} from '../http/index.ts'
import { coversGroup, Event, eventJson, writing } from './event-schemas.ts'

const holder = described(field.holder, 'The name of the consumer, which does one thing at a time')

const Poll = named(
  'PollGroup',
  field.object({
    holder,
    limit: optional(field.integer({ min: 1, max: 1_000 }), {
      default: 100,
      description: 'Of each partition. All of them together have 5 MB: poll again',
    }),
    leaseMs: optional(field.integer({ min: 1_000, max: 3_600_000 }), { default: 30_000 }),
    waitMs: optional(field.waitMs, { default: 0, description: 'Waits so long for an event' }),
  }),
)

const batch = {
  partition: field.integer({ min: 0, max: 255 }),
  token: field.token,
  next: described(field.text({ min: 1, max: 255 }), 'As the batch has it'),
}
const Commit = named('CommitBatch', field.object(batch))
const Fail = named(
  'FailEvent',
  field.object({
    ...batch,
    event: described(field.position, 'The cursor of the event that failed'),
    reason: optional(field.failure, { default: null, description: 'Shown with the parked stream. 4 KiB are kept' }),
  }),
)
const Leave = named('LeaveGroup', field.object({ holder }))
const Batch = named(
  'EventBatch',
  shape.object({
    partition: shape.integer,
    token: shape.token,
    events: shape.array(named('GivenEvent', shape.extended(Event, { attempt: described(shape.integer, '1, 2, …') }))),
    next: described(shape.string, 'To be sent back by commit or fail'),
  }),
)
const Batches = named('EventBatches', shape.object({ batches: shape.array(Batch) }), 'None: nothing came')

const Failed = named(
  'FailedEvent',
  shape.object({
    attempts: shape.integer,
    parked: described(shape.boolean, 'Its stream waits to be redelivered'),
    retryAt: described(shape.nullable(shape.instant), 'null: it is parked'),
  }),
)

const lost = problemResponse(409, 'LEASE_LOST: the partition passed on, or this is not its last batch: poll again')

const poll = route({
  id: 'pollGroup',
  ...writing,
  method: 'post',
  path: '/{name}/poll',
  summary: 'Take a fair share of the partitions, and the next events of each',
  params: Name,
  body: Poll,
  responses: { 200: json(Batches, 'What is next, perhaps nothing'), ...problemResponses(404) },
})

const commit = route({
  id: 'commitBatch',
  ...writing,
  method: 'post',
  path: '/{name}/commit',
  summary: 'Say that a batch was applied',
  params: Name,
  body: Commit,
  responses: { 204: { description: 'Committed' }, 409: lost },
})

const fail = route({
  id: 'failEvent',
  ...writing,
  method: 'post',
  path: '/{name}/fail',
  summary: 'Say that an event of a batch failed, and that those before it were applied',
  params: Name,
  body: Fail,
  responses: { 200: json(Failed, 'How it goes on'), ...problemResponses(404), 409: lost },
})

const leave = route({
  id: 'leaveGroup',
  ...writing,
  method: 'post',
  path: '/{name}/leave',
  summary: 'Give up the partitions of a consumer, so that others have them at once',
  params: Name,
  body: Leave,
  responses: { 204: { description: 'Given up' }, ...problemResponses(404) },
})

/** The routes of `/v1/groups` for consumers. `stopping` ends every wait. */
export function pollRouter(events: Events, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(poll, async (c, { params: { name }, body: asked }) => {
    await coversGroup(c, events, name)
    const polled = await waiting(c, asked.waitMs, stopping, (until) => events.poll(name, { ...asked, ...until }))
    // While the request waited, another group of this name may have been made, which reads more.
    for (const { stream } of polled.flatMap((batch) => batch.events)) covers(c, stream)
    const batches = polled.map(({ partition, token, events, next }) => ({
      partition,
      token: String(token),
      events: events.map((event) => ({ ...eventJson(event), attempt: event.attempt })),
      next,
    }))
    return c.json({ batches }, 200)
  })

  router.on(commit, async (c, { params: { name }, body: batch }) => {
    await coversGroup(c, events, name)
    await events.commit(name, batch)
    return c.body(null, 204)
  })

  router.on(fail, async (c, { params: { name }, body: { reason = null, ...batch } }) => {
    await coversGroup(c, events, name)
    const { retryAt, ...rest } = await events.fail(name, { ...batch, reason })
    return c.json({ ...rest, retryAt: retryAt?.toISOString() ?? null }, 200)
  })

  router.on(leave, async (c, { params: { name }, body: { holder } }) => {
    await coversGroup(c, events, name)
    await events.leave(name, holder)
    return c.body(null, 204)
  })

  return router
}
