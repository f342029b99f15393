/**
 * The clockwork over HTTP, for who runs no server of ours all day: whatever can send a request each minute is enough.
 *
 *     POST /v1/tick   { budgetMs? }   200 what was done
 *
 * A tick sends the slots that are due, does the upkeep of the queues (attempts whose workers fell silent, jobs that expired),
 * and works on the queues that have a handler in this process until nothing is left or the budget is spent. Any number of
 * ticks may run at once.
 *
 * A database that has not answered a second after the budget is a 503; what is under way there may be done all the same.
 *
 * It ends early when its caller hangs up or the server stops; jobs that run are then handed back. It touches all names:
 * a key that is bound to some of them may not tick.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi'
import type { Tasks } from '../../lib/task/index.ts'
import { body, covers, type Env, field, instant, json, NoQuery, needs, problems, waiting } from '../http/index.ts'
import { common } from './task-schemas.ts'

const Tick = field
  .strict({
    budgetMs: field
      .integer({ min: 100, max: 900_000 })
      .openapi({ default: 10_000, description: 'Begins no job, and hands back those that run, once so much is spent' })
      .optional(),
  })
  .openapi('Tick')

const Ticked = z
  .object({
    slots: z.int().openapi({ description: 'Of schedules, that were due and sent' }),
    jobs: z.int().openapi({ description: 'That ran here and are completed' }),
    failed: z.int().openapi({ description: 'Attempts that failed here' }),
    handedBack: z.int().openapi({ description: 'Jobs for which the budget was too small' }),
    ms: z.number(),
    nextAt: instant.nullable().openapi({ description: 'The next slot of any schedule' }),
  })
  .openapi('Ticked')

const tick = createRoute({
  ...common,
  method: 'post',
  path: '/',
  summary: 'Send what is due, do the upkeep, and work on the queues that have a handler here',
  middleware: [needs('tasks:write'), field.wellEncoded] as const,
  request: { query: NoQuery, body: body('Tick', false) },
  responses: { 200: json(Ticked, 'Done'), ...problems(400, 401, 403, 413, 500, 503) },
})

/** The router of `/v1/tick`. `stopping` ends a tick. */
export function tickRouter(tasks: Tasks, stopping?: AbortSignal): OpenAPIHono<Env> {
  const router = new OpenAPIHono<Env>({ defaultHook: field.checked })
  router.openAPIRegistry.register('Tick', Tick)

  router.openapi(tick, async (c) => {
    covers(c, '')
    const { budgetMs = 10_000 } = await field.readBody(c, Tick)
    const { nextAt, ...done } = await waiting(c, budgetMs, stopping, (until) => tasks.tick({ budgetMs, ...until }))
    return c.json({ ...done, nextAt: nextAt?.toISOString() ?? null }, 200)
  })

  return router
}
