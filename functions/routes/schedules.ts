/**
 * Schedules over HTTP: a cron expression that sends a job to a queue at each of its slots.
 *
 *     PUT    /v1/schedules/{name}   schedule    201 made · 200 changed
 *     GET    /v1/schedules/{name}   look        200, with the slots that come next
 *     DELETE /v1/schedules/{name}   unschedule  204
 *     GET    /v1/schedules          list        200
 *
 * Somebody has to tick (tick.ts): a server of our own does. What is due then is sent, each slot once, however many tick.
 *
 * A key that is bound to names must be for the schedule's and for its queue's, or it could send where it may not.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { Schedule, Tasks } from '../../lib/task/index.ts'
import {
  body,
  covers,
  defined,
  type Env,
  field,
  instant,
  json,
  List,
  listable,
  Name,
  NoQuery,
  needs,
  next,
  nextOf,
  Problem,
  problems,
} from '../http/index.ts'
import { common } from './task-schemas.ts'

const Put = field
  .strict({
    queue: field.queue,
    cron: field.text({ min: 1, max: 255 }).openapi({ example: '30 2 * * *' }),
    timezone: field.text({ min: 1, max: 255 }).openapi({ default: 'UTC', example: 'Europe/Berlin' }).optional(),
    data: field.json.openapi({ default: null }).optional(),
    missed: field
      .word('skip', 'once', 'all')
      .openapi({ default: 'once', description: 'Of slots that were due while nobody ticked: none, the last, or each' })
      .optional(),
  })
  .openapi('PutSchedule')

const Listed = z
  .object({
    name: z.string(),
    queue: z.string(),
    cron: z.string(),
    timezone: z.string(),
    data: z.any(),
    missed: z.enum(['skip', 'once', 'all']),
    nextAt: instant.nullable().openapi({ description: 'null: there is none any more, or it cannot be told (`error`)' }),
    lastSlot: instant.nullable().openapi({ description: 'That was sent' }),
    lastJob: z.uuid().nullable(),
    missedSlots: z.int().openapi({ description: 'Due while nobody ticked, and not sent' }),
    lastMissed: instant.nullable(),
    error: z.string().nullable().openapi({ description: 'Why the last slot could not be sent' }),
    createdAt: instant,
    updatedAt: instant,
  })
  .openapi('Schedule')

const State = Listed.extend({
  upcoming: z.array(instant).openapi({ description: 'The next five slots; none: they cannot be told' }),
}).openapi('ScheduleState')

const States = z.object({ schedules: z.array(Listed), next }).openapi('ScheduleList')

const scheduling = { ...common, tags: ['schedules'] }

const put = createRoute({
  ...scheduling,
  method: 'put',
  path: '/{name}',
  summary: 'Make a schedule, or change it',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery, body: body('PutSchedule', true) },
  responses: {
    201: json(State, 'Made'),
    200: json(State, 'Changed'),
    ...problems(400, 401, 403, 404, 413, 500, 503),
  },
})

const look = createRoute({
  ...scheduling,
  method: 'get',
  path: '/{name}',
  summary: 'Look at a schedule, and at the slots that come next',
  middleware: [needs('tasks:read'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery },
  responses: { 200: json(State, 'As of now'), ...problems(400, 401, 403, 404, 500, 503) },
})

const remove = createRoute({
  ...scheduling,
  method: 'delete',
  path: '/{name}',
  summary: 'Remove a schedule. Jobs that it sent stay',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { params: Name, query: NoQuery },
  responses: { 204: { description: 'Removed' }, ...problems(400, 401, 403, 404, 500, 503) },
})

const list = createRoute({
  ...scheduling,
  method: 'get',
  path: '/',
  summary: 'List schedules by name',
  middleware: [needs('tasks:read'), field.wellEncoded] as const,
  request: { query: List },
  responses: { 200: json(States, 'A page'), ...problems(400, 401, 403, 500, 503) },
})

/** The router of `/v1/schedules`. */
export function scheduleRouter(tasks: Tasks): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  router.openAPIRegistry.register('PutSchedule', Put)

  const state = async (name: string) => {
    const schedule = await tasks.scheduled(name)
    if (schedule === null) throw none(name)
    return { ...shown(schedule), upcoming: upcoming(schedule).map((slot) => slot.toISOString()) }
  }
  const upcoming = ({ cron, timezone }: Schedule): Date[] => {
    try {
      return tasks.preview(cron, timezone, 5)
    } catch {
      return [] // it was told to another process, which knew the time zone
    }
  }

  router.openapi(put, async (c) => {
    const { name } = c.req.valid('param')
    const { cron, ...options } = await field.readBody(c, Put)
    covers(c, options.queue)
    const made = await tasks.schedule(name, cron, defined(options))
    return c.json(await state(name), made ? 201 : 200)
  })

  router.openapi(look, async (c) => c.json(await state(c.req.valid('param').name), 200))

  router.openapi(remove, async (c) => {
    const { name } = c.req.valid('param')
    if (!(await tasks.unschedule(name))) throw none(name)
    return c.body(null, 204)
  })

  router.openapi(list, async (c) => {
    const { prefix = '', limit = 100, after } = c.req.valid('query')
    const page = await tasks.schedules({ prefix: listable(c, prefix), limit, ...(after !== undefined && { after }) })
    return c.json({ schedules: page.map(shown), next: nextOf(page, limit) }, 200)
  })

  return router
}

function shown({ nextAt, lastSlot, lastMissed, createdAt, updatedAt, ...rest }: Schedule) {
  return {
    ...rest,
    nextAt: nextAt?.toISOString() ?? null,
    lastSlot: lastSlot?.toISOString() ?? null,
    lastMissed: lastMissed?.toISOString() ?? null,
    createdAt: createdAt.toISOString(),
    updatedAt: updatedAt.toISOString(),
  }
}

function none(name: string): Problem {
  return new Problem(404, 'NOT_FOUND', `There is no schedule ${JSON.stringify(name)}`)
}
