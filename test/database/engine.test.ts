/**
 * Servers and databases that Lockstep does not support are refused, with one sentence that says why: by `ready()`, and by `migrate`
 * before it has created anything. The tests run on PostgreSQL, which is made to behave like such a server.
 */
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { sql } from 'kysely'
import pg from 'pg'
import { afterEach, describe, expect, inject, test } from 'vitest'
import { fromDatabase } from '../../lib/base/index.ts'
import { SCHEMA } from '../../lib/database/database.ts'
import { whyUnsupported } from '../../lib/database/server-facts.ts'
import { createLockstep } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { type FreshDatabase, freshDatabase, pgbouncerAvailable, tcpProxy } from '../support/database.ts'
import { pgpoolWire } from '../support/pgpool-wire.ts'
import { primary, template } from './standby.ts'

const MIGRATIONS = path.join(import.meta.dirname, '../../db/migrations')
const OURS = fs.readdirSync(MIGRATIONS).sort()

const cleaning: (() => unknown)[] = []
afterEach(async () => {
  while (cleaning.length > 0) await cleaning.pop()?.()
})

async function fresh(options: { empty?: boolean } = {}): Promise<FreshDatabase> {
  const db = await freshDatabase(options)
  cleaning.push(db.close)
  return db
}

/** The error of `ready()` in a new process; null: it is ready. */
async function notReady(url: string): Promise<string | null> {
  await using lockstep = createLockstep({ connectionString: url })
  return await lockstep.ready().then(
    () => null,
    (error) => {
      expect(error.code).toBe('UNAVAILABLE')
      return error.message
    },
  )
}

async function nothingMade({ pool }: FreshDatabase): Promise<void> {
  const { rows } = await pool.query(`select nspname from pg_namespace where nspname like 'lockstep%'`)
  expect(rows).toEqual([])
}

test('a database with the current schema is ready, and the check leaves no lock', async () => {
  const db = await fresh()
  expect(await notReady(db.url)).toBeNull()
  const { rows } = await db.pool.query(`select from pg_locks where locktype = 'advisory'
    and database = (select oid from pg_database where datname = current_database())`)
  expect(rows).toEqual([])
})

describe('a server that does not show advisory locks in pg_locks', () => {
  const hidden =
    /^Lockstep needs a server that shows in pg_locks the advisory locks that it takes, and this one does not/
  const hide = ({ pool }: FreshDatabase) =>
    pool.query(`set allow_system_table_mods = on;
      create or replace view pg_catalog.pg_locks as select * from pg_lock_status() l where l.locktype <> 'advisory'`)

  test('is refused by migrate, which creates nothing', async () => {
    const db = await fresh({ empty: true })
    await hide(db)
    await expect(migrate(db.url)).rejects.toThrow(hidden)
    await nothingMade(db)
  })

  test('is refused by ready(), and by a migrate that had nothing to do', async () => {
    const db = await fresh()
    await hide(db)
    expect(await notReady(db.url)).toMatch(hidden)
    await expect(migrate(db.url)).rejects.toThrow(hidden)
  })
})

test('a server that takes no advisory locks at all is refused by the same sentence', async () => {
  const db = await fresh({ empty: true })
  await db.pool.query(`set allow_system_table_mods = on;
    alter function pg_catalog.pg_advisory_xact_lock_shared(integer, integer) rename to gone`)
  await expect(migrate(db.url)).rejects.toThrow(/^Lockstep needs a server that shows in pg_locks/)
  await nothingMade(db)
})

test.each(['LATIN1', 'WIN1252', 'EUC_JP', 'SQL_ASCII'])(
  'a database in %s is refused, and told of UTF8',
  async (encoding) => {
    const server = new pg.Client(inject('serverUrl'))
    await server.connect()
    const name = `lockstep_test_${encoding.toLowerCase()}_${process.pid}`
    const { rows } = await server.query(`select current_setting('server_version_num')::int >= 150000 as providers`)
    const provider = rows[0].providers ? `locale_provider 'libc'` : ''
    await server.query(
      `create database ${name} encoding '${encoding}' template template0 lc_collate 'C' lc_ctype 'C' ${provider}`,
    )
    try {
      const url = Object.assign(new URL(inject('serverUrl')), { pathname: `/${name}` }).href
      await expect(migrate(url)).rejects.toThrow(
        `Lockstep needs a database whose encoding is UTF8, and that of this one is ${encoding}: ` +
          `make one by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`,
      )
    } finally {
      await server.query(`drop database ${name} with (force)`)
      await server.end()
    }
  },
)

test('a server older than 14 is refused', () => {
  const fits = { encoding: 'UTF8', shown: true }
  expect(whyUnsupported({ ...fits, version: 140_000 })).toBeUndefined()
  expect(whyUnsupported({ ...fits, version: 130_015 })).toBe(
    'Lockstep needs PostgreSQL 14 or newer, and this server says that it is 13',
  )
})

describe('the schema', () => {
  test('that is older than this code needs is refused', async () => {
    const db = await fresh({ empty: true })
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-test-'))
    cleaning.push(() => fs.rmSync(folder, { recursive: true }))
    for (const file of OURS.filter((file) => file < '0008')) {
      fs.copyFileSync(path.join(MIGRATIONS, file), path.join(folder, file))
    }
    expect(await notReady(db.url)).toMatch(/run the migrations$/)
    await migrate(db.url, { folder })
    expect(await notReady(db.url)).toMatch(/run the migrations$/)
    await migrate(db.url)
    await db.pool.query('delete from lockstep.migration where name = $1', [SCHEMA])
    expect(await notReady(db.url)).toBe(`The database has an older schema than ${SCHEMA}: run the migrations`)
  })

  test('that is newer is accepted, as in a rolling deploy, unless it says that it does not support this code', async () => {
    const db = await fresh()
    await db.pool.query(`insert into lockstep.migration values ('9998_later', '2100-01-01')`)
    expect(await notReady(db.url)).toBeNull()
    await db.pool.query(
      `create or replace function lockstep.oldest_code() returns text language sql immutable return '9998_later'`,
    )
    expect(await notReady(db.url)).toBe(
      `The database has the schema 9998_later, which supports code of 9998_later and later, and this code is of ${SCHEMA}: deploy the newer version`,
    )
  })
})

describe('a database that can only be read', () => {
  test('a standby is refused, and the error says that it is one', async () => {
    await using made = await template()
    await using first = await primary(made)
    await using standby = await first.standby()
    const sentence = 'The database is a standby, which can only be read: connect to its primary'
    expect(await notReady(standby.url)).toBe(sentence)
    expect(await migrate(standby.url)).toMatchObject({ applied: [] }) // nothing to do
    const client = new pg.Client(first.url)
    await client.connect()
    await client.query('delete from lockstep.migration where name = $1', [SCHEMA])
    await client.end()
    await standby.caughtUp()
    await expect(migrate(standby.url)).rejects.toMatchObject({ code: 'UNAVAILABLE', message: sentence })
  })

  test('a role whose transactions are read-only gets an error that says so', async () => {
    for (const empty of [true, false]) {
      const db = await fresh({ empty })
      await db.pool.query(`alter database ${db.name} set default_transaction_read_only = on`)
      const sentence = 'The database can only be read by this role (default_transaction_read_only is on)'
      if (empty) await expect(migrate(db.url)).rejects.toMatchObject({ code: 'UNAVAILABLE', message: sentence })
      else expect(await notReady(db.url)).toBe(sentence)
    }
  })
})

/** The errors of the verbs that open a session. */
async function notUsed(url: string): Promise<unknown[]> {
  await using lockstep = createLockstep({ connectionString: url })
  const verbs = [lockstep.locks.acquire('a'), lockstep.leaders.campaign('a', { failover: 'connection', waitMs: 0 })]
  return await Promise.all(
    verbs.map((verb) =>
      verb.then(
        () => null,
        (error) => error.message,
      ),
    ),
  )
}

describe('a server that gives all connections one session (PGlite)', () => {
  const sentence =
    'Lockstep needs a session for each connection, and PGlite gives all connections one: use PostgreSQL 14 or newer'
  const pretend = ({ pool }: FreshDatabase) =>
    pool.query(`set allow_system_table_mods = on;
      alter function pg_catalog.version() rename to version_of_before;
      create function pg_catalog.version() returns text language sql stable as $$ select 'PostgreSQL 18.6 (PGlite 0.5.14)' $$`)

  test('is refused by migrate, which creates nothing, by ready(), and at the first use', async () => {
    const empty = await fresh({ empty: true })
    await pretend(empty)
    await expect(migrate(empty.url)).rejects.toThrow(sentence)
    await nothingMade(empty)
    const db = await fresh()
    await pretend(db)
    expect(await notReady(db.url)).toBe(sentence)
    expect(await notUsed(db.url)).toContain(sentence)
  })

  test('and an error that comes from it is one sentence', () => {
    const error = Object.assign(new Error('prepared statement "lockstep_room" already exists'), {
      ...{ code: '42P05', severity: 'ERROR' },
    })
    expect(fromDatabase(error)).toMatchObject({
      code: 'UNAVAILABLE',
      message: /^Several connections share one session/,
    })
    const theirs = Object.assign(new Error('prepared statement "x" already exists'), {
      code: '42P05',
      severity: 'ERROR',
    })
    expect(fromDatabase(theirs)).toBe(theirs)
  })
})

test.skipIf(!pgbouncerAvailable())(
  'PgBouncer in statement mode is refused, wherever a transaction is needed',
  async () => {
    const db = await freshDatabase({ pooled: { mode: 'statement' } })
    cleaning.push(db.close)
    const sentence =
      /^The pooler in front of the database is in statement mode, which allows no transactions: set pool_mode/
    expect(await notReady(db.pooledUrl)).toMatch(sentence)
    await expect(migrate(db.pooledUrl)).rejects.toMatchObject({ code: 'UNAVAILABLE', message: sentence })
    await using lockstep = createLockstep({ connectionString: db.pooledUrl })
    const refused = { code: 'UNAVAILABLE', message: sentence }
    await expect(lockstep.locks.transaction('a', async () => {})).rejects.toMatchObject(refused)
    const held = await lockstep.locks.acquire('b') // single statements work
    await expect(held.transaction(async () => {})).rejects.toMatchObject(refused)
    await held.release()
  },
)

describe('behind Pgpool-II', () => {
  const fine = {
    backend_clustering_mode: 'streaming_replication',
    load_balance_mode: 'off',
    memory_cache_enabled: 'off',
  }

  test('a setting with which it does not work is refused, with the setting that it needs', async () => {
    const db = await fresh()
    for (const [setting, value, needed] of [
      ['backend_clustering_mode', 'raw', 'streaming_replication'],
      ['backend_clustering_mode', 'native_replication', 'streaming_replication'],
      ['load_balance_mode', 'on', 'off'],
      ['memory_cache_enabled', 'on', 'off'],
    ] as const) {
      await using wire = await pgpoolWire(db.url, { ...fine, [setting]: value })
      const sentence = `Behind Pgpool-II Lockstep needs ${setting} = ${needed} (it is ${value}): set it so, or connect to the primary directly`
      expect(await notReady(wire.url)).toBe(sentence)
      expect(await notUsed(wire.url)).toContain(sentence)
    }
    await using wire = await pgpoolWire(db.url, fine)
    expect(await notReady(wire.url)).toBeNull()
    await using lockstep = createLockstep({ connectionString: wire.url })
    await using held = await lockstep.locks.acquire('a')
    expect(held.kind).toBe('connection')
  })

  test('a statement that is left in a transaction of its own fails, and has no effect', async () => {
    const db = await fresh()
    await using wire = await pgpoolWire(db.url, { ...fine, backend_clustering_mode: 'raw' })
    await db.pool.query('create table written (n integer)')
    await using lockstep = createLockstep({ connectionString: wire.url })
    const insert = (n: number) => sql`insert into written values (${n})`
    await expect(insert(1).execute(lockstep.kysely)).rejects.toMatchObject({
      ...{ code: 'UNAVAILABLE', message: /^What is in front of the database begins transactions and leaves them open/ },
    })
    expect((await db.pool.query('select n from written')).rows).toEqual([])
    // A transaction that was asked for, in words that Kysely does not send, stays possible.
    await lockstep.kysely.connection().execute(async (connection) => {
      await sql`/* mine */ begin`.execute(connection)
      await sql`select 1`.execute(connection)
      await sql`rollback`.execute(connection)
    })
  })
})

test('a proxy that is not Pgpool-II is asked once, and works', async () => {
  const db = await fresh()
  await using proxy = await tcpProxy(db.url)
  expect(await notReady(proxy.url)).toBeNull()
  await using lockstep = createLockstep({ connectionString: proxy.url })
  await using held = await lockstep.locks.acquire('a')
  expect(held.kind).toBe('connection')
})
