/**
 * Leaders over HTTP: each request grants, renews or ends a term; the caller keeps the token.
 *
 *     POST   /v1/leaders/{name}           campaign   201 elected · 200 leads already, this very holder · 423 another leads
 *     PATCH  /v1/leaders/{name}           renew      200 · 409 lost        with `meta`: proclaim
 *     DELETE /v1/leaders/{name}           resign     204 · 409 lost        ?token=… or, for admins, ?force=true: step down
 *     GET    /v1/leaders/{name}           get        200 the leader and the candidates
 *     GET    /v1/leaders/{name}/observe   observe    200 text/event-stream
 *     GET    /v1/leaders                  list       200
 *
 * As with locks there is no session: a leader that does not renew in time leads no more, and learns it by a 409. A campaign
 * that waits (`waitMs`) stands in the same queue as every other candidate, by priority and arrival.
 */
import { type Leader, type Leaders, LIMITS } from '../../lib/index.ts'
import {
  allow,
  described,
  field,
  fitting,
  json,
  List,
  listable,
  More,
  Name,
  named,
  optional,
  pageOf,
  problemResponses,
  Router,
  route,
  type Streams,
  shape,
} from '../http/index.ts'
import { Granted, grantJson, grantTo, Release, tokenOf } from './grants.ts'

const Campaign = named(
  'Campaign',
  field.object({
    holder: optional(
      field.holder,
      'The name of the candidate. Left out: a fresh one. With it, asking again is a retry',
    ),
    ttlMs: optional(field.ttlMs, { default: LIMITS.ttlMs.default }),
    waitMs: optional(field.waitMs, { default: 0 }),
    priority: optional(field.integer(LIMITS.priority), {
      default: LIMITS.priority.default,
      description: 'The higher comes first; it deposes no leader',
    }),
    meta: optional(field.meta),
  }),
)

const RenewTerm = named(
  'RenewTerm',
  field.object({
    token: field.token,
    ttlMs: optional(field.ttlMs, 'Left out: as before'),
    meta: optional(field.meta, 'What observers see from now on. Left out: as before'),
  }),
)

const LeaderShape = named(
  'Leader',
  shape.object({
    holder: shape.string,
    token: shape.token,
    grantedAt: shape.instant,
    expiresAt: described(shape.instant, 'Unless it is renewed'),
    ttlMs: shape.integer,
    meta: described(shape.any, 'What the leader proclaimed'),
  }),
)

const Members = named(
  'Members',
  shape.object({
    name: shape.string,
    leader: shape.nullable(LeaderShape),
    waiting: shape.array(
      named(
        'Candidate',
        shape.object({ holder: shape.string, priority: shape.integer, since: shape.instant, meta: shape.any }),
      ),
    ),
    more: More,
  }),
)

const LeaderList = named(
  'LeaderList',
  shape.object({
    leaders: shape.array(named('ListedLeader', shape.extended(LeaderShape, { name: shape.string }))),
    next: shape.next,
  }),
)

const campaign = route({
  id: 'campaign',
  tags: ['leaders'],
  method: 'post',
  path: '/{name}',
  summary: 'Campaign to lead, waiting at most waitMs to be elected',
  scope: 'leaders:write',
  params: Name,
  body: Campaign,
  responses: {
    201: json(Granted, 'Elected'),
    200: json(Granted, 'This holder leads already: the same term, renewed'),
    ...problemResponses(423),
  },
})

const renew = route({
  id: 'renewTerm',
  tags: ['leaders'],
  method: 'patch',
  path: '/{name}',
  summary: 'Renew a term: from now on it lasts ttlMs; and proclaim meta',
  scope: 'leaders:write',
  params: Name,
  body: RenewTerm,
  responses: { 200: json(Granted, 'Renewed'), ...problemResponses(409) },
})

const resign = route({
  id: 'resign',
  tags: ['leaders'],
  method: 'delete',
  path: '/{name}',
  summary: 'Resign by the token of the term; or, as an admin, ask the leader to step down',
  scope: 'leaders:write',
  params: Name,
  query: Release,
  responses: { 204: { description: 'Resigned; or asked' }, ...problemResponses(409) },
})

const look = route({
  id: 'getLeader',
  tags: ['leaders'],
  method: 'get',
  path: '/{name}',
  summary: 'Get the leader, and the candidates in their order. Not for deciding: it may change at any time',
  scope: 'leaders:read',
  params: Name,
  responses: { 200: json(Members, 'As of now') },
})

const observe = route({
  id: 'observeLeader',
  tags: ['leaders'],
  method: 'get',
  path: '/{name}/observe',
  summary:
    'Follow the leader: the latest state first, then every change. A client that reconnects sends the id that it saw last',
  scope: 'leaders:read',
  params: Name,
  headers: {
    'last-event-id': optional(
      field.string('a string', {}, () => true),
      'The latest is left out if it is this one',
    ),
  },
  responses: {
    200: {
      description: 'Events `leader`, with `{ name, leader }` as data; comments in between keep the connection open',
      content: { 'text/event-stream': { schema: shape.string.json } },
    },
  },
})

const list = route({
  id: 'listLeaders',
  tags: ['leaders'],
  method: 'get',
  path: '/',
  summary: 'List elections that have a leader, by name',
  scope: 'leaders:read',
  query: List,
  responses: { 200: json(LeaderList, 'A page') },
})

/** The router of `/v1/leaders`. `stopping` ends every wait and every stream. */
export function leaderRouter(leaders: Leaders, streams: Streams, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(campaign, async (c, { params: { name }, body }) => {
    const grant = await grantTo(c, leaders, name, body, stopping)
    return c.json(grantJson(grant), grant.renewed ? 200 : 201)
  })

  router.on(renew, async (c, { params: { name }, body: { token, ...rest } }) => {
    return c.json(grantJson(await leaders.renew(name, token, rest)), 200)
  })

  router.on(resign, async (c, { params: { name }, query }) => {
    const token = tokenOf(query)
    if (token !== undefined) await leaders.revoke(name, token)
    else {
      allow(c, 'admin')
      await leaders.stepDown(name)
    }
    return c.body(null, 204)
  })

  router.on(look, async (c, { params: { name } }) => {
    const { leader, waiting } = await leaders.members(name)
    const candidates = waiting.map(({ since, meta, ...rest }) => ({
      ...rest,
      since: since.toISOString(),
      meta: meta ?? null,
    }))
    const shown = fitting(candidates)
    const more = shown.length < candidates.length
    return c.json({ name, leader: leader && leaderJson(leader), waiting: shown, more }, 200)
  })

  router.on(observe, (c, { params: { name } }) => {
    return streams.open(
      c,
      (signal) => leaders.observe(name, { signal }),
      ({ leader, revision }) => ({
        event: 'leader',
        id: `${revision}${leader ? '' : '.vacant'}`, // the revision does not change when a lease runs out
        data: { name, leader: leader && leaderJson(leader) },
      }),
    )
  })

  router.on(list, async (c, { query: { prefix = '', limit = 100, ...after } }) => {
    const all = await leaders.list({ prefix: listable(c, prefix), limit, ...after })
    const shown = all.map(({ name, ...leader }) => ({ name, ...leaderJson(leader) }))
    const { page, next } = pageOf(shown, limit)
    return c.json({ leaders: page, next }, 200)
  })

  return router
}

function leaderJson({ holder, token, grantedAt, expiresAt, ttlMs, meta }: Leader) {
  return {
    holder,
    token: String(token),
    grantedAt: grantedAt.toISOString(),
    expiresAt: expiresAt.toISOString(),
    ttlMs,
    meta: meta ?? null,
  }
}
