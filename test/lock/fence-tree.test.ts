/**
 * A fence covers all that is below its table: partitions and theirs, and children by inheritance, there or yet to come. And it is
 * put up, changed and taken down whole, by the owner of the table.
 */
import pg from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { fence, sqlWriter } from './writers.ts'

let db: FreshDatabase
let a: Lockstep
/** Of order/1 and order/2: leases. */
let one: string
let two: string
beforeAll(async () => {
  db = await freshDatabase()
  a = createLockstep({ connectionString: db.url })
  const grant = async (name: string) => `${name}:${(await a.locks.grant(name, { ttlMs: 600_000 })).token}`
  one = await grant('order/1')
  two = await grant('order/2')
})
afterAll(async () => {
  await a?.close()
  await db?.close()
})

const write = (...statements: string[]) => sqlWriter(db.url, statements)
const run = (statements: string) => db.pool.query(statements)
const FENCE = `select lockstep.fence_table('orders', by => $$ 'order/' || id $$)`
const bare = { code: SQLSTATE.fenceMissing }
/** One statement, with no hold, with the other's, and with its own. */
async function takes(statement: string, ours = one, theirs = two) {
  expect(await write(statement), statement).toMatchObject(bare)
  expect(await write(fence(theirs), statement), statement).toMatchObject({ code: SQLSTATE.leaseLost })
  expect(await write(fence(ours), statement), statement).toBe('committed')
}
/** Everything that a fence could leave behind. */
const standing = async () =>
  (
    await run(`
      select 'trigger ' || tgname || ' on ' || tgrelid::regclass as it from pg_trigger where not tgisinternal
      union all select 'function ' || oid::regprocedure from pg_proc
      union all select 'event trigger ' || evtname from pg_event_trigger
      union all select 'relation ' || oid::regclass from pg_class where relnamespace = 'public'::regnamespace
      union all select 'dependency ' || classid || ' ' || objid || ' ' || refclassid || ' ' || refobjid from pg_depend
      order by 1`)
  ).rows.map(({ it }) => it as string)

beforeEach(() =>
  run(`drop table if exists orders, others, alone, loose cascade; drop schema if exists apart cascade;
       create table if not exists never (); select lockstep.unfence_table('never')`),
)

describe('partitions', () => {
  const PARTITIONED = `
    create table orders (id int, place text, note text) partition by list (place);
    create table orders_north partition of orders for values in ('north');
    create table orders_south partition of orders for values in ('south') partition by range (id);
    create table orders_south_few partition of orders_south for values from (0) to (100);`

  test('are fenced with their table, written through it or directly', async () => {
    await run(PARTITIONED + FENCE)
    await takes(`insert into orders values (1, 'north')`)
    await takes(`insert into orders_south values (1, 'south')`)
    await takes(`update orders_south_few set note = 'x' where id = 1`)
    await takes(`delete from orders_north where id = 1`)
    for (const table of ['orders', 'orders_north', 'orders_south', 'orders_south_few']) {
      expect(await write(fence(one), `truncate ${table}`), table).toMatchObject(bare)
    }
  })

  test('take a row that moves to another of them under the hold that it had and the one that it gets', async () => {
    await run(PARTITIONED + FENCE)
    await takes(`insert into orders values (1, 'north')`)
    const move = `update orders set id = 2, place = 'south' where id = 1`
    expect(await write(fence(one), move)).toMatchObject({ code: SQLSTATE.leaseLost })
    expect(await write(fence(two), move)).toMatchObject({ code: SQLSTATE.leaseLost })
    expect(await write(fence(one, two), move)).toBe('committed')
  })

  test('that come later are fenced when they come: created, attached, below a partition, in a new schema', async () => {
    await run(PARTITIONED + FENCE)
    await run(`create table orders_west partition of orders for values in ('west')`)
    await run(`create table orders_east (like orders) partition by range (id);
               create table orders_east_few partition of orders_east for values from (0) to (100)`)
    await run(`insert into orders_east values (1, 'east')`) // it is not one yet
    await run(`alter table orders attach partition orders_east for values in ('east')`)
    await run(`create table orders_south_more partition of orders_south for values from (100) to (200)`)
    await run(`create schema apart create table mid partition of public.orders for values in ('mid')`)
    await takes(`insert into orders_west values (1, 'west')`)
    await takes(`update orders_east_few set note = 'x'`)
    await takes(`insert into apart.mid values (1, 'mid')`)
    for (const table of ['orders_west', 'orders_east', 'orders_east_few', 'orders_south_more', 'apart.mid']) {
      expect(await write(fence(one), `truncate ${table}`), table).toMatchObject(bare)
    }
  })

  test('that are detached are tables of their own again, and fenced anew when they come back', async () => {
    await run(PARTITIONED + FENCE)
    await run('alter table orders detach partition orders_north')
    await run(`insert into orders_north values (7, 'north'); truncate orders_north`)
    await run(`alter table orders attach partition orders_north for values in ('north')`)
    await takes(`insert into orders_north values (1, 'north')`)
    expect(await write('truncate orders_north')).toMatchObject(bare)
  })

  test('that were fenced by themselves are fenced as their table from then on, and only with it', async () => {
    await run(PARTITIONED)
    const before = await standing()
    await run(`select lockstep.fence_table('orders_north', name => 'order/2')`)
    await run(`select lockstep.fence_table('orders_south', by => $$ 'order/2' $$)`)
    await run(FENCE)
    await takes(`insert into orders_north values (1, 'north')`)
    await takes(`insert into orders_south_few values (1, 'south')`)
    for (const call of [`fence_table('orders_north')`, `unfence_table('orders_south_few')`]) {
      await expect(run(`select lockstep.${call}`)).rejects.toThrow(
        /is part of .*orders.*, which is fenced: fence or unfence/,
      )
    }
    await run(`select lockstep.unfence_table('orders')`)
    expect(await standing()).toEqual(before)
  })
})

test('what cannot be fenced cannot come below a fenced table', async () => {
  const parts = `create table orders (id int, place text) partition by list (place);
                 create table others (id int, place text); create table alone (id int); ${FENCE};
                 select lockstep.fence_table('others', name => 'order/1'); select lockstep.fence_table('alone', name => 'order/1')`
  await run(parts)
  const attach = `alter table orders attach partition others for values in ('x')`
  await expect(run(attach)).rejects.toMatchObject({ code: '42710' }) // it has a fence of its own
  await run(`select lockstep.unfence_table('others'); ${attach}`)
  await takes(`insert into others values (1, 'x')`)
  await run('create foreign data wrapper none; create server nowhere foreign data wrapper none')
  const foreign = 'create foreign table loose () inherits (alone) server nowhere'
  await expect(run(foreign)).rejects.toThrow(/foreign table/)
  await run('drop foreign data wrapper none cascade')
})

describe('children by inheritance', () => {
  const PARENT = 'create table orders (id int, note text);'

  test('are fenced with their parent: what an update of the parent does to their rows, too', async () => {
    await run(`${PARENT} create table others (extra text) inherits (orders); create table alone () inherits (others);
               insert into others values (1, 'x'), (2, 'y'); ${FENCE}`)
    await takes(`update orders set note = 'through the parent' where id = 1`)
    await takes(`insert into alone values (1, 'x')`)
    await takes('delete from orders where id = 1')
    for (const table of ['orders', 'others', 'alone']) {
      expect(await write(fence(one), `truncate only ${table}`), table).toMatchObject(bare)
    }
  })

  test('that come later are fenced when they come: created, or made children', async () => {
    await run(PARENT + FENCE)
    await run('create table others () inherits (orders)')
    await run('create table alone (id int, note text, extra text)')
    await run('alter table alone inherit others')
    await takes('insert into others values (1)')
    await takes('insert into alone values (1)')
    expect(await write('truncate alone')).toMatchObject(bare)
  })

  test('that leave stay fenced until they are unfenced', async () => {
    await run(PARENT)
    await run(`create table others () inherits (orders); ${FENCE}; alter table others no inherit orders`)
    await takes('insert into others values (1)')
    await run(`select lockstep.fence_table('others', by => $$ 'order/' || (3 - id) $$)`)
    await takes('insert into others values (2)')
    await takes('insert into orders values (1)')
    await run(`select lockstep.unfence_table('others')`)
    expect(await write('insert into others values (1)')).toBe('committed')
    await takes('insert into orders values (1)')
  })

  test('of two tables are fenced as one of them, and the other cannot be fenced otherwise', async () => {
    await run(`${PARENT} create table loose (at date); create table others () inherits (orders, loose); ${FENCE}`)
    await expect(run(`select lockstep.fence_table('loose', name => 'order/2')`)).rejects.toThrow(
      /others is part of .*orders, which is fenced/,
    )
    await takes('insert into others values (1)')
  })
})

describe('tables that have nothing to do with it', () => {
  test('are made and altered by every role that could before, with no right on anything of ours', async () => {
    await run(`create table orders (id int); ${FENCE}`)
    const role = `${db.name}_maker`
    await run(`create role ${role}; revoke all on schema lockstep from public; create schema authorization ${role}`)
    const client = await db.pool.connect()
    try {
      await client.query(`set role ${role}`)
      await client.query(`set search_path = ${role}`)
      await client.query('create table t (id int) partition by list (id)')
      await client.query('create table t1 partition of t for values in (1); alter table t add column note text')
      await client.query('create temp table own (id int); create table copy as select 1 as x')
      await client.query('create schema if not exists nothing').catch(({ code }) => expect(code).toBe('42501'))
      await client.query('drop table t, copy')
    } finally {
      await client.query('reset role; reset search_path')
      client.release()
      await run(`drop owned by ${role}; drop role ${role}`)
    }
  })

  test('and their owners need none for a new partition of a table that somebody fenced for them', async () => {
    const role = `${db.name}_owner`
    await run(`create table orders (id int, place text) partition by list (place);
               create role ${role}; alter table orders owner to ${role}; grant create on schema public to ${role}; ${FENCE}`)
    const client = await db.pool.connect()
    try {
      await client.query(`set role ${role}`)
      await client.query(`create table orders_north partition of orders for values in ('north')`)
      await client.query('alter table orders add column note text')
    } finally {
      await client.query('reset role')
      client.release()
    }
    await takes(`insert into orders_north values (1, 'north')`)
    expect(await write('truncate orders_north')).toMatchObject(bare)
    await run(`drop owned by ${role}; drop role ${role}`)
  })
})

describe('fence_table', () => {
  const triggers = async () =>
    (await run(`select oid, tgname, tgfoid from pg_trigger where tgname ~ '^lockstep' order by 1`)).rows

  test('again changes nothing; with another binding, the binding', async () => {
    await run(`create table orders (id int); ${FENCE}`)
    const before = await triggers()
    await run(FENCE)
    expect(await triggers()).toEqual(before)
    await takes('insert into orders values (1)')
    await run(`select lockstep.fence_table('orders', by => $$ 'order/' || (3 - id) $$)`)
    await takes('insert into orders values (2)')
    await run(`select lockstep.fence_table('orders', name => 'order/2')`)
    await takes('insert into orders values (3)', two, one)
    await takes('truncate orders', two, one)
    await run(`select lockstep.fence_table('orders')`)
    expect(await write(fence(one), 'insert into orders values (3)')).toBe('committed')
    expect(await write('insert into orders values (3)')).toMatchObject(bare)
    await run(FENCE)
    await takes('insert into orders values (1)')
    expect((await run(`select from pg_proc where proname like 'lockstep\\_fence\\_orders%'`)).rowCount).toBe(1)
  })

  test('puts up again what its owner had disabled; an ALTER TABLE does not', async () => {
    await run(`create table orders (id int); ${FENCE}; alter table orders disable trigger lockstep_fence`)
    await run('alter table orders add column note text; insert into orders values (7)')
    await run(`delete from orders; ${FENCE}`)
    await takes('insert into orders values (1)')
  })

  test('keeps apart tables of one name, renamed and dropped ones', async () => {
    const long = 'ä'.repeat(31)
    await run(`create table orders (id int); ${FENCE}; alter table orders rename to others;
               create table orders (id int, note text); select lockstep.fence_table('orders', by => $$ 'order/' || (3 - id) $$);
               create schema apart; create table apart."${long}" (id int); create table apart."${long}2" (id int);
               select lockstep.fence_table('apart."${long}"', by => $$ 'order/' || id $$);`)
    await takes('insert into others values (1)')
    await takes('insert into orders values (2)')
    await takes(`insert into apart."${long}" values (1)`)
    await run(`drop table orders; create table orders (id int); ${FENCE}`)
    await takes('insert into orders values (1)')
    await takes('insert into others values (1)')
    await run(`select lockstep.unfence_table('others')`)
    await takes('insert into orders values (1)')
    await run(`drop table orders; select lockstep.unfence_table('others')`) // its function goes with the next one
    expect((await run(`select from pg_proc where proname like 'lockstep\\_fence\\_o%'`)).rowCount).toBe(0)
  })

  test('of a table that 0.6 fenced goes on from there', async () => {
    await run(`create table orders (id int);
      create constraint trigger lockstep_fence after insert or update or delete on orders
        deferrable initially deferred for each row execute function lockstep.check_fence();
      create trigger lockstep_fence_truncate before truncate on orders for each statement execute function lockstep.check_fence()`)
    for (const statement of ['insert into orders values (3)', 'truncate orders']) {
      expect(await write(statement)).toMatchObject(bare)
      expect(await write(fence(one), statement)).toBe('committed')
    }
    await run(FENCE)
    await takes('insert into orders values (1)')
    expect(await write(fence(one), 'truncate orders')).toMatchObject(bare)
  })

  test('rolled back leaves nothing; at once with others, one event trigger', async () => {
    await run('create table orders (id int); create table others (id int); create table alone (id int)')
    const before = await standing()
    await run(`begin; ${FENCE}; rollback`)
    expect(await standing()).toEqual(before)
    const tables = ['orders', 'others', 'alone']
    await Promise.all(tables.map((table) => run(`select lockstep.fence_table('${table}', by => $$ 'order/' || id $$)`)))
    for (const table of tables) await takes(`insert into ${table} values (1)`)
    await Promise.all(tables.map((table) => run(`select lockstep.unfence_table('${table}')`)))
    expect(await standing()).toEqual(before)
  })
})

describe('unfence_table', () => {
  test.each([
    ['a table', `create table orders (id int)`, [FENCE]],
    [
      'one that was bound in every way',
      `create table orders (id int)`,
      [FENCE, `select lockstep.fence_table('orders', name => 'x')`, `select lockstep.fence_table('orders')`, FENCE],
    ],
    [
      'a table with partitions, some of them later',
      `create table orders (id int, place text) partition by list (place);
       create table orders_north partition of orders for values in ('north') partition by list (id);
       create table orders_one partition of orders_north for values in (1);
       create table orders_two partition of orders_north for values in (2)`,
      [
        `alter table orders_north detach partition orders_two`,
        FENCE,
        `alter table orders_north attach partition orders_two for values in (2)`,
      ],
    ],
    [
      'a table with children',
      `create table orders (id int); create table others () inherits (orders); create table alone () inherits (others)`,
      [FENCE],
    ],
    ['a temporary table', 'create temp table orders (id int)', [FENCE]],
  ])('of %s leaves nothing', async (_, made, fenced) => {
    const client = await db.pool.connect()
    try {
      await client.query(made)
      const before = await standing()
      for (const statement of fenced) await client.query(statement)
      await expect(client.query('insert into orders values (1)')).rejects.toThrow()
      expect(await standing()).not.toEqual(before)
      await client.query(`select lockstep.unfence_table('orders')`)
      expect(await standing()).toEqual(before)
      await client.query(`select lockstep.unfence_table('orders')`) // which is no error
    } finally {
      await client.query('drop table orders cascade')
      client.release()
    }
  })
})

describe('an owner that is no superuser', () => {
  let owner: pg.Client
  let notices: string[]
  let role: string
  beforeAll(async () => {
    role = `${db.name}_plain`
    await run(`create role ${role} login password 'secret'; grant create on schema public to ${role};
               grant usage on schema lockstep to ${role}`)
    const url = new URL(db.url)
    url.username = role
    url.password = 'secret'
    owner = new pg.Client({ connectionString: url.href })
    await owner.connect()
    owner.on('notice', ({ message }) => notices.push(String(message)))
  })
  beforeEach(() => {
    notices = []
  })
  afterAll(async () => {
    await owner?.end()
    await run(`drop owned by ${role}; drop role ${role}`)
  })

  test('fences with no right but USAGE, is warned that what comes later is not fenced, and brings it in by a second call', async () => {
    const before = await standing()
    await owner.query(`create table orders (id int, place text) partition by list (place); ${FENCE}`)
    expect(notices).toEqual([
      'lockstep: a partition or child that public.orders gets later is not fenced until fence_table is called again',
    ])
    await owner.query(`create table orders_north partition of orders for values in ('north')`)
    await takes(`insert into orders_north values (1, 'north')`) // by Postgres itself
    await owner.query('truncate orders_north')
    await owner.query(FENCE)
    await expect(owner.query('truncate orders_north')).rejects.toMatchObject(bare)
    await owner.query(`create table others (id int); select lockstep.fence_table('others', name => 'order/1')`)
    await owner.query('create table alone () inherits (others)')
    await owner.query('insert into alone values (1)')
    await owner.query(`select lockstep.fence_table('others', name => 'order/1')`)
    await takes('insert into alone values (1)')
    // under an event trigger that a superuser made it gets no warning, and cannot take that away
    await run(`create table loose (id int); select lockstep.fence_table('loose')`)
    notices = []
    await owner.query(`select lockstep.fence_table('others', name => 'order/2')`)
    await owner.query(`select lockstep.unfence_table('orders'), lockstep.unfence_table('others')`)
    expect(notices).toEqual([])
    await run(`select lockstep.unfence_table('loose')`)
    await owner.query('drop table orders, others cascade')
    await run('drop table loose')
    expect(await standing()).toEqual(before)
  })

  test('writes under its token with no right on the rows of leases', async () => {
    await owner.query(`create table orders (id int); ${FENCE};
                       create table others (id int); select lockstep.fence_table('others', name => 'order/1')`)
    await expect(owner.query('select from lockstep.lease')).rejects.toMatchObject({ code: '42501' })
    for (const table of ['orders', 'others']) {
      await owner.query(`begin; ${fence(one)}; insert into ${table} values (1); commit`)
      await owner.query('rollback')
      const refused = owner.query(`begin; ${fence(two)}; insert into ${table} values (1); commit`)
      await expect(refused).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
      await owner.query('rollback')
    }
  })

  test('can change the fence that a superuser put up for it, and nobody else can', async () => {
    await run(`create table orders (id int); alter table orders owner to ${role}; ${FENCE}`)
    await owner.query(`select lockstep.fence_table('orders', by => $$ 'order/' || (3 - id) $$)`)
    await takes('insert into orders values (2)')
    await run(`create table others (id int); select lockstep.fence_table('others')`)
    for (const call of [`fence_table('others', name => 'x')`, `fence_table('others')`, `unfence_table('others')`]) {
      await expect(owner.query(`select lockstep.${call}`)).rejects.toMatchObject({ code: '42501' })
    }
    await owner.query(`select lockstep.unfence_table('orders')`)
    await owner.query('insert into orders values (1)')
  })

  test('without CREATE on the schema of its table gets an error that says so', async () => {
    await run(`create schema apart; create table apart.t (id int); alter table apart.t owner to ${role};
               grant usage on schema apart to ${role}`)
    await expect(owner.query(`select lockstep.fence_table('apart.t', by => 'id')`)).rejects.toThrow(
      'a fence that is bound by rows needs CREATE on the schema apart',
    )
    await owner.query(`select lockstep.fence_table('apart.t', name => 'order/1')`)
    await takes('insert into apart.t values (1)')
  })

  test('has no event trigger run its function with the rights of everybody else', async () => {
    await using other = await freshDatabase()
    await other.pool.query(`create table t (id int); alter function lockstep.fence_new_tables() owner to ${role};
                            select lockstep.fence_table('t')`)
    expect((await other.pool.query('select from pg_event_trigger')).rowCount).toBe(0)
    await other.pool.query(`drop function lockstep.fence_new_tables()`)
  })
})
