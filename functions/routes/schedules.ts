/**
 * Schedules over HTTP: a cron expression that sends a job to a queue at each of its slots.
 *
 *     PUT    /v1/schedules/{name}   schedule    201 made · 200 changed
 *     GET    /v1/schedules/{name}   get         200, with the next slots
 *     DELETE /v1/schedules/{name}   unschedule  204
 *     GET    /v1/schedules          list        200
 *
 * Schedules need ticks (tick.ts); a server of ours ticks by itself. A tick sends the slots that are due, each of them once,
 * however many processes tick.
 *
 * A key with a prefix must be for the schedule's name and for its queue's, or it could send where it may not.
 */
import { LIMITS } from '../../lib/index.ts'
import type { Schedule, Tasks } from '../../lib/task/index.ts'
import {
  covers,
  described,
  field,
  json,
  List,
  listable,
  Name,
  named,
  optional,
  Problem,
  pageOf,
  problemResponses,
  Router,
  route,
  shape,
} from '../http/index.ts'

const Put = named(
  'PutSchedule',
  field.object({
    queue: field.queue,
    cron: described(field.text({ min: 1, max: 255 }), {
      description:
        'minute hour day month weekday; with six fields the first is the second. Also L, L-3, LW, 15W, 5L, MON#1, @daily. A fixed time that is skipped when the clocks change comes once, at the end of the gap; one that is repeated comes the first time; what begins with * in minute or hour follows the clock on the wall',
      example: '30 2 * * *',
    }),
    timezone: optional(field.text({ min: 1, max: 255 }), { default: 'UTC', example: 'Europe/Berlin' }),
    data: optional(field.json, { default: null }),
    missed: optional(field.word('skip', 'once', 'all'), {
      default: 'once',
      description: 'Which slots to send that were due while nothing ticked: none, the last, or each',
    }),
  }),
)

const Listed = named(
  'Schedule',
  shape.object({
    name: shape.string,
    queue: shape.string,
    cron: shape.string,
    timezone: shape.string,
    data: shape.any,
    missed: shape.word('skip', 'once', 'all'),
    nextAt: described(shape.nullable(shape.instant), 'null: there is none any more, or it is not known (`error`)'),
    lastSlot: described(shape.nullable(shape.instant), 'The last slot that was sent'),
    lastJob: shape.nullable(shape.uuid),
    missedSlots: described(shape.integer, 'Slots that were due while nothing ticked, and were not sent'),
    lastMissed: shape.nullable(shape.instant),
    error: described(shape.nullable(shape.string), 'Why the last slot could not be sent'),
    createdAt: shape.instant,
    updatedAt: shape.instant,
  }),
)

const State = named(
  'ScheduleState',
  shape.extended(Listed, {
    upcoming: described(shape.array(shape.instant), 'The next five slots; none: they are not known'),
  }),
)

const States = named('ScheduleList', shape.object({ schedules: shape.array(Listed), next: shape.next }))

const put = route({
  id: 'putSchedule',
  tags: ['schedules'],
  method: 'put',
  path: '/{name}',
  summary: 'Make a schedule, or change it',
  scope: 'tasks:write',
  params: Name,
  body: Put,
  responses: {
    201: json(State, 'Made'),
    200: json(State, 'Changed'),
    ...problemResponses(404),
  },
})

const look = route({
  id: 'getSchedule',
  tags: ['schedules'],
  method: 'get',
  path: '/{name}',
  summary: 'Look at a schedule, and at the slots that come next',
  scope: 'tasks:read',
  params: Name,
  responses: { 200: json(State, 'As of now'), ...problemResponses(404) },
})

const remove = route({
  id: 'deleteSchedule',
  tags: ['schedules'],
  method: 'delete',
  path: '/{name}',
  summary: 'Remove a schedule. Jobs that it sent stay',
  scope: 'tasks:write',
  params: Name,
  responses: { 204: { description: 'Removed' }, ...problemResponses(404) },
})

const list = route({
  id: 'listSchedules',
  tags: ['schedules'],
  method: 'get',
  path: '/',
  summary: 'List schedules by name',
  scope: 'tasks:read',
  query: List,
  responses: { 200: json(States, 'A page') },
})

/** The router of `/v1/schedules`. */
export function scheduleRouter(tasks: Tasks): Router {
  const router = new Router()

  const state = async (name: string) => {
    const schedule = await tasks.scheduled(name)
    if (schedule === null) throw none(name)
    return { ...scheduleJson(schedule), upcoming: upcoming(schedule).map((slot) => slot.toISOString()) }
  }
  const upcoming = ({ cron, timezone }: Schedule): Date[] => {
    try {
      return tasks.preview(cron, timezone, 5)
    } catch {
      return [] // another process stored it, which knew the time zone
    }
  }

  router.on(put, async (c, { params: { name }, body: { cron, ...options } }) => {
    covers(c, options.queue)
    const made = await tasks.schedule(name, cron, options)
    return c.json(await state(name), made ? 201 : 200)
  })

  router.on(look, async (c, { params }) => c.json(await state(params.name), 200))

  router.on(remove, async (c, { params: { name } }) => {
    if (!(await tasks.unschedule(name))) throw none(name)
    return c.body(null, 204)
  })

  router.on(list, async (c, { query: { prefix = '', limit = 100, ...after } }) => {
    const asked = { prefix: listable(c, prefix), maxBytes: LIMITS.answerBytes }
    const { page, next } = pageOf((await tasks.schedules({ ...asked, limit, ...after })).map(scheduleJson), limit)
    const last = page.at(-1)?.name
    // A page that is not full may have ended at its bytes.
    const goesOn =
      next === null && last !== undefined && (await tasks.schedules({ ...asked, limit: 1, after: last })).length > 0
    return c.json({ schedules: page, next: goesOn ? last : next }, 200)
  })

  return router
}

function scheduleJson({ nextAt, lastSlot, lastMissed, createdAt, updatedAt, ...rest }: Schedule) {
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
