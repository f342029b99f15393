/**
 * Tasks over HTTP: sending jobs, waiting for them, and looking after queues. Working on jobs: claims.ts.
 *
 *     PUT    /v1/tasks/{queue}             declare    201 made · 200 changed
 *     GET    /v1/tasks/{queue}             counts     200
 *     GET    /v1/tasks                     list       200
 *     POST   /v1/tasks/{queue}             send       202 sent · with waitMs: 200 over · 504 not over yet · 409 refused
 *     POST   /v1/tasks/{queue}/broadcast   broadcast  202 a job for each worker of the queue
 *     GET    /v1/tasks/{queue}/{id}        get        200
 *     DELETE /v1/tasks/{queue}/{id}        cancel     204 · 409 over already
 *
 * A wait is only a wait. A caller that hangs up, or gets a 503 or 504, has sent the job all the same, and finds it by its id.
 * A caller that must not send twice chooses the id (`options.id`): it is refused when it comes again. A job that failed is a
 * 200: the caller asked how it ends, and that is the answer.
 */
import type { Tasks } from '../../lib/task/index.ts'
import {
  described,
  field,
  json,
  List,
  listable,
  named,
  optional,
  Problem,
  pageOf,
  problemResponse,
  problemResponses,
  Router,
  route,
  shape,
  waiting,
} from '../http/index.ts'
import {
  Counts,
  coversDeadLetter,
  Declare,
  JobPath,
  JobState,
  jobJson,
  noJob,
  Options,
  outputJson,
  Queue,
} from './task-schemas.ts'

const Send = named(
  'SendJob',
  field.object({
    data: optional(field.json, { default: null }),
    waitMs: optional(field.waitMs, { default: 0, description: 'Waits so long for the job to be over' }),
    options: optional(Options),
  }),
)

const Broadcast = named('Broadcast', field.object({ data: optional(field.json, { default: null }) }))

const Sent = named('SentJob', shape.object({ id: shape.uuid }))
const Outcome = named(
  'JobOutcome',
  shape.object({
    id: shape.uuid,
    state: shape.word('completed', 'failed', 'cancelled'),
    output: described(shape.any, 'What the job returned, or the error that it failed with'),
  }),
)
const Queues = named('QueueList', shape.object({ queues: shape.array(shape.string), next: shape.next }))
const Broadcasted = named(
  'BroadcastJobs',
  shape.object({ jobs: shape.array(shape.object({ worker: shape.string, id: shape.uuid })) }),
  'One for each worker; none: the queue has no worker',
)

const declare = route({
  id: 'putQueue',
  tags: ['tasks'],
  method: 'put',
  path: '/{name}',
  summary: 'Make a queue, or change how its jobs are tried',
  scope: 'tasks:write',
  params: Queue,
  body: Declare,
  responses: {
    201: json(Counts, 'Made'),
    200: json(Counts, 'It was there, and was changed'),
  },
})

const counts = route({
  id: 'getQueue',
  tags: ['tasks'],
  method: 'get',
  path: '/{name}',
  summary: 'How many jobs a queue has',
  scope: 'tasks:read',
  params: Queue,
  responses: { 200: json(Counts, 'As of now'), ...problemResponses(404) },
})

const list = route({
  id: 'listQueues',
  tags: ['tasks'],
  method: 'get',
  path: '/',
  summary: 'List queues by name',
  scope: 'tasks:read',
  query: List,
  responses: { 200: json(Queues, 'A page') },
})

const send = route({
  id: 'sendJob',
  tags: ['tasks'],
  method: 'post',
  path: '/{name}',
  summary: 'Send a job; with waitMs, wait for it to be over',
  scope: 'tasks:write',
  params: Queue,
  body: Send,
  responses: {
    202: json(Sent, 'Sent, and not waited for'),
    200: json(Outcome, 'It is over: completed, failed for good, or cancelled'),
    ...problemResponses(404, 504),
    409: problemResponse(409, 'JOB_REFUSED: the policy of the queue, singletonKey, singletonSeconds or id excludes it'),
  },
})

const broadcast = route({
  id: 'broadcastJob',
  tags: ['tasks'],
  method: 'post',
  path: '/{name}/broadcast',
  summary: 'Send a job to each process that works on the queue',
  scope: 'tasks:write',
  params: Queue,
  body: Broadcast,
  responses: { 202: json(Broadcasted, 'Sent'), ...problemResponses(404) },
})

const look = route({
  id: 'getJob',
  tags: ['tasks'],
  method: 'get',
  path: '/{name}/{id}',
  summary: 'Look at a job',
  scope: 'tasks:read',
  params: JobPath,
  responses: { 200: json(JobState, 'As of now'), ...problemResponses(404) },
})

const cancel = route({
  id: 'cancelJob',
  tags: ['tasks'],
  method: 'delete',
  path: '/{name}/{id}',
  summary: 'Cancel a job: it does not run (again), and if it runs, its signal aborts and its token is of no use',
  scope: 'tasks:write',
  params: JobPath,
  responses: {
    204: { description: 'Cancelled' },
    ...problemResponses(404),
    409: problemResponse(409, 'JOB_OVER: it was completed, failed or cancelled already'),
  },
})

/** The router of `/v1/tasks`. `stopping` ends every wait. */
export function taskRouter(tasks: Tasks, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(declare, async (c, { params: { name }, body: options }) => {
    coversDeadLetter(c, options)
    const made = await tasks.declare(name, options)
    return c.json(await tasks.counts(name), made ? 201 : 200)
  })

  router.on(counts, async (c, { params }) => c.json(await tasks.counts(params.name), 200))

  router.on(list, async (c, { query: { prefix = '', limit = 100, ...after } }) => {
    const queues = await tasks.queues({ prefix: listable(c, prefix), limit, ...after })
    const { page, next } = pageOf(queues, limit)
    return c.json({ queues: page, next }, 200)
  })

  router.on(send, async (c, { params: { name }, body: { data = null, waitMs, options = {} } }) => {
    coversDeadLetter(c, options)
    const { group, ...rest } = options
    const asked = { ...rest, ...(group && { group: group }) }
    if (!waitMs) {
      const id = await tasks.send(name, data, asked)
      if (id === null) throw await refused(name, options.id)
      return c.json({ id }, 202)
    }
    const over = await waiting(c, waitMs, stopping, (until) =>
      tasks.outcome(name, data, { ...asked, waitMs, ...until }),
    )
    if (over === null) throw await refused(name, options.id)
    return c.json({ id: over.id, state: over.state, output: outputJson(over.state, over.output) }, 200)
  })

  router.on(broadcast, async (c, { params: { name }, body: { data = null } }) => {
    return c.json({ jobs: await tasks.broadcast(name, data) }, 202)
  })

  router.on(look, async (c, { params: { name, id } }) => {
    const job = await tasks.get(name, id)
    if (job === null) throw noJob(name, id)
    return c.json(jobJson(job), 200)
  })

  router.on(cancel, async (c, { params: { name, id } }) => {
    if (await tasks.cancel(name, id)) return c.body(null, 204)
    const job = await tasks.get(name, id)
    if (job === null) throw noJob(name, id)
    throw new Problem(409, 'JOB_OVER', `The job ${id} is over: it is ${job.state}`)
  })

  return router

  async function refused(name: string, id: string | undefined): Promise<Problem> {
    const used = id === undefined ? null : await tasks.get(name, id)
    const why = used === null ? 'takes no such job now' : `has a job of this id already, which is ${used.state}`
    return new Problem(409, 'JOB_REFUSED', `The queue ${JSON.stringify(name)} ${why}`)
  }
}
