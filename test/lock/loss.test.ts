/** What is promised when something breaks: connections, networks, answers, the database, the process itself. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep, type Hold, LeaseLostError, type Lockstep } from '../../lib/index.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let b: Lockstep
beforeAll(async () => {
  db = await freshDatabase()
  b = createLockstep({ connectionString: db.url })
})
afterAll(async () => {
  await b?.close()
  await db?.close()
})

let n = 0
const fresh = () => `loss ${n++}`
const lost = async (held: Hold) => {
  if (!held.signal.aborted) await once(held.signal, 'abort')
  expect(held.signal.reason).toBeInstanceOf(LeaseLostError)
  expect(held.isTrusted()).toBe(false)
  await expect(held.release()).rejects.toThrow(LeaseLostError)
}
const pidOf = async (name: string) => {
  const { rows } = await db.pool.query('select gate_pid from lockstep.look($1)', [name])
  return rows[0].gate_pid as number
}
/** While it is blocked no statement on leases can run. */
const blocked = async () => {
  const client = await db.pool.connect()
  await client.query('begin; lock table lockstep.lease in access exclusive mode')
  return {
    waiters: (count: number) =>
      until(`${count} blocked`, async () => {
        const { rows } = await client.query(
          `select from pg_locks where relation = 'lockstep.lease'::regclass and not granted
             and database = (select oid from pg_database where datname = current_database())`,
        )
        return rows.length >= count
      }),
    async end() {
      await client.query('commit')
      client.release()
    },
  }
}

describe('a connection hold', () => {
  test('whose connection is cut is lost at once, and the process goes on with a new connection', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const name = fresh()
    const held = await Promise.all([a.locks.acquire(name), a.locks.acquire(fresh())])
    proxy.cut()
    await Promise.all(held.map(lost))
    const again = await a.locks.acquire(name)
    expect(again.token).toBeGreaterThan(held[0].token)
    await again.release()
  })

  test('whose backend is terminated is lost, and what waits behind it in the process is served', async () => {
    await using a = createLockstep({ connectionString: db.url })
    const name = fresh()
    const held = await a.locks.acquire(name)
    const next = [
      a.locks.acquire(name),
      a.locks.acquire(name, { ttlMs: 5_000 }),
      a.locks.transaction(name, async () => 'done'),
    ] as const
    await db.pool.query('select pg_terminate_backend($1)', [await pidOf(name)])
    await lost(held)
    await (await next[0]).release()
    await (await next[1]).release()
    expect(await next[2]).toBe('done')
  })

  test('in a network that went silent is lost before the server gives it to anybody else', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const name = fresh()
    const held = await a.locks.acquire(name)
    proxy.blackhole()
    await lost(held)
    expect(await b.locks.query(name)).toMatchObject({ held: true, kind: 'connection' })
    expect(await b.locks.tryAcquire(name)).toBeNull()
    proxy.resume()
    await (await b.locks.acquire(name)).release()
  })

  test('that waited long is believed from when the server was last known to live, not from the wait', async () => {
    const name = fresh()
    const first = await b.locks.acquire(name)
    await using a = createLockstep({ connectionString: db.url })
    const waits = a.locks.acquire(name)
    await until('the wait', async () => (await a.locks.query(name)).waiting === 1)
    await first.release()
    const held = await waits
    expect(held.isTrusted()).toBe(true)
    await held.release()
  })
})

describe('a lease', () => {
  test('outlives its ttl by renewals, many in one statement', async () => {
    await using a = createLockstep({ connectionString: db.url })
    const held = await Promise.all(Array.from({ length: 50 }, () => a.locks.acquire(fresh(), { ttlMs: 1_000 })))
    const first = held.map((h) => h.name)
    const expiries = async () => {
      const { rows } = await db.pool.query(
        'select min(expires_at) as least from lockstep.lease where name = any ($1)',
        [first],
      )
      return (rows[0].least as Date).getTime()
    }
    const granted = await expiries()
    await until('renewed for longer than the ttl', async () => (await expiries()) > granted + 1_500)
    expect(held.every((h) => h.isTrusted() && !h.signal.aborted)).toBe(true)
    // All fifty were renewed by the same statements: those of one transaction have one xmin.
    const { rows } = await db.pool.query(
      'select count(distinct xmin::text)::int as statements from lockstep.lease where name = any ($1)',
      [first],
    )
    expect(rows[0].statements).toBe(1)
    await Promise.all(held.map((h) => h.release()))
  })

  test('that was taken away is lost at the next renewal', async () => {
    await using a = createLockstep({ connectionString: db.url })
    const held = await a.locks.acquire(fresh(), { ttlMs: 1_000 })
    await b.locks.forceRevoke(held.name)
    await lost(held)
  })

  test('whose renewals hang is lost before it expires in the database', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const held = await a.locks.acquire(fresh(), { ttlMs: 3_000 })
    proxy.blackhole()
    await lost(held)
    expect(await b.locks.query(held.name)).toMatchObject({ held: true, token: held.token })
    proxy.resume()
  })

  test('cannot be stretched by a slow answer to its grant', async () => {
    await using a = createLockstep({ connectionString: db.url })
    await a.ready()
    const block = await blocked()
    const granting = a.locks.acquire(fresh(), { ttlMs: 1_000 })
    await block.waiters(1)
    await new Promise((resolve) => setTimeout(resolve, 1_000)) // the ttl itself
    await block.end()
    const held = await granting
    expect(held.isTrusted()).toBe(false)
    expect(held.signal.aborted).toBe(true) // though no timer had its turn
  })

  test('cannot be stretched by a slow answer to a renewal', async () => {
    await using a = createLockstep({ connectionString: db.url })
    const held = await a.locks.acquire(fresh(), { ttlMs: 3_000 })
    const waits = async (mode: string) =>
      (
        await db.pool.query(
          `select from pg_locks where locktype = 'advisory' and objid = 43 and mode = $1 and not granted
              and database = (select oid from pg_database where datname = current_database())`,
          [mode],
        )
      ).rows.length > 0
    const [gate, next] = [await db.pool.connect(), await db.pool.connect()]
    await gate.query(`select pg_advisory_lock(43);
      create function slow() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock_shared(43); return null; end $$;
      create trigger slow after update on lockstep.lease for each row when (new.name = '${held.name}') execute function slow()`)
    await until('it is renewed, and not answered', () => waits('ShareLock'))
    const later = next.query('select pg_advisory_lock(43)') // before the renewal after this one
    await until('the next one will wait too', () => waits('ExclusiveLock'))
    await new Promise((resolve) => setTimeout(resolve, 1_000))
    expect(held.isTrusted()).toBe(true)
    await gate.query('select pg_advisory_unlock(43)')
    await later
    await lost(held)
    expect(await b.locks.query(held.name)).toMatchObject({ held: true, token: held.token })
    await next.query('select pg_advisory_unlock(43); drop trigger slow on lockstep.lease; drop function slow()')
    gate.release()
    next.release()
  })

  test('is granted again, under the same token, to the holder whose answer was lost', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const name = fresh()
    await a.ready()
    const block = await blocked()
    const granting = a.locks.grant(name, { holder: 'me' }).catch((error) => error)
    await block.waiters(1)
    proxy.cut()
    expect(await granting).toMatchObject({ code: 'UNAVAILABLE' })
    await block.end()
    await until('the grant', async () => (await b.locks.query(name)).token !== null)
    const { token } = await b.locks.query(name)
    expect(await a.locks.grant(name, { holder: 'me' })).toMatchObject({ token, renewed: true })
  })

  test('whose release got no answer is free, and releasing again says lost', async () => {
    const { token } = await b.locks.grant(fresh())
    const name = `loss ${n - 1}`
    await b.locks.revoke(name, token)
    await expect(b.locks.revoke(name, token)).rejects.toThrow(LeaseLostError)
  })
})

describe('a caller that waits', () => {
  test.each([
    ['connection', {}],
    ['lease', { ttlMs: 5_000 }],
  ])('for a %s hold survives the loss of the connection it waits on', async (_kind, options) => {
    await using a = createLockstep({ connectionString: db.url, applicationName: 'waits' })
    const name = fresh()
    const first = await b.locks.acquire(name)
    const waits = a.locks.acquire(name, options)
    await until('the wait', async () => (await b.locks.query(name)).waiting === 1)
    const { rows } = await db.pool.query(
      `select l.pid from pg_locks l join pg_stat_activity s using (pid) where s.application_name = 'waits' and not l.granted`,
    )
    await db.pool.query('select pg_terminate_backend($1)', [rows[0].pid])
    await until('it waits anew', async () => (await b.locks.query(name)).waiting === 1)
    await first.release()
    await (await waits).release()
  })

  test('behind a grant that failed is granted only what is held: the failed one had given K up', async () => {
    await using a = createLockstep({ connectionString: db.url })
    const name = fresh()
    const gate = await db.pool.connect()
    await gate.query(`select pg_advisory_lock(42);
      create function poison() returns trigger language plpgsql as $$ begin
        if new.holder = 'poison' then perform pg_advisory_xact_lock(42); raise exception 'poisoned'; end if;
        return new;
      end $$;
      create trigger poison before insert or update on lockstep.lease for each row execute function poison()`)
    const first = await b.locks.acquire(name)
    const failing = a.locks.acquire(name, { holder: 'poison', ttlMs: 5_000 }).catch((error) => error)
    await until('it waits', async () => (await b.locks.query(name)).waiting === 1)
    await first.release()
    await until('its grant is under way', async () => {
      const { rows } =
        await db.pool.query(`select from pg_locks where locktype = 'advisory' and objid = 42 and not granted
        and database = (select oid from pg_database where datname = current_database())`)
      return rows.length === 1
    })
    const next = a.locks.acquire(name)
    await until('the next caller waits', async () => (await a.locks.query(name)).waiting === 2)
    await gate.query('select pg_advisory_unlock(42)')
    expect((await failing).message).toBe('poisoned')
    const held = await next
    expect(await b.locks.tryAcquire(name)).toBeNull()
    await held.release()
    await gate.query('drop trigger poison on lockstep.lease; drop function poison()')
    gate.release()
  })

  test('at the front for a lease is woken by its release, through a cut network too', async () => {
    await using proxy = await tcpProxy(db.url)
    await using a = createLockstep({ connectionString: proxy.url })
    const name = fresh()
    const first = await b.locks.acquire(name, { ttlMs: 60_000 })
    const waits = a.locks.acquire(name)
    await until('the wait', async () => (await b.locks.query(name)).waiting === 1)
    proxy.cut()
    await first.release()
    await (await waits).release()
  })
})

describe('a holder that releases its lease while another of its calls is granted the same', () => {
  test('is granted anew: what was answered before the release reached the server counts no more', async () => {
    await using a = createLockstep({ connectionString: db.url })
    const name = fresh()
    const first = await a.locks.acquire(name, { ttlMs: 60_000, holder: 'same' })
    // The next grant is answered on the server, and its answer is kept back until the release has been answered too.
    const query = pg.Client.prototype.query
    const [granted, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    let kept = 0
    pg.Client.prototype.query = async function (this: pg.Client, ...asked: unknown[]) {
      const { text } = asked[0] as { text?: string }
      const answer = await (query as (...all: unknown[]) => Promise<unknown>).apply(this, asked)
      if (!/grant_leases/.test(text ?? '') || kept++ > 0) return answer
      granted.resolve()
      await go.promise
      return answer
    } as typeof query
    try {
      const asking = a.locks.acquire(name, { ttlMs: 60_000, holder: 'same' })
      await granted.promise
      await first.release()
      go.resolve()
      await using second = await asking
      expect(second.token).toBeGreaterThan(first.token)
      expect(second.isTrusted()).toBe(true)
      expect(await b.locks.tryAcquire(name)).toBeNull()
    } finally {
      pg.Client.prototype.query = query
    }
  })
})

// The server gives up after 15 s: both at once.
describe.concurrent('a process that stands still', () => {
  test('that holds by its connection loses that, and finds out when it goes on', async () => {
    const name = fresh()
    const child = spawn(process.execPath, [fileURLToPath(new URL('lock-process.ts', import.meta.url)), db.url, name], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    try {
      const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
      expect((await lines.next()).value).toBe('held')
      child.kill('SIGSTOP')
      const next = await b.locks.acquire(name)
      child.kill('SIGCONT')
      expect((await lines.next()).value).toBe('trusted false')
      expect((await lines.next()).value).toBe('lost LEASE_LOST')
      await next.release()
    } finally {
      child.kill('SIGKILL')
    }
  })

  test('at the front of the queue gives way', async () => {
    const name = fresh()
    const first = await b.locks.acquire(name, { ttlMs: 60_000 })
    const child = spawn(process.execPath, [
      fileURLToPath(new URL('lock-process.ts', import.meta.url)),
      db.url,
      name,
      'wait',
    ])
    try {
      // Its answer was to wait: released between its gaining K and its look at the row, the lock would be its own.
      await until('it waits', async () => {
        const { rows } = await db.pool.query(
          `select from pg_stat_activity where datname = current_database() and query like '%lockstep.enter(%'
             and state = 'idle in transaction' and pid <> pg_backend_pid()`,
        )
        return rows.length === 1 && (await b.locks.query(name)).waiting === 1
      })
      child.kill('SIGSTOP')
      await first.release()
      const next = await b.locks.acquire(name)
      await next.release()
    } finally {
      child.kill('SIGKILL')
    }
  })
})

test('the database stopped and back: unavailable, holds lost, and service again by itself', async () => {
  await using server = await dedicatedServer({ settings: { synchronous_commit: 'on' } })
  await using a = createLockstep({ connectionString: server.url })
  const held = await Promise.all([a.locks.acquire('x'), a.locks.acquire('y', { ttlMs: 1_000 })])
  const waits = a.locks.acquire('x').catch((error) => error)
  await server.crash()
  await lost(held[0])
  await lost(held[1])
  expect(await waits).toMatchObject({ code: 'UNAVAILABLE' })
  for (const call of [
    () => a.locks.acquire('x'),
    () => a.locks.acquire('x', { ttlMs: 1_000 }),
    () => a.locks.transaction('x', async () => {}),
    () => a.locks.query('x'),
    () => a.ready(),
  ]) {
    await expect(call()).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  }
  await server.start()
  const again = await Promise.all([a.locks.acquire('x'), a.locks.acquire('y', { ttlMs: 1_000 })])
  expect(again[0].token).toBeGreaterThan(held[0].token)
  expect(again[1].token).toBeGreaterThan(held[1].token)
  await a.locks.transaction('z', async () => {})
  await Promise.all(again.map((h) => h.release()))
})

test('a database without the schema says to run the migrations', async () => {
  await using empty = await freshDatabase({ empty: true })
  await using a = createLockstep({ connectionString: empty.url })
  for (const call of [
    () => a.ready(),
    () => a.locks.acquire('x'),
    () => a.locks.acquire('x', { ttlMs: 1_000 }),
    () => a.locks.transaction('x', async () => {}),
  ]) {
    await expect(call()).rejects.toMatchObject({
      code: 'UNAVAILABLE',
      message: expect.stringContaining('run the migrations'),
    })
  }
})

test('no room for advisory locks is said with the setting to raise, and leaks none', async () => {
  await using server = await dedicatedServer({ settings: { max_locks_per_transaction: '10', max_connections: '10' } })
  await using a = createLockstep({ connectionString: server.url, applicationName: 'full' })
  const many = 40
  const held = await Promise.all(Array.from({ length: many }, (_, j) => a.locks.acquire(`${j}`)))
  expect(held.every((h) => h.kind === 'connection')).toBe(true)
  // another program takes all that there is: some 400 on PostgreSQL 14, 900 on 18
  const other = new pg.Client({ connectionString: server.url })
  other.on('error', () => {})
  await other.connect()
  const all = other.query('select pg_advisory_lock(n) from generate_series(1, 5000) n')
  await expect(all).rejects.toMatchObject({ code: '53200' })
  // what the failed statement itself had locked is free again: a few find room
  const tried = await Promise.allSettled(Array.from({ length: many }, (_, j) => a.locks.acquire(`more ${j}`)))
  const failed = tried.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
  expect(failed.length).toBeGreaterThan(many / 2)
  for (const reason of failed) {
    expect(reason).toMatchObject({
      code: 'UNAVAILABLE',
      message: expect.stringContaining('max_locks_per_transaction'),
    })
  }
  for (const result of tried) if (result.status === 'fulfilled') held.push(result.value)
  expect(held.every((h) => h.isTrusted())).toBe(true)
  await Promise.all(held.map((h) => h.release()))
  await other.end()
  const again = await Promise.all(Array.from({ length: many }, (_, j) => a.locks.acquire(`more ${j}`)))
  await Promise.all(again.map((h) => h.release()))
  await using b = createLockstep({ connectionString: server.url })
  for (const name of ['0', `${many - 1}`, 'more 0', 'more 2'])
    expect(await b.locks.query(name)).toMatchObject({ held: false })
})
