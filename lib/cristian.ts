/**
 * The client's half of `GET /v1/time`: what is left to do where there is no database, in a browser or another service.
 *
 * The server's clock was read somewhere between the sending and the answer, but not within the first `processingMs` of
 * that, which the server spent before it looked. So when the answer is here, true time lies between what the server said and
 * that plus the rest of the round trip. A short round trip tells more: ask again, and keep the narrowest.
 *
 * @see F. Cristian, "Probabilistic clock synchronization", 1989
 */
import { LOCAL_DRIFT } from './assumed.ts'
import { wrongType } from './errors.ts'

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
  const time = Date.parse(answer?.time)
  if (Number.isNaN(time)) throw wrongType('answer', 'the answer of GET /v1/time', answer)
  const waited = receivedMs - sentMs
  if (!(waited >= 0)) throw wrongType('receivedMs', 'a number of milliseconds, not before sentMs', receivedMs)
  const { processingMs = 0 } = answer
  const onTheWay = Math.max(0, waited - (processingMs > 0 ? processingMs : 0)) + LOCAL_DRIFT * waited
  const timeMs = time + onTheWay / 2
  if (answer.earliest === null || answer.latest === null) {
    return { timeMs, earliestMs: null, latestMs: null, boundMs: null }
  }
  const earliestMs = Date.parse(answer.earliest)
  const latestMs = Date.parse(answer.latest) + onTheWay
  return { timeMs, earliestMs, latestMs, boundMs: Math.max(timeMs - earliestMs, latestMs - timeMs) }
}
