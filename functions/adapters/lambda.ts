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
 * removed is refused by then. The password is read at each new connection, so that a rotation ends no environment. A secret that
 * names another user or host is noticed after the first request that fails, or with the keys, and is followed by new connections.
 *
 * Nothing throws out of a handler of HTTP, whatever the event is (lambda-events.ts). The buffered one refuses an event stream: its
 * answer would come at the stream's end, which is when Lambda ends the invocation.
 *
 * Nothing migrates here: a cold start is no time for that (infra/aws/migrate.ts does, at deploy).
 */
import { Readable, type Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { LambdaContext, LambdaEvent } from 'hono/aws-lambda'
import type { TickResult } from '../../lib/task/index.ts'
import { checkBasePath, checkOptions, isProblem, known, Problem, problemAnswer } from '../http/index.ts'
import type { Environment } from './aws-secrets.ts'
import { notReady, report } from './cloud.ts'
import { checkEnvironment, Execution, type ExecutionOptions } from './lambda-environment.ts'
import { requestOf, resultOf } from './lambda-events.ts'

export interface LambdaOptions extends ExecutionOptions {
  /** Milliseconds at rest after which an environment begins anew, ≥ 0. @default 30_000 */
  restMs?: number | undefined
  /** @default process.env */
  env?: Environment | undefined
}

const LAMBDA = known<LambdaOptions>({
  ...{ tasks: true, events: true, version: true, keepAliveMs: true, maxStreams: true },
  ...{ ntp: true, keysMs: true, restMs: true, env: true, basePath: true, origins: true },
})

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
  checkOptions(options, LAMBDA)
  const { restMs = REST_MS, env = process.env, basePath } = options
  checkEnvironment(env)
  checkBasePath(basePath)
  let execution: Promise<Execution> | undefined
  const left: Promise<Execution>[] = [] // that are not used any more, once no invocation runs
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
      closeLeft(busy === 0)
    }
  }

  async function open(): Promise<Execution> {
    const present = execution
    if (present && (await present.then((each) => each.outdated()).catch(() => false)) && present === execution)
      discard()
    execution ??= Execution.open(options, env)
    const opening = execution
    try {
      return await opening
    } catch (error) {
      if (execution === opening) execution = undefined // to be opened by the next
      throw error
    }
  }

  function discard(): void {
    if (execution) left.push(execution)
    execution = undefined
    closeLeft(busy <= 1) // this invocation has not begun with it
  }

  function closeLeft(unused: boolean): void {
    if (!unused) return
    for (const each of left.splice(0)) void each.then((it) => it.close()).catch(() => {}) // its connections may be dead
  }

  async function answer(event: unknown, context: LambdaContext): Promise<Response> {
    const leftMs = () => context.getRemainingTimeInMillis() - END_MS
    try {
      const request = requestOf(event, basePath)
      return await (await open()).answer(request, { leftMs })
    } catch (error) {
      return isProblem(error) ? problemAnswer(error) : notReady(error)
    }
  }

  async function tick(context: Pick<LambdaContext, 'getRemainingTimeInMillis'>): Promise<Partial<TickResult>> {
    const its = await open()
    const leftMs = context.getRemainingTimeInMillis() - END_MS
    return its.tick(Math.min(Math.max(leftMs, BUDGET_MS.min), BUDGET_MS.max))
  }

  return {
    handler: (event, context) => invoked(async () => resultOf(event, await whole(await answer(event, context)))),
    stream: streamed((event, stream, context) =>
      invoked(async () =>
        send(ending(await answer(event, context), context.getRemainingTimeInMillis() - END_MS), stream),
      ),
    ),
    scheduled: (_event, context) => invoked(() => tick(context)),
  }
}

const isStream = ({ headers }: Response) => headers.get('Content-Type') === 'text/event-stream'

/** The answer of a handler that cannot stream. */
async function whole(response: Response): Promise<Response> {
  if (!isStream(response)) return response
  await response.body?.cancel()
  const detail =
    'This address answers in one piece, to which an event stream does not come: ask the one that streams, or poll'
  const problem = problemAnswer(new Problem(406, 'NOT_ACCEPTABLE', detail), response)
  return response.body ? problem : new Response(null, problem) // HEAD
}

/**
 * A stream that ends by itself before Lambda would end it, so that its client sees a regular end, and comes back with the id of
 * the last event. Not by a signal of the request: only the request refers to that signal, and once the request is collected as
 * garbage, the signal no longer fires.
 */
function ending(response: Response, leftMs: number): Response {
  if (!response.body || !isStream(response)) return response
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

interface StreamingRuntime {
  streamifyResponse?(handler: StreamHandler): StreamHandler
  HttpResponseStream: { from(stream: Writable, head: object): Writable }
}
const runtime = () => (globalThis as { awslambda?: StreamingRuntime }).awslambda

// AWS's SDK defines an empty `awslambda` outside of Lambda.
function streamed(handler: StreamHandler): StreamHandler | undefined {
  return runtime()?.streamifyResponse?.(handler)
}

/** Writes an answer as it comes. A client that has gone ends it. */
async function send(response: Response, to: unknown): Promise<void> {
  const head = { statusCode: response.status, headers: Object.fromEntries(response.headers), cookies: [] }
  const stream = (runtime() as StreamingRuntime).HttpResponseStream.from(to as Writable, head)
  try {
    if (response.body) return await pipeline(Readable.fromWeb(response.body as never), stream)
    stream.write('') // Lambda sends the head with the first write
    stream.end()
  } catch (error) {
    report(error)
  }
}
