/**
 * The adapter of AWS Lambda: events → application → answers, and a tick by the clock of EventBridge Scheduler.
 *
 * Lifetimes. An execution environment serves one invocation at a time, and is frozen between two. It may be thawed a
 * second later or an hour, or never. So everything is made once per environment and used by the next invocation, with one pool
 * of connections, none of which is held in between (lib/database/shared-pool.ts). After a freeze nothing is certain: the other
 * end of a connection may be gone, and the clock may have stood still too. An environment that has rested for {@link REST_MS}
 * therefore starts again, with new connections and without any earlier measurement. A connection that breaks sooner is noticed by
 * its statement: that one answers 503, and its client is discarded (lib/database/pool.ts). A hold over HTTP is kept by its caller
 * and its token, never here.
 *
 * A function's URL is open to the world, so without keys nothing is served. A deployment whose URL is guarded by IAM says so
 * (`LOCKSTEP_API_KEYS=off`). Keys and passwords may be secrets. Keys are read again every five minutes, so that a key that was
 * removed is refused by then. The password is read at each new connection.
 *
 * Paths. A function URL hands on the path as it was sent. An HTTP API (API Gateway v2) decodes it first. Most of that is undone
 * here, but a name with `/` or `?` in it can no longer be told from another (honojs/hono#2156).
 *
 * Nothing migrates here: a cold start is no time for that (infra/aws/migrate.ts does, at deploy).
 */
import type { Hono } from 'hono'
import { handle, type LambdaContext, type LambdaEvent, streamHandle } from 'hono/aws-lambda'
import type { TickResult } from '../../lib/task/index.ts'
import type { Environment } from './aws-secrets.ts'
import { notReady, upkeep } from './cloud.ts'
import { checkEnvironment, Execution, type ExecutionOptions } from './lambda-environment.ts'

export interface LambdaOptions extends ExecutionOptions {
  /** Milliseconds at rest after which an environment begins anew, ≥ 0. @default 30_000 */
  restMs?: number
  /** @default process.env */
  env?: Environment
}

/** A handler as Lambda calls it. */
export type Handler = (event: LambdaEvent, context: LambdaContext) => Promise<unknown>
/** A handler that Lambda calls with a stream for the answer. */
export type StreamHandler = (event: LambdaEvent, answer: unknown, context: LambdaContext) => Promise<void>

export interface Lambda {
  /** HTTP, with buffered answers. */
  handler: Handler
  /** HTTP, with streamed answers: server-sent events too. Only Lambda itself can do that; elsewhere it is undefined. */
  stream: StreamHandler | undefined
  /** What is due: schedules, upkeep, jobs of queues that are defined here, and the removal of what need not be kept. */
  scheduled(event: unknown, context: Pick<LambdaContext, 'getRemainingTimeInMillis'>): Promise<Partial<TickResult>>
}

const REST_MS = 30_000
// The time that an invocation needs to end: a wait, an event stream or a tick ends so long before its deadline.
const END_MS = 2_000
const BUDGET_MS = { min: 100, max: 86_400_000 }

/**
 * Makes the handlers of a function. To be called once, at the top of its module.
 *
 * @throws {Error} in one sentence: a variable of the environment is missing or cannot be read.
 */
export function lambda(options: LambdaOptions = {}): Lambda {
  const { restMs = REST_MS, env = process.env } = options
  checkEnvironment(env)
  let execution: Promise<Execution> | undefined
  let busy = 0
  let restsSince = Date.now()

  async function invoked<T>(work: () => Promise<T>): Promise<T> {
    if (busy === 0 && Math.abs(Date.now() - restsSince) > restMs) discard()
    busy++
    try {
      return await work()
    } finally {
      busy--
      restsSince = Date.now()
    }
  }

  async function open(): Promise<Execution> {
    execution ??= Execution.open(options, env)
    try {
      return await execution
    } catch (error) {
      execution = undefined // to be opened by the next
      throw error
    }
  }

  function discard(): void {
    const left = execution
    execution = undefined
    void left?.then((each) => each.close()).catch(() => {}) // its connections may be dead
  }

  async function answer(request: Request, context: LambdaContext): Promise<Response> {
    const leftMs = () => context.getRemainingTimeInMillis() - END_MS
    try {
      return await (await open()).answer(request, { leftMs })
    } catch (error) {
      return notReady(error)
    }
  }

  async function tick(context: Pick<LambdaContext, 'getRemainingTimeInMillis'>): Promise<Partial<TickResult>> {
    const { services } = await open()
    const leftMs = context.getRemainingTimeInMillis() - END_MS
    return upkeep(services, Math.min(Math.max(leftMs, BUDGET_MS.min), BUDGET_MS.max))
  }

  const buffered = handle(asHono((request, { lambdaContext }) => answer(request, lambdaContext)))
  const streaming = async (request: Request, { context }: { context: LambdaContext }) =>
    ending(await answer(request, context), context.getRemainingTimeInMillis() - END_MS)
  return {
    handler: (event, context) => invoked(() => buffered(asSent(event), context)),
    stream: streamed(
      (handler, event, stream, context) => invoked(() => handler(asSent(event), stream, context)),
      streaming,
    ),
    scheduled: (_event, context) => invoked(() => tick(context)),
  }
}

/**
 * A stream that ends by itself before Lambda would end it, so that its client sees a regular end, and comes back with the id of
 * the last event. Not by a signal of the request: only the request refers to that signal, and once the request is collected as
 * garbage, the signal no longer fires.
 */
function ending(response: Response, leftMs: number): Response {
  if (!response.body || response.headers.get('Content-Type') !== 'text/event-stream') return response
  const reader = response.body.getReader()
  const end = Promise.withResolvers<undefined>()
  const timer = setTimeout(() => end.resolve(undefined), Math.max(leftMs, 0))
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const read = await Promise.race([reader.read(), end.promise])
        if (read && !read.done) return controller.enqueue(read.value)
        clearTimeout(timer)
        controller.close()
        await reader.cancel()
      },
      cancel(reason) {
        clearTimeout(timer)
        return reader.cancel(reason)
      },
    },
    { highWaterMark: 0 }, // no buffer
  )
  return new Response(body, response)
}

// Hono's adapters use no more of an application than this; one passes `lambdaContext`, the one that streams `context`.
type Contexts = { context: LambdaContext; lambdaContext: LambdaContext }
const asHono = (fetch: (request: Request, contexts: Contexts) => Promise<Response>) => ({ fetch }) as unknown as Hono

/** @param around  calls a handler with its arguments. */
function streamed(
  around: (handler: StreamHandler, ...call: Parameters<StreamHandler>) => Promise<void>,
  fetch: Parameters<typeof asHono>[0],
): StreamHandler | undefined {
  const { awslambda } = globalThis as { awslambda?: { streamifyResponse(handler: StreamHandler): StreamHandler } }
  if (!awslambda) return undefined
  const handler = streamHandle(asHono(fetch)) as unknown as StreamHandler
  return awslambda.streamifyResponse((...call) => around(handler, ...call))
}

/** An event with its path as the client sent it. */
function asSent(event: LambdaEvent): LambdaEvent {
  if (!('rawPath' in event)) return event
  const { domainName = '', stage = '$default' } = event.requestContext as { domainName?: string; stage?: string }
  if (/\.lambda-url\.[^.]+\.on\.aws(\.cn)?$/.test(domainName)) return event
  const path = event.rawPath.startsWith(`/${stage}/`) ? event.rawPath.slice(stage.length + 1) : event.rawPath
  return { ...event, rawPath: path.split('/').map(encodeURIComponent).join('/') }
}
