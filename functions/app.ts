/**
 * The HTTP application: Request → lib → Response, the same on Node, Lambda and Workers.
 *
 * Nothing here knows where it runs: no environment, no console, no Node API, no state between requests. An adapter
 * (adapters/node.ts, …) makes a {@link Lockstep}, says which keys there are, and serves `createApp(…).fetch`.
 *
 * The way of a request: headers and request id → origin of a web page (403) → key (401) → size of the body (413) → the router: scope and name
 * prefix (403), query, path and body (400), then the handler and the library. Anything that is thrown becomes a problem
 * (http/problem.ts). `/healthz` says that the process answers, without a key and without the database. `/readyz` says that
 * requests would succeed; it needs a key, any key, since each call costs a round trip. `/openapi.json` is made from the fields
 * that validate, and also needs any key.
 *
 * Routing is by the path as it was sent. A name keeps its `%2F` until its segment has been cut out, and `%25` is
 * decoded once; hono's default decodes before it routes.
 */
import { Hono, type HonoRequest } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import { requestId } from 'hono/request-id'
import { secureHeaders } from 'hono/secure-headers'
import type { Events } from '../lib/event/index.ts'
import type { Lockstep } from '../lib/index.ts'
import type { Tasks } from '../lib/task/index.ts'
import {
  type AnswerHooks,
  answer,
  authenticate,
  below,
  checkBasePath,
  checkOptions,
  checkOrigins,
  documentOf,
  type Env,
  known,
  type OriginOptions,
  type PathOptions,
  Problem,
  parseKeys,
  type Router,
  type StreamOptions,
  Streams,
  sendProblem,
  webPages,
} from './http/index.ts'
import {
  claimRouter,
  eventRouter,
  groupRouter,
  healthRouter,
  leaderRouter,
  lockRouter,
  pollRouter,
  recordArrival,
  scheduleRouter,
  streamRouter,
  taskRouter,
  tickRouter,
  timeRouter,
} from './routes/index.ts'

export interface AppOptions extends StreamOptions, PathOptions, OriginOptions, AnswerHooks {
  /** Made by `createTasks`. Absent: there are no routes for tasks, and no pg-boss in the bundle. */
  tasks?: Tasks | undefined
  /** Made by `createEvents`. Absent: there are no routes for streams and groups. */
  events?: Events | undefined
  /** The text of LOCKSTEP_API_KEYS (see http/auth.ts). Absent or blank: every caller may do everything. */
  keys?: string | undefined
  /** Shown in openapi.json. */
  version?: string | undefined
  /** Aborts when the server is stopping: waits end with a 503, streams end. */
  signal?: AbortSignal | undefined
}

const APP = known<AppOptions>({
  ...{ tasks: true, events: true, keys: true, version: true, signal: true },
  ...{ keepAliveMs: true, maxStreams: true, onError: true, onLeaseLost: true, basePath: true, origins: true },
})
const MAX_BODY = 64 * 1024
const MAX_APPEND = 4 * 1024 * 1024 // some events of the largest kind

/**
 * Makes the application. `createApp(…).fetch` answers requests.
 *
 * @throws {Error} the keys cannot be read, or an option is out of its range.
 */
export function createApp(lockstep: Lockstep, options: AppOptions = {}): Hono<Env> {
  checkOptions(options, APP)
  const { basePath = '' } = options
  checkBasePath(basePath)
  checkOrigins(options.origins)
  const app = new Hono<Env>({ getPath: (request) => below(basePath, new URL(request.url).pathname) })
  const keyed = authenticate(parseKeys(options.keys))

  app.use('/v1/time', recordArrival)
  app.use(secureHeaders(FOR_AN_API), requestId(), async (c, next) => {
    c.header('Cache-Control', 'no-store')
    await next()
  })
  app.use(webPages(options))
  for (const path of ['/v1/*', '/readyz', '/openapi.json']) app.use(path, keyed)
  app.use('/v1/*', (c, next) => {
    const most = appends(c.req) ? MAX_APPEND : MAX_BODY
    return mayBeLarge(c.req, most) ? limited(most)(c, next) : next()
  })

  const streams = new Streams(options.signal, options)
  const { tasks, events, signal } = options
  const routers: [path: string, Router][] = [
    ['/v1/locks', lockRouter(lockstep.locks, signal)],
    ['/v1/leaders', leaderRouter(lockstep.leaders, streams, signal)],
    ['/v1/time', timeRouter(lockstep.time)],
  ]
  if (tasks) {
    routers.push(
      ['/v1/tasks', claimRouter(tasks, signal)],
      ['/v1/tasks', taskRouter(tasks, signal)],
      ['/v1/schedules', scheduleRouter(tasks)],
      ['/v1/tick', tickRouter(tasks, signal)],
    )
  }
  if (events) {
    routers.push(
      ['/v1/streams', streamRouter(events, streams, signal)],
      ['/v1/events', eventRouter(events, streams, signal)],
      ['/v1/groups', groupRouter(events)],
      ['/v1/groups', pollRouter(events, signal)],
    )
  }
  routers.unshift(['', healthRouter(lockstep, basePath, () => documentOf(about(options), TAGS, routers))])
  for (const [path, { hono }] of routers) app.route(path, hono)

  refuseOtherMethods(app)
  app.notFound((c) => sendProblem(c, new Problem(404, 'NOT_FOUND', whyNothing(c.req.path))))
  app.onError((error, c) => answer(c, error, options))
  return app
}

// Headers for documents (COOP, frames, DNS prefetch, …) mean nothing on JSON.
const FOR_AN_API = {
  contentSecurityPolicy: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
  crossOriginOpenerPolicy: false,
  originAgentCluster: false,
  xDnsPrefetchControl: false,
  xDownloadOptions: false,
  xFrameOptions: false,
  xPermittedCrossDomainPolicies: false,
  xXssProtection: false,
}

function about({ version = '0.0.0', basePath }: AppOptions) {
  return {
    openapi: '3.1.0',
    info: {
      title: 'Lockstep',
      version,
      description:
        'Distributed coordination on Postgres. Instants are RFC 3339 in UTC; tokens, positions and cursors decimal strings. Numbers in JSON ' +
        'of yours (data, meta, output) are 64-bit floats: integers beyond ±2^53 lose digits.',
      contact: { name: 'Lockstep' },
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: basePath || '/' }],
  }
}

// The `/` of a name that was sent as it is divides the name into parts of the path.
function whyNothing(path: string): string {
  const parted = /^\/v1\/(?:locks|leaders|tasks|schedules|streams|groups)\/[^/]+\/./.test(path)
  return `There is nothing at this path${parted ? ': it has too many parts. A `/` in a name is written `%2F`' : ''}`
}

const TAGS = {
  health: 'The process, and this document',
  locks: 'Names that one holder has at a time',
  leaders: 'Elections, and the terms of leaders',
  tasks: 'Queues and their jobs',
  schedules: 'Jobs that are sent by the clock',
  time: 'True time, as an interval',
  events: 'Streams of events, and groups that read them',
}

/** A path that exists answers 405 and says what it can; hono alone would answer 404. */
function refuseOtherMethods(app: Hono<Env>): void {
  const routes = app.routes.filter(({ method }) => method !== 'ALL')
  for (const [path, those] of Map.groupBy(routes, (route) => route.path)) {
    const methods = new Set(those.flatMap(({ method }) => (method === 'GET' ? ['GET', 'HEAD'] : [method])))
    const Allow = [...methods].join(', ')
    app.all(path, () => {
      throw new Problem(405, 'METHOD_NOT_ALLOWED', `This path takes ${Allow}`, { headers: { Allow } })
    })
  }
}

const limited = (maxSize: number) =>
  bodyLimit({
    maxSize,
    onError: (c) => sendProblem(c, new Problem(413, 'TOO_LARGE', `The body is over ${maxSize} bytes`)),
  })

function appends({ method, path }: HonoRequest): boolean {
  return method === 'POST' && /^\/v1\/streams\/[^/]+$/.test(path)
}

// The first thing bodyLimit does is to read `request.body`, which on Node makes a stream: a third of the time of the whole
// request. Bodies that no handler reads, or whose length was announced (the platform enforces it), need no limit here.
function mayBeLarge(request: HonoRequest, most: number): boolean {
  if (!['POST', 'PUT', 'PATCH'].includes(request.method)) return false
  const announced = Number(request.header('Content-Length') ?? Number.NaN)
  return !(announced <= most) || request.header('Transfer-Encoding') !== undefined
}
