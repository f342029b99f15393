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
 * A wait (`waitMs`) stands in the same queue as every other contender; when it ends is told in http/schemas.ts.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import { LIMITS, type LockState, type Locks } from '../../lib/index.ts'
import {
  allow,
  body,
  type Env,
  field,
  instant,
  json,
  List,
  listable,
  Name,
  NoQuery,
  needs,
  next,
  nextOf,
  problems,
  token,
} from '../http/index.ts'
import { Granted, granted, grantTo, Release, tokenOf } from './grants.ts'

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
    next,
  })
  .openapi('LockStates')

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
    const token = tokenOf(c.req.valid('query'))
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
    return c.json({ locks: page.map(state), next: nextOf(page, limit) }, 200)
  })

  return router
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
