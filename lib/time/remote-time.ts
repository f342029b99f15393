/**
 * The client's half of `GET /v1/time`: what is left to do where there is no database, in a browser or another service.
 *
 * The server's clock was read somewhere between the sending and the answer, but not within the first `processingMs` of
 * that, which the server spent before it looked. So when the answer is here, true time lies between what the server said and
 * that plus the rest of the round trip. A short round trip tells more: ask again, and keep the narrowest.
 *
 * @see F. Cristian, "Probabilistic clock synchronization", 1989
 */

import { wrongType } from '../base/index.ts'
import { LOCAL_DRIFT } from './tolerances.ts'

/** Of the answer of `GET /v1/time`, what is needed here. */
export interface TimeAnswer {
  time: string
  earliest: string | null
  latest: string | null
  processingMs: number
}

/** Milliseconds since 1970, when the answer was received. */
export interface RemoteTime {
  timeMs: number
  /** Null where the server does not know true time. */
  earliestMs: number | null
  latestMs: number | null
  /** |`time` − true time| ≤ `boundMs`. */
  boundMs: number | null
}

/**
 * What time it was at `receivedMs`.
 *
 * @param sentMs, receivedMs  `performance.now()` before the request and after its answer; milliseconds.
 * @throws {TypeError} `code` INVALID_ARGUMENT, `field`: this is no answer of `GET /v1/time`, or it came before it was sent.
 */
export function cristian(answer: TimeAnswer, sentMs: number, receivedMs: number): RemoteTime {
  const { time, earliest, latest, processingMs = 0 } = answer ?? {}
  const known = [earliest, latest].every((each) => each === null || each === undefined || isInstant(each))
  if (!isInstant(time) || !known) throw wrongType('answer', 'the answer of GET /v1/time', answer)
  if (typeof sentMs !== 'number') throw wrongType('sentMs', 'a number of milliseconds', sentMs)
  const waited = typeof receivedMs === 'number' ? receivedMs - sentMs : Number.NaN
  if (!(waited >= 0)) throw wrongType('receivedMs', 'a number of milliseconds, not before sentMs', receivedMs)
  const processed = typeof processingMs === 'number' && processingMs > 0 ? processingMs : 0
  const onTheWay = Math.max(0, waited - processed) + LOCAL_DRIFT * waited
  const timeMs = Date.parse(time) + onTheWay / 2
  if (earliest == null || latest == null) {
    return { timeMs, earliestMs: null, latestMs: null, boundMs: null }
  }
  const earliestMs = Date.parse(earliest)
  const latestMs = Date.parse(latest) + onTheWay
  return { timeMs, earliestMs, latestMs, boundMs: Math.max(timeMs - earliestMs, latestMs - timeMs) }
}

const isInstant = (value: unknown): value is string => typeof value === 'string' && !Number.isNaN(Date.parse(value))
