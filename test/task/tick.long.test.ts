/** Ticks where there is much to do, or soon. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'

let db: FreshDatabase
let lockstep: Lockstep
let tasks: Tasks
const errors: unknown[] = []

beforeAll(async () => {
  db = await freshDatabase()
  lockstep = createLockstep({ connectionString: db.url })
  tasks = createTasks(lockstep, { onError: (error) => errors.push(error) })
})
afterAll(async () => {
  await lockstep?.close()
  await db?.close()
})

test('a claim of one second whose worker died is had again in some seconds, though ticks come each 30 s', async () => {
  const running = tasks.define('running', () => {})
  await using _ticks = tasks.work(running)
  await tasks.run(running, null) // it ticks: the next regular tick is half a minute away
  await tasks.declare('claimed', { retryDelayMs: 0 })
  for (const leaseMs of [20_000, 1_000]) {
    await tasks.send('claimed', leaseMs)
    expect(await tasks.claim('claimed', { leaseMs })).toMatchObject([{ attempt: 1, data: leaseMs }])
  }
  expect(await tasks.claim('claimed', { waitMs: 15_000 })).toMatchObject([{ attempt: 2, data: 1_000 }])
  expect(errors).toEqual([])
}, 60_000)

test('3,000 new queues with a job each: the upkeep of all takes several ticks, and none of them fails', async () => {
  await tasks.declare('first')
  await db.pool.query(
    `insert into lockstep_boss.queue
     select (jsonb_populate_record(q, jsonb_build_object('name', 'new/' || i))).*
       from lockstep_boss.queue q, generate_series(1, 3000) i where q.name = 'first'`,
  )
  await db.pool.query(
    `insert into lockstep_boss.job_common (name) select name from lockstep_boss.queue where name like 'new/%'`,
  )
  const waiting = async () => {
    const { rows } = await db.pool.query(
      'select count(*)::integer as n from lockstep_boss.queue where maintain_on is null',
    )
    return rows[0].n as number
  }
  const left = [await waiting()]
  while ((left.at(-1) as number) > 0) {
    await tasks.tick({ budgetMs: 4_000 }) // rejects if it does not end in time
    left.push(await waiting())
    expect(left.at(-1)).toBeLessThan(left.at(-2) as number)
  }
  expect(left.length).toBeGreaterThan(2)
  expect(errors).toEqual([])
}, 120_000)
