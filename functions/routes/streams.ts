/**
 * Streams over HTTP: who appends events, and who reads them, of one stream or of all. Who shares them out: groups.ts.
 *
 *     POST   /v1/streams/{name}       append    201 · 200 appended before, by their ids · 412 the stream is not where `expected` says
 *     GET    /v1/streams/{name}       read      200 a page, or text/event-stream
 *     DELETE /v1/streams/{name}       truncate  200 what is gone, and which groups it waits for     ?force=true: admins
 *     GET    /v1/streams/{name}/lag   lag       200 how far behind each group is that reads it
 *     GET    /v1/streams              list      200
 *     GET    /v1/events               read all  200 a page, or text/event-stream
 *
 * An answer may get lost. Who appends with ids asks again and is told the positions that they have (200); who appends with
 * `expected` is told where the stream is (412), and reads whether that was itself. With neither, asking again may append twice.
 *
 * A page is never a promise of the whole: `next` is what to read from next, also when the page is empty. With `waitMs` it is
 * waited for, until the client hangs up, or the server stops (503). A client that says `Accept: text/event-stream` gets what is
 * there and then what comes. `EventSource` sends back the id of the last event it saw, and goes on after it: of a stream the id
 * is the position, of all events the cursor.
 *
 * An append may have 4 MiB; whoever has more appends more than once. A key that is bound to names reads all events under its
 * prefix; who may look at a stream is told the names of the groups that read it.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { EventPage, EventPiece, Events } from '../../lib/event/index.ts'
import { LIMITS } from '../../lib/index.ts'
import {
  allow,
  body,
  defined,
  documented,
  type Env,
  field,
  invalid,
  json,
  List,
  listable,
  Name,
  NoQuery,
  next,
  nextOf,
  type Piece,
  Problem,
  position,
  problems,
  type Streams,
  waiting,
  wantsStream,
} from '../http/index.ts'
import { Event, Horizon, reading, shown, stands, writing } from './event-schemas.ts'

const NewEvent = field
  .strict({
    type: field.text({ min: 1, max: 255 }).openapi({ description: 'What happened' }),
    data: field.json.openapi({ default: null, description: 'Any JSON value, at most 1 MiB' }).optional(),
    meta: field.meta.optional(),
    id: field
      .text({ min: 1, max: 255 })
      .openapi({
        description: 'Appended again with the same ids, events are not appended twice. All have one, or none',
      })
      .optional(),
  })
  .openapi('NewEvent')

const MANY = 'an array of 1–10000 events'

const Append = field
  .strict({
    events: z.array(NewEvent, { error: MANY }).min(1, { error: MANY }).max(10_000, { error: MANY }),
    expected: field
      .decimalOr(0n, 'none', 'exists', 'any')
      .openapi({ default: 'any', description: 'Where the stream has to be: at this position, empty, or not' })
      .optional(),
  })
  .openapi('AppendEvents')

const Appended = z.object({ first: position, last: position }).openapi('AppendedEvents')

const Page = z
  .object({
    events: z.array(Event),
    next: position
      .nullable()
      .openapi({ description: '`from` of the next page. null: the beginning is reached, backwards' }),
  })
  .openapi('EventPage')

const Listed = z
  .object({ name: z.string(), first: position.openapi({ description: 'That is still there' }), position })
  .openapi('Stream')
const Listing = z.object({ streams: z.array(Listed), next }).openapi('StreamList')

const Truncated = z
  .object({
    removed: z.int(),
    first: position.openapi({ description: 'That is still there' }),
    waitingFor: z.array(z.string()).openapi({ description: 'Groups that have yet to read what was to be removed' }),
  })
  .openapi('TruncatedStream')

const Lag = z
  .object({
    stream: z.string(),
    position,
    groups: z.array(
      z.object({
        group: z.string(),
        position: position.openapi({ description: 'Read up to here' }),
        behind: z.string(),
        state: z.enum(['reading', 'retrying', 'parked']),
      }),
    ),
    horizon: Horizon,
  })
  .openapi('StreamLag')

const from = field.position.openapi({ default: '1', description: 'The first to read' }).optional()
const paged = {
  from,
  limit: field.digits({ min: 1, max: 1000 }).optional(),
  waitMs: field.digits(LIMITS.waitMs).optional().openapi({ description: 'Waits so long for an event' }),
}
const backwards = field.yes.optional().openapi({ description: 'From there to the beginning; default: from the last' })
const prefix = field.text({ min: 0, max: LIMITS.name.max }).optional()
const Seen = z.object({
  'last-event-id': field
    .decimal(2n ** 63n - 2n) // one more is a position still
    .optional()
    .openapi({ description: 'With `Accept: text/event-stream`: begins after it' }),
})

const aPage = {
  description: 'A page, or what there is and then what comes',
  content: { 'application/json': { schema: Page }, 'text/event-stream': { schema: z.string() } },
}

const append = createRoute({
  ...writing,
  method: 'post',
  path: '/{name}',
  summary: 'Append events to a stream: all of them, or none',
  request: { params: Name, query: NoQuery, body: body('AppendEvents', true) },
  responses: {
    201: json(Appended, 'Appended'),
    200: json(Appended, 'Events with these ids were appended before: their positions'),
    ...problems(400, 401, 403, 412, 500, 503),
    413: documented(413, 'TOO_LARGE: the body is over 4 MiB, or the data of an event over 1 MiB'),
  },
})

const read = createRoute({
  ...reading,
  method: 'get',
  path: '/{name}',
  summary: 'Read a stream in the order of its positions; or follow it',
  request: { params: Name, query: field.strict({ ...paged, backwards }), headers: Seen },
  responses: { 200: aPage, ...problems(400, 401, 403, 500, 503) },
})

const truncate = createRoute({
  ...writing,
  method: 'delete',
  path: '/{name}',
  summary: 'Remove the events before a position, but for what a group has yet to read; as an admin, also those',
  request: {
    params: Name,
    query: field.strict({
      before: field.position,
      force: field.yes.optional().openapi({ description: 'Needs the scope admin' }),
    }),
  },
  responses: { 200: json(Truncated, 'What is gone'), ...problems(400, 401, 403, 500, 503) },
})

const lag = createRoute({
  ...reading,
  method: 'get',
  path: '/{name}/lag',
  summary: 'How far behind each group is that reads a stream',
  request: { params: Name, query: NoQuery },
  responses: { 200: json(Lag, 'As of now'), ...problems(400, 401, 403, 404, 500, 503) },
})

const list = createRoute({
  ...reading,
  method: 'get',
  path: '/',
  summary: 'List streams by name',
  request: { query: List },
  responses: { 200: json(Listing, 'A page'), ...problems(400, 401, 403, 500, 503) },
})

const readAll = createRoute({
  ...reading,
  method: 'get',
  path: '/',
  summary: 'Read all streams, or those under a prefix, in one order; or follow them',
  request: { query: field.strict({ prefix, ...paged }), headers: Seen },
  responses: { 200: aPage, ...problems(400, 401, 403, 500, 503) },
})

/** The router of `/v1/streams`. `stopping` ends every wait. */
export function streamRouter(events: Events, streams: Streams, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  router.openAPIRegistry.register('AppendEvents', Append)

  router.openapi(append, async (c) => {
    const { name } = c.req.valid('param')
    const { events: all, expected = 'any' } = await field.readBody(c, Append)
    const { first, last, repeated } = await events.append(name, all.map(defined), { expected }).catch(refuse)
    return c.json({ first: String(first), last: String(last) }, repeated ? 200 : 201)
  })

  router.openapi(read, async (c) => {
    const { name: stream } = c.req.valid('param')
    const { backwards, ...rest } = c.req.valid('query')
    if (wantsStream(c)) {
      const from = beginning(c.req.valid('query'), c.req.valid('header')['last-event-id'])
      return streams.open(
        c,
        (signal) => events.subscribe({ stream, from, signal, as: 'json' }),
        pieces(),
        () => events.stream(stream),
      )
    }
    const asked = { ...defined(rest), backwards: backwards === 'true' }
    const found = await waiting(c, rest.waitMs, stopping, (until) => events.read(stream, { ...asked, ...until }))
    return c.json(page(found), 200)
  })

  router.openapi(truncate, async (c) => {
    const { name } = c.req.valid('param')
    const { before, force } = c.req.valid('query')
    if (force) allow(c, 'admin')
    const { first, ...rest } = await events.truncate(name, before, { force: force === 'true' })
    return c.json({ ...rest, first: String(first) }, 200)
  })

  router.openapi(lag, async (c) => {
    const { position, groups, horizon, ...rest } = await events.streamLag(c.req.valid('param').name)
    const each = groups.map(({ position, behind, ...group }) => ({
      ...group,
      position: String(position),
      behind: String(behind),
    }))
    return c.json({ ...rest, position: String(position), groups: each, horizon: stands(horizon) }, 200)
  })

  router.openapi(list, async (c) => {
    const { prefix = '', limit = 100, after } = c.req.valid('query')
    const page = await events.streams({ prefix: listable(c, prefix), limit, ...(after !== undefined && { after }) })
    const shownStreams = page.map(({ name, first, position }) => ({
      name,
      first: String(first),
      position: String(position),
    }))
    return c.json({ streams: shownStreams, next: nextOf(page, limit) }, 200)
  })

  return router
}

/** The router of `/v1/events`. `stopping` ends every wait. */
export function eventRouter(events: Events, streams: Streams, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })

  router.openapi(readAll, async (c) => {
    const { prefix: asked = '', ...rest } = c.req.valid('query')
    const prefix = listable(c, asked)
    if (wantsStream(c)) {
      const from = beginning(rest, c.req.valid('header')['last-event-id'])
      return streams.open(
        c,
        (signal) => events.subscribe({ prefix, from, signal, as: 'json' }),
        pieces(),
        () => events.streams({ prefix, limit: 1 }),
      )
    }
    const options = { ...defined(rest), prefix }
    const found = await waiting(c, rest.waitMs, stopping, (until) => events.readAll({ ...options, ...until }))
    return c.json(page(found), 200)
  })

  return router
}

function page({ events, next }: EventPage) {
  return { events: events.map(shown), next: next === null ? null : String(next) }
}

/** Where a stream of events begins: after the last that was seen. A page's other fields mean nothing there. */
function beginning({ from = 1n, ...others }: { from?: bigint | undefined }, seen: bigint | undefined): bigint {
  const [field] = Object.entries(others).find(([, value]) => value !== undefined) ?? []
  if (field) throw invalid({ field, expected: 'left out where events are followed' })
  return seen === undefined ? from : seen + 1n
}

// What is too long for an event is a 413, as what is too long for a body. Of `data` only the length is a RangeError.
function refuse(error: unknown): never {
  const { field = '' } = error as { field?: string }
  if (!(error instanceof RangeError) || !/^events\.\d+\.data$/.test(field)) throw error
  const expected = `JSON of at most ${LIMITS.dataBytes} bytes`
  throw new Problem(413, 'TOO_LARGE', `\`${field}\` must be ${expected}`, { errors: [{ field, expected }] })
}

/** Pieces of events as they are sent: the first of each names it. */
function pieces(): (piece: EventPiece) => Piece {
  let begins = true
  return ({ place, bytes, last }) => {
    const id = begins ? String(place) : undefined
    begins = last
    return { bytes, begins: id === undefined ? undefined : { event: 'event', id }, ends: last }
  }
}
