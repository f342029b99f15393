/**
 * What a statement reads does not grow with what is stored, whatever the planner knows. Rows that were read are counted by the
 * server; nothing is timed. Vacuum and ANALYZE are off: the statistics say that there is one queue with one job.
 */
import pg from 'pg'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { byPlace } from '../../lib/task/pgboss/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

const WAITING = 20_000
let db: FreshDatabase

beforeAll(async () => {
  db = await freshDatabase()
  await db.pool.query('alter table lockstep_boss.job_common set (autovacuum_enabled = off)')
  await withTasks(async (tasks) => {
    await tasks.declare('known')
    await tasks.send('known', null)
    await db.pool.query('analyze lockstep_boss.job_common')
  })
})
afterAll(() => db?.close())

async function withTasks<T>(work: (tasks: Tasks) => Promise<T>): Promise<T> {
  const lockstep = createLockstep({ connectionString: db.url })
  try {
    return await work(createTasks(lockstep))
  } finally {
    await lockstep.close()
  }
}

/** On a connection that then ends: the server counts what it has read at once. */
async function write(text: string, values: unknown[] = []) {
  const client = new pg.Client({ connectionString: db.url })
  await client.connect()
  const result = await client.query(text, values)
  await client.end()
  return result
}

async function fill(queue: string, column = 'data', value = `'{}'`) {
  await write(
    `insert into lockstep_boss.job_common (name, policy, ${column})
     select $1, (select policy from lockstep_boss.queue where name = $1), ${value} from generate_series(1, ${WAITING}) i`,
    [queue],
  )
}

/** The rows of jobs that were read by indexes or scans in all transactions until now. A server process tells it when it ends. */
async function rowsRead(): Promise<number> {
  await until('the connections of Lockstep have ended', async () => {
    const { rows } = await db.pool.query(
      `select count(*)::integer as n from pg_stat_activity where datname = current_database() and application_name like 'lockstep%'`,
    )
    return rows[0].n === 0
  })
  const { rows } = await db.pool.query(
    `select coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) as n from pg_stat_user_tables
      where schemaname = 'lockstep_boss' and relname = 'job_common'`,
  )
  return Number(rows[0].n)
}

async function readBy(work: (tasks: Tasks) => Promise<unknown>): Promise<number> {
  const before = await rowsRead()
  await withTasks(work)
  return (await rowsRead()) - before
}

test('a claim from a queue that the planner does not know reads what it claims, and a completion what it completes', async () => {
  await withTasks((tasks) => tasks.declare('unknown'))
  await fill('unknown')
  let claimed: Awaited<ReturnType<Tasks['claim']>> = []
  const claiming = await readBy(async (tasks) => {
    claimed = await tasks.claim('unknown', { limit: 100 })
  })
  expect(claimed).toHaveLength(100)
  expect(claiming).toBeLessThan(1_000)
  // many attempts run: their state is no help in finding those that end
  await write(
    `update lockstep_boss.job_common set state = 'active', started_on = now(), heartbeat_on = now() where name = 'unknown'`,
  )
  const completing = await readBy((tasks) =>
    Promise.all(claimed.map(({ id, token }) => tasks.complete('unknown', id, token, 'done'))),
  )
  expect(completing).toBeLessThan(1_000)
  const { rows } = await db.pool.query(
    `select count(*)::integer as n from lockstep_boss.job_common where name = 'unknown' and state = 'completed'`,
  )
  expect(rows[0].n).toBe(100)
})

test('a completion that meets a change of its job ends it if its attempt goes on, and not if it was followed by another', async () => {
  await withTasks(async (tasks) => {
    for (const [next, ends] of [
      ['heartbeat_on = now()', true],
      ['retry_count = retry_count + 1', false],
    ] as const) {
      const id = (await tasks.send('known', null, { priority: 1 })) as string
      const [job] = await tasks.claim('known')
      expect(job?.id).toBe(id)
      const other = new pg.Client({ connectionString: db.url })
      await other.connect()
      await other.query('begin')
      await other.query(`update lockstep_boss.job_common set ${next} where id = $1`, [id])
      const completing = tasks.complete('known', id, job?.token as bigint, 'mine').then(
        () => true,
        () => false,
      )
      await until('the completion waits for the row', async () => {
        const { rows } = await db.pool.query(
          `select from pg_stat_activity where datname = current_database() and wait_event = 'transactionid'`,
        )
        return rows.length > 0
      })
      await other.query('commit')
      await other.end()
      expect(await completing).toBe(ends)
      expect(await tasks.get('known', id)).toMatchObject({ state: ends ? 'completed' : 'active' })
    }
  })
})

test.each([
  ['short', 5],
  ['singleton', 5],
  ['stately', 5],
  ['exclusive', 5],
] as const)('a claim from a queue of the policy %s reads what it claims', async (policy, jobs) => {
  await withTasks((tasks) => tasks.declare(policy, { policy }))
  await fill(policy, 'singleton_key', `'key ' || i`)
  const read = await readBy(async (tasks) => {
    expect(await tasks.claim(policy, { limit: jobs })).toHaveLength(jobs)
  })
  expect(read).toBeLessThan(1_000)
})

test.each([1, 2])('a worker that runs %i jobs of a group at a time reads what it runs', async (groupConcurrency) => {
  const queue = `groups-of-${groupConcurrency}`
  await withTasks((tasks) => tasks.declare(queue))
  await fill(queue, 'group_id', `'group ' || i / 2`)
  const ids = new Set<string>()
  const read = await readBy(async (tasks) => {
    const executeSql = async (text: string, values: unknown[] = []) => {
      const changed = byPlace(text)
      expect(changed).not.toBe(text)
      return write('select * from lockstep.fetch_jobs($1, $2)', [changed, values[0]])
    }
    const jobs = await bossOf(tasks).fetch(queue, { batchSize: 6, groupConcurrency, db: { executeSql } })
    for (const { id } of jobs) ids.add(id)
  })
  expect(ids.size).toBe(groupConcurrency === 1 ? 4 : 6)
  expect(read).toBeLessThan(1_000)
})

test('upkeep of queues that have no jobs takes as many statements for 2,000 as for 2, and an old job is deleted beside them', async () => {
  const own = await freshDatabase()
  try {
    const statements: string[] = []
    const query = pg.Client.prototype.query as (...args: unknown[]) => unknown
    vi.spyOn(pg.Client.prototype, 'query').mockImplementation(function (this: pg.Client, ...args: unknown[]) {
      const [first] = args as [string | { text: string }]
      statements.push(typeof first === 'string' ? first : first.text)
      return query.apply(this, args)
    } as never)
    const lockstep = createLockstep({ connectionString: own.url })
    const tasks = createTasks(lockstep)
    await tasks.declare('first')
    await tasks.send('first', null)
    await tasks.tick()
    const costs: number[] = []
    for (const queues of [2, 2_000]) {
      await own.pool.query(
        `insert into lockstep_boss.queue
         select (jsonb_populate_record(q, jsonb_build_object('name', $1::integer || '/' || i, 'maintain_on', null, 'queued_count', 0,
                                                             'ready_count', 0, 'active_count', 0, 'total_count', 0))).*
           from lockstep_boss.queue q, generate_series(1, $1) i where q.name = 'first'`,
        [queues],
      )
      await own.pool.query(`update lockstep_boss.job set keep_until = now() - interval '1 s' where name = 'first'`)
      await own.pool.query(`update lockstep_boss.queue set maintain_on = null where name = 'first'`)
      statements.length = 0
      await tasks.tick()
      costs.push(statements.length)
      const { rows } = await own.pool.query(
        'select count(*)::integer as n from lockstep_boss.queue where maintain_on is null',
      )
      expect(rows[0].n).toBe(0)
    }
    await lockstep.close()
    expect((await own.pool.query('select from lockstep_boss.job')).rowCount).toBe(0)
    // Beside the tick there are heartbeats. By portions of 50 queues it would be some hundreds.
    expect(costs[1]).toBeLessThanOrEqual((costs[0] as number) + 10)
  } finally {
    vi.restoreAllMocks()
    await own.close()
  }
})
