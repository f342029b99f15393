/**
 * Every answer that is not a success is a problem (RFC 9457), and looks the same.
 *
 * A handler throws; {@link answer} turns the error into `application/problem+json`. It decides by `code`, never by class
 * (see lib/base/errors.ts). An error without a known code is a 500 that says nothing about its cause: the caller gets the
 * request id, the operator gets the error (`onError` of createApp). So no answer can contain SQL, a stack or a connection
 * string. `type` stays `about:blank`: programs read `code`, which never changes.
 */
import type { Context } from 'hono'
import { HTTPException } from 'hono/http-exception'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { described, type FieldError, type JsonSchema, named, optional } from './schema.ts'
import * as shape from './shapes.ts'

const TITLES = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  405: 'Method Not Allowed',
  406: 'Not Acceptable',
  409: 'Conflict',
  412: 'Precondition Failed',
  413: 'Content Too Large',
  423: 'Locked',
  499: 'Client Closed Request',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
} as const

export type ProblemStatus = keyof typeof TITLES

/** Of RUN_TIMEOUT the job; of POSITION_CONFLICT where the stream was expected, and where it is. */
type Members = { id: string } | { expected: string; actual: string }

/** A refusal, thrown by a handler or a middleware. */
export class Problem extends Error {
  override readonly name = 'Problem'
  readonly status: ProblemStatus
  readonly code: string
  readonly headers: Record<string, string>
  readonly errors: FieldError[] | undefined
  /** Further members of the answer, by `code`. */
  readonly members: Members | undefined

  constructor(
    status: ProblemStatus,
    code: string,
    detail: string,
    more: { headers?: Record<string, string>; errors?: FieldError[]; members?: Members } = {},
  ) {
    super(detail)
    this.status = status
    this.code = code
    this.headers = more.headers ?? {}
    this.errors = more.errors
    this.members = more.members
  }
}

/** A 400 that names the field (or several) and what each may be. */
export function invalid(...errors: FieldError[]): Problem {
  const unique = [...new Map(errors.map((error) => [error.field, error])).values()].slice(0, 10)
  const detail = unique.map(({ field, expected }) => `\`${field}\` must be ${expected}`).join('; ')
  return new Problem(400, 'INVALID_ARGUMENT', detail, { errors: unique })
}

/** Writes a problem as this request's answer. */
export function sendProblem(c: Context, problem: Problem): Response {
  // hono's type has no 499. No one reads that answer, since the client has gone.
  return c.body(textOf(problem), problem.status as ContentfulStatusCode, { ...problem.headers, ...PROBLEM })
}

/** A problem as an answer outside of the application. @param instead  the answer that it replaces. */
export function problemAnswer(problem: Problem, instead?: Response): Response {
  const headers = new globalThis.Headers(instead?.headers ?? { 'Cache-Control': 'no-store' })
  for (const [name, value] of Object.entries({ ...problem.headers, ...PROBLEM })) headers.set(name, value)
  return new Response(textOf(problem), { status: problem.status, headers })
}

/** Whether something that was thrown is a refusal. */
export const isProblem = (error: unknown): error is Problem => error instanceof Problem

const PROBLEM = { 'Content-Type': 'application/problem+json' }

function textOf({ status, code, message, errors, members }: Problem): string {
  return JSON.stringify({ ...problemBody(status, code, message), ...members, ...(errors && { errors }) })
}

/** The members every problem has. For an adapter that must refuse before there is a request. */
export function problemBody(status: number, code: string, detail: string, title?: string) {
  return { type: 'about:blank', title: title ?? TITLES[status as ProblemStatus], status, code, detail }
}

/** A request whose answer says that its caller has lost a hold. */
export interface LostRequest {
  method: string
  path: string
  requestId: string
}

/** What the application tells of its answers. */
export interface AnswerHooks {
  /** Called with the error of every 500, and of every 503 that the database causes; with '' for an error outside of requests. */
  onError?: ((error: unknown, requestId: string) => void) | undefined
  /** Called for every 409 LEASE_LOST: the caller renewed, released or committed too late. */
  onLeaseLost?: ((request: LostRequest) => void) | undefined
}

/** Turns anything thrown into an answer. */
export function answer(c: Context, error: unknown, { onError, onLeaseLost }: AnswerHooks): Response {
  if (error instanceof HTTPException) return error.getResponse() // bearer-auth wraps a finished problem
  const known = error instanceof Problem ? error : fromLibrary(error)
  const requestId: string = c.get('requestId') ?? ''
  if (known?.code === 'LEASE_LOST') onLeaseLost?.({ method: c.req.method, path: c.req.path, requestId })
  if (known && known.status !== 503) return sendProblem(c, known)
  if (!(error instanceof Problem)) onError?.(error, requestId)
  if (known) return sendProblem(c, known)
  return sendProblem(c, new Problem(500, 'INTERNAL', `An error of ours. It is in the log under request ${requestId}`))
}

function fromLibrary(error: unknown): Problem | undefined {
  if (!(error instanceof Error)) return undefined
  const { code, message, field, retryAfterMs, id, expected, actual } = error as Error & {
    code?: unknown
    id?: string
    field?: string
    retryAfterMs?: number | undefined
    expected?: unknown
    actual?: unknown
  }
  switch (code) {
    case 'LEASE_HELD': {
      const seconds = Math.max(1, Math.ceil((retryAfterMs ?? 0) / 1000))
      return new Problem(423, code, message, { headers: { 'Retry-After': String(seconds) } })
    }
    case 'LEASE_LOST':
      return new Problem(409, code, message)
    case 'FORBIDDEN':
      return new Problem(403, code, message)
    case 'NOT_FOUND':
      return new Problem(404, code, message)
    case 'RUN_TIMEOUT':
      return new Problem(504, code, message, id === undefined ? {} : { members: { id } })
    case 'POSITION_CONFLICT':
      return new Problem(412, code, message, { members: { expected: String(expected), actual: String(actual) } })
    case 'UNAVAILABLE':
      return unavailable(message)
    case 'INVALID_ARGUMENT':
      return new Problem(400, code, message, {
        errors: [{ field: field ?? 'body', expected: expected === undefined ? message : String(expected) }],
      })
    default:
      return undefined
  }
}

/** A 503: nothing is known about the outcome; back off and try again. */
export function unavailable(detail: string): Problem {
  return new Problem(503, 'UNAVAILABLE', detail, { headers: { 'Retry-After': '1' } })
}

/** The 503 of a request that would have to wait. */
export function stopping(): Problem {
  return unavailable('The server is stopping')
}

/** A 499, for the log: the client is no longer there to read it. */
export function clientGone(): Problem {
  return new Problem(499, 'CLIENT_GONE', 'The client closed the connection')
}

const Shape = named(
  'Problem',
  shape.object({
    type: shape.word('about:blank'),
    title: shape.string,
    status: { json: { type: 'integer', minimum: 400, maximum: 599 } },
    code: described(shape.string, 'What happened, for a program. Stable.'),
    detail: described(shape.string, 'What happened, for a person. May change.'),
    id: optional(shape.uuid, 'The id of the job, which continues, of RUN_TIMEOUT'),
    expected: optional(shape.string, 'The `expected` of the request, of POSITION_CONFLICT'),
    actual: optional(shape.string, 'The position of the stream, of POSITION_CONFLICT'),
    errors: optional(shape.array(shape.object({ field: shape.string, expected: shape.string }))),
  }),
)

const DESCRIPTIONS = {
  400: 'INVALID_ARGUMENT: `errors` names each field and what it may be',
  401: 'UNAUTHENTICATED: no key, or not one of ours',
  403: 'FORBIDDEN: the key lacks the scope, or is for other names',
  404: 'NOT_FOUND',
  405: 'METHOD_NOT_ALLOWED',
  406: 'NOT_ACCEPTABLE: an event stream, of a Lambda that answers in one piece',
  409: 'LEASE_LOST: not held under this token (any more): stop the work it guarded',
  412: 'POSITION_CONFLICT: the stream is not where `expected` says. Nothing was appended',
  413: 'TOO_LARGE: the body is over 64 KiB',
  423: 'LEASE_HELD: another holder has it; `Retry-After` is when the hold ends unless renewed',
  499: '',
  500: 'INTERNAL: an error of ours',
  503: 'UNAVAILABLE: the database cannot be asked, or the server is stopping or full; nothing is known about the outcome',
  504: 'RUN_TIMEOUT: the job was sent and is not over; look for it by `id`',
} as const

/** A problem that a route may answer, as the document shows it. */
export interface ProblemResponse {
  readonly description: string
  readonly content: { readonly 'application/problem+json': { readonly schema: JsonSchema } }
  readonly headers?: Headers
}
type Headers = { readonly [name: string]: { description: string; schema: JsonSchema } }

const RETRY_AFTER = { 'Retry-After': { description: 'Seconds', schema: { type: 'integer', minimum: 1 } } }
const HEADERS: { [S in ProblemStatus]?: Headers } = {
  401: { 'WWW-Authenticate': { description: 'Bearer', schema: { type: 'string' } } },
  423: RETRY_AFTER,
  503: RETRY_AFTER,
}

/** A problem that a route may answer. */
export function problemResponse(status: ProblemStatus, description: string = DESCRIPTIONS[status]): ProblemResponse {
  const headers = HEADERS[status]
  return { description, ...(headers && { headers }), content: { 'application/problem+json': { schema: Shape.json } } }
}

/** Several of them. */
export function problemResponses<S extends ProblemStatus>(...statuses: S[]): { [status in S]: ProblemResponse } {
  return Object.fromEntries(statuses.map((status) => [status, problemResponse(status)])) as {
    [status in S]: ProblemResponse
  }
}
