/**
 * A route says once what it takes and what it answers. Requests are read by it, its handler is typed by it, and the OpenAPI
 * document (document.ts) is made from it.
 *
 * The order of the checks is fixed: the key (scope, prefix: 403), the encoding, the query, the path, the headers, the body (400).
 * The problems that these checks answer are documented for every route with a scope, so a route need not name them.
 */
import { type Context, Hono, type TypedResponse } from 'hono'
import type { StatusCode } from 'hono/utils/http-status'
import { covers, type Env, needs, type Scope } from './auth.ts'
import type { Fields } from './fields.ts'
import { readBody, readOpen, readQuery, wellEncoded } from './input.ts'
import { type ProblemResponse, problemResponses } from './problem.ts'
import type { Field, JsonSchema, ObjectOf, Shape, ValueOf } from './schema.ts'
import { inTime } from './waiting.ts'

/** An answer that has JSON of type T. */
export interface JsonResponse<T> {
  readonly description: string
  readonly content: { readonly 'application/json': { readonly schema: JsonSchema } }
  /** For the compiler only. */
  readonly type?: T
}
/** An answer without a body. */
export interface EmptyResponse {
  readonly description: string
  readonly content?: never
}
/** An answer whose body the compiler does not check. */
export interface OtherResponse {
  readonly description: string
  readonly content: { readonly 'text/event-stream': { readonly schema: JsonSchema } }
}
type Responses = {
  readonly [status: number]: JsonResponse<unknown> | EmptyResponse | OtherResponse | ProblemResponse
}

export const json = <T>({ json }: Shape<T>, description: string): JsonResponse<T> => ({
  description,
  content: { 'application/json': { schema: json } },
})

export interface Route {
  /** Its name in the document: programs that are generated call it by that. It never changes. */
  readonly id: string
  readonly method: 'get' | 'post' | 'put' | 'patch' | 'delete'
  /** Below the path of its router; `{name}` is a parameter. */
  readonly path: string
  readonly tags: readonly string[]
  readonly summary: string
  /** What the key must be allowed to do; absent: the route is public, or the application checks the key. */
  readonly scope?: Scope
  /** The route touches all names: a key with a prefix is refused. */
  readonly allNames?: true
  /** The document says that a key is needed. Implied by `scope`. */
  readonly keyed?: true
  readonly params?: Fields
  /** Other parameters are refused (400). Without `query`, a route with a scope accepts none, and one without a scope ignores them. */
  readonly query?: Fields
  readonly headers?: Fields
  readonly body?: Field<unknown>
  readonly responses: Responses
}

type Read<F> = F extends Fields ? ObjectOf<F> : Record<never, never>
/** What a handler gets of the request. */
export interface Input<R extends Route> {
  params: Read<R['params']>
  query: Read<R['query']>
  headers: Read<R['headers']>
  body: R['body'] extends Field<unknown> ? ValueOf<R['body']> : undefined
}

type Answer<R, S> = R extends ProblemResponse
  ? never
  : R extends OtherResponse
    ? Response
    : R extends JsonResponse<infer T>
      ? TypedResponse<T, S & StatusCode, 'json'>
      : TypedResponse<null, S & StatusCode, 'body'>
type Answers<R extends Responses> = { [S in keyof R]: Answer<R[S], S> }[keyof R]

export type Handler<R extends Route> = (
  c: Context<Env>,
  input: Input<R>,
) => Answers<R['responses']> | Promise<Answers<R['responses']>>

/** Keeps the types of a route as they are written. */
export function route<const R extends Route>(route: R): R {
  return route
}

/** Routes under one path. */
export class Router {
  readonly hono: Hono<Env> = new Hono<Env>()
  readonly routes: Route[] = []

  /** Answers the route's requests by a handler. */
  on<R extends Route>(route: R, handler: Handler<R>): void {
    this.routes.push(route)
    const { scope } = route
    const path = route.path.replaceAll(/\{(\w+)\}/g, ':$1')
    if (scope) this.hono.on(route.method, path, needs(scope), wellEncoded)
    this.hono.on(route.method, path, async (c) => {
      const input = await inputOf(c, route)
      return (await handler(c, input as Input<R>)) as Response
    })
  }
}

async function inputOf(c: Context<Env>, route: Route) {
  const query = route.query || route.scope ? readQuery(c, route.query ?? {}) : {}
  const params = readOpen(route.params ?? {}, c.req.param())
  const headers = readHeaders(c, route.headers)
  if (route.allNames) covers(c, '')
  const body = route.body && (await readBody(c, route.body))
  return { query: inTime(c, query), params, headers, body: inTime(c, body) }
}

// An empty header is none: of `Last-Event-ID` WHATWG HTML §9.2 says so, and a client may send it before it has seen an event.
function readHeaders(c: Context<Env>, fields: Fields | undefined) {
  if (!fields) return {}
  return readOpen(fields, Object.fromEntries(Object.entries(c.req.header()).filter(([, value]) => value !== '')))
}

/** All that a route answers. */
export function responsesOf({ scope, body, responses }: Route): Responses {
  return {
    ...(scope && problemResponses(400, 401, 403, 500, 503)),
    ...(body && problemResponses(413)),
    ...(streams(responses) && problemResponses(406)),
    ...responses,
  }
}

const streams = (responses: Responses) =>
  Object.values(responses).some(({ content = {} }) => 'text/event-stream' in content)
