/** What `list` and `get` promise: all that is held is there, of every kind and of every process, and nothing else. */
import * as os from 'node:os'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { createLockstep, type LockState, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase, pgbouncerAvailable } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let a: Lockstep
let b: Lockstep
beforeAll(async () => {
  db = await freshDatabase()
  a = createLockstep({ connectionString: db.url })
  b = createLockstep({ connectionString: db.url })
})
afterAll(async () => {
  await Promise.all([a?.close(), b?.close()])
  await db?.close()
})

const HERE = `${os.hostname()}:${process.pid}`
const names = (states: LockState[]) => states.map(({ name }) => name)

/** Holds a name by a transaction until `end` is called. */
async function transactionOn(lockstep: Lockstep, name: string) {
  const begun = Promise.withResolvers<bigint>()
  const leave = Promise.withResolvers<void>()
  const over = lockstep.locks.transaction(name, async (_trx, { token }) => {
    begun.resolve(token)
    await leave.promise
  })
  over.catch(begun.reject)
  const token = await begun.promise
  const end = async () => {
    leave.resolve()
    await over
  }
  return { token, end }
}

describe('what is held is listed', () => {
  test('every kind of hold at once in its own process, with its holder, its token and since when', async () => {
    const before = Date.now()
    await using connection = await a.locks.acquire('kinds/connection', { meta: { pod: 7 } })
    await using named = await a.locks.acquire('kinds/named', { holder: 'me' })
    await using lease = await a.locks.acquire('kinds/lease', { ttlMs: 20_000, holder: 'it' })
    const transaction = await transactionOn(a, 'kinds/transaction')
    const states = await a.locks.list({ prefix: 'kinds/' })
    const since = expect.any(Date)
    const expected = [
      { ...{ kind: 'connection', holder: HERE, token: connection.token }, since, expiresAt: null, meta: { pod: 7 } },
      { ...{ kind: 'lease', holder: 'it', token: lease.token }, since, expiresAt: since, meta: null },
      { ...{ kind: 'connection', holder: 'me', token: named.token }, since, expiresAt: null, meta: null },
      { ...{ kind: 'transaction', holder: HERE, token: transaction.token }, since, expiresAt: null, meta: null },
    ]
    expect(names(states)).toEqual(['kinds/connection', 'kinds/lease', 'kinds/named', 'kinds/transaction'])
    expect(states.map(({ holders }) => holders)).toEqual(expected.map((holder) => [holder]))
    for (const [i, state] of states.entries()) {
      const { since: grantedAt, ...holder } = expected[i] as (typeof expected)[number]
      expect(state).toMatchObject({ ...holder, grantedAt, held: true, waiting: 0 })
      expect(await a.locks.get(state.name)).toEqual(state)
      expect(Math.abs((state.grantedAt?.getTime() ?? 0) - before)).toBeLessThan(20_000)
    }
    await transaction.end()
  })

  test('those of other processes too, and each goes with its end', async () => {
    const held = await a.locks.acquire('other/connection')
    const fenced = await a.locks.acquire('other/fenced')
    await fenced.transaction(async () => {})
    const transaction = await transactionOn(a, 'other/transaction')
    const listed = async () => names(await b.locks.list({ prefix: 'other/' }))
    await until('all are listed', async () => (await listed()).length === 3)
    const states = await b.locks.list({ prefix: 'other/' })
    await until('they are old', async () => (await b.locks.get('other/fenced')).holder === HERE)
    expect(states.map(({ kind }) => kind)).toEqual(['connection', 'connection', 'transaction'])
    expect(states.map(({ token }) => token)).toEqual([held.token, fenced.token, transaction.token])
    await held.release()
    expect(await listed()).toEqual(['other/fenced', 'other/transaction'])
    await fenced.release()
    expect(await listed()).toEqual(['other/transaction'])
    await transaction.end()
    expect(await listed()).toEqual([])
    await until('nothing is left', async () => (await rowsOf('other/%')).length === 0)
  })

  test('the next hold of the same connection is not taken for the one before', async () => {
    const first = await a.locks.acquire('again', { holder: 'first' })
    await until('it is old', async () => (await rowsOf('again')).length === 1)
    const next = a.locks.acquire('again', { holder: 'next' })
    await until('it waits', async () => (await a.locks.get('again')).waiting === 1)
    await first.release()
    await using held = await next
    await until('it is shown', async () => (await b.locks.get('again')).holder === 'next')
    const [state] = await a.locks.list({ prefix: 'again' })
    expect(state).toMatchObject({ holder: 'next', token: held.token })
  })

  test('a hold that ended with its connection is not there, though what it entered is', async () => {
    const c = createLockstep({ connectionString: db.url })
    const held = await c.locks.acquire('dead', {})
    await held.transaction(async () => {}) // it has a row among the leases too
    await until('it is old', async () => (await rowsOf('dead')).length === 1)
    const [row] = await rowsOf('dead')
    await c.close()
    await db.pool.query(`insert into lockstep.hold select (jsonb_populate_record(null::lockstep.hold, $1)).*`, [
      JSON.stringify(row),
    ])
    await db.pool.query(`update lockstep.lease set holder = 'c', expires_at = 'infinity' where name = 'dead'`)
    expect(await b.locks.list({ prefix: 'dead' })).toEqual([])
    expect(await b.locks.get('dead')).toMatchObject({ held: false, holders: [] })
    // The first hold that a process enters takes away what dead ones have left.
    await using d = createLockstep({ connectionString: db.url })
    await using _other = await d.locks.acquire('living')
    await d.locks.list()
    expect(await rowsOf('dead')).toEqual([])
  })

  test('a page at a time, and one prefix of many', async () => {
    const all = ['page/a', 'page/b', 'page/c', 'page/d', 'page/ä']
    const holds = []
    for (const [i, name] of all.entries()) holds.push(await a.locks.acquire(name, i % 2 ? { ttlMs: 20_000 } : {}))
    await using _other = await a.locks.acquire('pagf')
    const first = await a.locks.list({ prefix: 'page/', limit: 2 })
    const second = await a.locks.list({ prefix: 'page/', limit: 2, after: 'page/b' })
    const third = await a.locks.list({ prefix: 'page/', limit: 2, after: 'page/d' })
    expect([first, second, third].map(names)).toEqual([all.slice(0, 2), all.slice(2, 4), all.slice(4)])
    for (const hold of holds) await hold.release()
  })

  test('a hold that lasts for a moment writes nothing', async () => {
    const c = createLockstep({ connectionString: db.url })
    for (let i = 0; i < 20; i++) await (await c.locks.acquire(`moment/${i}`)).release()
    const { rows } = await db.pool.query(`select from lockstep.hold where name like 'moment/%'`)
    expect(rows).toEqual([])
    await c.close()
  })

  test('beside 100,000 free names, one prefix is found without them', async () => {
    await using full = await freshDatabase()
    await full.pool.query(`insert into lockstep.lease (name, token, granted_at, expires_at)
      select 'free/' || n, n, clock_timestamp(), clock_timestamp() from generate_series(1, 100000) n`)
    await full.pool.query('analyze lockstep.lease')
    await using c = createLockstep({ connectionString: full.url })
    await using _held = await c.locks.acquire('held', { ttlMs: 60_000 })
    const client = await full.pool.connect()
    try {
      await client.query('begin')
      expect((await client.query(`select name from lockstep.list_locks('he', '', 100)`)).rows).toEqual([
        { name: 'held' },
      ])
      const { rows } = await client.query(
        `select pg_stat_get_xact_tuples_returned('lockstep.lease'::regclass)::int + pg_stat_get_xact_tuples_returned('lockstep.lease_pkey'::regclass)::int as read`,
      )
      expect(rows[0].read).toBeLessThan(1_000)
      await client.query('commit')
    } finally {
      client.release()
    }
  })

  test('also when it could not be entered at first', async () => {
    await using held = await a.locks.acquire('busy')
    await using block = await blocker('lock table lockstep.hold in access exclusive mode')
    await until('a statement waits', async () => (await block.waiters()) > 0)
    await db.pool.query(
      `select pg_cancel_backend(pid) from pg_stat_activity where datname = current_database() and query like '%show_holds%' and pid <> pg_backend_pid()`,
    )
    await block.end()
    await until('it is listed', async () => names(await b.locks.list({ prefix: 'busy' })).length === 1)
    expect(held.isTrusted()).toBe(true)
  })
})

describe('how many wait', () => {
  test('is each caller of the own process, and one connection of every other, also in a list', async () => {
    await using c = createLockstep({ connectionString: db.url })
    for (const options of [{}, { ttlMs: 20_000 }]) {
      const held = await a.locks.acquire('waits', options)
      const waiting = [a, a, b, b, b, c].map((by) => by.locks.acquire('waits', options))
      const transaction = b.locks.transaction('waits', async () => {})
      await until('they wait', async () => (await a.locks.get('waits')).waiting === 4)
      const [state] = await a.locks.list({ prefix: 'waits' })
      expect(state?.waiting).toBe(4) // two here; b; c
      await held.release()
      for (const next of waiting) void next.then((hold) => hold.release())
      await Promise.all([...waiting, transaction])
    }
  })
})

describe('over HTTP', () => {
  test('GET /v1/locks lists every kind, and a key its prefix only', async () => {
    const secret = await hashed('s')
    const app = createApp(a, { keys: `k:${secret}:locks:read:http%2Fmine/` })
    const ask = async (path: string) => {
      const response = await app.request(path, { headers: { Authorization: 'Bearer k.s' } })
      return { status: response.status, json: (await response.json()) as { locks: LockState[] } }
    }
    await using mine = await a.locks.acquire('http/mine/a')
    await using _theirs = await a.locks.acquire('http/theirs/a')
    const transaction = await transactionOn(a, 'http/mine/b')
    const { json } = await ask('/v1/locks')
    const since = expect.stringMatching(/^\d{4}-.*Z$/)
    const holder = { holder: HERE, token: String(mine.token), kind: 'connection', since, expiresAt: null, meta: null }
    const { since: grantedAt, ...rest } = holder
    const state = { name: 'http/mine/a', held: true, ...rest, grantedAt, ttlMs: null, holders: [holder], waiting: 0 }
    expect(json.locks[0]).toEqual(state)
    expect(json.locks.map(({ name }: LockState) => name)).toEqual(['http/mine/a', 'http/mine/b'])
    expect((await ask('/v1/locks/http%2Fmine%2Fa')).json).toEqual(state)
    expect((await ask('/v1/locks/http%2Ftheirs%2Fa')).status).toBe(403)
    await transaction.end()
  })
})

describe.skipIf(!pgbouncerAvailable())('behind a transaction pooler', () => {
  test('a transaction hold is listed', async () => {
    await using pooled = await freshDatabase({ pooled: true })
    await using c = createLockstep({ connectionString: pooled.pooledUrl })
    await using d = createLockstep({ connectionString: pooled.url })
    const transaction = await transactionOn(c, 'pooled')
    await until('it is listed', async () => (await d.locks.list()).length === 1)
    expect(await d.locks.list()).toMatchObject([{ name: 'pooled', kind: 'transaction', token: transaction.token }])
    await transaction.end()
    expect(await d.locks.list()).toEqual([])
  })
})

async function rowsOf(pattern: string) {
  return (await db.pool.query('select * from lockstep.hold where name like $1', [pattern])).rows
}

/** A transaction that has run a statement. */
async function blocker(statement: string) {
  const client = new pg.Client({ connectionString: db.url })
  await client.connect()
  await client.query(`begin; ${statement}`)
  const end = async () => {
    await client.query('rollback')
  }
  const waiters = async () =>
    (
      await db.pool.query(
        `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%show_holds%'`,
      )
    ).rows.length
  return { end, waiters, [Symbol.asyncDispose]: () => client.end() }
}

async function hashed(secret: string): Promise<string> {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(secret))
  return Buffer.from(digest).toString('hex')
}
