/**
 * The client's half of `GET /v1/time`: true time in a browser or another service, which has no database.
 *
 * The server read its clock between the request and the answer, but not within the first `processingMs` of that time, because
 * it spent those before it read. So when the answer arrives, true time lies between the server's time and that time plus the
 * rest of the round trip. A short round trip gives a narrow result: ask several times, and keep the narrowest.
 */

import { wrongType } from '../base/index.ts'
import { LOCAL_DRIFT } from './tolerances.ts'

/** The fields of the answer of `GET /v1/time` that {@link cristian} uses. */
export interface TimeAnswer {
  /** The server's best estimate of the time: ISO 8601. */
  time: string
  /** The lower bound of true time: ISO 8601; null where the server does not know true time. */
  earliest: string | null
  /** The upper bound of true time: ISO 8601; null where the server does not know true time. */
  latest: string | null
  /** How long the server worked before it read its clock: milliseconds. */
  processingMs: number
}

/** The time when the answer was received. */
export interface RemoteTime {
  /** The best estimate: milliseconds since 1970. */
  timeMs: number
  /** The lower bound of true time: milliseconds since 1970; null where the server does not know true time. */
  earliestMs: number | null
  /** The upper bound of true time: milliseconds since 1970; null where the server does not know true time. */
  latestMs: number | null
  /** The largest possible error: |`timeMs` − true time| ≤ `boundMs`. Milliseconds; null where the server does not know true time. */
  boundMs: number | null
}

/**
 * Computes the time at `receivedMs` from an answer of `GET /v1/time`, by Cristian's algorithm.
 *
 * @param answer      the parsed JSON of the answer.
 * @param sentMs      `performance.now()` before the request: milliseconds.
 * @param receivedMs  `performance.now()` after the answer: milliseconds, ≥ `sentMs`.
 * @returns the time at `receivedMs`, with its bounds.
 * @throws {TypeError} `code` INVALID_ARGUMENT, `field`: this is no answer of `GET /v1/time`, or `receivedMs` is before `sentMs`.
 * @see F. Cristian, "Probabilistic clock synchronization", 1989
 */
export function cristian(answer: TimeAnswer, sentMs: number, receivedMs: number): RemoteTime {
  const { time, earliest, latest, processingMs = 0 } = answer ?? {}
  const known = [earliest, latest].every((each) => each === null || each === undefined || isInstant(each))
  if (!isInstant(time) || !known) throw wrongType('answer', 'the answer of GET /v1/time', answer)
  if (typeof sentMs !== 'number') throw wrongType('sentMs', 'a number of milliseconds', sentMs)
  const waited = typeof receivedMs === 'number' ? receivedMs - sentMs : Number.NaN
  if (!(waited >= 0)) throw wrongType('receivedMs', 'a number of milliseconds, not before sentMs', receivedMs)
  const processed = typeof processingMs === 'number' && processingMs > 0 ? processingMs : 0
  const inTransit = Math.max(0, waited - processed) + LOCAL_DRIFT * waited
  const timeMs = Date.parse(time) + inTransit / 2
  if (earliest == null || latest == null) {
    return { timeMs, earliestMs: null, latestMs: null, boundMs: null }
  }
  const earliestMs = Date.parse(earliest)
  const latestMs = Date.parse(latest) + inTransit
  return { timeMs, earliestMs, latestMs, boundMs: Math.max(timeMs - earliestMs, latestMs - timeMs) }
}

const isInstant = (value: unknown): value is string => typeof value === 'string' && !Number.isNaN(Date.parse(value))
