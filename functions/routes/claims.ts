/**
 * Workers over HTTP: a worker claims a job for a lease, and by the job's token it extends, completes or fails it.
 *
 *     POST /v1/tasks/{queue}/claim           claim     200 jobs, perhaps none
 *     POST /v1/tasks/{queue}/{id}/extend     extend    200 · 409 lost
 *     POST /v1/tasks/{queue}/{id}/progress   progress  204 · 409 lost
 *     POST /v1/tasks/{queue}/{id}/complete   complete  204 · 409 lost
 *     POST /v1/tasks/{queue}/{id}/fail       fail      204 · 409 lost
 *
 * As with locks there is no session: a worker that is silent for longer than its lease has lost the job. Another worker then
 * runs it under a larger token. An answer may get lost: to complete or fail a job again with the same token is 204 as before,
 * and the jobs of a lost claim wait for their leases to end. A worker that hangs up while it waits gets nothing: jobs that are
 * claimed for it just then go back at once, without using up a retry.
 */
import type { Tasks } from '../../lib/task/index.ts'
import {
  clientGone,
  described,
  field,
  json,
  named,
  optional,
  problemResponse,
  problemResponses,
  Router,
  route,
  shape,
  waiting,
} from '../http/index.ts'
import { JobPath, Queue } from './task-schemas.ts'

const leaseMs = described(field.integer({ min: 1_000, max: 3_600_000 }), { default: 30_000 })

const Claim = named(
  'ClaimJobs',
  field.object({
    limit: optional(field.integer({ min: 1, max: 100 }), {
      default: 1,
      description: 'The most. An answer ends at 5 MB; what is not in it is not claimed: claim again',
    }),
    holder: optional(field.holder, 'The name of the worker, shown with the job'),
    leaseMs: optional(leaseMs),
    waitMs: optional(field.waitMs, { default: 0, description: 'Waits so long for a job' }),
  }),
)

const Complete = named(
  'CompleteJob',
  field.object({ token: field.token, output: optional(field.json, { default: null }) }),
)

const Fail = named(
  'FailJob',
  field.object({
    token: field.token,
    error: optional(field.failure, 'A message, or an object that has a `message`'),
  }),
)

const Extend = named('ExtendJob', field.object({ token: field.token, leaseMs: optional(leaseMs) }))

const Progress = named(
  'JobProgress',
  field.object({
    token: field.token,
    fraction: field.number({ min: 0, max: 1 }),
    note: optional(field.text({ min: 0, max: 1_000 })),
  }),
)

const Claimed = named(
  'ClaimedJobs',
  shape.object({
    jobs: shape.array(
      named(
        'ClaimedJob',
        shape.object({
          id: shape.uuid,
          token: shape.token,
          attempt: described(shape.integer, '1, 2, …'),
          data: shape.any,
          expiresAt: described(shape.instant, 'Unless it is extended'),
        }),
      ),
    ),
  }),
  'None: there is nothing to do. Fewer than `limit`: there are no more, or the answer would have over 5 MB',
)

const Extended = named('ExtendedJob', shape.object({ expiresAt: shape.instant }))
const lost = problemResponse(409, 'LEASE_LOST: it is over, or is not this attempt any more: stop the work')

const claim = route({
  id: 'claimJobs',
  tags: ['tasks'],
  method: 'post',
  path: '/{name}/claim',
  summary: 'Claim jobs to work on, waiting at most waitMs for one',
  scope: 'tasks:write',
  params: Queue,
  body: Claim,
  responses: { 200: json(Claimed, 'Claimed, perhaps none'), ...problemResponses(404) },
})

const complete = route({
  id: 'completeJob',
  tags: ['tasks'],
  method: 'post',
  path: '/{name}/{id}/complete',
  summary: 'End a job well, with what it gave',
  scope: 'tasks:write',
  params: JobPath,
  body: Complete,
  responses: { 204: { description: 'Completed' }, 409: lost },
})

const fail = route({
  id: 'failJob',
  tags: ['tasks'],
  method: 'post',
  path: '/{name}/{id}/fail',
  summary: 'End an attempt badly: the job is tried again, or has failed for good',
  scope: 'tasks:write',
  params: JobPath,
  body: Fail,
  responses: { 204: { description: 'Failed' }, ...problemResponses(404), 409: lost },
})

const extend = route({
  id: 'extendJob',
  tags: ['tasks'],
  method: 'post',
  path: '/{name}/{id}/extend',
  summary: 'Keep a job: from now on its lease lasts leaseMs',
  scope: 'tasks:write',
  params: JobPath,
  body: Extend,
  responses: { 200: json(Extended, 'Extended'), 409: lost },
})

const progress = route({
  id: 'reportProgress',
  tags: ['tasks'],
  method: 'post',
  path: '/{name}/{id}/progress',
  summary: 'Report the progress of a job',
  scope: 'tasks:write',
  params: JobPath,
  body: Progress,
  responses: { 204: { description: 'Stored' }, 409: lost },
})

/** The routes of `/v1/tasks` for workers. `stopping` ends every wait. */
export function claimRouter(tasks: Tasks, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(claim, async (c, { params: { name }, body: asked }) => {
    const jobs = await waiting(c, asked.waitMs, stopping, (until) => tasks.claim(name, { ...asked, ...until }))
    if (c.req.raw.signal.aborted) {
      // Should this fail, the leases run out by themselves.
      if (jobs.length > 0) await tasks.handBack(name, jobs).catch(() => {})
      throw clientGone()
    }
    const shown = jobs.map(({ id, token, attempt, data, expiresAt }) => ({
      id,
      token: String(token),
      attempt,
      data,
      expiresAt: expiresAt.toISOString(),
    }))
    return c.json({ jobs: shown }, 200)
  })

  router.on(complete, async (c, { params: { name, id }, body: { token, output = null } }) => {
    await tasks.complete(name, id, token, output)
    return c.body(null, 204)
  })

  router.on(
    fail,
    async (c, { params: { name, id }, body: { token, error = 'It failed, and nothing was said of it' } }) => {
      await tasks.fail(name, id, token, error)
      return c.body(null, 204)
    },
  )

  router.on(extend, async (c, { params: { name, id }, body: { token, ...rest } }) => {
    const expiresAt = await tasks.extend(name, id, token, rest)
    return c.json({ expiresAt: expiresAt.toISOString() }, 200)
  })

  router.on(progress, async (c, { params: { name, id }, body: { token, fraction, note } }) => {
    await tasks.progress(name, id, token, fraction, note)
    return c.body(null, 204)
  })

  return router
}
