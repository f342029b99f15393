/**
 * Time over HTTP: one look at the clock.
 *
 *     GET /v1/time   200 what time it is, and how far off that may be
 *
 * The answer is old by the time it takes to get there. A client that wants to know by how much at most measures its own
 * round trip, and takes off `processingMs`: what passed here between the request's coming in and the look at the clock, which
 * is the last thing done. (In a Worker the clock stands still while it computes, so `processingMs` says less than it was:
 * that makes the client's interval wider, not wrong.)
 *
 * It is `Cache-Control: no-store`, as every answer is: an hour out of a cache would be an hour ago. A process that lives on
 * answers without asking the database; one that may have been frozen asks it each time, since no clock of its own says for
 * how long. If it cannot be asked, what is known still holds, and is answered with its wider bounds.
 */
import type { MiddlewareHandler } from 'hono'
import type { Time } from '../../lib/index.ts'
import { described, type Env, json, named, Router, route, shape } from '../http/index.ts'

const Now = named(
  'Time',
  shape.object({
    time: described(shape.instant, 'The best guess'),
    earliest: described(shape.nullable(shape.instant), 'True time was not before. null: nobody has measured it'),
    latest: described(shape.nullable(shape.instant), 'True time was not after. null: nobody has measured it'),
    boundMs: described(shape.nullable(shape.number), '`time` is at most so far from true time'),
    spreadMs: described(shape.nullable(shape.number), "How well the database's clock is known"),
    status: shape.word('synchronized', 'free-running', 'disrupted', 'unsynchronized'),
    source: described(shape.word('database+ntp', 'database', 'ntp', 'local'), 'What `time` is from'),
    falsetickers: described(shape.array(shape.string), 'NTP servers that the last vote found wrong'),
    processingMs: described(shape.number, 'From the coming in of the request to the look at the clock'),
  }),
)

const now = route({
  tags: ['time'],
  method: 'get',
  path: '/',
  summary: 'What time it is, as an interval that true time lies in',
  scope: 'time:read',
  responses: { 200: json(Now, 'Now') },
})

const SAMPLE_MS = 10_000

/** Notes when a request came in; to be put before everything else that it goes through. */
export const recordArrival: MiddlewareHandler<Env> = (c, next) => {
  c.set('arrivedMs', performance.now())
  return next()
}

/** The router of `/v1/time`. */
export function timeRouter(time: Time): Router {
  const router = new Router()

  router.on(now, async (c) => {
    try {
      await time.ready({ maxAgeMs: time.background ? SAMPLE_MS : 0 })
    } catch (error) {
      if (time.now().spreadMs === null) throw error // it was never asked
    }
    const arrivedMs = c.get('arrivedMs') ?? performance.now()
    const processed = Math.max(0, performance.now() - arrivedMs)
    const reading = time.now()
    return c.json(
      {
        time: reading.time.toISOString(),
        earliest: reading.earliest?.toISOString() ?? null,
        latest: reading.latest?.toISOString() ?? null,
        boundMs: rounded(reading.boundMs, Math.ceil),
        spreadMs: rounded(reading.spreadMs, Math.ceil),
        status: reading.status,
        source: reading.source,
        falsetickers: [...reading.falsetickers],
        processingMs: rounded(processed, Math.floor),
      },
      200,
    )
  })

  return router
}

// To the microsecond, on the side that keeps it true.
function rounded(ms: number, to: (x: number) => number): number
function rounded(ms: number | null, to: (x: number) => number): number | null
function rounded(ms: number | null, to: (x: number) => number): number | null {
  return ms === null ? null : to(ms * 1_000) / 1_000
}
