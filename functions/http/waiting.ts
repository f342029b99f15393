/**
 * The wait of a request (`waitMs`) ends early when its client hangs up (with a 499, which no one reads), and with a 503 when the
 * server stops.
 *
 * Where a request has a deadline of its own (Lambda ends an invocation, and its client gets no answer of ours), the adapter says how
 * much time is left, and each wait ends before that, as if the client had asked for so much.
 *
 * A grant may come just when the client hangs up. The route then takes it back: nothing is granted to a client that has gone.
 */
import type { Context } from 'hono'
import { combineSignals } from '../../lib/base/index.ts'
import { clientGone, stopping } from './problem.ts'

/** What an adapter may pass to the application with a request. */
export interface Bindings {
  /** Milliseconds that are left for waiting, at the moment of the call. */
  leftMs?: () => number
}

// A wait stays a wait, and a budget one that can be asked for.
const LEAST = { waitMs: 1, budgetMs: 100 }

/** The input of a request whose `waitMs` or `budgetMs`, if it has one, ends in the time that is left. */
export function inTime<T>(c: Context, input: T): T {
  const { leftMs } = (c.env ?? {}) as Bindings
  if (!leftMs || !input) return input
  const asked = { ...input } as Partial<typeof LEAST>
  for (const field of ['waitMs', 'budgetMs'] as const) {
    if (asked[field]) asked[field] = Math.max(LEAST[field], Math.min(asked[field], Math.floor(leftMs())))
  }
  return asked as T
}

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
