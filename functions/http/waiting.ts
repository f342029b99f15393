/**
 * The wait of a request (`waitMs`) ends early when its client hangs up (with a 499, which no one reads), and with a 503 when the
 * server stops.
 *
 * A grant may come just when the client hangs up. The route then takes it back: nothing is granted to a client that has gone.
 */
import type { Context } from 'hono'
import { combineSignals } from '../../lib/base/index.ts'
import { clientGone, stopping } from './problem.ts'

/** Does work that waits for at most `waitMs`. The wait ends when the client hangs up or the server stops. */
export async function waiting<T>(
  c: Context,
  waitMs: number | undefined,
  stop: AbortSignal | undefined,
  work: (until: { signal?: AbortSignal }) => Promise<T>,
): Promise<T> {
  const client = c.req.raw.signal
  const until = waitMs ? combineSignals(client, stop) : undefined
  try {
    return await work(until ? { signal: until.signal } : {})
  } catch (error) {
    if (client.aborted) throw clientGone()
    // Only a wait ends early: a request without one that came before the stop gets its answer.
    if (waitMs && stop?.aborted) throw stopping()
    throw error
  } finally {
    until?.end()
  }
}
