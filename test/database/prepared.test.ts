/** Statements that are prepared under a name: on direct connections of Lockstep's own, and never so that a call fails for it. */
import { sql } from 'kysely'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { Database } from '../../lib/database/index.ts'
import { freshDatabase, type PooledDatabase, pgbouncerAvailable } from '../support/database.ts'

let db: PooledDatabase
let database: Database
beforeAll(async () => {
  db = await freshDatabase({ pooled: true })
  await db.pool.query(`
    create function lockstep.probe(n integer, out a integer) return n;
    create function lockstep.several(n integer, out a integer, out b integer) language sql begin atomic select n, n + 1; end`)
  database = new Database({ connectionString: db.url })
})
afterAll(async () => {
  await database?.close()
  await db?.close()
})

const prepared = sql<{
  name: string
  statement: string
}>`select name, statement from pg_prepared_statements order by name`

test('a call of a function that comes again is prepared once, and later calls use it', async () => {
  const pool = database.pool(1)
  for (const n of [1, 2, 3, 4]) expect(await pool.run(sql`select lockstep.probe(${n}) as a`)).toEqual([{ a: n }])
  const [one, ...others] = await pool.run(prepared)
  expect(one?.statement).toBe('select lockstep.probe($1) as a')
  expect(others).toEqual([])
})

test('what searches a table, has no parameter, or is in a transaction is not prepared', async () => {
  const pool = database.pool(1)
  for (let i = 0; i < 3; i++) {
    await pool.run(sql`select name from lockstep.lease where name > ${'a'}`)
    await pool.run(sql`select lockstep.probe(1) as a`)
    await pool.transaction((trx) => sql`select lockstep.probe(${i}) as a`.execute(trx))
  }
  expect(await pool.run(prepared)).toEqual([])
})

test('inserts of pg-boss are prepared, and however many texts there are, a connection keeps a bounded number of plans', async () => {
  const pool = database.pool(1)
  await db.pool.query('create table public.numbers (queue text, n integer)')
  for (let queue = 0; queue < 300; queue++) {
    for (let i = 0; i < 2; i++) await pool.query(`INSERT INTO public.numbers SELECT '${queue}', $1`, [i])
  }
  expect((await pool.run(prepared)).length).toBe(128)
  expect((await db.pool.query('select count(*)::integer as n from public.numbers')).rows).toEqual([{ n: 600 }])
})

test('a plan that a migration has made unfit is made again, without an error', async () => {
  const pool = database.pool(1)
  const call = () => pool.run(sql`select * from lockstep.several(${1})`)
  for (let i = 0; i < 3; i++) expect(await call()).toEqual([{ a: 1, b: 2 }])
  await db.pool.query(`
    drop function lockstep.several(integer);
    create function lockstep.several(n integer, out a integer, out b text) language sql begin atomic select n, 'two'; end`)
  for (let i = 0; i < 3; i++) expect(await call()).toEqual([{ a: 1, b: 'two' }])
  expect((await pool.run(prepared)).length).toBe(2) // the old one, and the one that took its place
})

test('a connection that loses its prepared statements goes on without them', async () => {
  const pool = database.pool(1)
  const call = () => pool.run(sql`select lockstep.probe(${1}) as a`)
  for (let i = 0; i < 3; i++) await call()
  await pool.query('deallocate all')
  for (let i = 0; i < 3; i++) expect(await call()).toEqual([{ a: 1 }])
  expect(await pool.run(prepared)).toEqual([])
})

test('an error of the statement itself is reported as before, and had no effect', async () => {
  const pool = database.pool(1)
  await db.pool.query(`create table public.thin (n integer check (n < 3))`)
  const add = (n: number) => pool.query('insert into public.thin select $1::integer', [n])
  for (const n of [0, 1, 2]) await add(n)
  await expect(add(3)).rejects.toMatchObject({ code: '23514' })
  expect((await db.pool.query('select n from public.thin order by n')).rows.map(({ n }) => n)).toEqual([0, 1, 2])
})

test.skipIf(!pgbouncerAvailable())('nothing is prepared through a transaction pooler', async () => {
  const pooled = new Database({ connectionString: db.pooledUrl, directConnectionString: null })
  try {
    for (let i = 0; i < 3; i++) await pooled.control(sql`select lockstep.probe(${i}) as a`)
    expect(await pooled.control(prepared)).toEqual([])
  } finally {
    await pooled.close()
  }
})
