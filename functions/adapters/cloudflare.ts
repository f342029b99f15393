/**
 * The adapter of Cloudflare Workers: `fetch` and `scheduled`.
 *
 * Lifetimes. A socket belongs to the request that opened it: another request that uses it waits without end, and without an
 * error. So each request makes a Lockstep, with one pool, which is one connection as long as its statements come one after
 * another, and closes it when it has answered (an event stream: when that has ended). The application is made once for an
 * isolate (5 ms, of the 10 that a free plan gives a request) and finds the Lockstep of its request by its asynchronous
 * context. Nothing is made while the module loads, where sockets, timers and random numbers are forbidden. A request registers
 * what must still be done (`waitUntil`) before it waits, and that ends with the answer.
 *
 * Limits. A Worker reaches its database through Hyperdrive, or directly. Hyperdrive pools by transaction: it has
 * no session locks, no LISTEN and no state of a session, and so nothing here asks for them (`directConnectionString: null`);
 * a request that waits, polls. Hyperdrive also answers reads out of a cache that is up to 75 s old; a grant out of it would be
 * a second holder. So all statements are such that the cache must skip them (lib/database/uncached.ts), and a test checks every
 * statement that a Worker sends. Yet make the configuration with `--caching-disabled true`: then nothing depends on what a cache
 * takes a statement for.
 *
 * A Worker has no UDP: true time is what another process has measured.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import { createLockstep, type Lockstep, UnavailableError } from '../../lib/index.ts'
import { createApp } from '../app.ts'
import { checkBasePath, checkOptions, known, parseKeys } from '../http/index.ts'
import { notReady, report, reportLoss, type ServiceOptions, type Services, upkeep } from './cloud.ts'

/** `tasks` and `events` are made for each request. */
export interface WorkerOptions extends ServiceOptions {
  /** Milliseconds that a scheduled tick may take, 100–900,000. @default 25_000 */
  budgetMs?: number | undefined
}

/** The bindings of the Worker. */
export interface WorkerEnv {
  /** The database through Hyperdrive; used before DATABASE_URL. */
  HYPERDRIVE?: { connectionString: string }
  /** `postgres://…`, direct. */
  DATABASE_URL?: string
  /** As for the server, a secret of the Worker; `off` where something else guards it (Cloudflare Access). */
  LOCKSTEP_API_KEYS?: string
}

/** The part of Cloudflare's ExecutionContext that is used. */
export interface WorkerContext {
  waitUntil(work: Promise<unknown>): void
}

export interface Worker {
  fetch(request: Request, env: WorkerEnv, context: WorkerContext): Promise<Response>
  /** What is due: schedules, upkeep, jobs of queues that are defined here, and the removal of what need not be kept. */
  scheduled(controller: unknown, env: WorkerEnv, context: WorkerContext): Promise<void>
}

const WORKER = known<WorkerOptions>({
  ...{
    tasks: true,
    events: true,
    version: true,
    keepAliveMs: true,
    maxStreams: true,
    budgetMs: true,
    basePath: true,
    origins: true,
  },
})
type Answer = (request: Request) => Response | Promise<Response>

/** Makes a Worker: `export default worker({ … })`. */
export function worker(options: WorkerOptions = {}): Worker {
  checkOptions(options, WORKER)
  const { budgetMs = 25_000, basePath } = options
  checkBasePath(basePath)
  const scopes = new AsyncLocalStorage<Services>()
  let application: { keys: string; answer: Answer } | undefined

  function answerOf({ LOCKSTEP_API_KEYS: keys = '' }: WorkerEnv): Answer {
    if (application?.keys === keys) return application.answer
    if (keys !== 'off' && parseKeys(keys).length === 0) {
      throw new UnavailableError('The secret LOCKSTEP_API_KEYS is missing, and a Worker is open to the world')
    }
    const { tasks, events, budgetMs: _, ...rest } = options
    const app = createApp(ofRequest(scopes), {
      ...rest,
      ...(tasks && { tasks: partOf(scopes, (services) => services.tasks) }),
      ...(events && { events: partOf(scopes, (services) => services.events) }),
      keys: keys === 'off' ? undefined : keys,
      onError: report,
      onLeaseLost: reportLoss,
    })
    const answer: Answer = (request) => app.fetch(request)
    application = { keys, answer }
    return answer
  }

  function open(env: WorkerEnv): Services {
    const connectionString = env.HYPERDRIVE?.connectionString ?? env.DATABASE_URL
    if (!connectionString) throw new UnavailableError('The binding HYPERDRIVE or the secret DATABASE_URL is missing')
    const lockstep = createLockstep({ connectionString, directConnectionString: null, shared: true, volatile: true })
    return { lockstep, tasks: options.tasks?.(lockstep), events: options.events?.(lockstep) }
  }

  async function fetch(request: Request, env: WorkerEnv, context: WorkerContext): Promise<Response> {
    let answer: Answer
    let services: Services
    try {
      answer = answerOf(env)
      services = open(env)
    } catch (error) {
      return notReady(error)
    }
    // Before anything waits: when the client goes, Cloudflare ends a request that has not registered what is left to do, and with
    // it the give-back of what was granted to that client just then.
    const done = Promise.withResolvers<void>()
    context.waitUntil(done.promise)
    let ended: Promise<unknown> = Promise.resolve()
    try {
      const response = await scopes.run(services, answer, request)
      if (!response.body || response.headers.get('Content-Type') !== 'text/event-stream') return response
      // The rest of the stream is read after this function has returned.
      const { readable, writable } = new TransformStream()
      ended = response.body.pipeTo(writable).catch(() => {})
      return new Response(readable, response)
    } finally {
      done.resolve(ended.then(() => services.lockstep.close()))
    }
  }

  async function scheduled(_controller: unknown, env: WorkerEnv, context: WorkerContext): Promise<void> {
    const services = open(env)
    const done = Promise.withResolvers<void>()
    context.waitUntil(done.promise)
    try {
      await upkeep(services, budgetMs)
    } finally {
      done.resolve(services.lockstep.close())
    }
  }

  return { fetch, scheduled }
}

/** The part of a Lockstep that the application needs, of the present request. */
function ofRequest(scopes: AsyncLocalStorage<Services>): Lockstep {
  const ready = () => (scopes.getStore() as Services).lockstep.ready()
  const locks = partOf(scopes, ({ lockstep }) => lockstep.locks)
  const leaders = partOf(scopes, ({ lockstep }) => lockstep.leaders)
  const time = partOf(scopes, ({ lockstep }) => lockstep.time)
  return { ready, locks, leaders, time } as Lockstep
}

/** Stands for a part of the present request's Lockstep. */
function partOf<T extends object>(scopes: AsyncLocalStorage<Services>, find: (services: Services) => T | undefined): T {
  return new Proxy({} as T, {
    get(_, key) {
      const part = find(scopes.getStore() as Services) as T
      const member = Reflect.get(part, key, part)
      return typeof member === 'function' ? member.bind(part) : member
    },
  })
}
