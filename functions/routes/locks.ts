/**
 * Locks over HTTP: each request grants, renews or releases a lease; the caller keeps the token.
 *
 *     POST   /v1/locks/{name}   acquire   201 granted · 200 granted before, to this very holder · 423 held
 *     PATCH  /v1/locks/{name}   renew     200 · 409 lost
 *     DELETE /v1/locks/{name}   release   204 · 409 lost      ?token=… or, for admins, ?force=true
 *     GET    /v1/locks/{name}   get       200
 *     GET    /v1/locks          list      200
 *
 * There is no session and no heartbeat on this side: a caller that does not renew in time has lost the lock, and learns it
 * by a 409. An answer may get lost. Then the same `holder` asks again and gets the same token (200). A caller that named no
 * holder looks like a stranger, and waits for the ttl to run out.
 *
 * A wait (`waitMs`) stands in the same queue as every other contender. http/waiting.ts says when it ends.
 */
import { LIMITS, type LockState, type Locks } from '../../lib/index.ts'
import {
  allow,
  described,
  field,
  json,
  List,
  listable,
  Name,
  named,
  optional,
  pageOf,
  problemResponses,
  Router,
  route,
  shape,
} from '../http/index.ts'
import { Granted, grantJson, grantTo, Release, tokenOf } from './grants.ts'

const Acquire = named(
  'Acquire',
  field.object({
    holder: optional(field.holder, 'The name of one holder. Left out: a fresh one. With it, asking again is a retry'),
    ttlMs: optional(field.ttlMs, { default: LIMITS.ttlMs.default }),
    waitMs: optional(field.waitMs, { default: 0 }),
    meta: optional(field.meta),
  }),
)

const Renew = named('Renew', field.object({ token: field.token, ttlMs: optional(field.ttlMs, 'Left out: as before') }))

const kind = shape.word('lease', 'connection', 'transaction')

const Holder = named(
  'LockHolder',
  shape.object({
    holder: described(
      shape.nullable(shape.string),
      'Of a connection or transaction that named none: `host:pid`, or in its first 250 ms the application name',
    ),
    token: described(shape.nullable(shape.token), 'null: a connection or transaction hold of less than 250 ms'),
    kind,
    since: described(shape.nullable(shape.instant), 'When it was granted. null: as `token`'),
    expiresAt: described(shape.nullable(shape.instant), 'null: it has no expiry'),
    meta: described(shape.any, 'The `meta` of the holder'),
  }),
)

const State = named(
  'LockState',
  shape.object({
    name: shape.string,
    held: shape.boolean,
    kind: shape.nullable(kind),
    holder: shape.nullable(shape.string),
    token: shape.nullable(shape.token),
    grantedAt: shape.nullable(shape.instant),
    expiresAt: described(shape.nullable(shape.instant), 'null: it has no expiry, or is not held'),
    ttlMs: shape.nullable(shape.integer),
    meta: described(shape.any, 'The `meta` of the holder'),
    holders: described(shape.array(Holder), 'Empty: it is free'),
    waiting: described(
      shape.integer,
      "Callers of the process that answers; each connection of others in the server's lock queue. A process has one there, however many of its callers wait. A caller elsewhere that polls is not counted",
    ),
  }),
)

const States = named(
  'LockStates',
  shape.object({
    locks: shape.array(State),
    next: shape.next,
  }),
)

const acquire = route({
  id: 'acquireLock',
  tags: ['locks'],
  method: 'post',
  path: '/{name}',
  summary: 'Acquire a lock, waiting at most waitMs for it',
  scope: 'locks:write',
  params: Name,
  body: Acquire,
  responses: {
    201: json(Granted, 'Granted'),
    200: json(Granted, 'This holder has it already: the same grant, renewed'),
    ...problemResponses(423),
  },
})

const renew = route({
  id: 'renewLock',
  tags: ['locks'],
  method: 'patch',
  path: '/{name}',
  summary: 'Renew a lock: from now on it lives ttlMs',
  scope: 'locks:write',
  params: Name,
  body: Renew,
  responses: { 200: json(Granted, 'Renewed'), ...problemResponses(409) },
})

const release = route({
  id: 'releaseLock',
  tags: ['locks'],
  method: 'delete',
  path: '/{name}',
  summary: 'Release a lock by its token; or, as an admin, by force',
  scope: 'locks:write',
  params: Name,
  query: Release,
  responses: { 204: { description: 'Released' }, ...problemResponses(409) },
})

const look = route({
  id: 'getLock',
  tags: ['locks'],
  method: 'get',
  path: '/{name}',
  summary: 'Get the state of a lock. Not for deciding: it may change at any time',
  scope: 'locks:read',
  params: Name,
  responses: { 200: json(State, 'Its state') },
})

const list = route({
  id: 'listLocks',
  tags: ['locks'],
  method: 'get',
  path: '/',
  summary: 'List what is held, by name: leases, and holds of connections and transactions',
  scope: 'locks:read',
  query: List,
  responses: { 200: json(States, 'A page') },
})

/** The router of `/v1/locks`. `stopping` ends every wait. */
export function lockRouter(locks: Locks, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(acquire, async (c, { params: { name }, body }) => {
    const grant = await grantTo(c, locks, name, body, stopping)
    return c.json(grantJson(grant), grant.renewed ? 200 : 201)
  })

  router.on(renew, async (c, { params: { name }, body: { token, ttlMs } }) => {
    return c.json(grantJson(await locks.renew(name, token, ttlMs === undefined ? {} : { ttlMs })), 200)
  })

  router.on(release, async (c, { params: { name }, query }) => {
    const token = tokenOf(query)
    if (token !== undefined) await locks.revoke(name, token)
    else {
      allow(c, 'admin')
      await locks.forceRevoke(name)
    }
    return c.body(null, 204)
  })

  router.on(look, async (c, { params }) => c.json(lockJson(await locks.get(params.name)), 200))

  router.on(list, async (c, { query: { prefix = '', limit = 100, ...after } }) => {
    const all = await locks.list({ prefix: listable(c, prefix), limit, ...after })
    const { page, next } = pageOf(all.map(lockJson), limit)
    return c.json({ locks: page, next }, 200)
  })

  return router
}

function lockJson({ token, grantedAt, expiresAt, meta, holders, ...rest }: LockState) {
  return {
    ...rest,
    ...stated({ token, expiresAt, meta }),
    grantedAt: grantedAt?.toISOString() ?? null,
    holders: holders.map(({ since, ...holder }) => ({
      ...holder,
      ...stated(holder),
      since: since?.toISOString() ?? null,
    })),
  }
}

function stated({ token, expiresAt, meta }: Pick<LockState, 'token' | 'expiresAt' | 'meta'>) {
  return {
    token: token === null ? null : String(token),
    expiresAt: expiresAt?.toISOString() ?? null,
    meta: meta ?? null,
  }
}
