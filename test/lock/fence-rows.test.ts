/**
 * The first sentence of the project: the write of row 42 commits only if its writer holds order/42. Whatever writes it, however it
 * writes it, and whatever it sets, takes or says to get around that.
 */
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { fence, psqlAvailable, psqlWriter, type Refusal, sqlWriter, WRITERS } from './writers.ts'

let db: FreshDatabase
let a: Lockstep
beforeAll(async () => {
  db = await freshDatabase()
  a = createLockstep({ connectionString: db.url })
  await db.pool.query(`
    create table orders (id int primary key, note text);
    select lockstep.fence_table('orders', by => $$ 'order/' || id $$);
    create table report (n int);
    select lockstep.fence_table('report', name => 'report');
    create table anyones (n int);
    select lockstep.fence_table('anyones')`)
})
afterAll(async () => {
  await a?.close()
  await db?.close()
})

const LEASE = { ttlMs: 60_000 }
let n = 100
/** An order that is there, or shall be, and a lease of its hold. */
async function order({ there = false } = {}): Promise<{ id: number; name: string; token: bigint; line: string }> {
  const id = n++
  const name = `order/${id}`
  const { token } = await a.locks.grant(name, LEASE)
  const line = `${name}:${token}`
  if (there) expect(await write(fence(line), `insert into orders values (${id}, 'first')`)).toBe('committed')
  return { id, name, token, line }
}
const write = (...statements: string[]) => sqlWriter(db.url, statements)
const notes = async (...ids: number[]) =>
  (await db.pool.query('select note from orders where id = any ($1) order by id', [ids])).rows.map((row) => row.note)
const wanting = (name: string, why: RegExp = /./) => ({
  code: SQLSTATE.leaseLost,
  message: expect.stringMatching(new RegExp(`needs the hold '${name}', .*${why.source}`)) as string,
})
const K = (name: string) => `lockstep.key('${name}')`

describe.each(WRITERS)('from %s', (name, writer, available) => {
  const into = (...statements: string[]) => writer(db.url, statements)
  const when = test.skipIf(!available)

  when(`an insert commits under the hold of its row, and under no other (needs ${name})`, async () => {
    const [ours, theirs] = [await order(), await order()]
    expect(await into(fence(ours.line), `insert into orders values (${ours.id}, 'ours')`)).toBe('committed')
    expect(await into(fence(ours.line), `insert into orders values (${theirs.id}, 'ours')`)).toMatchObject(
      wanting(theirs.name, /which its transaction does not name/),
    )
    expect(await into(`insert into orders values (${theirs.id}, 'bare')`)).toMatchObject({
      code: SQLSTATE.fenceMissing,
    })
    expect(await notes(ours.id, theirs.id)).toEqual(['ours'])
  })

  when(`an update needs the hold of the row that was and of the row that will be (needs ${name})`, async () => {
    const [from, to] = [await order({ there: true }), await order()]
    const move = `update orders set id = ${to.id}, note = 'moved' where id = ${from.id}`
    expect(await into(fence(from.line), move)).toMatchObject(wanting(to.name))
    expect(await into(fence(to.line), move)).toMatchObject(wanting(from.name))
    expect(await notes(from.id, to.id)).toEqual(['first'])
    expect(await into(fence(from.line, to.line), move)).toBe('committed')
    expect(await notes(from.id, to.id)).toEqual(['moved'])
  })

  when(`a delete needs the hold of the row (needs ${name})`, async () => {
    const [ours, theirs] = [await order({ there: true }), await order({ there: true })]
    const both = `delete from orders where id in (${ours.id}, ${theirs.id})`
    expect(await into(fence(ours.line), both)).toMatchObject(wanting(theirs.name))
    expect(await into(both)).toMatchObject({ code: SQLSTATE.fenceMissing })
    expect(await notes(ours.id, theirs.id)).toEqual(['first', 'first'])
    expect(await into(fence(theirs.line, ours.line), both)).toBe('committed')
  })

  when(`holds are asserted one by one, and all of them are named then (needs ${name})`, async () => {
    const [one, two] = [await order(), await order()]
    const assert = ({ name, token }: typeof one) => `select lockstep.assert_held('${name}', ${token})`
    const insert = `insert into orders values (${one.id}, 'both'), (${two.id}, 'both')`
    expect(await into(assert(one), assert(two), assert(one), insert)).toBe('committed')
    expect(await notes(one.id, two.id)).toEqual(['both', 'both'])
  })

  when(`a hold that ended does not pass, and the refusal names it (needs ${name})`, async () => {
    const late = await order({ there: true })
    const update = `update orders set note = 'late' where id = ${late.id}`
    await a.locks.revoke(late.name, late.token)
    const refused = wanting(late.name, new RegExp(`not held under token ${late.token}`))
    expect(await into(fence(late.line), update)).toMatchObject(refused)
    const { token } = await a.locks.grant(late.name, LEASE)
    expect(await into(fence(late.line), update)).toMatchObject(refused)
    expect(await into(fence(`${late.name}:${token}`), update)).toBe('committed')
  })
})

describe('a write of many rows', () => {
  test('commits under the holds of all of them, and fails by the one that is missing', async () => {
    const all = await Promise.all(Array.from({ length: 20 }, () => order()))
    const insert = `insert into orders values ${all.map(({ id }) => `(${id}, 'bulk')`).join()}`
    const lines = all.map(({ line }) => line)
    expect(await write(fence(...lines.slice(0, -1)), insert)).toMatchObject(wanting(all.at(-1)?.name as string))
    expect(await write(fence(...lines), insert)).toBe('committed')
    const update = `update orders set note = 'again' where id in (${all.map(({ id }) => id).join()})`
    expect(await write(fence(...lines.slice(1)), update)).toMatchObject(wanting(all[0]?.name as string))
    expect(await write(fence(...lines), update)).toBe('committed')
  })

  test('of a transaction asks the table of locks once for each hold, not for each row', async () => {
    const client = await db.pool.connect()
    try {
      await client.query(`create table piles (pile text, n int);
                          select lockstep.fence_table('piles', by => $$ 'pile/' || pile $$)`)
      await client.query('begin; set local track_functions = pl')
      for (const pile of ['a', 'b']) await client.query(`select * from lockstep.enter('pile/${pile}', null)`)
      await client.query(`insert into piles select p, i from unnest('{a,b}'::text[]) p, generate_series(1, 500) i`)
      await client.query('set constraints all immediate')
      const { rows } = await client.query(
        `select funcname, calls::int from pg_stat_xact_user_functions where funcname in ('check_hold', 'has_by_transaction')`,
      )
      await client.query('commit')
      expect(Object.fromEntries(rows.map(({ funcname, calls }) => [funcname, calls]))).toEqual({
        check_hold: 1_000,
        has_by_transaction: 2,
      })
    } finally {
      client.release()
    }
  })

  test('finds the row of its hold by the index, however fast the table of leases has grown', async () => {
    await using fresh = await freshDatabase() // where nobody else looks
    const client = await fresh.pool.connect()
    try {
      await client.query(`
        create table t (n int); select lockstep.fence_table('t', name => 'x');
        select * from lockstep.grant_leases('{x}', '{h}', '{600000}', '{null}');
        set lockstep.fence = 'x:1'; analyze lockstep.lease`) // a plan for one row is a scan
      expect((await client.query('select token from lockstep.lease')).rows).toEqual([{ token: '1' }])
      const scans = async () => {
        await client.query('select pg_stat_force_next_flush()').catch(() => {}) // from Postgres 15 on
        const { rows } = await client.query(
          `select seq_scan::int as n from pg_stat_user_tables where relid = 'lockstep.lease'::regclass`,
        )
        return rows[0].n as number
      }
      const writes = async () => {
        await client.query(
          `begin; select lockstep.assert_held('x', 1); insert into t select generate_series(1, 20); commit`,
        )
      }
      for (let i = 0; i < 8; i++) await writes()
      await client.query(
        `insert into lockstep.lease (name, token, granted_at, expires_at) select 'burst ' || i, 1, now(), now() from generate_series(1, 20000) i`,
      )
      const before = await scans()
      for (let i = 0; i < 8; i++) await writes()
      expect(await scans()).toBe(before)
    } finally {
      client.release()
    }
  })

  test.skipIf(!psqlAvailable)('by COPY is checked row by row (skipped without psql)', async () => {
    const [ours, theirs] = [await order(), await order()]
    const copy = (...ids: number[]) => `copy orders from stdin;\n${ids.map((id) => `${id}\tcopied`).join('\n')}\n\\.`
    const into = (...statements: string[]) => psqlWriter(db.url, statements)
    expect(await into(fence(ours.line), copy(ours.id, theirs.id))).toMatchObject(wanting(theirs.name))
    expect(await into(fence(ours.line), copy(ours.id))).toBe('committed')
  })
})

describe('a write that is another underneath:', () => {
  test('an upsert is what it does to each row', async () => {
    const [there, fresh] = [await order({ there: true }), await order()]
    const upsert = (...ids: number[]) =>
      `insert into orders values ${ids.map((id) => `(${id}, 'upserted')`).join()}
       on conflict (id) do update set note = excluded.note`
    expect(await write(fence(fresh.line), upsert(there.id))).toMatchObject(wanting(there.name))
    expect(await write(fence(there.line), upsert(there.id, fresh.id))).toMatchObject(wanting(fresh.name))
    expect(await write(fence(there.line, fresh.line), upsert(there.id, fresh.id))).toBe('committed')
    // nothing is written here
    expect(await write(`insert into orders values (${there.id}) on conflict do nothing`)).toBe('committed')
  })

  test('MERGE, where the server has it', async () => {
    const [there, fresh] = [await order({ there: true }), await order()]
    const { rows } = await db.pool.query(`select current_setting('server_version_num')::int >= 150000 as has`)
    const merge = `merge into orders o using (values (${there.id}), (${fresh.id})) v(id) on o.id = v.id
                   when matched then delete when not matched then insert values (v.id, 'merged')`
    if (!rows[0].has) return
    expect(await write(fence(there.line), merge)).toMatchObject(wanting(fresh.name))
    expect(await write(fence(fresh.line), merge)).toMatchObject(wanting(there.name))
    expect(await write(fence(fresh.line, there.line), merge)).toBe('committed')
    expect(await notes(there.id, fresh.id)).toEqual(['merged'])
  })

  test('a foreign key that cascades', async () => {
    await db.pool.query(`create table lines (id int, order_id int references orders on update cascade on delete cascade);
                         select lockstep.fence_table('lines', by => $$ 'line/' || id $$)`)
    const it = await order({ there: true })
    const { token } = await a.locks.grant('line/1', LEASE)
    expect(await write(fence(`line/1:${token}`), `insert into lines values (1, ${it.id})`)).toBe('committed')
    const remove = `delete from orders where id = ${it.id}`
    expect(await write(fence(it.line), remove)).toMatchObject(wanting('line/1'))
    expect(await write(fence(it.line, `line/1:${token}`), remove)).toBe('committed')
  })

  test('a truncation writes no row that a hold could be wanted for, so it is refused', async () => {
    const it = await order({ there: true })
    expect(await write(fence(it.line), 'truncate orders cascade')).toMatchObject({
      code: SQLSTATE.fenceMissing,
      message: 'lockstep: public.orders is fenced by its rows, so it cannot be truncated',
    })
  })
})

describe('what a transaction sets, or takes by hand, opens nothing:', () => {
  let it: Awaited<ReturnType<typeof order>>
  let update: string
  const refused = async (answer: Promise<Refusal | 'committed'>, code: string = SQLSTATE.leaseLost) => {
    expect(await answer).toMatchObject({ code })
    expect(await notes(it.id)).toEqual(['first'])
  }
  const there = async () => {
    it = await order({ there: true })
    update = `update orders set note = 'forged' where id = ${it.id}`
  }
  const free = async () => {
    await there()
    await a.locks.revoke(it.name, it.token)
  }

  test('that its fence was checked', async () => {
    await there()
    for (const line of [`${it.name}:1`, `${it.name}:transaction`]) {
      await refused(write(fence(line), `set local lockstep.fence_checked = '${line}'`, update))
    }
    await refused(write(`set local lockstep.fence_checked = ''`, update), SQLSTATE.fenceMissing)
  })

  test('a token that another hold has', async () => {
    await there()
    const other = await order()
    await refused(write(fence(`${it.name}:${other.token}`), update))
    await refused(write(fence(`${it.name}:${other.token}`, other.line, `x\n${other.line}`), update))
  })

  test('K, in shared mode: two transactions could have it', async () => {
    await free()
    const take = `select pg_advisory_xact_lock_shared(${K(it.name)})`
    await refused(write(take, fence(`${it.name}:transaction`), update))
  })

  test('K of another database', async () => {
    await free()
    await using other = await freshDatabase({ empty: true })
    const client = new pg.Client({ connectionString: other.url })
    await client.connect()
    await client.query(`select pg_advisory_lock((select ${(await keyOf(it.name)).toString()}))`)
    await refused(write(fence(`${it.name}:transaction`), update))
    await client.end()
  })
  const keyOf = async (name: string) => (await db.pool.query(`select ${K(name)} as k`)).rows[0].k

  test('K, exclusively, while a lease lives', async () => {
    await there()
    const take = `select pg_advisory_xact_lock(${K(it.name)})`
    await refused(write(take, fence(`${it.name}:transaction`), update))
    await refused(
      write(take, fence(`${it.name}:transaction`), 'set transaction isolation level read committed', update),
    )
  })

  test('K, exclusively, in a transaction whose snapshot does not see the lease', async () => {
    await free()
    const client = new pg.Client({ connectionString: db.url })
    await client.connect()
    await client.query('begin isolation level repeatable read')
    await client.query('select 1 from orders')
    await a.locks.grant(it.name, LEASE)
    await client.query(`select pg_advisory_xact_lock(${K(it.name)})`)
    await client.query(fence(`${it.name}:transaction`))
    await client.query(update)
    await expect(client.query('commit')).rejects.toMatchObject({ code: '40001' })
    await client.end()
    expect(await notes(it.id)).toEqual(['first'])
  })

  test('K of a name that is not held by K: that of an election', async () => {
    await db.pool.query(
      `create table led (n int); select lockstep.fence_table('led', name => lockstep.election('led'))`,
    )
    const name = 'leader\tled'
    const take = `select pg_advisory_xact_lock(lockstep.key(lockstep.election('led')))`
    expect(await write(take, fence(`${name}:transaction`), 'insert into led values (1)')).toMatchObject(wanting(name))
    const { token } = await a.leaders.campaign('led')
    expect(await write(fence(`${name}:${token}`), 'insert into led values (1)')).toBe('committed')
    expect(await write(`select lockstep.assert_leader('led', ${token})`, 'insert into led values (2)')).toBe(
      'committed',
    )
  })

  test('enter, while a lease lives: it gives no token, and names no hold', async () => {
    await there()
    await refused(write(`select lockstep.enter('${it.name}', null)`, update), SQLSTATE.fenceMissing)
    await refused(write(`select lockstep.enter('${it.name}', null)`, fence(`${it.name}:transaction`), update))
    const client = new pg.Client({ connectionString: db.url })
    await client.connect()
    const enter = async () => (await client.query(`select * from lockstep.enter('${it.name}', null)`)).rows[0]
    await client.query('begin')
    expect(await enter()).toMatchObject({ gated: true, token: null })
    await a.locks.revoke(it.name, it.token)
    expect((await enter()).token).not.toBeNull() // asked again, K in hand
    await client.query(update)
    await client.query('commit')
    await client.end()
    expect(await notes(it.id)).toEqual(['forged'])
  })

  test(`a session's K that is given up between the check and the commit: it is kept until then`, async () => {
    await free()
    const client = new pg.Client({ connectionString: db.url })
    await client.connect()
    await client.query(`select pg_advisory_lock(${K(it.name)})`)
    await client.query('begin')
    await client.query(fence(`${it.name}:transaction`))
    await client.query(update)
    await client.query('set constraints all immediate')
    await client.query(`select pg_advisory_unlock(${K(it.name)})`)
    for (const options of [{}, LEASE]) expect(await a.locks.tryAcquire(it.name, options)).toBeNull()
    await client.query('commit')
    await client.end()
    await (await a.locks.acquire(it.name, { waitMs: 0 })).release()
  })
})

describe('a table that is bound to one name', () => {
  test('takes writes and truncations under that hold, and under no other', async () => {
    const other = await order()
    expect(await write(fence(other.line), 'insert into report values (1)')).toMatchObject(wanting('report'))
    expect(await write(fence(other.line), 'truncate report')).toMatchObject(wanting('report'))
    const { token } = await a.locks.grant('report', LEASE)
    expect(await write(fence(other.line, `report:${token}`), 'insert into report values (1)')).toBe('committed')
    expect(await write(fence(`report:${token}`), 'truncate report')).toBe('committed')
    await a.locks.revoke('report', token)
    expect(await write(fence(`report:${token}`), 'truncate report')).toMatchObject(wanting('report'))
    expect(await write('truncate report')).toMatchObject({
      code: SQLSTATE.fenceMissing,
      message: `lockstep: a write to public.report without a fence; it needs the hold 'report'`,
    })
    await a.locks.transaction('report', (trx) => trx.insertInto('report').values({ n: 1 }).execute())
  })
})

describe('a table that is bound to nothing', () => {
  test('takes writes under any of the holds that are named, as long as one lives', async () => {
    const [one, two] = [await order(), await order()]
    const insert = 'insert into anyones values (1)'
    await a.locks.revoke(one.name, one.token)
    expect(await write(fence(one.line, two.line), insert)).toBe('committed')
    expect(await write(fence(two.line, 'no fence', ''), insert)).toBe('committed')
    await a.locks.revoke(two.name, two.token)
    const { rows } = await db.pool.query('select count(*)::int as n from anyones')
    await expect(write(fence(one.line, two.line), insert)).resolves.toMatchObject({
      code: SQLSTATE.leaseLost,
      message: `lockstep: a write to public.anyones needs a live hold, and '${two.name}' is not held under token ${two.token}`,
    })
    expect((await db.pool.query('select count(*)::int as n from anyones')).rows).toEqual(rows)
  })

  test('takes what a session says once, for writes that commit by themselves', async () => {
    const it = await order()
    const client = new pg.Client({ connectionString: db.url })
    await client.connect()
    await client.query(`set lockstep.fence = '${it.line}'`)
    await client.query('insert into anyones values (1)')
    await client.query(`insert into orders values (${it.id}, 'by itself')`)
    await client.query('begin')
    const other = await order()
    await client.query('select lockstep.assert_held($1, $2)', [other.name, other.token]) // for this transaction, beside it
    await client.query(`insert into orders values (${other.id}, 'x')`)
    await client.query(`update orders set note = 'y' where id = ${it.id}`)
    await client.query('commit')
    expect((await client.query('show lockstep.fence')).rows).toEqual([{ 'lockstep.fence': it.line }])
    await expect(client.query(`update orders set note = 'z' where id = ${other.id}`)).rejects.toMatchObject({
      code: SQLSTATE.leaseLost,
    })
    await client.end()
  })
})

describe('a savepoint that is rolled back', () => {
  test('takes the assertion with it', async () => {
    const it = await order({ there: true })
    const assert = `select lockstep.assert_held('${it.name}', ${it.token})`
    const update = `update orders set note = 'after' where id = ${it.id}`
    expect(await write('savepoint s', assert, 'rollback to s', update)).toMatchObject({ code: SQLSTATE.fenceMissing })
    expect(await write(assert, 'savepoint s', assert, 'rollback to s', update)).toBe('committed')
  })

  test('takes a check with it: what was written before is checked again', async () => {
    const it = await order({ there: true })
    const update = `update orders set note = 'before' where id = ${it.id}`
    const immediate = 'set constraints all immediate'
    expect(await write(update, 'savepoint s', fence(it.line), immediate, 'rollback to s')).toMatchObject({
      code: SQLSTATE.fenceMissing,
    })
    await a.locks.revoke(it.name, it.token)
    const enter = `select lockstep.enter('${it.name}', null)`
    expect(await write(update, 'savepoint s', enter, immediate, 'rollback to s')).toMatchObject({
      code: SQLSTATE.fenceMissing,
    })
    expect(await write(enter, update, 'savepoint s', immediate, 'rollback to s', update)).toBe('committed')
  })

  test('takes a release with it: then the hold stands, and the write commits', async () => {
    const it = await order({ there: true })
    const release = `select lockstep.release_held('${it.name}', ${it.token})`
    const update = (note: string) => `update orders set note = '${note}' where id = ${it.id}`
    expect(await write('savepoint s', release, 'rollback to s', fence(it.line), update('held'))).toBe('committed')
    await a.locks.renew(it.name, it.token)
    expect(await write(update('released'), release)).toBe('committed')
    await expect(a.locks.renew(it.name, it.token)).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(await notes(it.id)).toEqual(['released'])
    // what that transaction left in the row lets no other one in
    expect(await write(fence(it.line), update('later'))).toMatchObject(wanting(it.name))
    expect(await write(fence(`${it.name}:transaction`), update('later'))).toMatchObject(wanting(it.name))
  })
})

describe('the expression', () => {
  test.each([
    ['is none', `'order/' ||`, /syntax error/],
    ['is more than one', `id, note`, /./],
    ['ends, and something else begins', `id)::text)); drop table orders; --`, /syntax error/],
    ['has a column that the table has not', `'order/' || number`, /column "number" does not exist/],
    ['gives what the writer may set', `'day/' || now()`, /IMMUTABLE/],
    ['depends on DateStyle', `'day/' || current_date`, /IMMUTABLE/],
    ['reads a setting', `current_setting('x')`, /IMMUTABLE/],
    ['reads other rows', `(select max(id) from orders)`, /subquery/],
    ['is of all rows', `max(id)`, /aggregate/],
    ['gives several names', `generate_series(1, id)`, /set-returning/],
    ['calls what is not in pg_catalog', `'order/' || name_of(id)`, /function name_of\(integer\) does not exist/],
  ])('that %s is refused in one sentence, and the table stays as it was', async (_, by, why) => {
    await db.pool.query(
      `create or replace function public.name_of(int) returns text language sql immutable return 'order/1'`,
    )
    const before = await triggers()
    const refused = await db.pool.query(`select lockstep.fence_table('orders', by => $1)`, [by]).catch((error) => error)
    expect(refused.message).toMatch(/^lockstep: .* cannot name the hold of a row of public\.orders: /)
    expect(refused.message).toMatch(why)
    expect(refused.hint).toMatch(/^An SQL expression over the columns/)
    expect(await triggers()).toEqual(before)
    expect((await db.pool.query(`select from pg_class where relname like 'lockstep\\_fence%'`)).rowCount).toBe(0)
  })
  const triggers = async () =>
    (
      await db.pool.query(
        `select t.oid, t.tgname, p.prosrc from pg_trigger t join pg_proc p on p.oid = t.tgfoid where t.tgrelid = 'orders'::regclass order by 1`,
      )
    ).rows

  test.each([
    [`select lockstep.fence_table('orders', by => 'id', name => 'orders')`, /by rows or to one name, not to both/],
    [`select lockstep.fence_table('orders', name => '')`, /cannot be bound to the empty name/],
    [`create view v as select 1; select lockstep.fence_table('v')`, /v is not a table that can be fenced/],
  ])('or the name that is not to be had: %s', async (call, why) => {
    await expect(db.pool.query(call)).rejects.toThrow(why)
  })

  test.each([
    ['a column', 'note', `note/ä 'x'`],
    ['with a comment at its end', 'note -- the note', 'note/2'],
    ['a number', 'id', '3'],
    ['of columns that are called as the variables around it', `was || will || "old" || ignored || "tg_op"`, 'abcde'],
    ['that calls a function by its schema', 'public.named(note)', 'named/note/5'],
    ['that is the same for all', `'the/one'`, 'the/one'],
    ['that names an election', 'lockstep.election(note)', 'leader\tnote/7'],
  ])('%s names the hold of each row', async (_, by, wanted) => {
    await db.pool.query(`
      create or replace function public.named(t text) returns text language sql immutable return 'named/' || t;
      drop table if exists oddly;
      create table oddly (id int, note text, was text, will text, "old" text, ignored text, "tg_op" text);
      select lockstep.fence_table('oddly', by => ${pg.escapeLiteral(by)})`)
    const note = wanted.replace(/^named\/|^leader\t/, '')
    const id = Number(wanted) || 0
    const insert = `insert into oddly values (${id}, ${pg.escapeLiteral(note)}, 'a', 'b', 'c', 'd', 'e')`
    const refused = (await write(fence('x:1'), insert)) as Refusal
    expect(refused).toMatchObject({ code: SQLSTATE.leaseLost })
    expect(refused.message).toContain(`needs the hold ${pg.escapeLiteral(wanted)},`)
    if (wanted.includes('\t')) return
    const { token } = await a.locks.grant(wanted, LEASE)
    for (const statement of [insert, `update oddly set ignored = 'd'`, 'delete from oddly']) {
      expect(await write(fence(`${wanted}:${token}`), statement)).toBe('committed')
    }
  })

  test('that gives no name for a row is refused then, whatever is held', async () => {
    await db.pool.query(`create table unnamed (name text); select lockstep.fence_table('unnamed', by => 'name')`)
    const it = await order()
    for (const [value, why] of [
      ['null', 'null'],
      [`''`, 'an empty text'],
    ]) {
      expect(await write(fence(it.line), `insert into unnamed values (${value})`)).toMatchObject({
        code: SQLSTATE.fenceMissing,
        message: `lockstep: a row of public.unnamed belongs to no hold: the expression of its fence gives ${why}`,
      })
    }
  })

  test('is read in pg_catalog: operators and functions that a writer puts before decide nothing', async () => {
    const [ours, theirs] = [await order(), await order()]
    await db.pool.query(`
      create schema tenant;
      create function tenant.always(text, int) returns text language sql immutable return '${ours.name}';
      create operator tenant.|| (leftarg = text, rightarg = int, function = tenant.always);
      create function tenant.strpos(text, text) returns int language sql immutable return 1;
      create function tenant.check_hold(regclass, text) returns boolean language sql immutable return true`)
    const path = 'set local search_path = tenant, pg_catalog, lockstep, public'
    const insert = `insert into public.orders values (${theirs.id}, 'x')`
    expect(await write(path, fence(ours.line), insert)).toMatchObject(wanting(theirs.name))
    // also when the rule is set under such a path
    await db.pool.query(
      `begin; ${path}; select lockstep.fence_table('public.orders', by => $$ 'order/' || id $$); commit`,
    )
    expect(await write(path, fence(ours.line), insert)).toMatchObject(wanting(theirs.name))
    expect(await write(path, fence(theirs.line), insert)).toBe('committed')
  })

  test('whose column goes, or is renamed, refuses every write until the table is fenced anew', async () => {
    await db.pool.query(
      `create table moving (id int); select lockstep.fence_table('moving', by => $$ 'order/' || id $$)`,
    )
    const it = await order()
    const insert = `insert into moving values (${it.id})`
    expect(await write(fence(it.line), insert)).toBe('committed')
    await db.pool.query('alter table moving rename id to number')
    expect(await write(fence(it.line), insert)).toMatchObject({ code: '42703' })
    await db.pool.query(`select lockstep.fence_table('moving', by => $$ 'order/' || number $$)`)
    expect(await write(fence(it.line), insert)).toBe('committed')
    await db.pool.query('alter table moving alter number type text')
    expect(await write(fence(it.line), insert)).toBe('committed')
  })
})
