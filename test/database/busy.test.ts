/**
 * All connections are in use, those of a pool or those of the server. A caller waits for one as it waits for a lock: the wait ends with
 * its signal or its time limit, is endless without a limit, and its error says what was in the way.
 */
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SharedPool } from '../../lib/database/shared-pool.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep, UnavailableError } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import {
  freshDatabase,
  type PooledDatabase,
  pgbouncerAvailable,
  type RoleDatabase,
  tcpProxy,
} from '../support/database.ts'
import { until } from '../support/until.ts'
import { lent } from './lent-connections.ts'

let n = 0
const fresh = () => `busy-${n++}`

/** Takes all connections of a pool. @returns a function that gives them back. */
async function hog(lockstep: Lockstep, max: number): Promise<() => Promise<void>> {
  const free = Promise.withResolvers<void>()
  let inside = 0
  const all = Array.from({ length: max }, () =>
    lockstep.kysely.transaction().execute(async (trx) => {
      await sql`set local idle_in_transaction_session_timeout = 0`.execute(trx) // the role may have one
      inside++
      await free.promise
    }),
  )
  await until('all are in use', () => inside === max)
  return async () => {
    free.resolve()
    await Promise.all(all)
  }
}

const BUSY = {
  code: 'UNAVAILABLE',
  message: expect.stringMatching(/^All 2 connections of this pool are in use.*raise `max`/),
}

describe.each([
  ['direct', {}, false],
  ['through PgBouncer', {}, true],
  ['shared', { shared: true }, false],
] as const)('with all of the pool taken, %s', (_how, options, pooled) => {
  describe.skipIf(pooled && !pgbouncerAvailable())('(skipped without PgBouncer)', () => {
    let db: PooledDatabase
    let url: string
    beforeAll(async () => {
      db = (await freshDatabase(pooled ? { pooled: { size: 20 } } : {})) as PooledDatabase
      url = pooled ? db.pooledUrl : db.url
      await db.pool.query('create table effect (what text)')
    })
    afterAll(() => db?.close())
    const make = () => createLockstep({ connectionString: url, max: 2, ...options })

    test('locks.transaction ends its wait with its signal, and its work never runs', async () => {
      await using a = make()
      const free = await hog(a, 2)
      const stop = new AbortController()
      const reason = new Error('enough')
      let ran = false
      const waits = a.locks.transaction(fresh(), { signal: stop.signal }, async () => {
        ran = true
      })
      const ended = expect(waits).rejects.toBe(reason)
      await new Promise(setImmediate) // it waits for a connection
      stop.abort(reason)
      await free() // now there is one for it
      await ended
      await (await hog(a, 2))() // all are free again
      expect(ran).toBe(false)
    })

    test('locks.transaction without a wait, or after its wait, says what is in the way', async () => {
      await using a = make()
      const free = await hog(a, 2)
      const name = fresh()
      const work = async () => 'done'
      await expect(a.locks.transaction(name, { waitMs: 0 }, work)).rejects.toMatchObject(BUSY)
      await expect(a.locks.transaction(name, { waitMs: 30 }, work)).rejects.toMatchObject({
        code: 'UNAVAILABLE',
        message: expect.stringMatching(/^All 2 connections .* none came free within \d+ ms/),
      })
      await free()
      expect(await a.locks.transaction(name, { waitMs: 0 }, work)).toBe('done')
    })

    test('other verbs go on: locks and leaders, tasks and events', async () => {
      await using a = make()
      const tasks = createTasks(a)
      const events = createEvents(a)
      const free = await hog(a, 2)
      const held = await a.locks.acquire(fresh())
      const leased = await a.locks.acquire(fresh(), { ttlMs: 10_000 })
      const term = await a.leaders.campaign(fresh())
      await a.ready()
      await a.locks.query(held.name)
      const queue = fresh()
      await tasks.declare(queue)
      await tasks.send(queue, 1)
      await events.append(fresh(), { type: 'x' })
      await Promise.all([held.release(), leased.release(), term?.resign()])
      await free()
    })

    test('an endless wait lasts longer than any limit of the pool; a wait with a limit says what is in the way', async () => {
      await using a = make()
      const tasks = createTasks(a)
      const events = createEvents(a)
      const queue = fresh()
      const group = fresh()
      let attempts = 0
      tasks.define(
        queue,
        async (_, { trx, job }) => {
          attempts = Math.max(attempts, job.attempt)
          await sql`insert into effect values (${queue})`.execute(trx)
        },
        { transactional: true, retryLimit: 0 },
      )
      const id = (await tasks.send(queue, {})) as string
      await events.declareGroup(group, { prefix: `${group}/`, partitions: 1, retryLimit: 0 })
      await events.append(`${group}/a`, { type: 'x' })
      const held = await a.locks.acquire(fresh())
      const term = await a.leaders.campaign(fresh())
      const free = await hog(a, 2)
      let ended = 0
      const waits = [1, 2, 3].map(() => a.locks.transaction(fresh(), async () => 'done').finally(() => ended++))
      const worker = tasks.work(queue)
      const consumer = events.consume(
        group,
        { prefix: `${group}/`, partitions: 1 },
        async (event, { trx, attempt }) => {
          attempts = Math.max(attempts, attempt)
          await sql`insert into effect values (${event.stream})`.execute(trx)
        },
      )
      await Promise.all([
        expect(held.transaction(async () => {})).rejects.toMatchObject(BUSY),
        expect(term?.transaction(async () => {})).rejects.toMatchObject(BUSY),
        expect(sql`select 1`.execute(a.kysely)).rejects.toMatchObject(BUSY),
      ])
      expect(held.isTrusted()).toBe(true)
      expect(ended).toBe(0)
      await free()
      expect(await Promise.all(waits)).toEqual(['done', 'done', 'done'])
      await until('the job is done', async () => (await tasks.get(queue, id))?.state === 'completed')
      await until('the event is applied', async () => (await events.lag(group)).behind === 0)
      expect(attempts).toBe(1)
      await Promise.all([worker.stop(), consumer.stop()])
      await held.transaction(async () => {})
      await Promise.all([held.release(), term?.resign()])
    })

    test('a worker or consumer that stops while it waits spends no attempt: its job is handed back, its event is not counted', async () => {
      await using a = make()
      await using b = make()
      const tasks = createTasks(a)
      const events = createEvents(a)
      const queue = fresh()
      const group = fresh()
      let ran = false
      const run = async () => {
        ran = true
      }
      tasks.define(queue, run, { transactional: true, retryLimit: 0 })
      const id = (await tasks.send(queue, {})) as string
      await events.declareGroup(group, { prefix: `${group}/`, partitions: 1, retryLimit: 0 })
      await events.append(`${group}/a`, { type: 'x' })
      const free = await hog(a, 2)
      const worker = tasks.work(queue)
      const consumer = events.consume(group, { prefix: `${group}/`, partitions: 1 }, run)
      await until('the job waits', async () => (await tasks.get(queue, id))?.state === 'active')
      await until('the partition is held', () => consumer.partitions.length === 1)
      await Promise.all([worker.stop({ graceMs: 0 }), consumer.stop({ graceMs: 0 })])
      expect(ran).toBe(false)
      const others = createTasks(b)
      others.define(queue, async () => {}, { transactional: true, retryLimit: 0 })
      const other = others.work(queue)
      await until('another runs it', async () => (await others.get(queue, id))?.state === 'completed')
      await other.stop()
      expect(await createEvents(b).parked(group)).toEqual([])
      await free()
    })

    test('a caller that waits when Lockstep is closed is rejected', async () => {
      const a = make()
      const free = await hog(a, 2)
      const waits = a.locks.transaction(fresh(), async () => {}).catch((error) => error)
      const closed = a.close()
      expect(await waits).toMatchObject({ code: 'UNAVAILABLE', message: 'Lockstep was closed' })
      await free()
      await closed
    })
  })
})

test('a hold that is lost while its transaction waits for a connection rejects it at once', async () => {
  await using db = await freshDatabase()
  await using a = createLockstep({ connectionString: db.url, max: 2 })
  const free = await hog(a, 2)
  const held = await a.locks.acquire(fresh(), { ttlMs: 1_000 })
  const waits = held.transaction(async () => {}).catch((error) => error)
  await a.locks.forceRevoke(held.name)
  expect(await waits).toMatchObject({ code: 'LEASE_LOST' })
  await free()
})

test('a caller that leaves while its connection is opened is rejected at once, and the connection goes back to the pool', async () => {
  await using db = await freshDatabase()
  await using proxy = await tcpProxy(db.url)
  const pool = new pg.Pool({ connectionString: proxy.url, max: 1, connectionTimeoutMillis: 20_000 })
  const share = new SharedPool(lent(pool), 1)
  proxy.hold()
  const stop = new AbortController()
  const reason = new Error('enough')
  const waits = share.connect({ signal: stop.signal })
  await until('it is being opened', () => pool.totalCount === 1)
  stop.abort(reason)
  await expect(waits).rejects.toBe(reason)
  proxy.resume()
  await until('it is idle', () => pool.idleCount === 1)
  const client = await share.connect({ ms: 0 })
  expect(pool.totalCount).toBe(1)
  client.release()
  await pool.end()
})

test('connections are given first come, first served, and callers that left are passed over', async () => {
  await using db = await freshDatabase()
  const pool = new pg.Pool({ connectionString: db.url, connectionTimeoutMillis: 100 })
  const share = new SharedPool(lent(pool), 1)
  const first = await share.connect()
  const order: string[] = []
  const stop = new AbortController()
  const leaves = share.connect({ signal: stop.signal, ms: Infinity }).catch(() => order.push('left'))
  const late = share.connect({ ms: 20 }).catch((error: Error) => order.push(error.message))
  const waits = ['a', 'b'].map(async (who) => {
    const client = await share.connect({ ms: Infinity })
    order.push(who)
    client.release()
  })
  stop.abort()
  await leaves
  await late
  first.release()
  await Promise.all(waits)
  expect(order).toEqual([
    'left',
    'The only connection of this pool is in use, and none came free within 20 ms',
    'a',
    'b',
  ])
  await expect(share.connect({ signal: AbortSignal.abort(new Error('before')), ms: 0 })).rejects.toThrow('before')
  await pool.end()
})

describe('with all connections of a role taken', () => {
  let db: RoleDatabase
  beforeAll(async () => {
    db = await freshDatabase({ role: true })
  })
  afterAll(() => db?.close())

  /** Limits the role to the connections that it has. */
  const full = async (): Promise<() => Promise<void>> => {
    await db.pool.query(`alter role ${db.role} connection limit 0`)
    return async () => void (await db.pool.query(`alter role ${db.role} connection limit -1`))
  }
  const FULL = { code: 'UNAVAILABLE', message: expect.stringMatching(/takes no more connections/) }

  test('a caller that waits for a lock, and gets no session to wait on, polls', async () => {
    await using a = createLockstep({ connectionString: db.roleUrl })
    await using other = createLockstep({ connectionString: db.url })
    const name = fresh()
    await (await a.locks.acquire(fresh())).release() // the shared session is there
    await a.locks.query(name)
    const held = await other.locks.acquire(name)
    const free = await full()
    const waits = a.locks.acquire(name)
    await until('it waits', async () => (await a.locks.query(name)).waiting > 0)
    await expect(a.locks.acquire(name, { waitMs: 100 })).rejects.toMatchObject({ code: 'LEASE_HELD' })
    await held.release()
    await (await waits).release()
    await free()
  })

  test('a caller that can wait for the shared session waits, and goes on by itself; one that cannot gets an error', async () => {
    await using a = createLockstep({ connectionString: db.roleUrl })
    const free = await full()
    const name = fresh()
    let granted = 0
    const waits = [1, 2, 3].map(async () => {
      const held = await a.locks.acquire(name)
      granted++
      await held.release()
    })
    const stop = new AbortController()
    const reason = new Error('enough')
    const left = a.locks.acquire(name, { signal: stop.signal })
    setImmediate(() => stop.abort(reason))
    await expect(left).rejects.toBe(reason)
    await expect(a.locks.tryAcquire(name)).rejects.toMatchObject(FULL)
    await expect(a.locks.acquire(name, { waitMs: 50 })).rejects.toMatchObject(FULL)
    expect(granted).toBe(0)
    await free()
    await Promise.all(waits)
  })

  test('a caller that waits goes on when the shared session is lost and cannot be opened for a while', async () => {
    await using a = createLockstep({ connectionString: db.roleUrl, applicationName: 'to be lost' })
    await using other = createLockstep({ connectionString: db.url })
    const name = fresh()
    await (await a.locks.acquire(fresh())).release()
    await a.locks.query(name) // for what the test asks later
    const held = await other.locks.acquire(name)
    const free = await full()
    let failed: unknown
    const waits = a.locks.acquire(name).catch((error) => {
      failed = error
      throw error
    })
    waits.catch(() => {})
    await until('it waits', async () => (await a.locks.query(name)).waiting > 0)
    await db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'to be lost'`)
    await until('all are gone', async () => {
      const { rows } = await db.pool.query(
        `select from pg_stat_activity where application_name = 'to be lost' and backend_type = 'client backend'`,
      )
      return rows.length === 0
    })
    await held.release()
    await expect(a.locks.acquire(fresh(), { waitMs: 300 })).rejects.toBeInstanceOf(UnavailableError)
    expect(failed).toBeUndefined()
    await free()
    await (await waits).release()
  })

  test('one open connection is enough: many statements at once take turns on it', async () => {
    await using a = createLockstep({ connectionString: db.roleUrl })
    await a.locks.query(fresh())
    await sql`select 1`.execute(a.kysely)
    const free = await full()
    await Promise.all([1, 2, 3, 4].map(() => a.locks.query(fresh())))
    await Promise.all([1, 2, 3].map(() => sql`select 1`.execute(a.kysely)))
    await free()
  })

  test('leases, transactions, elections and jobs that can wait for a connection do', async () => {
    await using a = createLockstep({ connectionString: db.roleUrl })
    const free = await full()
    let ended = 0
    const over = <T>(work: Promise<T>) => work.finally(() => ended++)
    const waits = [
      over(a.locks.acquire(fresh(), { ttlMs: 10_000 }).then((held) => held.release())),
      over(a.locks.transaction(fresh(), async () => {})),
      over(a.leaders.campaign(fresh()).then((term) => term?.resign())),
      over(a.leaders.campaign(fresh(), { failover: 'connection' }).then((term) => term?.resign())),
    ]
    await expect(a.locks.transaction(fresh(), { waitMs: 0 }, async () => {})).rejects.toMatchObject(FULL)
    await expect(a.locks.tryAcquire(fresh(), { ttlMs: 1_000 })).rejects.toMatchObject(FULL)
    await expect(a.leaders.campaign(fresh(), { waitMs: 0 })).rejects.toMatchObject(FULL)
    await expect(sql`select 1`.execute(a.kysely)).rejects.toMatchObject(FULL)
    expect(ended).toBe(0)
    await free()
    await Promise.all(waits)
  })
})
