/**
 * Locks over HTTP: a lease per request, the caller keeps the token.
 *
 *     POST   /v1/locks/{name}   acquire   201 granted · 200 granted before, to this very holder · 423 held
 *     PATCH  /v1/locks/{name}   renew     200 · 409 lost
 *     DELETE /v1/locks/{name}   release   204 · 409 lost      ?token=… or, for admins, ?force=true
 *     GET    /v1/locks/{name}   look      200
 *     GET    /v1/locks          list      200
 *
 * There is no session and no heartbeat on this side: whoever does not renew in time has lost the lock, and learns it
 * by a 409. An answer may get lost. Then the same `holder` asks again and gets the same token (200); a caller that
 * named no holder cannot be told from a stranger, and waits for the ttl to run out.
 *
 * A wait (`waitMs`) stands in the same queue as every other contender. It ends when the client hangs up, so that
 * nobody is granted a lock who is not there to hear of it; if grant and hang-up cross, the grant is taken back. It
 * also ends, with a 503, when the server stops.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { type Grant, LIMITS, type LockState, type Locks } from '../lib/index.ts'
import * as field from './field.ts'
import { allow, type Env, listable, needs } from './keys.ts'
import { invalid, Problem, problems, unavailable } from './problem.ts'

const Name = z.object({ name: field.name })
const NoQuery = field.strict({})
const instant = z.iso.datetime({ precision: 3 }).openapi({ example: '2026-01-01T12:00:00.000Z' })
const token = z.string().openapi({ pattern: '^[1-9][0-9]{0,18}$', example: '4711' })

const Acquire = field
  .strict({
    holder: field.holder
      .openapi({
        description: 'The identity of one holder. Left out: a fresh one. Given: asking again is a retry',
      })
      .optional(),
    ttlMs: field.ttlMs.openapi({ default: LIMITS.ttlMs.default }).optional(),
    waitMs: field.waitMs.openapi({ default: 0 }).optional(),
    meta: field.meta.optional(),
  })
  .openapi('Acquire')

const Renew = field
  .strict({ token: field.token, ttlMs: field.ttlMs.openapi({ description: 'Left out: as before' }).optional() })
  .openapi('Renew')

const Release = field.strict({
  token: field.token.optional(),
  force: z
    .literal('true', { error: '`true`, or left out' })
    .optional()
    .openapi({ description: 'Needs the scope admin' }),
})

const List = field.strict({
  prefix: field.text({ min: 0, max: LIMITS.name.max }).optional(),
  limit: field.digits({ min: 1, max: 1000 }).optional(),
  after: field.text(LIMITS.name).optional().openapi({ description: '`next` of the page before' }),
})

const Granted = z
  .object({ name: z.string(), holder: z.string(), token, grantedAt: instant, expiresAt: instant })
  .openapi('Grant')

const Lease = z
  .object({
    name: z.string(),
    held: z.boolean(),
    kind: z.enum(['lease', 'connection']).nullable(),
    holder: z.string().nullable(),
    token: token.nullable(),
    grantedAt: instant.nullable(),
    expiresAt: instant.nullable().openapi({ description: 'null: it has no expiry, or nobody holds it' }),
    ttlMs: z.int().nullable(),
    meta: z.any().openapi({ description: 'What the holder said' }),
  })
  .openapi('ListedLock')

const State = Lease.extend({
  waiting: z.int().openapi({ description: 'Contenders of the process that answers; other processes count once each' }),
}).openapi('LockState')

const States = z
  .object({
    locks: z.array(Lease),
    next: z.string().nullable().openapi({ description: 'null: this was the last page' }),
  })
  .openapi('LockStates')

const json = <S extends z.ZodType>(schema: S, description: string) => ({
  description,
  content: { 'application/json': { schema } },
})
// The body is documented here and checked by readBody: zod-openapi's own check knows no empty body.
const body = (schema: 'Acquire' | 'Renew', required: boolean) => ({
  required,
  content: { 'application/json': { schema: { $ref: `#/components/schemas/${schema}` } } },
})
const common = { tags: ['locks'], security: [{ key: [] }] }

const acquire = createRoute({
  ...common,
  method: 'post',
  path: '/{name}',
  summary: 'Acquire a lock, waiting at most waitMs for it',
  middleware: [needs('locks:write'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery, body: body('Acquire', false) },
  responses: {
    201: json(Granted, 'Granted'),
    200: json(Granted, 'This holder has it already: the same grant, renewed'),
    ...problems(400, 401, 403, 413, 423, 500, 503),
  },
})

const renew = createRoute({
  ...common,
  method: 'patch',
  path: '/{name}',
  summary: 'Renew a lock: from now on it lives ttlMs',
  middleware: [needs('locks:write'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery, body: body('Renew', true) },
  responses: { 200: json(Granted, 'Renewed'), ...problems(400, 401, 403, 409, 413, 500, 503) },
})

const release = createRoute({
  ...common,
  method: 'delete',
  path: '/{name}',
  summary: 'Release a lock by its token; or, as an admin, whoever holds it',
  middleware: [needs('locks:write'), field.wellEncoded] as const,
  request: { params: Name, query: Release },
  responses: { 204: { description: 'Released' }, ...problems(400, 401, 403, 409, 500, 503) },
})

const look = createRoute({
  ...common,
  method: 'get',
  path: '/{name}',
  summary: 'Look at a lock. Not for deciding: it may be another the moment after',
  middleware: [needs('locks:read'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery },
  responses: { 200: json(State, 'Its state'), ...problems(400, 401, 403, 500, 503) },
})

const list = createRoute({
  ...common,
  method: 'get',
  path: '/',
  summary: 'List leases by name',
  middleware: [needs('locks:read'), field.wellEncoded] as const,
  request: { query: List },
  responses: { 200: json(States, 'A page'), ...problems(400, 401, 403, 500, 503) },
})

/** The router of `/v1/locks`. `stopping` ends every wait. */
export function lockRouter(locks: Locks, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  router.openAPIRegistry.register('Acquire', Acquire)
  router.openAPIRegistry.register('Renew', Renew)

  router.openapi(acquire, async (c) => {
    const { name } = c.req.valid('param')
    const grant = await grantTo(c, locks, name, await field.readBody(c, Acquire), stopping)
    return c.json(granted(grant), grant.renewed ? 200 : 201)
  })

  router.openapi(renew, async (c) => {
    const { name } = c.req.valid('param')
    const { token, ttlMs } = await field.readBody(c, Renew)
    return c.json(granted(await locks.renew(name, token, ttlMs === undefined ? {} : { ttlMs })), 200)
  })

  router.openapi(release, async (c) => {
    const { name } = c.req.valid('param')
    const { token, force } = c.req.valid('query')
    if ((token === undefined) === (force === undefined)) {
      throw invalid({ field: 'token', expected: 'given, unless `force=true` is; not both' })
    }
    if (token !== undefined) await locks.revoke(name, token)
    else {
      allow(c, 'admin')
      await locks.forceRevoke(name)
    }
    return c.body(null, 204)
  })

  router.openapi(look, async (c) => c.json(state(await locks.query(c.req.valid('param').name)), 200))

  router.openapi(list, async (c) => {
    const { prefix = '', limit = 100, after } = c.req.valid('query')
    const page = await locks.list({ prefix: listable(c, prefix), limit, ...(after !== undefined && { after }) })
    return c.json({ locks: page.map(state), next: page.length === limit ? (page.at(-1)?.name ?? null) : null }, 200)
  })

  return router
}

async function grantTo(
  c: Context,
  locks: Locks,
  name: string,
  asked: z.output<typeof Acquire>,
  stopping?: AbortSignal,
) {
  const client = c.req.raw.signal
  let grant: Grant
  try {
    grant = await locks.grant(name, {
      ...defined(asked),
      ...(asked.waitMs && { signal: either(client, stopping) }),
    })
  } catch (error) {
    if (client.aborted) throw gone()
    // Only a wait ends early: a request that came before the stop and need not wait gets its answer.
    if (asked.waitMs && stopping?.aborted) throw unavailable('The server is stopping')
    throw error
  }
  if (client.aborted && !grant.renewed) {
    // Should this fail, the lease runs out by itself.
    await locks.revoke(name, grant.token).catch(() => {})
    throw gone()
  }
  return grant
}

function either(client: AbortSignal, stopping?: AbortSignal): AbortSignal {
  return stopping ? AbortSignal.any([client, stopping]) : client
}

function gone(): Problem {
  return new Problem(499, 'CLIENT_GONE', 'The client closed the connection')
}

function granted({ name, holder, token, grantedAt, expiresAt }: Grant) {
  return {
    name,
    holder,
    token: String(token),
    grantedAt: grantedAt.toISOString(),
    expiresAt: expiresAt.toISOString(),
  }
}

function state<T extends Omit<LockState, 'waiting'>>({ token, grantedAt, expiresAt, meta, ...rest }: T) {
  return {
    ...rest,
    token: token === null ? null : String(token),
    grantedAt: grantedAt?.toISOString() ?? null,
    expiresAt: expiresAt?.toISOString() ?? null,
    meta: meta ?? null,
  }
}

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> }

// `optional()` of zod says `T | undefined`; the library tells an absent option from an undefined one.
function defined<T extends object>(options: T): Defined<T> {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Defined<T>
}
