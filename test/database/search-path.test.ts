/**
 * A tenant of the database cannot hijack Lockstep's functions: whatever search path a caller has, each name in them is pg_catalog's or
 * Lockstep's. First the text of the functions is checked, then a tenant tries it with everything that the functions call.
 */
import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { ROOMS } from '../setup/every-statement.ts'
import { freshDatabase, type RoleDatabase } from '../support/database.ts'
import { called, occupy } from './hostile-tenant.ts'

const FOLDER = path.join(import.meta.dirname, '../../db/migrations')
/** The text of all migrations. */
const MIGRATIONS = fs
  .readdirSync(FOLDER)
  .map((file) => fs.readFileSync(path.join(FOLDER, file), 'utf8'))
  .join('\n')

describe('each function of Lockstep', () => {
  test('has a pinned search path, or names that are bound or qualified', async () => {
    await using db = await freshDatabase()
    const { rows } = await db.pool.query<{ name: string; config: string[] | null; bound: boolean; source: string }>(
      `select oid::regprocedure::text as name, proconfig as config, prosqlbody is not null as bound, prosrc as source from pg_proc
        where pronamespace in ('lockstep'::regnamespace, 'lockstep_boss'::regnamespace)`,
    )
    expect(rows.length).toBeGreaterThan(80)
    const pinned = (config: string[] | null) => config?.includes('search_path=pg_catalog, pg_temp') ?? false
    const byHand = rows.filter(({ config, bound }) => !bound && !pinned(config))
    const breaches = byHand.flatMap(({ name, source }) => unqualified(source).map((word) => `${name}: ${word}`))
    expect(breaches).toEqual([])
    expect(byHand.map(({ name }) => name)).toContain('lockstep_boss.job_now()')
  })

  test('with an unqualified name would be found', () => {
    const body = (text: string) => unqualified(`declare n pg_catalog.int4 := 1; begin ${text} end`)
    expect(body(`return pg_catalog.nextval('lockstep.token');`)).toEqual([])
    expect(body(`if not pg_catalog.pg_try_advisory_lock(lockstep.key(name)) then return null; end if;`)).toEqual([])
    expect(
      body(
        `select coalesce(l.holder, 'a''b = c') into x from lockstep.lease l where l.name operator(pg_catalog.=) n; -- a = b`,
      ),
    ).toEqual([])
    expect(body(`return nextval('lockstep.token');`)).toEqual(['nextval('])
    expect(body(`n := a + 1;`)).toEqual(['+'])
    expect(body(`select 1 from lockstep.lease l where l.name = n;`)).toEqual(['='])
    expect(body(`return 1::int4;`)).toEqual(['::int4'])
    expect(body(`return 'x' like y;`)).toEqual(['like'])
    expect(body(`return a in (1, 2);`)).toEqual(['in'])
  })
})

// pg-boss's own statements fail where a tenant has operators on the types that they compare.
const NEEDS_OPERATORS = ['tasks', 'upkeep']

describe.each([
  ['function, aggregate and operator', undefined, Object.keys(ROOMS).filter((room) => !NEEDS_OPERATORS.includes(room))],
  ['function and aggregate', 'operators', NEEDS_OPERATORS],
] as const)('where callers have a `public` first in the search path that imitates every %s', (_what, but, rooms) => {
  let db: RoleDatabase
  beforeAll(async () => {
    db = await freshDatabase({ role: true })
    const { functions, aggregates, operators } = await occupy(db.pool, MIGRATIONS, but)
    expect(functions).toBeGreaterThan(150)
    expect(aggregates).toBeGreaterThan(15)
    expect(operators).toBeGreaterThan(but ? -1 : 200)
    await db.pool.query(`alter database ${db.name} set search_path = public, pg_catalog`)
    // Open connections still have the former search path.
    await db.pool.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`,
    )
  })
  afterAll(() => db?.close())

  test('it is called by a statement that names it', async () => {
    await using client = await connected(db.roleUrl)
    await client.query(
      `create temporary table t as select 'a' as a; do $$ begin perform format('%s', 'a'::text); end $$`,
    )
    const { rows } = await db.pool.query(
      `select count(*)::int as n from hostile.calls where what like 'format(text, text)%'`,
    )
    expect(rows[0].n).toBeGreaterThan(0)
    expect(await called(db.pool)).toEqual([])
  })

  test.each(rooms)('no function of Lockstep calls it: %s', async (room) => {
    await using owner = await freshOwner(db.url)
    await using lockstep = createLockstep({ connectionString: db.roleUrl })
    await ROOMS[room]?.({ lockstep, url: db.roleUrl, owner: owner.pool, ownerUrl: db.url, onError: () => {} })
    expect(await called(db.pool)).toEqual([])
  })

  test('no function of Lockstep calls it: fences of a table that its owner makes, and functions that only an owner calls', async () => {
    await using client = await connected(db.url)
    await client.query('create table public.mine (id int); create table public.parted (id int) partition by list (id)')
    for (const table of ['mine', 'parted']) {
      await client.query(`select lockstep.fence_table('public.${table}')`)
      await client.query(`select lockstep.unfence_table('public.${table}')`)
    }
    await client.query('select lockstep.misaligned(), lockstep.realign(), lockstep.engine(true)')
    await client.query(
      `select lockstep_boss.create_queue('parted', '{"policy": "standard", "partition": true, "retryLimit": 1, "retryDelay": 1, "retryBackoff": false, "expireInSeconds": 60, "retentionSeconds": 60, "deletionSeconds": 60}')`,
    )
    await client.query(`select lockstep_boss.delete_queue('parted')`)
    expect(await called(db.pool)).toEqual([])
  })
})

test('a migration by a role with such a search path neither binds nor calls any of it', async () => {
  await using db = await freshDatabase({ empty: true })
  await occupy(db.pool, MIGRATIONS)
  await db.pool.query(`alter database ${db.name} set search_path = public, pg_catalog`)
  await migrate(db.url)
  const bound = `
    select distinct pg_describe_object(d.classid, d.objid, 0) || ' on ' || pg_describe_object(d.refclassid, d.refobjid, 0) as it
      from pg_depend d
     where (d.refclassid = 'pg_proc'::regclass and d.refobjid in (select oid from pg_proc where pronamespace in ('public'::regnamespace, 'hostile'::regnamespace))
         or d.refclassid = 'pg_operator'::regclass and d.refobjid in (select oid from pg_operator where oprnamespace = 'public'::regnamespace))
       and not (d.classid = 'pg_proc'::regclass and d.objid in (select oid from pg_proc where pronamespace in ('public'::regnamespace, 'hostile'::regnamespace)))
       and d.classid <> 'pg_operator'::regclass`
  await using client = await connected(db.url)
  await client.query('set search_path = pg_catalog')
  expect((await client.query(bound)).rows).toEqual([])
  expect((await client.query('select distinct what from hostile.calls')).rows).toEqual([])
})

// ---- Tools -------------------------------------------------------------------------------------------------------

/** The names, types and operators in the body of a function that are resolved by the search path. */
function unqualified(body: string): string[] {
  const text = body
    .replaceAll(/--.*$/gm, ' ')
    .replaceAll(/'(?:[^']|'')*'/g, "''")
    .replaceAll(/\boperator\s*\(\s*pg_catalog\.[^)]*\)/gi, ' ')
  const syntax =
    /^(coalesce|greatest|least|nullif|exists|values|in|any|all|some|row|array|if|elsif|when|and|or|not|select|from|where|perform|return|into|as|on|lateral|with|case|then|else|using|over|filter|materialized|set|by|conflict|update|insert|lease)$/i
  const calls = [...text.matchAll(/(?<![\w.])([a-z_]\w*)\s*\(/gi)].flatMap(([, name = '']) =>
    syntax.test(name) ? [] : [`${name}(`],
  )
  const types = [...text.matchAll(/::\s*(?!pg_catalog\.|lockstep\.)(\w+)/g)].map(([, type]) => `::${type}`)
  const words = [...text.matchAll(/\b(like|ilike|between|in(?=\s*\()|similar to|is distinct|is not distinct)/gi)].map(
    ([word]) => word.toLowerCase(),
  )
  const symbols = [...text.replaceAll(/:=|::|\.\./g, ' ').matchAll(/(?<![\w"])[-+*/<>=~!@#%^&|`?]+/g)].map(
    ([symbol]) => symbol,
  )
  return [...calls, ...types, ...words, ...symbols.filter((symbol) => symbol !== '')]
}

async function connected(url: string): Promise<pg.Client & AsyncDisposable> {
  const client = new pg.Client(url)
  await client.connect()
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() })
}

/** The owner, with the search path that the database has now. */
async function freshOwner(url: string): Promise<{ pool: pg.Pool } & AsyncDisposable> {
  const pool = new pg.Pool({
    connectionString: url,
    max: 4,
    application_name: `owner ${randomBytes(2).toString('hex')}`,
  })
  return { pool, [Symbol.asyncDispose]: () => pool.end() }
}
