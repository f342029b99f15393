/**
 * Hostile neighbours: a tenant of the same database (tenant.ts) does what a role without rights on Lockstep's schema can. In every room the
 * promise holds, or the verb fails with a code of docs/errors.md and goes on by itself when the tenant lets go; and the tenant
 * learns and changes nothing.
 */
import { sql } from 'kysely'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import { keyOf } from '../../lib/database/lock-key.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type ElectionState, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { CODES } from '../faults/codes.ts'
import { forge, OLD_SEED } from '../lock/lookup3.ts'
import { freshDatabase, type RoleDatabase } from '../support/database.ts'
import { leftOnServer } from '../support/resources.ts'
import { until } from '../support/until.ts'
import { type Tenant, tenantOf } from './tenant.ts'

let db: RoleDatabase
let tenant: Tenant
/** The service: two processes of the role that `migrate --grant` makes. */
let a: Lockstep
let b: Lockstep
let tasks: Tasks
let events: Events
beforeAll(async () => {
  db = await freshDatabase({ role: true })
  await db.pool.query(`
    create table fenced (name text, what text);
    select lockstep.fence_table('fenced', by => 'name');
    grant select, insert, update, delete on fenced to ${db.role}`)
})
afterAll(() => db?.close())
beforeEach(async () => {
  tenant = await tenantOf(db)
  await db.pool.query(`grant insert on fenced to ${tenant.role}`)
  a = createLockstep({ connectionString: db.roleUrl, applicationName: 'service' })
  b = createLockstep({ connectionString: db.roleUrl, applicationName: 'service' })
  tasks = createTasks(a, { onError: () => {} })
  events = createEvents(a, { onError: () => {} })
})
afterEach(async () => {
  await Promise.all([a?.close(), b?.close()])
  await tenant?.[Symbol.asyncDispose]()
  expect(await leftOnServer(db.url, 'service')).toEqual([])
})

let n = 0
const fresh = () => `neighbour-${n++}`
const LEASE = { ttlMs: 60_000 }

/** The main verbs of every room. */
async function everyRoom(): Promise<void> {
  const name = fresh()
  for (const options of [{}, LEASE]) {
    const held = await a.locks.acquire(name, options)
    const next = b.locks.acquire(name, options)
    await until('it waits', async () => (await a.locks.get(name)).waiting > 0)
    await held.transaction((trx) => sql`insert into public.fenced values (${name}, 'by its holder')`.execute(trx))
    await held.release()
    await (await next).release()
  }
  await a.locks.transaction(name, async () => {})
  const term = await a.leaders.campaign(name, { failover: 'connection' })
  expect((await b.leaders.members(name)).leader?.token).toBe(term.token)
  await term.proclaim('here')
  await term.resign()
  expect(await a.time.tick()).toBeLessThan(await b.time.tick())
  tasks.define(name, (data: number) => data + 1)
  const worker = tasks.work(name)
  expect(await tasks.run(name, 1)).toBe(2)
  await worker.stop()
  const following = events.subscribe({ stream: name, from: 1n })
  const first = following.next()
  await a.kysely.transaction().execute((trx) => events.append(name, { type: 'x' }, { trx }))
  expect((await first).value).toMatchObject({ position: 1n })
  await following.return(undefined as never)
  await events.declareGroup(name, { prefix: name, partitions: 1, from: 1n })
  const [batch] = await events.poll(name, { holder: 'h', waitMs: 5_000 })
  await events.commit(name, { partition: 0, token: batch?.token as bigint, next: batch?.next as string })
  expect((await events.lag(name)).behind).toBe(0)
  await a.locks.list()
  await a.locks.sweep()
}

describe('a tenant with its own `public`', () => {
  test('is called by no statement of any room, though its functions take a text wherever ours leave a type open', async () => {
    await tenant.client.query(`
      create table public.heard (what text);
      grant insert on public.heard to public`)
    const open = ['pg_advisory_lock', 'pg_advisory_lock_shared', 'pg_advisory_unlock', 'pg_advisory_unlock_shared']
    const others = [
      'pg_cancel_backend',
      'pg_terminate_backend',
      'pg_sleep',
      'clock_timestamp',
      'octet_length',
      'unnest',
    ]
    for (const name of [...open, ...others]) {
      await tenant.client.query(`
        create function public.${name}(text) returns boolean language plpgsql as
          $$ begin insert into public.heard values ('${name}'); return true; end $$`)
    }
    for (const types of ['text, varchar', 'varchar, text']) {
      await tenant.client.query(`
        create function public.pg_notify(${types}) returns void language plpgsql as
          $$ begin insert into public.heard values ('pg_notify'); end $$`)
    }
    for (const table of ['lease', 'event', 'stream', 'job', 'queue', 'hold', 'candidate', 'schedule', 'checkpoint']) {
      await tenant.client.query(`create table public.${table} (name text, token bigint, holder text)`)
    }
    await tenant.client.query(`
      create domain public.int8 as text; create domain public.uuid as text;
      create function public.later(text, bigint) returns boolean language plpgsql as
        $$ begin insert into public.heard values ('='); return true; end $$;
      create operator public.= (leftarg = text, rightarg = bigint, function = public.later)`)
    // It is there for a caller that leaves its types open, so it would be found.
    await b.kysely.transaction().execute((trx) => sql`select pg_advisory_unlock('7')`.execute(trx))
    expect((await db.pool.query('delete from public.heard returning what')).rows).toEqual([
      { what: 'pg_advisory_unlock' },
    ])
    await everyRoom()
    expect((await db.pool.query('select what from public.heard')).rows).toEqual([])
  })

  test('and a program with temporary tables of our names: what Lockstep does in its transaction is done to ours', async () => {
    const name = fresh()
    const held = await a.locks.acquire(name, LEASE)
    await a.kysely.transaction().execute(async (trx) => {
      for (const table of ['lease', 'stream', 'event', 'event_sequence', 'job']) {
        await sql.raw(`create temporary table ${table} (like pg_catalog.pg_class) on commit drop`).execute(trx)
      }
      await held.assertHeld(trx)
      await events.append(name, { type: 'x' }, { trx })
      await tasks.declare(name)
      await tasks.send(name, 1, { trx })
    })
    expect((await events.read(name)).events).toHaveLength(1)
    expect(await tasks.counts(name)).toMatchObject({ ready: 1 })
    await held.release()
  })
})

describe.each([
  ['without rights', ''],
  ['that may name our objects', 'usage'],
])('a tenant %s', (_which, right) => {
  test.each([
    ['sees who holds what', 'select * from lockstep.lease'],
    ['looks through a function', `select * from lockstep.look('x')`],
    ['reads events', 'select * from lockstep.event'],
    ['reads jobs', 'select * from lockstep_boss.job'],
    ['learns the name of a secret channel', `select lockstep.secret_channel('leader')`],
    ['grants itself a name', `select lockstep.grant_leases('{x}', '{me}', '{1000}', '{null}')`],
    ['takes a name by force', `select lockstep.force_revoke('x')`],
    ['appends', `select lockstep.begin_append()`],
    ['draws a token', `select nextval('lockstep.token')`],
    ['asserts a hold', `select lockstep.assert_held('x', 1)`],
    ['locks our tables', 'begin; lock table lockstep.lease in access exclusive mode'],
    ['locks them to read', 'begin; lock table lockstep.event in access share mode'],
    ['makes a trigger', 'create trigger t after insert on lockstep.event execute function lockstep.check_fence()'],
    ['makes a reference', 'create table mine (name text references lockstep.lease)'],
    ['makes a view that others would trust', 'create view lockstep.mine as select 1'],
    ['ends the fence of a table', `select lockstep.unfence_table('fenced')`],
    ['disables it', 'alter table fenced disable trigger all'],
    ['leaves triggers out', 'set session_replication_role = replica'],
    [
      'ends a connection of the service',
      `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'service'`,
    ],
    ['cancels its statement', `select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'service'`],
  ])('cannot: %s', async (_what, statement) => {
    if (right) await db.pool.query(`grant ${right} on schema lockstep, lockstep_boss to ${tenant.role}`)
    await using _held = await a.locks.acquire(fresh())
    expect(await tenant.refused(statement)).toBe('42501')
  })
})

describe('a tenant that forges the settings of fences', () => {
  const write = (name: string) => `insert into fenced values ('${name}', 'by the tenant')`
  /** Writes under a setting, or under what it does first. @returns the SQLSTATE of the refusal. */
  const tried = (name: string, fence: string, first = '') =>
    tenant.refused(`begin; set local lockstep.fence = '${fence}'; ${first}; ${write(name)}; commit`)

  test('writes nothing to a fenced table: no setting stands for a hold that is not there', async () => {
    const name = fresh()
    expect(await tenant.refused(write(name))).toBe('42501')
    await db.pool.query(`grant usage on schema lockstep to ${tenant.role}`)
    const old = await a.locks.acquire(name, LEASE)
    await old.release()
    expect(await tenant.refused(write(name))).toBe(SQLSTATE.fenceMissing)
    for (const fence of ['', 'x', `${name}`, `${name}:`, `${name}:x`])
      expect(await tried(name, fence)).toBe(SQLSTATE.fenceMissing)
    for (const fence of [`${name}:1`, `${name}:${old.token}`, `${name}:transaction`, `${name}:${2n ** 62n}`]) {
      expect(await tried(name, fence)).toBe(SQLSTATE.leaseLost)
    }
    const shared = `select pg_advisory_xact_lock_shared(${keyOf(name)})`
    expect(await tried(name, `${name}:transaction`, shared)).toBe(SQLSTATE.leaseLost)
    await db.pool.query(`alter role ${tenant.role} set lockstep.fence = '${name}:transaction'`)
    expect(await tenant.refused(write(name))).toBe(SQLSTATE.leaseLost)
    const held = await a.locks.acquire(name, LEASE)
    expect(await tried(name, `${name}:transaction`)).toBe(SQLSTATE.leaseLost) // of a lease that lives
    await held.release()
    expect((await db.pool.query('select from fenced where name = $1', [name])).rows).toEqual([])
  })

  test('makes no hold of its own writer count: names with colons and digits do not run into one another', async () => {
    const name = fresh()
    const held = await a.locks.acquire(`${name}:7`, LEASE)
    await held.transaction((trx) => sql`insert into fenced values (${`${name}:7`}, 'mine')`.execute(trx))
    for (const other of [name, `${name}:7:${held.token}`, `${name}:`]) {
      const stolen = held.transaction((trx) => sql`insert into fenced values (${other}, 'stolen')`.execute(trx))
      await expect(stolen).rejects.toMatchObject({ code: 'LEASE_LOST', leaseName: other })
    }
    expect(held.isTrusted()).toBe(true)
    await held.release()
    for (const bad of [`${name}\n`, `${name}\tx`, `leader\t${name}`, `\u0000`]) {
      await expect(a.locks.acquire(bad)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field: 'name' })
    }
  })

  test('and a program whose role has our settings: its appends are seen, in order', async () => {
    const name = fresh()
    await db.pool.query(`alter role ${db.role} set lockstep.aligned = 'on'`)
    try {
      await using c = createLockstep({ connectionString: db.roleUrl, applicationName: 'service' })
      await createEvents(c).append(name, [{ type: 'x' }, { type: 'y' }])
      expect((await events.readAll({ prefix: name })).events.map(({ type }) => type)).toEqual(['x', 'y'])
    } finally {
      await db.pool.query(`alter role ${db.role} reset lockstep.aligned`)
    }
  })
})

describe('a tenant that listens and notifies', () => {
  test('shows observers no leader, makes none stop, and hears of none', async () => {
    const name = fresh()
    await tenant.client.query(
      `listen lockstep_leader; listen lockstep_job; listen lockstep_event; listen "${channelOf(name)}"`,
    )
    const seen: ElectionState[] = []
    const stop = new AbortController()
    const observing = (async () => {
      for await (const state of b.leaders.observe(name, { signal: stop.signal })) seen.push(state)
    })().catch(() => {})
    const term = await a.leaders.campaign(name, { holder: 'the leader', meta: { secret: 'of the leader' } })
    await until('it is seen', () => seen.at(-1)?.leader?.token === term.token)
    const forged = (more: object) =>
      JSON.stringify({
        ...{ name, revision: String(2n ** 62n), next: 'mallory' },
        leader: {
          holder: 'mallory',
          token: String(term.token),
          grantedAt: new Date(),
          expiresAt: new Date(),
          ttlMs: 1,
          meta: 1,
        },
        ...more,
      })
    const open = ['lockstep_leader', 'lockstep_leader_', `lockstep_leader_${'0'.repeat(32)}`]
    for (const channel of open) {
      for (const message of [forged({}), forged({ leader: null }), forged({ deposed: true }), '{"', '']) {
        await tenant.client.query('select pg_notify($1, $2)', [channel, message])
      }
    }
    await term.proclaim('still here')
    await until('the proclamation', () => seen.at(-1)?.leader?.meta === 'still here')
    expect(seen.map(({ leader }) => leader?.holder ?? null).filter((holder) => holder !== 'the leader')).toEqual(
      seen[0]?.leader === null ? [null] : [],
    )
    expect([term.isTrusted(), term.signal.aborted]).toEqual([true, false])
    await term.resign()
    await until('the end', () => seen.at(-1)?.leader === null)
    stop.abort(new Error('enough'))
    await observing
    await tenant.client.query('select 1')
    const said = tenant.heard.filter((line) => !line.includes('mallory'))
    expect(
      said.filter((line) => /the leader|of the leader|still here/.test(line) || line.includes(String(term.token))),
    ).toEqual([])
  })

  test('ends no wait: neither for a job, nor for a lock, nor for events', async () => {
    const name = fresh()
    await tasks.declare(name)
    const held = await b.locks.acquire(name, LEASE)
    const abandoned = new AbortController()
    let ended = 0
    const waits = [
      tasks.run(name, 1, { signal: abandoned.signal }),
      a.locks.acquire(name, { signal: abandoned.signal, holder: 'waiter', ...LEASE }),
      events.subscribe({ stream: name, from: 1n, signal: abandoned.signal }).next(),
      tasks.claim(`${name}-other`, { waitMs: 20_000, signal: abandoned.signal }).catch(() => {}),
    ].map((wait) => wait.catch(() => {}).finally(() => ended++))
    await tasks.declare(`${name}-other`)
    await until('they wait', async () => (await a.locks.get(name)).waiting > 0)
    const { rows } = await db.pool.query('select id from lockstep_boss.job where name = $1', [name])
    for (let i = 0; i < 5; i++) {
      for (const id of [rows[0]?.id ?? '', name, '[]', `[["${name}",1]]`]) {
        for (const channel of ['lockstep_job', 'lockstep_event', channelOf(name), 'pgboss_7d2848c635f27e46abe34e19']) {
          await tenant.client.query('select pg_notify($1, $2)', [channel, id])
        }
      }
      await a.locks.get(name)
    }
    expect(ended).toBeLessThanOrEqual(1) // the claim of a queue that was not there yet
    expect(held.isTrusted()).toBe(true)
    await held.release()
    abandoned.abort(new Error('enough'))
    await Promise.all(waits)
  })
})

const channelOf = (name: string) => `lockstep_${keyOf(name)}`

describe('a tenant that takes advisory locks', () => {
  test('of a name, in the session or in a transaction: it is refused or waited for, never held twice, and granted when it is free', async () => {
    for (const take of ['pg_advisory_lock', 'pg_advisory_xact_lock', 'pg_advisory_lock_shared']) {
      const name = fresh()
      await tenant.client.query(`begin; select ${take}(${keyOf(name)})`)
      expect(await a.locks.tryAcquire(name)).toBeNull()
      expect(await a.locks.tryAcquire(name, LEASE)).toBeNull()
      const refused = { code: 'LEASE_HELD' }
      await expect(a.locks.acquire(name, { waitMs: 20 })).rejects.toMatchObject(refused)
      await expect(a.locks.transaction(name, { waitMs: 20 }, async () => {})).rejects.toMatchObject(refused)
      if (take !== 'pg_advisory_lock_shared') {
        await expect(a.locks.forceRevoke(name)).rejects.toMatchObject({ code: 'FORBIDDEN' })
      }
      const waits = a.locks.acquire(name)
      const leased = b.locks.acquire(name, LEASE)
      await until('both wait', async () => (await a.locks.get(name)).waiting > 0)
      await tenant.client.query('rollback; select pg_advisory_unlock_all()')
      const first = await Promise.race([waits, leased])
      expect(first.isTrusted()).toBe(true)
      await first.release()
      const [one, two] = await Promise.all([waits, leased])
      await Promise.all([one, two].map((hold) => hold.release().catch(() => {})))
      expect(await a.locks.get(name)).toMatchObject({ held: false })
    }
  })

  test('that a name would have had by the old hash: that blocks nothing', async () => {
    const name = fresh()
    const { rows } = await db.pool.query(`select hashtextextended($1 collate "C", ${OLD_SEED}) as key`, [
      `prod/${name}`,
    ])
    const forged = forge('ci/', BigInt(rows[0].key))
    await tenant.client.query('select pg_advisory_lock($1)', [rows[0].key])
    await using held = await a.locks.acquire(`prod/${name}`, { waitMs: 5_000 })
    await using other = await b.locks.acquire(forged, { waitMs: 5_000 })
    expect([held.isTrusted(), other.isTrusted()]).toEqual([true, true])
    await tenant.client.query('select pg_advisory_unlock_all()')
  })

  test('of streams, of ticks, of appends and of elections: what waits goes on when they are free, and nothing is lost or skipped', async () => {
    const name = fresh()
    await events.append(name, { type: 'before' })
    await events.declareGroup(name, { prefix: name, partitions: 1, from: 1n })
    const { rows } = await db.pool.query(
      `select lockstep.gate($1) as gate, ((s.last_value & 4294967295) - 2147483648)::integer as low from lockstep.event_sequence s`,
      [name],
    )
    const [{ gate, low }] = rows
    const term = await a.leaders.campaign(name, { failover: 'connection' })
    await tenant.client.query(`select pg_advisory_lock($1::bigint), pg_advisory_lock(1819239275, 1953063787)`, [gate])
    let over = 0
    const waits = [events.append(name, { type: 'waited' }), a.time.tick(), b.time.tick()].map((each) =>
      each.finally(() => over++),
    )
    await until('they wait', async () => {
      const waiting = `select count(*)::int as n from pg_locks where locktype = 'advisory' and not granted
                        and database = (select oid from pg_database where datname = current_database())`
      return (await db.pool.query(waiting)).rows[0].n >= 2
    })
    expect(over).toBe(0)
    await tenant.client.query('select pg_advisory_unlock_all()')
    const [, first, second] = await Promise.all(waits)
    expect(first).not.toBe(second)

    // The lock by which an open append holds readers back: its holder is named, and nothing is skipped.
    await tenant.client.query('select pg_advisory_lock_shared(1702258030, $1)', [low])
    await events.append(name, { type: 'after' })
    const { horizon } = await events.lag(name)
    expect(horizon.holdups).toContainEqual(expect.objectContaining({ application: 'tenant', user: tenant.role }))
    expect((await events.read(name)).events.map(({ type }) => type)).toEqual(['before', 'waited', 'after'])
    await tenant.client.query('select pg_advisory_unlock_all()')
    await until('readers go on', async () => {
      const { events: all } = await events.readAll({ prefix: name })
      return all.map(({ type }) => type).join() === 'before,waited,after'
    })

    // The witness of a leader that ends with its connection: another that has it cannot end the term.
    const witness = (await db.pool.query('select witness from lockstep.lease where name = $1', [`leader\t${name}`]))
      .rows[0]
    await tenant.refused(`set lock_timeout = 50; select pg_advisory_lock_shared(${witness.witness})`)
    expect(await b.leaders.tryCampaign(name)).toBeNull()
    expect(term.isTrusted()).toBe(true)
    await term.resign()
  })

  test('by the thousand: connection holds become leases, and nothing else changes', async () => {
    await tenant.client.query('select pg_advisory_lock(n, 0) from generate_series(1, 2000) n')
    await everyRoom()
    await tenant.client.query('select pg_advisory_unlock_all()')
  })
})

test('a tenant with a long transaction, and its snapshot, holds up no room', async () => {
  await tenant.client.query('begin isolation level serializable; select txid_current(), count(*) from pg_class')
  await everyRoom()
  const { rows } = await db.pool.query(`select lockstep.sweep('0 s') as swept`)
  expect(rows[0].swept).toBeTypeOf('number')
  await tenant.client.query('rollback')
})

test('the codes that the tenant causes are those of docs/errors.md', () => {
  expect(CODES).toEqual(expect.arrayContaining(['LEASE_HELD', 'LEASE_LOST', 'FORBIDDEN', 'INVALID_ARGUMENT']))
})
