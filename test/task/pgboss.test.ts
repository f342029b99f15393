/** That pg-boss is what we assume: its tables, its channel, its types, what it can do and what it cannot; and that we touch no other pg-boss. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { sql } from 'kysely'
import { type ConstructorOptions, getConstructionPlans, type Job, PgBoss, TestClock } from 'pg-boss'
import { describe, expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { type Claimed, createTasks, type DeclareOptions } from '../../lib/task/index.ts'
import { QUEUE_CHANNEL } from '../../lib/task/job/attempts.ts'
import { BOSS_SCHEMA } from '../../lib/task/pgboss/adapter.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { freshDatabase } from '../support/database.ts'
import { standardIfOdd } from '../support/odd.ts'
import { until } from '../support/until.ts'

/** A queue of ours, and the pg-boss behind it. */
async function both(options: DeclareOptions = {}) {
  const db = await freshDatabase()
  const lockstep = createLockstep({ connectionString: db.url })
  const tasks = createTasks(lockstep)
  const queue = 'both'
  await tasks.declare(queue, options)
  const end = async () => {
    await lockstep.close()
    await db.close()
  }
  return { db, tasks, queue, boss: bossOf(tasks), [Symbol.asyncDispose]: end }
}

/** A pg-boss with its own workers, on our schema. */
function newBoss(options: ConstructorOptions): PgBoss {
  const boss = new PgBoss({
    ...{ schema: BOSS_SCHEMA, migrate: false, supervise: false, schedule: false, registerInstance: false },
    ...options,
  })
  boss.on('error', () => {})
  return boss
}
async function startBoss(connectionString: string): Promise<PgBoss> {
  const boss = newBoss(standardIfOdd(connectionString))
  await boss.start()
  return boss
}

const migration = path.join(import.meta.dirname, '../../db/migrations/0003_boss.sql')

test('its migration is what this version of the package prints', () => {
  const statements = (text: string) =>
    text
      .split('\n')
      .filter(
        (line) => !/^\s*(BEGIN|COMMIT|SET LOCAL \w+ = \d+);$|pg_advisory_xact_lock\(\('x'|CREATE SCHEMA/.test(line),
      )
      .map((line) => line.trim())
      .filter((line) => line !== '')
  const ours = fs.readFileSync(migration, 'utf8')
  const body = ours.slice(ours.indexOf('end $$;') + 'end $$;'.length)
  expect(statements(body)).toEqual(statements(getConstructionPlans(BOSS_SCHEMA)))
})

test('the package finds its own schema version there, and nothing to do', async () => {
  await using db = await freshDatabase()
  const boss = new PgBoss({
    ...standardIfOdd(db.url),
    schema: BOSS_SCHEMA,
    migrate: false,
    supervise: false,
    schedule: false,
  })
  boss.on('error', () => {})
  await boss.start() // throws when the schema is another
  expect(await boss.schemaVersion()).toBeGreaterThan(0)
  await boss.stop({ graceful: false })
})

test('it notifies of work on the channel that we listen to', async () => {
  await using db = await freshDatabase()
  const { rows } = await db.pool.query(
    `select 'pgboss_' || left(encode(sha224('${BOSS_SCHEMA}'::bytea), 'hex'), 24) as channel`,
  )
  expect(rows[0].channel).toBe(QUEUE_CHANNEL)
  const client = await db.pool.connect()
  const payloads: string[] = []
  client.on('notification', ({ payload }) => payloads.push(payload ?? ''))
  await client.query(`listen ${QUEUE_CHANNEL}`)
  await using lockstep = createLockstep({ connectionString: db.url })
  const tasks = createTasks(lockstep)
  tasks.define('notified')
  await tasks.send('notified', {})
  await client.query('select 1')
  client.release(true)
  expect(payloads).toEqual(['notified'])
})

test('an application that uses pg-boss by itself and we do not touch each other', async () => {
  await using db = await freshDatabase()
  const theirs = new PgBoss(standardIfOdd(db.url))
  theirs.on('error', () => {})
  await theirs.start()
  await theirs.createQueue('mail')
  await theirs.send('mail', { by: 'them' })
  await using lockstep = createLockstep({ connectionString: db.url })
  const tasks = createTasks(lockstep)
  tasks.define('mail')
  await tasks.send('mail', { by: 'us' })
  expect((await tasks.claim('mail', { limit: 9 })).map(({ data }) => data)).toEqual([{ by: 'us' }])
  expect((await theirs.fetch('mail', { batchSize: 9 })).map(({ data }) => data)).toEqual([{ by: 'them' }])
  await theirs.stop({ graceful: false })
})

test('all that it can do is reachable: bossOf(tasks)', async () => {
  await using db = await freshDatabase()
  await using lockstep = createLockstep({ connectionString: db.url })
  const tasks = createTasks(lockstep)
  tasks.define('reached')
  await tasks.send('reached', { n: 1 })
  const boss = bossOf(tasks)
  const first = await boss.upsert('reached', { n: 2 }, { singletonKey: 'k' })
  expect(first).toBeDefined()
  expect((await boss.getQueueStats('reached', { force: true }))[0]?.queuedCount).toBe(2)
  expect(() => bossOf({})).toThrow('what createTasks has made')
})

describe('its own functions are used where they are as good', () => {
  test('it checks the attempt of a job that is completed, failed or touched', async () => {
    await using it = await both()
    const { boss, tasks, queue } = it
    await tasks.send(queue, null)
    const [stale] = await boss.fetch(queue)
    await boss.fail(queue, stale as Job, new Error('x'))
    const [job] = await boss.fetch(queue)
    expect([stale?.retryCount, job?.retryCount]).toEqual([0, 1])
    for (const call of [boss.complete, boss.fail, boss.touch]) {
      expect(await call.call(boss, queue, [stale as Job])).toMatchObject({ affected: 0, settled: [] })
    }
    expect(await boss.touch(queue, [job as Job])).toMatchObject({ affected: 1, settled: [job?.id] })
  })
})

// If one of these fails because pg-boss has learnt it, ours can go (lib/task/job/attempts.ts).
describe('what it has not, and ours has', () => {
  test('an output of each job when several are completed in one statement, stored as it is', async () => {
    await using it = await both()
    const { boss, tasks, queue } = it
    await tasks.sendAll(queue, [{ data: null }, { data: null }, { data: null }, { data: null }])
    const theirs = await boss.fetch(queue, { batchSize: 2 })
    await boss.complete(queue, theirs, 1 as unknown as object)
    const ours = await tasks.claim(queue, { limit: 2 })
    await Promise.all(ours.map(({ id, token }, i) => tasks.complete(queue, id, token, i)))
    const outputs = (jobs: { id: string }[]) =>
      Promise.all(jobs.map(async ({ id }) => (await tasks.get(queue, id))?.output))
    expect(await outputs(theirs)).toEqual([{ value: 1 }, { value: 1 }])
    expect(await outputs(ours)).toEqual([0, 1])
  })

  test('a hand-back that costs no retry', async () => {
    await using it = await both({ retryLimit: 1 })
    const { boss, tasks, queue } = it
    await tasks.send(queue, null)
    const [job] = await boss.fetch(queue)
    const { id } = job as Job
    await boss.cancel(queue, job as Job)
    await boss.resume(queue, id)
    await boss.fail(queue, (await boss.fetch(queue))[0] as Job)
    expect(await tasks.get(queue, id)).toMatchObject({ state: 'failed', attempts: 2 })

    await tasks.send(queue, null)
    const [first] = await tasks.claim(queue)
    await tasks.handBack(queue, [first as Claimed])
    const [second] = await tasks.claim(queue)
    const { token } = second as Claimed
    expect(second).toMatchObject({ id: first?.id, token: (first as Claimed).token + 1n })
    await tasks.fail(queue, (first as Claimed).id, token, new Error('x'))
    expect(await tasks.get(queue, (first as Claimed).id)).toMatchObject({ state: 'retry', attempts: 2 })
  })

  test('a stop that costs no retry', async () => {
    await using it = await both({ retryLimit: 0 })
    const { boss, db, tasks, queue } = it
    const id = (await tasks.send(queue, null)) as string
    const theirs = await startBoss(db.url)
    const begun = Promise.withResolvers<void>()
    await theirs.work(queue, () => {
      begun.resolve()
      return new Promise(() => {})
    })
    await begun.promise
    await theirs.stop({ timeout: 1_000 })
    expect(await boss.findJobs(queue, { id })).toMatchObject([
      { state: 'failed', output: { value: 'pg-boss shut down while active' } },
    ])

    const next = (await tasks.send(queue, null)) as string
    await using lockstep = createLockstep({ connectionString: db.url })
    const working = createTasks(lockstep)
    const running = Promise.withResolvers<void>()
    working.define(
      queue,
      () => {
        running.resolve()
        return new Promise(() => {})
      },
      { retryLimit: 0 },
    )
    const worker = working.work(queue)
    await running.promise
    await worker.stop({ graceMs: 0 })
    expect(await tasks.get(queue, next)).toMatchObject({ state: 'retry' })
  })

  test('a transactional handler cannot end its transaction, and its effects are not there twice', async () => {
    await using it = await both({ retryLimit: 1 })
    const { db, tasks, queue } = it
    await db.pool.query('create table effect (by text)')
    const effects = async (by: string) => (await db.pool.query('select from effect where by = $1', [by])).rows.length

    const id = (await tasks.send(queue, null)) as string
    const theirs = await startBoss(db.url)
    await theirs.work(queue, { transactional: true, pollingIntervalSeconds: 0.5 }, async (_, trx) => {
      await trx.executeSql(`insert into effect values ('theirs')`)
      await trx.executeSql('commit')
      throw new Error('after the commit')
    })
    await until('it has failed for good', async () => (await tasks.get(queue, id))?.state === 'failed')
    await theirs.stop({ graceful: false })
    expect(await effects('theirs')).toBe(2)

    await using lockstep = createLockstep({ connectionString: db.url })
    const working = createTasks(lockstep, { onError: () => {} })
    working.define(
      queue,
      async (_: null, { trx }) => {
        await sql`insert into effect values ('ours')`.execute(trx)
        await sql`commit`.execute(trx)
      },
      { transactional: true, retryLimit: 1 },
    )
    working.work(queue)
    await expect(working.run(queue, null)).rejects.toMatchObject({ code: 'JOB_FAILED' })
    expect(await effects('ours')).toBe(0)
  })

  // Ours aborts then: loss.test.ts, "whose network falls silent".
  test('a signal that aborts when no heartbeat arrives', async () => {
    await using it = await both({ heartbeatMs: 10_000 })
    const { db, tasks, queue } = it
    const clock = new TestClock()
    let failures = 0
    const theirs = newBoss({
      clock,
      db: {
        executeSql: (text: string, values?: unknown[]) => {
          if (!/SET heartbeat_on/.test(text)) return db.pool.query(text, values)
          failures += 1
          return Promise.reject(new Error('the network is cut'))
        },
      },
    })
    let signal: AbortSignal | undefined
    await theirs.work(queue, ([job]) => {
      signal = job?.signal
      return new Promise(() => {})
    })
    await tasks.send(queue, null)
    await until('the job runs', async () => {
      await clock.tick(2_000)
      return signal
    })
    for (let seconds = 0; seconds < 60; seconds += 5) await clock.tick(5_000)
    expect(failures).toBeGreaterThan(5)
    expect(signal?.aborted).toBe(false) // 60 s without a heartbeat: since 10 s another worker may have the job
  })
})
