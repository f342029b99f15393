/**
 * What all routers have in common: the shapes of paths, lists, bodies and answers, and a wait that is not for ever.
 *
 * A wait ends when the client hangs up (499, which nobody reads), and with a 503 when the server stops. What a wait
 * ended too late for, the router takes back: nobody shall be given what they are not there to hear of.
 */
import type { Context } from 'hono'
import { combineSignals } from '../../lib/base/index.ts'
import { LIMITS } from '../../lib/index.ts'
import * as field from './fields.ts'
import { gone, stopping } from './problem.ts'
import { optional } from './schema.ts'

/** The path of what has a name. */
export const Name = { name: field.name }

/** The query of a list. */
export const List = {
  prefix: optional(field.text({ min: 0, max: LIMITS.name.max })),
  limit: optional(field.digits({ min: 1, max: 1000 })),
  after: optional(field.text(LIMITS.name), '`next` of the page before'),
}

/** Where the page after this one begins; null: this was the last. */
export function nextOf(page: (string | { name: string })[], limit: number): string | null {
  const last = page.length === limit ? page.at(-1) : undefined
  return typeof last === 'object' ? last.name : (last ?? null)
}

/** Does what may wait, if `waitMs` says so; the wait ends with the client, or the server. */
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
    if (client.aborted) throw gone()
    // Only a wait ends early: a request that came before the stop and need not wait gets its answer.
    if (waitMs && stop?.aborted) throw stopping()
    throw error
  } finally {
    until?.end()
  }
}
