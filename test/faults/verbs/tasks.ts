/** The verbs of tasks. */
import { expect } from 'vitest'
import { createTasks } from '../../../lib/task/index.ts'
import { until } from '../../support/until.ts'
import type { Stage, Verb } from './verb.ts'

const jobs = async ({ pool, name }: Stage) =>
  (await pool.query('select id, state from lockstep_boss.job where name = $1', [name])).rows as {
    id: string
    state: string
  }[]
/** A job whose send failed may have been sent: then there are two of the two sends. */
const sentOnce = async (s: Stage) => {
  const { length } = await jobs(s)
  expect(length).toBeGreaterThanOrEqual(1)
  expect(length).toBeLessThanOrEqual(2)
}
const declared = (s: Stage) => s.b.tasks.declare(s.name, { retryLimit: 3, heartbeatMs: 10_000 })
/** A job of the queue that another process has claimed. */
const claimed = async (s: Stage) => {
  await declared(s)
  await s.b.tasks.send(s.name, 1)
  const [job] = await s.b.tasks.claim(s.name, { leaseMs: 60_000 })
  if (!job) throw new Error('nothing to claim')
  return job
}
const stateOf = async (s: Stage) => (await jobs(s)).map(({ state }) => state)
/** A worker of the other process. */
const working = async (s: Stage) => {
  s.b.tasks.define(s.name, (data: number) => data + 1, { retryLimit: 3 })
  await declared(s)
  const worker = s.b.tasks.work(s.name)
  await until('it is heard of', async () => (await s.b.tasks.broadcast(s.name, 0)).length > 0)
  return worker
}

export const TASKS: Record<string, Verb> = {
  define: async (s) => {
    s.a.tasks.define(s.name, () => {}, { retryLimit: 3 }) // the first statement of the queue makes it
    return {
      act: () => s.a.tasks.send(s.name, 1),
      is: (id) => expect(id).toBeTypeOf('string'),
      afterwards: () => sentOnce(s),
    }
  },
  declare: (s) => ({
    act: () => s.a.tasks.declare(s.name),
    is: (answer) => expect(answer).toBeTypeOf('boolean'),
    afterwards: async () => expect(await s.b.tasks.queues({ prefix: s.name })).toEqual([s.name]),
  }),
  queues: async (s) => {
    await declared(s)
    return { act: () => s.a.tasks.queues({ prefix: s.name }), is: (answer) => expect(answer).toEqual([s.name]) }
  },
  send: async (s) => {
    await declared(s)
    return {
      act: () => s.a.tasks.send(s.name, 1),
      is: (id) => expect(id).toBeTypeOf('string'),
      afterwards: () => sentOnce(s),
    }
  },
  sendAll: async (s) => {
    await declared(s)
    return {
      act: () => s.a.tasks.sendAll(s.name, [{ data: 1 }, { data: 2 }]),
      is: (ids) => expect(ids).toHaveLength(2),
      afterwards: async () => expect([2, 4]).toContain((await jobs(s)).length), // both or none
    }
  },
  run: async (s) => {
    await working(s)
    return { act: () => s.a.tasks.run(s.name, 1, { waitMs: 10_000 }), is: (answer) => expect(answer).toBe(2) }
  },
  outcome: async (s) => {
    await working(s)
    return {
      act: () => s.a.tasks.outcome(s.name, 1, { waitMs: 10_000 }),
      is: (answer) => expect(answer).toMatchObject({ state: 'completed', output: 2 }),
    }
  },
  broadcast: async (s) => {
    await working(s)
    return { act: () => s.a.tasks.broadcast(s.name, 1), is: (answer) => expect(answer).toHaveLength(1) }
  },
  work: async (s) => {
    const seen: number[] = []
    s.a.tasks.define(s.name, (n: number) => void seen.push(n), { retryLimit: 3, retryDelayMs: 0, expireInMs: 2_000 })
    await declared(s)
    await s.b.tasks.send(s.name, 7)
    return {
      async act() {
        const worker = s.a.tasks.work(s.name)
        await until('it is done', async () => {
          await s.b.tasks.tick({ budgetMs: 500 }).catch(() => {})
          return (await stateOf(s)).every((state) => state === 'completed')
        })
        await worker.stop()
      },
      afterwards: async () => expect(seen).toContain(7),
    }
  },
  drain: async (s) => {
    s.a.tasks.define(s.name, () => 'done', { retryLimit: 3, retryDelayMs: 0 })
    await declared(s)
    await s.b.tasks.send(s.name, 1)
    return {
      act: () => s.a.tasks.drain({ budgetMs: 2_000, queues: [s.name] }),
      is: (answer) => expect(answer).toMatchObject({ failed: 0 }),
    }
  },
  tick: (s) => ({
    act: () => s.a.tasks.tick({ budgetMs: 500 }),
    is: (answer) => expect(answer).toMatchObject({ slots: expect.any(Number) }),
  }),
  get: async (s) => {
    await declared(s)
    const id = (await s.b.tasks.send(s.name, 1)) as string
    return {
      act: () => s.a.tasks.get(s.name, id),
      is: (answer) => expect(answer).toMatchObject({ id, state: 'created' }),
    }
  },
  cancel: async (s) => {
    await declared(s)
    const id = (await s.b.tasks.send(s.name, 1)) as string
    return {
      act: () => s.a.tasks.cancel(s.name, id),
      is: (answer) => expect(answer).toBeTypeOf('boolean'), // false: it was cancelled before the fault
      afterwards: async () => expect(await stateOf(s)).toEqual(['cancelled']),
    }
  },
  counts: async (s) => {
    await declared(s)
    await s.b.tasks.send(s.name, 1)
    return {
      act: () => s.a.tasks.counts(s.name),
      is: (answer) => expect(answer).toMatchObject({ queue: s.name, ready: 1 }),
    }
  },
  schedule: async (s) => {
    await declared(s)
    return {
      act: () => s.a.tasks.schedule(s.name, '0 0 1 1 *', { queue: s.name }),
      is: (answer) => expect(answer).toBeTypeOf('boolean'),
      afterwards: async () => expect(await s.b.tasks.getSchedule(s.name)).toMatchObject({ cron: '0 0 1 1 *' }),
    }
  },
  unschedule: async (s) => {
    await declared(s)
    await s.b.tasks.schedule(s.name, '0 0 1 1 *', { queue: s.name })
    return {
      act: () => s.a.tasks.unschedule(s.name),
      is: (answer) => expect(answer).toBeTypeOf('boolean'),
      afterwards: async () => expect(await s.b.tasks.getSchedule(s.name)).toBeNull(),
    }
  },
  ...Object.fromEntries(
    (['getSchedule', 'scheduled'] as const).map((verb): [string, Verb] => [
      verb,
      async (s) => {
        await declared(s)
        await s.b.tasks.schedule(s.name, '0 0 1 1 *', { queue: s.name })
        return { act: () => s.a.tasks[verb](s.name), is: (answer) => expect(answer).toMatchObject({ queue: s.name }) }
      },
    ]),
  ),
  schedules: async (s) => {
    await declared(s)
    await s.b.tasks.schedule(s.name, '0 0 1 1 *', { queue: s.name })
    return {
      act: () => s.a.tasks.schedules({ prefix: s.name }),
      is: (answer) => expect(answer).toMatchObject([{ name: s.name }]),
    }
  },
  claim: async (s) => {
    await declared(s)
    await s.b.tasks.send(s.name, 1)
    return {
      act: () => s.a.tasks.claim(s.name),
      // A claim whose answer was lost is found by its heartbeat.
      is: (answer) => expect((answer as unknown[]).length).toBeLessThanOrEqual(1),
      afterwards: async () => expect(['active', 'retry']).toContain((await stateOf(s))[0]), // or it was handed back
    }
  },
  complete: async (s) => {
    const { id, token } = await claimed(s)
    return {
      act: () => s.a.tasks.complete(s.name, id, token, 'done'),
      afterwards: async () => expect(await stateOf(s)).toEqual(['completed']),
    }
  },
  fail: async (s) => {
    const { id, token } = await claimed(s)
    return {
      act: () => s.a.tasks.fail(s.name, id, token, new Error('as it shall')),
      afterwards: async () => expect(await stateOf(s)).toEqual(['retry']),
    }
  },
  extend: async (s) => {
    const { id, token } = await claimed(s)
    return {
      act: () => s.a.tasks.extend(s.name, id, token, { leaseMs: 90_000 }),
      is: (answer) => expect(+(answer as Date)).toBeGreaterThan(Date.now() + 60_000),
    }
  },
  progress: async (s) => {
    const { id, token } = await claimed(s)
    return {
      act: () => s.a.tasks.progress(s.name, id, token, 0.5, 'half'),
      afterwards: async () => expect(await s.b.tasks.get(s.name, id)).toMatchObject({ progress: { fraction: 0.5 } }),
    }
  },
  handBack: async (s) => {
    const { id, token } = await claimed(s)
    return {
      act: () => s.a.tasks.handBack(s.name, [{ id, token }]),
      afterwards: async () => expect(await stateOf(s)).toEqual(['retry']),
    }
  },
  close: async (s) => {
    await declared(s)
    return {
      act: async () => {
        const tasks = createTasks(s.a.lockstep, { onError: () => {} })
        tasks.define(s.name, () => {})
        tasks.work(s.name)
        await tasks.close()
      },
    }
  },
}
