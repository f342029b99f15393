/** That pg-boss is what we take it for: its tables, its channel, its types; and that it is left to itself elsewhere. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { getConstructionPlans, PgBoss } from 'pg-boss'
import { expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { QUEUE_CHANNEL } from '../../lib/task/job/attempts.ts'
import { BOSS_SCHEMA } from '../../lib/task/pgboss/adapter.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { freshDatabase } from '../support/database.ts'

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
    connectionString: db.url,
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

test('it tells of work on the channel that we listen to', async () => {
  await using db = await freshDatabase()
  const { rows } = await db.pool.query(
    `select 'pgboss_' || left(encode(sha224('${BOSS_SCHEMA}'::bytea), 'hex'), 24) as channel`,
  )
  expect(rows[0].channel).toBe(QUEUE_CHANNEL)
  const client = await db.pool.connect()
  const told: string[] = []
  client.on('notification', ({ payload }) => told.push(payload ?? ''))
  await client.query(`listen ${QUEUE_CHANNEL}`)
  await using lockstep = createLockstep({ connectionString: db.url })
  const tasks = createTasks(lockstep)
  tasks.define('told')
  await tasks.send('told', {})
  await client.query('select 1')
  client.release(true)
  expect(told).toEqual(['told'])
})

test('an application that uses pg-boss by itself is not touched, nor are we by it', async () => {
  await using db = await freshDatabase()
  const theirs = new PgBoss({ connectionString: db.url })
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

test('what it can do is reachable: bossOf(tasks)', async () => {
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
