/**
 * The tick over HTTP, for deployments without a server that runs all day: anything that can send a request each minute will do.
 *
 *     POST /v1/tick   { budgetMs? }   200 what was done
 *
 * A tick sends the slots that are due, does the upkeep of the queues (attempts whose workers fell silent, jobs that expired),
 * and works on the queues that have a handler in this process until nothing is left or the budget is spent. Any number of
 * ticks may run at once.
 *
 * A database that has not answered a second after the budget is a 503. The database may still do what it was asked.
 *
 * A tick ends early when its caller hangs up or the server stops; jobs that run are then handed back. It touches all names, so
 * a key with a prefix may not tick.
 */
import type { Tasks } from '../../lib/task/index.ts'
import { described, field, inTime, json, named, optional, Router, route, shape, waiting } from '../http/index.ts'

const Tick = named(
  'Tick',
  field.object({
    budgetMs: optional(field.integer({ min: 100, max: 900_000 }), {
      default: 10_000,
      description: 'After this time it begins no job, and hands back those that run',
    }),
  }),
)

const Ticked = named(
  'Ticked',
  shape.object({
    slots: described(shape.integer, 'Slots of schedules that were due and sent'),
    jobs: described(shape.integer, 'Jobs that ran here and are completed'),
    failed: described(shape.integer, 'Attempts that failed here'),
    handedBack: described(shape.integer, 'Jobs for which the budget was too small'),
    ms: shape.number,
    nextAt: described(shape.nullable(shape.instant), 'The next slot of any schedule'),
  }),
)

const tick = route({
  id: 'tick',
  tags: ['tasks'],
  method: 'post',
  path: '/',
  summary: 'Send what is due, do the upkeep, and work on the queues that have a handler here',
  scope: 'tasks:write',
  allNames: true,
  body: Tick,
  responses: { 200: json(Ticked, 'Done') },
})

/** The router of `/v1/tick`. `stopping` ends a tick. */
export function tickRouter(tasks: Tasks, stopping?: AbortSignal): Router {
  const router = new Router()

  router.on(tick, async (c, { body }) => {
    const { budgetMs } = inTime(c, { budgetMs: 10_000, ...body })
    const { nextAt, ...done } = await waiting(c, budgetMs, stopping, (until) => tasks.tick({ budgetMs, ...until }))
    return c.json({ ...done, nextAt: nextAt?.toISOString() ?? null }, 200)
  })

  return router
}
