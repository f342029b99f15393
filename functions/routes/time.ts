/**
 * Time over HTTP: one reading of the clock.
 *
 *     GET /v1/time   200 the time, and how far from true time it may be
 *
 * The answer is as old as its way back takes. A client that wants a bound for that measures its own round trip, and subtracts
 * `processingMs`: the time from the arrival of the request to the reading of the clock, which is the last thing done. (In a
 * Worker the clock stands still while it computes, so `processingMs` is smaller than the truth: that makes the client's interval
 * wider, not wrong.)
 *
 * It is `Cache-Control: no-store`, like every answer: a cached time would be old. A process that lives on answers without asking
 * the database. One that may have been frozen asks each time, since no clock of its own knows for how long it was frozen. If the
 * database cannot be asked, the last measurement still holds, and the answer has its wider bounds.
 */
import type { MiddlewareHandler } from 'hono'
import type { Time } from '../../lib/index.ts'
import { described, type Env, json, named, Router, route, shape } from '../http/index.ts'

const Now = named(
  'Time',
  shape.object({
    time: described(shape.instant, 'The best guess'),
    earliest: described(
      shape.nullable(shape.instant),
      'True time was not before this. null: true time was never measured',
    ),
    latest: described(
      shape.nullable(shape.instant),
      'True time was not after this. null: true time was never measured',
    ),
    boundMs: described(shape.nullable(shape.number), 'The largest possible distance of `time` from true time'),
    spreadMs: described(shape.nullable(shape.number), "How well the database's clock is known"),
    status: described(
      shape.word('synchronized', 'trusted', 'free-running', 'disrupted', 'unsynchronized'),
      'trusted: by the word of one server, without a vote',
    ),
    source: described(shape.word('database+ntp', 'database', 'ntp', 'local'), 'What `time` is from'),
    falsetickers: described(shape.array(shape.string), 'NTP servers that the last measurement found wrong'),
    trusted: described(shape.nullable(shape.string), 'The one NTP server on whose word this rests; null: a vote'),
    processingMs: described(shape.number, 'From the arrival of the request to the reading of the clock'),
  }),
)

const now = route({
  id: 'getTime',
  tags: ['time'],
  method: 'get',
  path: '/',
  summary: 'What time it is, as an interval that true time lies in',
  scope: 'time:read',
  responses: { 200: json(Now, 'Now') },
})

const SAMPLE_MS = 10_000

/** Records when a request arrived. It must come before all other middleware. */
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
      if (time.now().spreadMs === null) throw error // the database was never asked
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
        trusted: reading.trusted,
        processingMs: rounded(processed, Math.floor),
      },
      200,
    )
  })

  return router
}

// To the microsecond, rounded to the side on which the bound still holds.
function rounded(ms: number, to: (x: number) => number): number
function rounded(ms: number | null, to: (x: number) => number): number | null
function rounded(ms: number | null, to: (x: number) => number): number | null {
  return ms === null ? null : to(ms * 1_000) / 1_000
}
