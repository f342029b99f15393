/**
 * What a caller meets first, and what watches over the process.
 *
 *     GET /               where to go on            200, without a key
 *     GET /healthz        the process answers       200, without a key
 *     GET /readyz         the database answers      200 · 503
 *     GET /openapi.json   all routes                200
 */
import type { Lockstep } from '../../lib/index.ts'
import { described, json, problemResponse, problemResponses, Router, route, shape } from '../http/index.ts'

const status = <S extends string>(word: S, description: string) =>
  json(shape.object({ status: shape.word(word) }), description)

const otherOrigin = { 403: problemResponse(403, 'FORBIDDEN: a web page of another origin asks') }

const index = route({
  id: 'getIndex',
  tags: ['health'],
  method: 'get',
  path: '/',
  summary: 'Where to go on',
  responses: {
    200: json(
      shape.object({
        name: shape.word('lockstep'),
        links: shape.object({
          document: described(shape.string, 'The path of this document'),
          health: shape.string,
          readiness: shape.string,
        }),
      }),
      'Paths',
    ),
    ...otherOrigin,
  },
})

const healthz = route({
  id: 'getHealth',
  tags: ['health'],
  method: 'get',
  path: '/healthz',
  summary: 'The process answers',
  responses: { 200: status('ok', 'It does'), ...otherOrigin },
})

const readyz = route({
  id: 'getReadiness',
  tags: ['health'],
  method: 'get',
  path: '/readyz',
  summary: 'The database answers and has the schema this version needs',
  keyed: true,
  responses: { 200: status('ready', 'It does'), ...problemResponses(401, 500, 503), ...otherOrigin },
})

const openapi = route({
  id: 'getDocument',
  tags: ['health'],
  method: 'get',
  path: '/openapi.json',
  summary: 'This document',
  keyed: true,
  responses: { 200: json(shape.object({}), 'OpenAPI 3.1'), ...problemResponses(401, 500), ...otherOrigin },
})

/** The router of the root. @param document  makes the OpenAPI document. */
export function healthRouter(lockstep: Lockstep, basePath: string, document: () => object): Router {
  const router = new Router()
  const links = { document: '/openapi.json', health: '/healthz', readiness: '/readyz' }
  for (const [name, path] of Object.entries(links)) links[name as keyof typeof links] = basePath + path
  router.on(index, (c) => c.json({ name: 'lockstep' as const, links }, 200))
  router.on(healthz, (c) => c.json({ status: 'ok' as const }, 200))
  router.on(readyz, async (c) => {
    await lockstep.ready()
    return c.json({ status: 'ready' as const }, 200)
  })
  let made: object | undefined
  router.on(openapi, (c) => {
    made ??= document()
    return c.json(made, 200)
  })
  return router
}
