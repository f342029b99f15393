/**
 * What all routers have in common: the shapes of paths, lists, bodies and answers, and a wait that is not for ever.
 *
 * A wait ends when the client hangs up (499, which nobody reads), and with a 503 when the server stops. What a wait
 * ended too late for, the router takes back: nobody shall be given what they are not there to hear of.
 */
import { z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { combineSignals } from '../../lib/base/index.ts'
import { LIMITS } from '../../lib/index.ts'
import * as field from './fields.ts'
import { gone, stopping } from './problem.ts'

export const Name = z.object({ name: field.name })
export const NoQuery = field.strict({})
export const instant = z.iso.datetime({ precision: 3 }).openapi({ example: '2026-01-01T12:00:00.000Z' })
export const token = z.string().openapi({ pattern: '^[1-9][0-9]{0,18}$', example: '4711' })
export const position = z.string().openapi({ pattern: '^(0|[1-9][0-9]{0,18})$', example: '42' })
export const next = z.string().nullable().openapi({ description: 'null: this was the last page' })

export const List = field.strict({
  prefix: field.text({ min: 0, max: LIMITS.name.max }).optional(),
  limit: field.digits({ min: 1, max: 1000 }).optional(),
  after: field.text(LIMITS.name).optional().openapi({ description: '`next` of the page before' }),
})

export const json = <S extends z.ZodType>(schema: S, description: string) => ({
  description,
  content: { 'application/json': { schema } },
})
// The body is documented here and checked by readBody: zod-openapi's own check knows no empty body.
export const body = (schema: string, required: boolean) => ({
  required,
  content: { 'application/json': { schema: { $ref: `#/components/schemas/${schema}` } } },
})

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

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> }

// `optional()` of zod says `T | undefined`; the library tells an absent option from an undefined one.
export function defined<T extends object>(options: T): Defined<T> {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Defined<T>
}
