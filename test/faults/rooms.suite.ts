/**
 * The same as locks.test.ts, for tasks, events and time. Whichever statement fails, and in whatever way, every call settles; a job or
 * event that was acknowledged is there once, another one is there once or not at all; effects in the transactions of handlers
 * happen once; the same Lockstep goes on working; and nothing is left when it is closed.
 */
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { FAULTS as ALL, type Fault, wire } from '../support/faulty-wire.ts'
import { leftInProcess, leftOnServer, ofProcess, type ProcessResources } from '../support/resources.ts'
import { until } from '../support/until.ts'
import { settles } from './settles.ts'

let db: FreshDatabase
/** Of this process. */
let before: ProcessResources
beforeAll(async () => {
  before = await ofProcess()
  db = await freshDatabase()
  await db.pool.query('create table effect (run text, what text)')
})
afterAll(async () => {
  await db?.close()
  expect(await leftInProcess(before)).toEqual([])
})

const STATES = ['53200', '57014', '40001', 'XX000', '53100', '40P01', '55P03', '08006']
// Here an error means that the statement had no effect: the server rolls back a statement that it reports as failed.
const FAULTS = ALL.filter((fault) => fault !== 'after')
const many = (count: number) => Array.from({ length: count }, (_, i) => String(i))

interface Stage {
  a: Lockstep
  tasks: Tasks
  events: Events
  /** A name for the queues, streams and groups of this run. */
  name: string
}
/** What a scenario does during the faults, and what must be true when they are over. */
type Scenario = (stage: Stage) => Promise<{ act: () => Promise<unknown>; check: () => Promise<unknown> }>

const jobs = async (queue: string) =>
  (await db.pool.query('select state, data from lockstep_boss.job where name = $1', [queue])).rows
const positions = async (stream: string) => {
  const { rows } = await db.pool.query(
    `select e.position::int as position, e.type from lockstep.event e join lockstep.stream s on s.id = e.stream
      where s.name = $1 order by e.position`,
    [stream],
  )
  return rows as { position: number; type: string }[]
}
const effects = async (run: string) =>
  (await db.pool.query('select what from effect where run = $1 order by what', [run])).rows.map(({ what }) => what)

/** Checks that everything that was acknowledged is there once, and nothing is there twice. */
function once(acknowledged: PromiseSettledResult<unknown>[], there: string[]) {
  expect(new Set(there).size).toBe(there.length)
  for (const [i, { status }] of acknowledged.entries()) {
    if (status === 'fulfilled') expect(there).toContain(String(i))
  }
}

const SCENARIOS: Record<string, Scenario> = {
  'jobs sent at once': async ({ tasks, name }) => {
    await tasks.declare(name)
    let sent: PromiseSettledResult<unknown>[] = []
    return {
      act: async () => {
        sent = await Promise.allSettled(many(40).map((n) => tasks.send(name, n)))
      },
      check: async () =>
        once(
          sent,
          (await jobs(name)).map(({ data }) => data),
        ),
    }
  },
  'a queue declared, and a job sent in a transaction': async ({ a, tasks, name }) => {
    let sent: PromiseSettledResult<unknown>[] = []
    return {
      act: async () => {
        const both = async () => {
          await tasks.declare(name)
          await a.kysely.transaction().execute(async (trx) => {
            await trx.insertInto('effect').values({ run: name, what: '0' }).execute()
            await tasks.send(name, '0', { trx })
          })
        }
        sent = await Promise.allSettled([both()])
      },
      check: async () => {
        once(
          sent,
          (await jobs(name)).map(({ data }) => data),
        )
        expect(await effects(name)).toEqual((await jobs(name)).map(({ data }) => data))
      },
    }
  },
  'a transactional job run and waited for': async ({ tasks, name }) => {
    tasks.define(
      name,
      async (what: string, { trx }) => void (await trx.insertInto('effect').values({ run: name, what }).execute()),
      { transactional: true, retryDelayMs: 0, retryLimit: 5, expireInMs: 3_000 },
    )
    await tasks.declare(name)
    const worker = tasks.work(name)
    return {
      act: () => Promise.allSettled(many(5).map((n) => tasks.run(name, n, { waitMs: 2_000 }))),
      check: async () => {
        // a fetch whose answer was lost expires, and a tick finds it
        await until('all is done', async () => {
          await tasks.tick({ budgetMs: 5_000 }).catch(() => {})
          return (await jobs(name)).every(({ state }) => state === 'completed')
        })
        const there = (await jobs(name)).map(({ data }) => data).sort()
        expect(await effects(name)).toEqual(there)
        await worker.stop()
      },
    }
  },
  'a job claimed, kept and completed': async ({ tasks, name }) => {
    await tasks.declare(name, { heartbeatMs: 10_000 }) // after that time a claim whose answer was lost is found
    await tasks.send(name, 'x')
    return {
      act: async () => {
        const [job] = await tasks.claim(name, { leaseMs: 3_000 })
        if (!job) throw new Error('nothing to claim')
        await tasks.extend(name, job.id, job.token, { leaseMs: 3_000 })
        await tasks.progress(name, job.id, job.token, 0.5)
        await tasks.complete(name, job.id, job.token, 'done')
      },
      check: async () => {
        await until('it is done', async () => {
          await tasks.tick({ budgetMs: 5_000 }).catch(() => {})
          const [job] = await tasks.claim(name)
          if (job) await tasks.complete(name, job.id, job.token, 'done')
          return (await jobs(name)).every(({ state }) => state === 'completed')
        })
        expect(await jobs(name)).toHaveLength(1)
      },
    }
  },
  'the slot of a schedule, by two ticks at once': async ({ tasks, name }) => {
    await tasks.declare(name)
    await tasks.schedule(name, '0 0 1 1 *', { queue: name, missed: 'all' })
    await db.pool.query(`update lockstep.schedule set next_at = '2026-01-01T00:00:00Z' where name = $1`, [name])
    return {
      act: () => Promise.allSettled([tasks.tick({ budgetMs: 5_000 }), tasks.tick({ budgetMs: 5_000 })]),
      check: async () => {
        await until('the slot was sent', async () => {
          await tasks.tick({ budgetMs: 5_000 })
          return (await jobs(name)).length > 0
        })
        await tasks.tick({ budgetMs: 5_000 })
        expect(await jobs(name)).toHaveLength(1)
        await tasks.unschedule(name)
      },
    }
  },
  'appends to many streams at once, and to one': async ({ events, name }) => {
    let one: PromiseSettledResult<unknown>[] = []
    return {
      act: async () => {
        const others = Promise.allSettled(many(20).map((n) => events.append(`${name} ${n}`, { type: 'x' })))
        one = await Promise.allSettled(many(20).map((n) => events.append(name, { type: n })))
        await others
      },
      check: async () => {
        const there = await positions(name)
        once(
          one,
          there.map(({ type }) => type),
        )
        expect(there.map(({ position }) => position)).toEqual(there.map((_, i) => i + 1))
        for (const n of many(20)) expect((await positions(`${name} ${n}`)).length).toBeLessThanOrEqual(1)
      },
    }
  },
  'an append with an id, made again until it is answered': async ({ events, name }) => {
    await events.append(name, { type: 'first' })
    const id = crypto.randomUUID()
    return {
      act: async () => {
        for (let i = 0; i < 5; i++) {
          const done = await events.append(name, { type: '0', id }, { expected: 'any' }).then(
            () => true,
            () => false,
          )
          if (done) return
        }
      },
      check: async () => expect((await positions(name)).map(({ type }) => type)).toEqual(['first', '0']),
    }
  },
  'an append in a transaction': async ({ a, events, name }) => {
    return {
      act: () =>
        a.kysely.transaction().execute(async (trx) => {
          await trx.insertInto('effect').values({ run: name, what: '0' }).execute()
          await events.append(name, { type: '0' }, { trx })
        }),
      check: async () => expect((await positions(name)).map(({ type }) => type)).toEqual(await effects(name)),
    }
  },
  'a follower': async ({ events, name }) => {
    for (const n of many(5)) await events.append(name, { type: n })
    const seen: string[] = []
    const stop = new AbortController()
    const follow = async () => {
      for await (const { type } of events.subscribe({ stream: name, from: 1n, signal: stop.signal })) seen.push(type)
    }
    let following: Promise<unknown> | undefined
    return {
      act: async () => {
        following = follow().catch((error) => error)
        await Promise.race([until('the first', () => seen.length > 0), following])
        for (const n of many(5)) await events.append(name, { type: n }).catch(() => {})
      },
      check: async () => {
        await events.append(name, { type: 'last' })
        const there = (await positions(name)).map(({ type }) => type)
        await Promise.race([until('all', () => seen.length >= there.length), following])
        if (seen.length < there.length) {
          // it had not begun: the first read could not reach the database, and rejected
          expect(await following).toMatchObject({ message: expect.any(String) })
          expect(seen).toEqual(there.slice(0, seen.length))
        } else expect(seen).toEqual(there)
        stop.abort(new Error('enough'))
        await following
      },
    }
  },
  'a consumer whose handler writes in its transaction': async ({ events, name }) => {
    for (const n of many(5)) await events.append(name, { type: n })
    await events.declareGroup(name, { prefix: name, partitions: 2, from: 1n, retryDelayMs: 100 })
    let consumer: ReturnType<Events['consume']> | undefined
    const begin = () =>
      events.consume(name, { ttlMs: 2_000 }, async ({ type }, { trx }) => {
        await trx.insertInto('effect').values({ run: name, what: type }).execute()
      })
    return {
      act: async () => {
        consumer = begin()
        await Promise.race([
          until('all', async () => (await effects(name)).length === 5),
          new Promise((resolve) => setTimeout(resolve, 1_500)),
        ])
      },
      check: async () => {
        await until('all', async () => {
          await events.redeliver(name).catch(() => {})
          return (await effects(name)).length === 5
        })
        await consumer?.stop()
        expect(await effects(name)).toEqual(many(5))
        await events.deleteGroup(name)
      },
    }
  },
  'time, measured': async ({ a }) => ({
    act: () => Promise.allSettled([a.time.ready(), a.time.tick()]),
    check: async () => {
      await until('it can be asked again', () =>
        a.time.ready().then(
          () => true,
          () => false,
        ),
      )
      const [first, second] = [await a.time.tick(), await a.time.tick()]
      expect(second > first).toBe(true)
    },
  }),
}

let runs = 0

async function run(scenario: Scenario, fault?: { nth: number; fault: Fault; sqlState: string }) {
  const application = `rooms-${runs++}`
  await using line = await wire(db.url)
  const a = createLockstep({ connectionString: line.url, applicationName: application })
  const tasks = createTasks(a, { onError: () => {} })
  const events = createEvents(a, { onError: () => {} })
  try {
    const { act, check } = await scenario({ a, tasks, events, name: application })
    line.arm(fault)
    await settles(
      'the verb',
      act().catch(() => {}),
    )
    const { length } = line.statements
    line.arm()
    await settles('what must be true', check())
    return length
  } finally {
    await settles('close', a.close())
    expect(await leftOnServer(db.url, application)).toEqual([])
  }
}

/** The scenarios that `npm test` runs: the others need minutes. */
const SHORT = ['jobs sent at once', 'an append in a transaction']

/** Registers the tests of the scenarios that `npm test` runs, or those of all others. */
export function faultsOfRooms(which: 'short' | 'others'): void {
  const chosen = Object.entries(SCENARIOS).filter(([label]) => SHORT.includes(label) === (which === 'short'))
  describe.each(chosen)('%s', (label, scenario) => {
    test.each(FAULTS)('whichever of the statements meets: %s', { timeout: 300_000 }, async (fault) => {
      const length = await run(scenario)
      expect(length).toBeGreaterThan(0)
      const cases = Array.from({ length: Math.min(length, 8) }, (_, i) => ({
        nth: i + 1,
        fault,
        sqlState: STATES[(i + FAULTS.indexOf(fault) + label.length) % STATES.length] as string,
      }))
      const failures: string[] = []
      while (cases.length > 0) {
        await Promise.all(
          cases.splice(0, 8).map(async (each) => {
            try {
              await run(scenario, each)
            } catch (error) {
              const { message, stack } = error as Error
              failures.push(`${JSON.stringify(each)}: ${message} ${/rooms.suite.ts:\d+/.exec(stack ?? '')}`)
            }
          }),
        )
      }
      expect(failures).toEqual([])
    })
  })
}

test('the wire is real: without a fault it changes nothing', async () => {
  await using line = await wire(db.url)
  const client = new pg.Client({ connectionString: line.url })
  await client.connect()
  expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }])
  await client.end()
})
