/**
 * Workers over HTTP: a job is claimed for a lease, and whoever holds its token keeps, ends or fails it.
 *
 *     POST /v1/tasks/{queue}/claim           claim     200 jobs, perhaps none
 *     POST /v1/tasks/{queue}/{id}/extend     extend    200 · 409 lost
 *     POST /v1/tasks/{queue}/{id}/progress   progress  204 · 409 lost
 *     POST /v1/tasks/{queue}/{id}/complete   complete  204 · 409 lost
 *     POST /v1/tasks/{queue}/{id}/fail       fail      204 · 409 lost
 *
 * As with locks there is no session: a worker that is silent for longer than its lease has lost the job, which somebody else
 * then runs under a larger token. An answer may get lost: to complete or fail a job again with the same token is 204 as
 * before, and the jobs of a claim wait for their leases to end. A worker that hangs up while it waits is
 * given nothing: what was claimed for it in that moment goes back at once, and costs the job none of its retries.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { Tasks } from '../../lib/task/index.ts'
import {
  body,
  defined,
  documented,
  type Env,
  field,
  gone,
  instant,
  json,
  NoQuery,
  needs,
  problems,
  token,
  waiting,
} from '../http/index.ts'
import { common, JobPath, Queue } from './task-schemas.ts'

const leaseMs = field.integer({ min: 1_000, max: 3_600_000 }).openapi({ default: 30_000 })

const Claim = field
  .strict({
    limit: field.integer({ min: 1, max: 100 }).openapi({ default: 1 }).optional(),
    holder: field.holder.openapi({ description: 'Who works, for whoever looks at the job' }).optional(),
    leaseMs: leaseMs.optional(),
    waitMs: field.waitMs.openapi({ default: 0, description: 'Waits so long for a job' }).optional(),
  })
  .openapi('ClaimJobs')

const Complete = field
  .strict({ token: field.token, output: field.json.openapi({ default: null }).optional() })
  .openapi('CompleteJob')

const Fail = field
  .strict({
    token: field.token,
    error: field.json.openapi({ description: 'A message, or an object with one and whatever else' }).optional(),
  })
  .openapi('FailJob')

const Extend = field.strict({ token: field.token, leaseMs: leaseMs.optional() }).openapi('ExtendJob')

const Progress = field
  .strict({
    token: field.token,
    fraction: field.number({ min: 0, max: 1 }),
    note: field.text({ min: 0, max: 1_000 }).optional(),
  })
  .openapi('JobProgress')

const Claimed = z
  .object({
    jobs: z.array(
      z
        .object({
          id: z.uuid(),
          token,
          attempt: z.int().openapi({ description: '1, 2, …' }),
          data: z.any(),
          expiresAt: instant.openapi({ description: 'Unless it is extended' }),
        })
        .openapi('ClaimedJob'),
    ),
  })
  .openapi('ClaimedJobs', { description: 'None: there is nothing to do' })

const Extended = z.object({ expiresAt: instant }).openapi('ExtendedJob')
const lost = documented(409, 'LEASE_LOST: it is over, or is not this attempt any more: stop the work')

const claim = createRoute({
  ...common,
  method: 'post',
  path: '/{name}/claim',
  summary: 'Claim jobs to work on, waiting at most waitMs for one',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: Queue, query: NoQuery, body: body('ClaimJobs', false) },
  responses: { 200: json(Claimed, 'Claimed, perhaps none'), ...problems(400, 401, 403, 404, 413, 500, 503) },
})

const complete = createRoute({
  ...common,
  method: 'post',
  path: '/{name}/{id}/complete',
  summary: 'End a job well, with what it gave',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: JobPath, query: NoQuery, body: body('CompleteJob', true) },
  responses: { 204: { description: 'Completed' }, ...problems(400, 401, 403, 413, 500, 503), 409: lost },
})

const fail = createRoute({
  ...common,
  method: 'post',
  path: '/{name}/{id}/fail',
  summary: 'End an attempt badly: the job is tried again, or has failed for good',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: JobPath, query: NoQuery, body: body('FailJob', true) },
  responses: { 204: { description: 'Failed' }, ...problems(400, 401, 403, 404, 413, 500, 503), 409: lost },
})

const extend = createRoute({
  ...common,
  method: 'post',
  path: '/{name}/{id}/extend',
  summary: 'Keep a job: from now on its lease lasts leaseMs',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: JobPath, query: NoQuery, body: body('ExtendJob', true) },
  responses: { 200: json(Extended, 'Extended'), ...problems(400, 401, 403, 413, 500, 503), 409: lost },
})

const progress = createRoute({
  ...common,
  method: 'post',
  path: '/{name}/{id}/progress',
  summary: 'Say how far a job is, for whoever looks at it',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: JobPath, query: NoQuery, body: body('JobProgress', true) },
  responses: { 204: { description: 'Noted' }, ...problems(400, 401, 403, 413, 500, 503), 409: lost },
})

/** What workers need of `/v1/tasks`. `stopping` ends every wait. */
export function claimRouter(tasks: Tasks, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  for (const [name, schema] of Object.entries({
    ClaimJobs: Claim,
    CompleteJob: Complete,
    FailJob: Fail,
    ExtendJob: Extend,
    JobProgress: Progress,
  })) {
    router.openAPIRegistry.register(name, schema)
  }

  router.openapi(claim, async (c) => {
    const { name } = c.req.valid('param')
    const asked = defined(await field.readBody(c, Claim))
    const jobs = await waiting(c, asked.waitMs, stopping, (until) => tasks.claim(name, { ...asked, ...until }))
    if (c.req.raw.signal.aborted) {
      // Should this fail, the leases run out by themselves.
      if (jobs.length > 0) await tasks.handBack(name, jobs).catch(() => {})
      throw gone()
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

  router.openapi(complete, async (c) => {
    const { name, id } = c.req.valid('param')
    const { token, output = null } = await field.readBody(c, Complete)
    await tasks.complete(name, id, token, output)
    return c.body(null, 204)
  })

  router.openapi(fail, async (c) => {
    const { name, id } = c.req.valid('param')
    const { token, error = 'It failed, and nothing was said of it' } = await field.readBody(c, Fail)
    await tasks.fail(name, id, token, error)
    return c.body(null, 204)
  })

  router.openapi(extend, async (c) => {
    const { name, id } = c.req.valid('param')
    const { token, ...rest } = await field.readBody(c, Extend)
    const expiresAt = await tasks.extend(name, id, token, defined(rest))
    return c.json({ expiresAt: expiresAt.toISOString() }, 200)
  })

  router.openapi(progress, async (c) => {
    const { name, id } = c.req.valid('param')
    const { token, fraction, note } = await field.readBody(c, Progress)
    await tasks.progress(name, id, token, fraction, note)
    return c.body(null, 204)
  })

  return router
}
