/**
 * Leaders over HTTP: a term per request, the caller keeps the token and renews it.
 *
 *     POST   /v1/leaders/{name}           campaign   201 elected · 200 leads already, this very holder · 423 another leads
 *     PATCH  /v1/leaders/{name}           renew      200 · 409 lost        with `meta`: proclaim
 *     DELETE /v1/leaders/{name}           resign     204 · 409 lost        ?token=… or, for admins, ?force=true: step down
 *     GET    /v1/leaders/{name}           look       200 who leads, who waits
 *     GET    /v1/leaders/{name}/observe   follow     200 text/event-stream
 *     GET    /v1/leaders                  list       200
 *
 * As with locks there is no session: whoever does not renew in time leads no more, and learns it by a 409. A campaign that
 * waits (`waitMs`) stands in the same line as every other candidate, by priority and arrival.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import { type Leader, type Leaders, LIMITS } from '../../lib/index.ts'
import type { Streams } from '../http/index.ts'
import {
  allow,
  body,
  defined,
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

const Campaign = field
  .strict({
    holder: field.holder
      .openapi({ description: 'Who wants to lead. Left out: a fresh one. Given: asking again is a retry' })
      .optional(),
    ttlMs: field.ttlMs.openapi({ default: LIMITS.ttlMs.default }).optional(),
    waitMs: field.waitMs.openapi({ default: 0 }).optional(),
    priority: field
      .integer(LIMITS.priority)
      .openapi({ default: LIMITS.priority.default, description: 'The higher comes first; it deposes nobody' })
      .optional(),
    meta: field.meta.optional(),
  })
  .openapi('Campaign')

const RenewTerm = field
  .strict({
    token: field.token,
    ttlMs: field.ttlMs.openapi({ description: 'Left out: as before' }).optional(),
    meta: field.meta.openapi({ description: 'What observers see from now on. Left out: as before' }).optional(),
  })
  .openapi('RenewTerm')

const LeaderShape = z
  .object({
    holder: z.string(),
    token,
    grantedAt: instant,
    expiresAt: instant.openapi({ description: 'Unless it is renewed' }),
    ttlMs: z.int(),
    meta: z.any().openapi({ description: 'What the leader proclaimed' }),
  })
  .openapi('Leader')

const Members = z
  .object({
    name: z.string(),
    leader: LeaderShape.nullable(),
    waiting: z.array(
      z.object({ holder: z.string(), priority: z.int(), since: instant, meta: z.any() }).openapi('Candidate'),
    ),
  })
  .openapi('Members')

const LeaderList = z
  .object({
    leaders: z.array(LeaderShape.extend({ name: z.string() }).openapi('ListedLeader')),
    next,
  })
  .openapi('LeaderList')

const common = { tags: ['leaders'], security: [{ key: [] }] }

const campaign = createRoute({
  ...common,
  method: 'post',
  path: '/{name}',
  summary: 'Campaign to lead, waiting at most waitMs to be elected',
  middleware: [needs('leaders:write'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery, body: body('Campaign', false) },
  responses: {
    201: json(Granted, 'Elected'),
    200: json(Granted, 'This holder leads already: the same term, renewed'),
    ...problems(400, 401, 403, 413, 423, 500, 503),
  },
})

const renew = createRoute({
  ...common,
  method: 'patch',
  path: '/{name}',
  summary: 'Renew a term: from now on it lasts ttlMs; and proclaim meta',
  middleware: [needs('leaders:write'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery, body: body('RenewTerm', true) },
  responses: { 200: json(Granted, 'Renewed'), ...problems(400, 401, 403, 409, 413, 500, 503) },
})

const resign = createRoute({
  ...common,
  method: 'delete',
  path: '/{name}',
  summary: 'Resign by the token of the term; or, as an admin, ask whoever leads to step down',
  middleware: [needs('leaders:write'), field.wellEncoded] as const,
  request: { params: Name, query: Release },
  responses: { 204: { description: 'Resigned; or asked' }, ...problems(400, 401, 403, 409, 500, 503) },
})

const look = createRoute({
  ...common,
  method: 'get',
  path: '/{name}',
  summary: 'Who leads, and who waits in which order. Not for deciding: it may be another the moment after',
  middleware: [needs('leaders:read'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery },
  responses: { 200: json(Members, 'As of a moment ago'), ...problems(400, 401, 403, 500, 503) },
})

const observe = createRoute({
  ...common,
  method: 'get',
  path: '/{name}/observe',
  summary: 'Follow who leads: the latest first, then every change. A client that reconnects says what it saw last',
  middleware: [needs('leaders:read'), field.wellEncoded] as const,
  request: {
    params: Name,
    query: NoQuery,
    headers: z.object({
      'last-event-id': z.string().optional().openapi({ description: 'The latest is left out if it is this one' }),
    }),
  },
  responses: {
    200: {
      description: 'Events `leader`, with `{ name, leader }` as data; comments in between keep the connection open',
      content: { 'text/event-stream': { schema: z.string() } },
    },
    ...problems(400, 401, 403, 500, 503),
  },
})

const list = createRoute({
  ...common,
  method: 'get',
  path: '/',
  summary: 'List elections that have a leader, by name',
  middleware: [needs('leaders:read'), field.wellEncoded] as const,
  request: { query: List },
  responses: { 200: json(LeaderList, 'A page'), ...problems(400, 401, 403, 500, 503) },
})

/** The router of `/v1/leaders`. `stopping` ends every wait and every stream. */
export function leaderRouter(leaders: Leaders, streams: Streams, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  router.openAPIRegistry.register('Campaign', Campaign)
  router.openAPIRegistry.register('RenewTerm', RenewTerm)

  router.openapi(campaign, async (c) => {
    const { name } = c.req.valid('param')
    const grant = await grantTo(c, leaders, name, await field.readBody(c, Campaign), stopping)
    return c.json(granted(grant), grant.renewed ? 200 : 201)
  })

  router.openapi(renew, async (c) => {
    const { name } = c.req.valid('param')
    const { token, ...rest } = await field.readBody(c, RenewTerm)
    return c.json(granted(await leaders.renew(name, token, defined(rest))), 200)
  })

  router.openapi(resign, async (c) => {
    const { name } = c.req.valid('param')
    const token = tokenOf(c.req.valid('query'))
    if (token !== undefined) await leaders.revoke(name, token)
    else {
      allow(c, 'admin')
      await leaders.stepDown(name)
    }
    return c.body(null, 204)
  })

  router.openapi(look, async (c) => {
    const { name } = c.req.valid('param')
    const { leader, waiting } = await leaders.members(name)
    const line = waiting.map(({ since, meta, ...rest }) => ({
      ...rest,
      since: since.toISOString(),
      meta: meta ?? null,
    }))
    return c.json({ name, leader: leader && shown(leader), waiting: line }, 200)
  })

  router.openapi(observe, (c) => {
    const { name } = c.req.valid('param')
    return streams.open(
      c,
      (signal) => leaders.observe(name, { signal }),
      ({ leader, revision }) => ({
        event: 'leader',
        id: `${revision}${leader ? '' : '.vacant'}`, // a lease that ran out has the revision that it had
        data: { name, leader: leader && shown(leader) },
      }),
    )
  })

  router.openapi(list, async (c) => {
    const { prefix = '', limit = 100, after } = c.req.valid('query')
    const page = await leaders.list({ prefix: listable(c, prefix), limit, ...(after !== undefined && { after }) })
    return c.json(
      { leaders: page.map(({ name, ...leader }) => ({ name, ...shown(leader) })), next: nextOf(page, limit) },
      200,
    )
  })

  return router
}

function shown({ holder, token, grantedAt, expiresAt, ttlMs, meta }: Leader) {
  return {
    holder,
    token: String(token),
    grantedAt: grantedAt.toISOString(),
    expiresAt: expiresAt.toISOString(),
    ttlMs,
    meta: meta ?? null,
  }
}
