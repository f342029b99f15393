/**
 * Tasks over HTTP: who sends jobs, waits for them, and looks after them. Who works on them: claims.ts.
 *
 *     PUT    /v1/tasks/{queue}             declare    201 made · 200 changed
 *     GET    /v1/tasks/{queue}             counts     200
 *     GET    /v1/tasks                     list       200
 *     POST   /v1/tasks/{queue}             send       202 sent · with waitMs: 200 over · 504 not over yet · 409 refused
 *     POST   /v1/tasks/{queue}/broadcast   broadcast  202 a job for each worker of the queue
 *     GET    /v1/tasks/{queue}/{id}        look       200
 *     DELETE /v1/tasks/{queue}/{id}        cancel     204 · 409 over already
 *
 * A wait is only a wait. Whoever hangs up, or is told 503 or 504, has sent the job all the same, and finds it by its id; so
 * who cannot bear to send twice names the id (`options.id`), which is refused when it comes again. A job that failed is a
 * 200: the caller asked how it ends, and that is how.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { Tasks } from '../../lib/task/index.ts'
import {
  body,
  defined,
  documented,
  type Env,
  field,
  json,
  List,
  listable,
  NoQuery,
  needs,
  next,
  nextOf,
  Problem,
  problems,
  waiting,
} from '../http/index.ts'
import {
  Counts,
  common,
  coversDeadLetter,
  Declare,
  JobPath,
  JobState,
  noJob,
  Options,
  Queue,
  said,
  shown,
} from './task-schemas.ts'

const Send = field
  .strict({
    data: field.json.openapi({ default: null }).optional(),
    waitMs: field.waitMs.openapi({ default: 0, description: 'Waits so long for the job to be over' }).optional(),
    options: Options.optional(),
  })
  .openapi('SendJob')

const Broadcast = field.strict({ data: field.json.openapi({ default: null }).optional() }).openapi('Broadcast')

const Sent = z.object({ id: z.uuid() }).openapi('SentJob')
const Outcome = z
  .object({
    id: z.uuid(),
    state: z.enum(['completed', 'failed', 'cancelled']),
    output: z.any().openapi({ description: 'What the job returned, or the error that it failed with' }),
  })
  .openapi('JobOutcome')
const Queues = z.object({ queues: z.array(z.string()), next }).openapi('QueueList')
const Told = z
  .object({ jobs: z.array(z.object({ worker: z.string(), id: z.uuid() })) })
  .openapi('BroadcastJobs', { description: 'One for each worker; none: nobody works on the queue' })

const declare = createRoute({
  ...common,
  method: 'put',
  path: '/{name}',
  summary: 'Make a queue, or change how its jobs are tried',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: Queue, query: NoQuery, body: body('DeclareQueue', false) },
  responses: {
    201: json(Counts, 'Made'),
    200: json(Counts, 'It was there; changed to what is said here'),
    ...problems(400, 401, 403, 413, 500, 503),
  },
})

const counts = createRoute({
  ...common,
  method: 'get',
  path: '/{name}',
  summary: 'How many jobs a queue has',
  middleware: [needs('tasks:read'), field.wellEncoded] as const,
  request: { params: Queue, query: NoQuery },
  responses: { 200: json(Counts, 'As of now'), ...problems(400, 401, 403, 404, 500, 503) },
})

const list = createRoute({
  ...common,
  method: 'get',
  path: '/',
  summary: 'List queues by name',
  middleware: [needs('tasks:read'), field.wellEncoded] as const,
  request: { query: List },
  responses: { 200: json(Queues, 'A page'), ...problems(400, 401, 403, 500, 503) },
})

const send = createRoute({
  ...common,
  method: 'post',
  path: '/{name}',
  summary: 'Send a job; with waitMs, wait for it to be over',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: Queue, query: NoQuery, body: body('SendJob', false) },
  responses: {
    202: json(Sent, 'Sent, and not waited for'),
    200: json(Outcome, 'It is over: completed, failed for good, or cancelled'),
    ...problems(400, 401, 403, 404, 413, 500, 503, 504),
    409: documented(409, 'JOB_REFUSED: the policy of the queue, singletonKey, singletonSeconds or id excludes it'),
  },
})

const broadcast = createRoute({
  ...common,
  method: 'post',
  path: '/{name}/broadcast',
  summary: 'Send a job to each process that works on the queue',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: Queue, query: NoQuery, body: body('Broadcast', false) },
  responses: { 202: json(Told, 'Sent'), ...problems(400, 401, 403, 404, 413, 500, 503) },
})

const look = createRoute({
  ...common,
  method: 'get',
  path: '/{name}/{id}',
  summary: 'Look at a job',
  middleware: [needs('tasks:read'), field.wellEncoded] as const,
  request: { params: JobPath, query: NoQuery },
  responses: { 200: json(JobState, 'As of now'), ...problems(400, 401, 403, 404, 500, 503) },
})

const cancel = createRoute({
  ...common,
  method: 'delete',
  path: '/{name}/{id}',
  summary: 'Cancel a job: it does not run (again), and if it runs, its signal aborts and its token is of no use',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: JobPath, query: NoQuery },
  responses: {
    204: { description: 'Cancelled' },
    ...problems(400, 401, 403, 404, 500, 503),
    409: documented(409, 'JOB_OVER: it was completed, failed or cancelled already'),
  },
})

/** The router of `/v1/tasks`. `stopping` ends every wait. */
export function taskRouter(tasks: Tasks, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  for (const [name, schema] of Object.entries({ DeclareQueue: Declare, SendJob: Send, Broadcast })) {
    router.openAPIRegistry.register(name, schema)
  }

  router.openapi(declare, async (c) => {
    const { name } = c.req.valid('param')
    const options = await field.readBody(c, Declare)
    coversDeadLetter(c, options)
    const made = await tasks.declare(name, defined(options))
    return c.json(await tasks.counts(name), made ? 201 : 200)
  })

  router.openapi(counts, async (c) => c.json(await tasks.counts(c.req.valid('param').name), 200))

  router.openapi(list, async (c) => {
    const { prefix = '', limit = 100, after } = c.req.valid('query')
    const queues = await tasks.queues({ prefix: listable(c, prefix), limit, ...(after !== undefined && { after }) })
    return c.json({ queues, next: nextOf(queues, limit) }, 200)
  })

  router.openapi(send, async (c) => {
    const { name } = c.req.valid('param')
    const { data = null, waitMs, options = {} } = await field.readBody(c, Send)
    coversDeadLetter(c, options)
    const { group, ...rest } = options
    const asked = { ...defined(rest), ...(group && { group: defined(group) }) }
    if (!waitMs) {
      const id = await tasks.send(name, data, asked)
      if (id === null) throw refused(name)
      return c.json({ id }, 202)
    }
    const over = await waiting(c, waitMs, stopping, (until) =>
      tasks.outcome(name, data, { ...asked, waitMs, ...until }),
    )
    if (over === null) throw refused(name)
    return c.json({ id: over.id, state: over.state, output: said(over.state, over.output) }, 200)
  })

  router.openapi(broadcast, async (c) => {
    const { name } = c.req.valid('param')
    const { data = null } = await field.readBody(c, Broadcast)
    return c.json({ jobs: await tasks.broadcast(name, data) }, 202)
  })

  router.openapi(look, async (c) => {
    const { name, id } = c.req.valid('param')
    const job = await tasks.get(name, id)
    if (job === null) throw noJob(name, id)
    return c.json(shown(job), 200)
  })

  router.openapi(cancel, async (c) => {
    const { name, id } = c.req.valid('param')
    if (await tasks.cancel(name, id)) return c.body(null, 204)
    const job = await tasks.get(name, id)
    if (job === null) throw noJob(name, id)
    throw new Problem(409, 'JOB_OVER', `The job ${id} is over: it is ${job.state}`)
  })

  return router
}

function refused(name: string): Problem {
  return new Problem(
    409,
    'JOB_REFUSED',
    `The queue ${JSON.stringify(name)} takes no such job now, or has this id already`,
  )
}
