/**
 * Streams over HTTP: appending events to a stream, and reading it. All streams in one order: events.ts. Sharing them out: groups.ts.
 *
 *     POST   /v1/streams/{name}       append    201 · 200 appended before, by their ids · 412 the stream is not where `expected` says
 *     GET    /v1/streams/{name}       read      200 a page, or text/event-stream
 *     DELETE /v1/streams/{name}       truncate  200 what is gone, and which groups it waits for     ?force=true: admins
 *     GET    /v1/streams/{name}/lag   lag       200 how far behind each group is that reads it
 *     GET    /v1/streams              list      200
 *
 * An answer may get lost. A caller that appends with ids asks again and gets the positions that its events have (200). One that
 * appends with `expected` gets the position of the stream (412), and reads whether it was itself. With neither, asking again may
 * append twice.
 *
 * A page is not always full: `next` is where the next page begins, also when this page is empty. With `waitMs` the request waits
 * for an event, until the client hangs up, or the server stops (503). A client that sends `Accept: text/event-stream` gets the
 * events that are there and then those that follow. `EventSource` sends back the id of the last event it saw, and continues after
 * it: the id is the position in a stream, and the cursor where all streams are read.
 *
 * An append may have 4 MiB; a caller that has more appends more than once. A caller that may look at a stream sees the names of
 * the groups that read it.
 */
import type { Events } from '../../lib/event/index.ts'
import { LIMITS } from '../../lib/index.ts'
import {
  allow,
  described,
  field,
  fitting,
  json,
  List,
  listable,
  More,
  Name,
  named,
  optional,
  Problem,
  pageOf,
  problemResponse,
  problemResponses,
  Router,
  route,
  type Streams,
  shape,
  waiting,
  wantsStream,
} from '../http/index.ts'
import {
  beginning,
  Horizon,
  horizonJson,
  page,
  paged,
  pageOrStream,
  pieces,
  reading,
  Seen,
  writing,
} from './event-schemas.ts'

const NewEvent = named(
  'NewEvent',
  field.object({
    type: described(field.text({ min: 1, max: 255 }), 'What happened'),
    data: optional(field.json, { default: null, description: `Any JSON value, at most 1 MiB. ${field.NUMBERS}` }),
    meta: optional(field.meta),
    id: optional(
      field.text({ min: 1, max: 255 }),
      'Appended again with the same ids, events are not appended twice. All have one, or none',
    ),
  }),
)

const Append = named(
  'AppendEvents',
  field.object({
    events: field.array(NewEvent, { min: 1, max: 10_000 }, 'an array of 1–10000 events'),
    expected: optional(field.decimalOr(0n, 'none', 'exists', 'any'), {
      default: 'any',
      description: 'Where the stream has to be: at this position, empty, or not',
    }),
  }),
)

const Appended = named('AppendedEvents', shape.object({ first: shape.position, last: shape.position }))

const Listed = named(
  'Stream',
  shape.object({
    name: shape.string,
    first: described(shape.position, 'That is still there'),
    position: shape.position,
  }),
)
const Listing = named('StreamList', shape.object({ streams: shape.array(Listed), next: shape.next }))

const Truncated = named(
  'TruncatedStream',
  shape.object({
    removed: shape.integer,
    first: described(shape.position, 'That is still there'),
    waitingFor: described(shape.array(shape.string), 'Groups that have not yet read events before the position'),
    more: More,
  }),
)

const Lag = named(
  'StreamLag',
  shape.object({
    stream: shape.string,
    position: shape.position,
    groups: shape.array(
      shape.object({
        group: shape.string,
        position: described(shape.position, 'Read up to here'),
        behind: shape.string,
        state: shape.word('reading', 'retrying', 'parked'),
      }),
    ),
    more: More,
    horizon: Horizon,
  }),
)

const backwards = optional(field.flag, 'From there to the beginning; default: from the last')

const append = route({
  id: 'appendEvents',
  ...writing,
  method: 'post',
  path: '/{name}',
  summary: 'Append events to a stream: all of them, or none',
  params: Name,
  body: Append,
  responses: {
    201: json(Appended, 'Appended'),
    200: json(Appended, 'Events with these ids were appended before: their positions'),
    ...problemResponses(412),
    413: problemResponse(413, 'TOO_LARGE: the body is over 4 MiB, or the data of an event over 1 MiB'),
  },
})

const read = route({
  id: 'readStream',
  ...reading,
  method: 'get',
  path: '/{name}',
  summary: 'Read a stream in the order of its positions; or follow it',
  params: Name,
  query: { ...paged, backwards },
  headers: Seen,
  responses: { 200: pageOrStream },
})

const truncate = route({
  id: 'truncateStream',
  ...writing,
  method: 'delete',
  path: '/{name}',
  summary: 'Remove the events before a position, but for what a group has yet to read; as an admin, also those',
  params: Name,
  query: {
    before: field.position,
    force: optional(field.flag, 'Needs the scope admin'),
  },
  responses: { 200: json(Truncated, 'What is gone') },
})

const lag = route({
  id: 'getStreamLag',
  ...reading,
  method: 'get',
  path: '/{name}/lag',
  summary: 'How far behind each group is that reads a stream',
  params: Name,
  responses: { 200: json(Lag, 'As of now'), ...problemResponses(404) },
})

const list = route({
  id: 'listStreams',
  ...reading,
  method: 'get',
  path: '/',
  summary: 'List streams by name',
  query: List,
  responses: { 200: json(Listing, 'A page') },
})

/** The router of `/v1/streams`. `stopping` ends every wait. */
export function streamRouter(events: Events, streams: Streams, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(append, async (c, { params: { name }, body: { events: all, expected = 'any' } }) => {
    const { first, last, repeated } = await events.append(name, all, { expected }).catch(refuse)
    return c.json({ first: String(first), last: String(last) }, repeated ? 200 : 201)
  })

  router.on(read, async (c, { params: { name: stream }, query, headers }) => {
    const { backwards, ...rest } = query
    if (wantsStream(c)) {
      const end = () => events.read(stream, { from: 'end' })
      const from = await beginning(query, headers['last-event-id'], end)
      return streams.open(
        c,
        (signal) => events.subscribe({ stream, from, signal, as: 'json' }),
        pieces(),
        () => events.stream(stream),
      )
    }
    const asked = { ...rest, backwards: backwards === true }
    const found = await waiting(c, rest.waitMs, stopping, (until) => events.read(stream, { ...asked, ...until }))
    return c.json(page(found), 200)
  })

  router.on(truncate, async (c, { params: { name }, query: { before, force } }) => {
    if (force) allow(c, 'admin')
    const { removed, first, waitingFor } = await events.truncate(name, before, { force: force === true })
    const shown = fitting(waitingFor)
    const more = shown.length < waitingFor.length
    return c.json({ removed, first: String(first), waitingFor: shown, more }, 200)
  })

  router.on(lag, async (c, { params }) => {
    const { position, groups, horizon, ...rest } = await events.streamLag(params.name)
    const each = groups.map(({ position, behind, ...group }) => ({
      ...group,
      position: String(position),
      behind: String(behind),
    }))
    const shown = fitting(each)
    const more = shown.length < each.length
    return c.json({ ...rest, position: String(position), groups: shown, more, horizon: horizonJson(horizon) }, 200)
  })

  router.on(list, async (c, { query: { prefix = '', limit = 100, ...after } }) => {
    const all = await events.streams({ prefix: listable(c, prefix), limit, ...after })
    const shownStreams = all.map(({ name, first, position }) => ({
      name,
      first: String(first),
      position: String(position),
    }))
    const { page: listed, next } = pageOf(shownStreams, limit)
    return c.json({ streams: listed, next }, 200)
  })

  return router
}

// Data that is too long for an event is a 413, like a body that is too long. Of `data` only the length is a RangeError.
function refuse(error: unknown): never {
  const { field = '' } = error as { field?: string }
  if (!(error instanceof RangeError) || !/^events\.\d+\.data$/.test(field)) throw error
  const expected = `JSON of at most ${LIMITS.dataBytes} bytes`
  throw new Problem(413, 'TOO_LARGE', `\`${field}\` must be ${expected}`, { errors: [{ field, expected }] })
}
