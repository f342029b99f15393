/**
 * What locks and leaders have in common over HTTP: a grant for a token that the caller keeps, and a wait for it.
 *
 * A wait ends when the client hangs up, so that nobody is granted what they are not there to hear of; if grant and hang-up
 * cross, the grant is taken back. It also ends, with a 503, when the server stops.
 */
import { z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { type Grant, LIMITS } from '../lib/index.ts'
import * as field from './field.ts'
import { gone, invalid, stopping } from './problem.ts'

export const Name = z.object({ name: field.name })
export const NoQuery = field.strict({})
export const instant = z.iso.datetime({ precision: 3 }).openapi({ example: '2026-01-01T12:00:00.000Z' })
export const token = z.string().openapi({ pattern: '^[1-9][0-9]{0,18}$', example: '4711' })

export const Release = field.strict({
  token: field.token.optional(),
  force: z
    .literal('true', { error: '`true`, or left out' })
    .optional()
    .openapi({ description: 'Needs the scope admin' }),
})

export const List = field.strict({
  prefix: field.text({ min: 0, max: LIMITS.name.max }).optional(),
  limit: field.digits({ min: 1, max: 1000 }).optional(),
  after: field.text(LIMITS.name).optional().openapi({ description: '`next` of the page before' }),
})

export const Granted = z
  .object({ name: z.string(), holder: z.string(), token, grantedAt: instant, expiresAt: instant })
  .openapi('Grant')

export const json = <S extends z.ZodType>(schema: S, description: string) => ({
  description,
  content: { 'application/json': { schema } },
})
// The body is documented here and checked by readBody: zod-openapi's own check knows no empty body.
export const body = (schema: string, required: boolean) => ({
  required,
  content: { 'application/json': { schema: { $ref: `#/components/schemas/${schema}` } } },
})

/** The token that a DELETE names; none: by force. */
export function tokenOf({ token, force }: z.output<typeof Release>): bigint | undefined {
  if ((token === undefined) === (force === undefined)) {
    throw invalid({ field: 'token', expected: 'given, unless `force=true` is; not both' })
  }
  return token
}

/** Where the page after this one begins; null: this was the last. */
export function nextOf(page: { name: string }[], limit: number): string | null {
  return page.length === limit ? (page.at(-1)?.name ?? null) : null
}

/** Who grants, and takes back. */
interface Granter {
  grant(name: string, options: object): Promise<Grant>
  revoke(name: string, token: bigint): Promise<void>
}

/** Grants what the body asks for; a wait ends with the client, or the server. */
export async function grantTo(
  c: Context,
  granter: Granter,
  name: string,
  asked: { waitMs?: number | undefined },
  stop?: AbortSignal,
) {
  const client = c.req.raw.signal
  let grant: Grant
  try {
    grant = await granter.grant(name, {
      ...defined(asked),
      ...(asked.waitMs && { signal: either(client, stop) }),
    })
  } catch (error) {
    if (client.aborted) throw gone()
    // Only a wait ends early: a request that came before the stop and need not wait gets its answer.
    if (asked.waitMs && stop?.aborted) throw stopping()
    throw error
  }
  if (client.aborted && !grant.renewed) {
    // Should this fail, the lease runs out by itself.
    await granter.revoke(name, grant.token).catch(() => {})
    throw gone()
  }
  return grant
}

function either(client: AbortSignal, stop?: AbortSignal): AbortSignal {
  return stop ? AbortSignal.any([client, stop]) : client
}

export function granted({ name, holder, token, grantedAt, expiresAt }: Grant) {
  return {
    name,
    holder,
    token: String(token),
    grantedAt: grantedAt.toISOString(),
    expiresAt: expiresAt.toISOString(),
  }
}

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> }

// `optional()` of zod says `T | undefined`; the library tells an absent option from an undefined one.
export function defined<T extends object>(options: T): Defined<T> {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Defined<T>
}
