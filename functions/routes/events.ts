/**
 * All events over HTTP: those of all streams, in one order.
 *
 *     GET /v1/events   read all   200 a page, or text/event-stream
 *
 * It works like reading one stream (streams.ts), by cursors instead of positions. A key that is bound to a prefix reads the
 * events under that prefix.
 */
import type { Events } from '../../lib/event/index.ts'
import { LIMITS } from '../../lib/index.ts'
import { field, listable, optional, Router, route, type Streams, waiting, wantsStream } from '../http/index.ts'
import { beginning, page, paged, pageOrStream, pieces, reading, Seen } from './event-schemas.ts'

const prefix = optional(field.text({ min: 0, max: LIMITS.name.max }))
const readAll = route({
  id: 'readEvents',
  ...reading,
  method: 'get',
  path: '/',
  summary: 'Read all streams, or those under a prefix, in one order; or follow them',
  query: { prefix, ...paged },
  headers: Seen,
  responses: { 200: pageOrStream },
})

/** The router of `/v1/events`. `stopping` ends every wait. */
export function eventRouter(events: Events, streams: Streams, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(readAll, async (c, { query: { prefix: asked = '', ...rest }, headers }) => {
    const prefix = listable(c, asked)
    if (wantsStream(c)) {
      const from = await beginning(rest, headers['last-event-id'], () => events.readAll({ prefix, from: 'end' }))
      return streams.open(
        c,
        (signal) => events.subscribe({ prefix, from, signal, as: 'json' }),
        pieces(),
        () => events.streams({ prefix, limit: 1 }),
      )
    }
    const options = { ...rest, prefix }
    const found = await waiting(c, rest.waitMs, stopping, (until) => events.readAll({ ...options, ...until }))
    return c.json(page(found), 200)
  })

  return router
}
