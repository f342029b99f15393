/** One pool for all rooms (lib/database/shared-pool.ts), and passwords by function: a Lambda and a Worker need both. */
import pg from 'pg'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { SharedPool } from '../../lib/database/shared-pool.ts'
import { uncached } from '../../lib/database/uncached.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'
import { lent } from './lent-connections.ts'

let db: FreshDatabase
beforeAll(async () => {
  db = await freshDatabase()
})
afterAll(() => db?.close())

const shared = (applicationName: string, max = 10): Lockstep =>
  createLockstep({ connectionString: db.url, directConnectionString: null, shared: true, applicationName, max })
const pids = async (applicationName: string): Promise<number[]> => {
  const text = 'select pid from pg_stat_activity where datname = $1 and application_name = $2'
  const { rows } = await db.pool.query(text, [db.name, applicationName])
  return rows.map(({ pid }) => pid)
}

test('statements of all rooms, one after another, need one connection', async () => {
  await using lockstep = shared('one')
  const tasks = createTasks(lockstep)
  const events = createEvents(lockstep)
  const held = await lockstep.locks.acquire('x')
  await held.transaction(async () => {})
  await lockstep.locks.query('x')
  await tasks.declare('q')
  await tasks.send('q', { n: 1 })
  await events.append('s', { type: 't', data: {} })
  await events.read('s')
  await lockstep.time.ready()
  await held.release()
  expect(await pids('one')).toHaveLength(1)
})

test('no share uses up the limit of another: with all transactions of the user open, locks are granted', async () => {
  await using lockstep = shared('apart', 2)
  const open = Promise.withResolvers<void>()
  const running = [1, 2, 3].map(() => lockstep.kysely.transaction().execute(() => open.promise))
  await until('two of three run', async () => (await pids('apart')).length === 2)
  const held = await lockstep.locks.acquire('y')
  expect(await pids('apart')).toHaveLength(3)
  open.resolve()
  await Promise.all(running)
  await held.release()
})

test('a connection that broke is not used again', async () => {
  await using lockstep = shared('broken')
  await lockstep.locks.query('z')
  const [before] = await pids('broken')
  await db.pool.query('select pg_terminate_backend($1)', [before])
  await until('it goes on', () => lockstep.locks.query('z').catch(() => null))
  await createEvents(lockstep).read('s')
  const after = await pids('broken')
  expect(after).toHaveLength(1)
  expect(after).not.toContain(before)
})

test('callers that wait for a connection are served first come, first served, and too long a wait is an error', async () => {
  const pool = new pg.Pool({ connectionString: db.url, connectionTimeoutMillis: 300 })
  const share = new SharedPool(lent(pool), 1)
  const first = await share.connect()
  const order: number[] = []
  const waiting = [1, 2].map(async (n) => {
    const client = await share.connect()
    order.push(n)
    client.release()
  })
  const late = share.connect().catch((error) => error.message)
  first.release()
  await Promise.all(waiting)
  const served = await late
  served.release()
  expect(order).toEqual([1, 2])

  const keeps = await share.connect()
  await expect(share.connect()).rejects.toMatchObject({
    code: 'UNAVAILABLE',
    message: 'The only connection of this pool is in use, and none came free within 300 ms',
  })
  keeps.release()
  ;(await share.connect()).release()
  await pool.end()
})

test('the password function is called at each new connection', async () => {
  await using server = await dedicatedServer()
  const admin = new pg.Pool({ connectionString: server.url })
  admin.on('error', () => {})
  const query = (text: string) => admin.query(text)
  const [{ hba_file: hba }] = (await query('show hba_file')).rows
  await query(`create role rotating superuser login password 'one'`)
  const rules = [`host all rotating all scram-sha-256`, `host all all all trust`].join(String.raw`\n`)
  await query(`copy (select unnest(string_to_array(E'${rules}', E'\n'))) to '${hba}'`)
  await query('select pg_reload_conf()')

  const url = new URL(server.url)
  url.username = 'rotating'
  let [password, asked] = ['one', 0]
  await using lockstep = createLockstep({
    connectionString: url.href,
    directConnectionString: null,
    applicationName: 'rotating',
    shared: true,
    password: async () => {
      asked++
      return password
    },
  })
  await lockstep.ready()
  await lockstep.ready()
  expect(asked).toBe(1)

  await query(`alter role rotating password 'two'`)
  await query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'rotating'`)
  await until('it is cut off', () =>
    lockstep.ready().then(
      () => false,
      () => true,
    ),
  )
  await expect(lockstep.ready()).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  password = 'two'
  await lockstep.ready()
  expect(asked).toBeGreaterThan(1)
  await admin.end()
})

test.each([
  ['select 1 as x', 'with fresh as (select clock_timestamp()) select 1 as x'],
  ['\n  SELECT x.*\nfrom t x', '\n  with fresh'],
  ['with a as (select 1 as x) select x from a', 'with fresh as (select clock_timestamp()), a as (select 1'],
  [
    'WITH RECURSIVE a as (select 1 as x union all select x + 1 from a where x < 3) select x from a',
    'WITH RECURSIVE fresh as (',
  ],
])('%j is made volatile, and means the same', async (text, begins) => {
  const made = uncached(text)
  expect(made.replace(/^\s+/, '')).toContain(begins.replace(/^\s+/, ''))
  if (text.includes('from t')) return
  expect((await db.pool.query(made)).rows).toEqual((await db.pool.query(text)).rows)
})

test.each(['insert into t values (1)', 'begin', 'selection', 'commit; select 1', ''])('%j is left as it is', (text) => {
  expect(uncached(text)).toBe(text)
})
