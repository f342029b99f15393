/** Migrations on a real database, by several real processes at once. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { Kysely, PostgresDialect, sql } from 'kysely'
import pg from 'pg'
import { afterEach, expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { migrate, schemaState } from '../../lib/setup/migrate.ts'
import { freshDatabase, pgbouncerAvailable, tcpProxy } from '../support/database.ts'
import { MIGRATIONS as ours } from '../support/migrations.ts'
import { until } from '../support/until.ts'

const first = '0001_first'
const second = '0002_second'
const files = {
  [first]: 'create table lockstep.first (id int); insert into lockstep.first values (1);',
  [second]: `create function lockstep.two() returns int language plpgsql as $$ begin return 2; end $$;
             insert into lockstep.first values (lockstep.two());`,
}

test('the migrations of this package bring an empty database to the latest schema, once', async () => {
  const db = await fresh()
  const latest = ours.at(-1)
  expect(await schemaState(db.kysely)).toMatchObject({ current: null, latest, pending: ours, newer: false })
  expect(await migrate(db.url)).toEqual({ applied: ours, latest })
  expect(await schemaState(db.kysely)).toMatchObject({ current: latest, latest, pending: [], newer: false })
  expect(await migrate(db.url)).toEqual({ applied: [], latest })
})

test('a lock held through the migration to elections stays held, renewed and fenced', async () => {
  const db = await fresh()
  const sqlOf = (name: string) =>
    fs.readFileSync(path.join(import.meta.dirname, `../../db/migrations/${name}.sql`), 'utf8')
  await migrate(db.url, { folder: folderOf({ '0001_lease': sqlOf('0001_lease') }) })
  await using lockstep = createLockstep({ connectionString: db.url })
  const held = await lockstep.locks.acquire('a', { ttlMs: 1_000 })
  await migrate(db.url)
  const { expiresAt } = await lockstep.locks.query('a')
  await until('a renewal', async () => Number((await lockstep.locks.query('a')).expiresAt) > Number(expiresAt))
  await held.transaction(async () => {})
  expect(await lockstep.locks.tryAcquire('a')).toBeNull()
  await held.release()
  await (await lockstep.leaders.campaign('a')).resign()
})

test('pending files are applied in order and reported; a file may hold many statements and functions', async () => {
  const db = await fresh()
  expect(await migrate(db.kysely, { folder: folderOf({ [first]: files[first] }) })).toEqual({
    applied: [first],
    latest: first,
  })
  const folder = folderOf(files)
  expect(await schemaState(db.kysely, { folder })).toMatchObject({
    current: first,
    latest: second,
    pending: [second],
    newer: false,
  })
  expect(await migrate(db.kysely, { folder })).toEqual({ applied: [second], latest: second })
  expect((await db.pool.query('select id from lockstep.first order by id')).rows).toEqual([{ id: 1 }, { id: 2 }])
})

test('reading the state creates nothing', async () => {
  const db = await fresh()
  await schemaState(db.kysely)
  expect(await traces(db.pool)).toEqual([])
})

test('four processes at once: one applies, the others wait and find it done, none fails', async () => {
  const folder = folderOf(files)
  const four = [1, 2, 3, 4].map(() => migrator(folder))
  await Promise.all(four.map((each) => each.ready))
  for (let round = 0; round < 5; round++) {
    const db = await fresh()
    const results = await Promise.all(four.map((each) => each.migrate(db.url)))
    expect(results.map((result) => result.error ?? result.applied.length).sort()).toEqual([0, 0, 0, 2])
    expect((await db.pool.query('select count(*)::int from lockstep.first')).rows).toEqual([{ count: 2 }])
  }
})

test('the race is decided by one lock: all four wait for it, and the first to get it applies the files', async () => {
  const folder = folderOf(files)
  const db = await fresh()
  const gate = await db.pool.connect()
  await gate.query('begin; select pg_advisory_xact_lock(1819239275, 1937007984)')
  const four = [1, 2, 3, 4].map(() => migrator(folder))
  const results = Promise.all(four.map((each) => each.migrate(db.url)))
  const waiting = `select count(*)::int from pg_locks where locktype = 'advisory' and not granted
                      and database = (select oid from pg_database where datname = current_database())`
  while ((await db.pool.query(waiting)).rows[0].count < 4) await delay(10)
  await gate.query('rollback')
  gate.release()
  expect((await results).map((result) => result.error ?? result.applied.length).sort()).toEqual([0, 0, 0, 2])
})

test('a migration killed in the middle leaves nothing, and the next one is not blocked', async () => {
  const db = await fresh()
  const folder = folderOf({ ...files, '0003_slow': 'select pg_sleep(600)' })
  const killed = migrator(folder)
  void killed.migrate(db.url)
  const sleeping = `select pid from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid()`
  while ((await db.pool.query(sleeping)).rows.length === 0) await delay(10)
  killed.process.kill('SIGKILL')
  // The server notices a dead client when it next sends to it; a long statement goes on until then.
  await db.pool.query(`select pg_terminate_backend(pid) from (${sleeping}) as them`)
  expect(await migrate(db.url, { folder: folderOf(files) })).toEqual({ applied: [first, second], latest: second })
})

test('a database newer than the code is refused, with the name of the migration, and not changed', async () => {
  const db = await fresh()
  await migrate(db.url, { folder: folderOf(files) })
  const folder = folderOf({ [first]: files[first] })
  await expect(migrate(db.url, { folder })).rejects.toThrow(
    /^The database has migration 0002_second, which this version of Lockstep \(up to 0001_first\) does not know: deploy the newer version/,
  )
  expect(await schemaState(db.kysely, { folder })).toMatchObject({
    current: second,
    latest: first,
    pending: [],
    newer: true,
  })
  expect((await db.pool.query('select count(*)::int from lockstep.first')).rows).toEqual([{ count: 2 }])
})

test('a file that fails is named with its line, and nothing stays of it nor of those before it', async () => {
  const db = await fresh()
  const broken = { ...files, '0003_broken': 'create table lockstep.third ();\n-- ß😀\nselect * from lockstep.missing;' }
  await expect(migrate(db.kysely, { folder: folderOf(broken) })).rejects.toThrow(
    'Migration 0003_broken.sql failed at line 3, and nothing was changed: relation "lockstep.missing" does not exist',
  )
  expect(await traces(db.pool)).toEqual([])
  expect(await sql`select 1 as one`.execute(db.kysely)).toMatchObject({ rows: [{ one: 1 }] })
  expect(await migrate(db.kysely, { folder: folderOf(files) })).toMatchObject({ applied: [first, second] })
})

test('a file that ends the transaction is refused', async () => {
  const db = await fresh()
  const folder = folderOf({ [first]: 'create table lockstep.first (); commit;' })
  await expect(migrate(db.url, { folder })).rejects.toThrow(/^Migration 0001_first\.sql .*ends the transaction/)
})

test('a role without the right to create gets an error that says so; with nothing to apply it needs no right', async () => {
  const db = await fresh()
  const role = `${db.name}_app`
  await db.pool.query(`create role ${role} login password 'secret'; revoke create on database ${db.name} from public`)
  const url = new URL(db.url)
  url.username = role
  url.password = 'secret'
  try {
    const folder = folderOf(files)
    await expect(migrate(url.href, { folder })).rejects.toThrow(
      `The role "${role}" may not create schemas in this database`,
    )
    await db.pool.query('create schema lockstep')
    await db.pool.query(`grant usage on schema lockstep to ${role}`)
    await expect(migrate(url.href, { folder })).rejects.toThrow(
      `The role "${role}" may not create in the schema "lockstep"`,
    )
    await migrate(db.url, { folder })
    await db.pool.query(`grant select on lockstep.migration to ${role}`)
    expect(await migrate(url.href, { folder })).toEqual({ applied: [], latest: second })
  } finally {
    await db.close()
    await dropRole(role)
  }
})

test('a role whose statements are limited to a second still waits for its turn', async () => {
  const db = await fresh()
  const folder = folderOf(files)
  const gate = await db.pool.connect()
  await gate.query('begin; select pg_advisory_xact_lock(1819239275, 1937007984)')
  const url = new URL(db.url)
  url.searchParams.set('options', '-c statement_timeout=250 -c lock_timeout=250')
  const migrating = migrate(url.href, { folder })
  await expect(Promise.race([migrating, delay(600, 'waiting')])).resolves.toBe('waiting')
  await gate.query('rollback')
  gate.release()
  expect(await migrating).toMatchObject({ applied: [first, second] })
})

test.skipIf(!pgbouncerAvailable())(
  'through a transaction pooler (skipped without PgBouncer) it works and leaves no lock behind',
  async () => {
    await using db = await freshDatabase({ empty: true, pooled: true })
    const folder = folderOf(files)
    const results = await Promise.all([1, 2, 3].map(() => migrate(db.pooledUrl, { folder })))
    expect(results.map((result) => result.applied.length).sort()).toEqual([0, 0, 2])
    const broken = folderOf({ ...files, '0003_broken': 'select 1 / 0' })
    await expect(migrate(db.pooledUrl, { folder: broken })).rejects.toThrow(
      /0003_broken\.sql failed.*: division by zero/,
    )
    const locks = `select * from pg_locks where locktype = 'advisory'
                    and database = (select oid from pg_database where datname = current_database())`
    expect((await db.pool.query(locks)).rows).toEqual([])
  },
)

test('a folder with other names, a number twice, or nothing at all is refused', async () => {
  const db = await fresh()
  const migrating = (...names: string[]) =>
    migrate(db.url, { folder: folderOf(Object.fromEntries(names.map((name) => [name, '']))) })
  await expect(migrating('1_first')).rejects.toThrow('A migration is named NNNN_name.sql, not 1_first.sql')
  await expect(migrating('0001_a', '0001_b')).rejects.toThrow('Two migrations have the number 0001')
  await expect(migrating()).rejects.toThrow(/There are no migrations in/)
})

test('a database that cannot be reached is UNAVAILABLE', async () => {
  const db = await fresh()
  await using proxy = await tcpProxy(db.url)
  proxy.refuse()
  await expect(migrate(proxy.url)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
})

// ---- Tools -------------------------------------------------------------------------------------------------------

const cleaning: (() => unknown)[] = []

afterEach(async () => {
  while (cleaning.length > 0) await cleaning.pop()?.()
})

/** A database without Lockstep's schema, and a Kysely with two connections to it. */
async function fresh() {
  const db = await freshDatabase({ empty: true })
  const pool = new pg.Pool({ connectionString: db.url, max: 2 })
  pool.on('error', () => {})
  const kysely = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) })
  cleaning.push(db.close, () => kysely.destroy())
  return { ...db, kysely }
}

/** Everything that migrations have left in the database. */
async function traces(pool: pg.Pool): Promise<unknown[]> {
  return (await pool.query(`select nspname from pg_namespace where nspname = 'lockstep'`)).rows
}

function folderOf(sources: Record<string, string>): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-test-'))
  cleaning.push(() => fs.rmSync(folder, { recursive: true }))
  for (const [name, text] of Object.entries(sources)) fs.writeFileSync(path.join(folder, `${name}.sql`), text)
  return folder
}

/** Another process, which migrates the databases that it is sent. */
function migrator(folder: string) {
  const program = `
    const { migrate } = await import(${JSON.stringify(path.join(import.meta.dirname, '../../lib/setup/migrate.ts'))})
    const { createInterface } = await import('node:readline')
    console.log('ready')
    for await (const url of createInterface(process.stdin)) {
      console.log(JSON.stringify(await migrate(url, ${JSON.stringify({ folder })}).catch((error) => ({ error: error.message }))))
    }`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['pipe', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  cleaning.push(() => {
    child.stdin.end()
    return exited
  })
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const ready = lines.next()
  return {
    process: child,
    ready,
    async migrate(url: string): Promise<{ applied: string[]; error?: string }> {
      await ready
      child.stdin.write(`${url}\n`)
      const { value, done } = await lines.next()
      return done ? { applied: [], error: 'The migrator died' } : JSON.parse(value)
    },
  }
}

async function dropRole(role: string): Promise<void> {
  await using db = await freshDatabase({ empty: true })
  await db.pool.query(`drop role ${role}`)
}
