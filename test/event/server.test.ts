/** The promises about events when the server crashes or is restored, and at the end of a range; and the cost of large events. */
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'

const many = (n: number) => Array.from({ length: n }, () => ({ type: 'x' }))

describe('restored without its sequences', () => {
  let db: FreshDatabase
  beforeAll(async () => {
    db = await freshDatabase()
  })
  afterAll(() => db.close())

  test('and realigned, new streams can be made, and no group skips an event', async () => {
    const a = createLockstep({ connectionString: db.url })
    const events = createEvents(a)
    for (let i = 0; i < 5; i++) await events.append(`old-${i}`, many(10))
    await events.declareGroup('g', { partitions: 1 })
    for (const batch of await events.poll('g', { holder: 'h' })) await events.commit('g', batch)
    expect((await events.lag('g')).behind).toBe(0)
    for (let i = 0; i < 5; i++) await events.truncate(`old-${i}`, 11n)
    await events.leave('g', 'h')
    // as tables copied without their sequences
    await db.pool.query(`select setval('lockstep.event_sequence', 0, true)`)
    await db.pool.query(`select setval(pg_get_serial_sequence('lockstep.stream', 'id'), 1, false)`)
    await migrate(db.url)
    const appended = await events.append('new', { type: 'first' }).catch((error) => error)
    await events.append('old-0', { type: 'next' })
    const delivered = (await events.poll('g', { holder: 'h2' })).flatMap((batch) =>
      batch.events.map(({ type }) => type),
    )
    await a.close()
    expect([appended, delivered]).toMatchObject([{ first: 1n }, ['first', 'next']])
  })

  test('the first event of a database whose sequence was never used is read', async () => {
    await using fresh = await freshDatabase()
    const a = createLockstep({ connectionString: fresh.url })
    const events = createEvents(a)
    await fresh.pool.query(`select setval('lockstep.event_sequence', 0, false)`) // as pg_dump --schema-only leaves it
    await migrate(fresh.url)
    await events.append('s', { type: 'first' })
    const { events: found } = await events.readAll()
    await a.close()
    expect(found.map(({ type }) => type)).toEqual(['first'])
  })
})

test('a sweep removes all events that are too old, however many there are', async () => {
  await using db = await freshDatabase()
  await using a = createLockstep({ connectionString: db.url })
  const events = createEvents(a)
  for (let i = 0; i < 3; i++) await events.append('s', many(10_000))
  for (let i = 0; i < 8; i++) await events.append('t', many(10_000))
  await db.pool.query(`update lockstep.event set at = at - interval '1 hour'`)
  await events.retain('s', { maxAgeMs: 1_000 })
  await events.retain('t', { maxCount: 10 })
  await events.sweep()
  expect([(await events.stream('s'))?.first, (await events.stream('t'))?.first]).toEqual([30_001n, 79_991n])
})

test('an append that waited for a stream locks nothing when its network breaks', async () => {
  await using db = await freshDatabase()
  await using proxy = await tcpProxy(db.url)
  const a = createLockstep({ connectionString: proxy.url, directConnectionString: null })
  await using b = createLockstep({ connectionString: db.url })
  const [ours, theirs] = [createEvents(a), createEvents(b)]
  await ours.append('s', { type: '1' })
  const holder = new pg.Client(db.url)
  await holder.connect()
  await holder.query('begin')
  await theirs.append('s', { type: '2' }, { trx: holder })
  const lost = ours.append('s', { type: '3' }).catch(() => {})
  await until('it waits', async () => {
    const { rows } = await db.pool.query(
      `select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
    )
    return rows.length > 0
  })
  proxy.blackhole()
  await holder.query('commit')
  await holder.end()
  const outcome = await theirs.append('s', { type: '4' }).then(
    () => 'appended',
    (error) => error.message,
  )
  const page = await theirs.readAll({ from: 1n })
  const left = await db.pool.query(
    `select state from pg_stat_activity where datname = current_database() and state like 'idle in%'`,
  )
  proxy.resume()
  await lost
  await a.close()
  expect(outcome).toBe('appended')
  expect(page.events.at(-1)?.type).toBe('4')
  expect(left.rows).toEqual([])
}, 60_000)

test('a page of large events reads the events that it returns, not all within the limit', async () => {
  await using db = await freshDatabase()
  await using lockstep = createLockstep({ connectionString: db.url })
  const events = createEvents(lockstep)
  const random = () =>
    Array.from({ length: 6 }, () =>
      Buffer.from(crypto.getRandomValues(new Uint8Array(60_000))).toString('base64'),
    ).join('')
  for (let i = 0; i < 10; i++)
    await events.append(
      's',
      Array.from({ length: 10 }, () => ({ type: 'x', data: random() })),
    )
  await events.declareGroup('g', { partitions: 1 })
  await events.poll('g', { holder: 'h', limit: 1 })
  const client = new pg.Client(db.url)
  await client.connect()
  const { rows } = await client.query(`select token from lockstep.lease where name = E'group\\tg\\t0'`)
  // The least of three: a change of the catalogs by another session makes a backend read them again.
  const blocks = async (call: string) => {
    let least = Number.POSITIVE_INFINITY
    for (let i = 0; i < 3; i++) {
      const { rows } = await client.query(`explain (analyze, buffers, format json) select * from lockstep.${call}`)
      const plan = rows[0]['QUERY PLAN'][0].Plan
      least = Math.min(least, plan['Shared Hit Blocks'] + plan['Shared Read Blocks'] + plan['Temp Written Blocks'])
    }
    return least
  }
  for (const call of [
    (most: number) => `read_stream('s', 1, ${most}, false)`,
    (most: number) => `read_stream('s', 100, ${most}, true)`,
    (most: number) => `read_all('', 0, ${most})`,
    (most: number) => `read_partition('g', 0, ${rows[0].token}, ${most})`,
  ]) {
    await blocks(call(8)) // makes the plans, reads the catalogs
    const [few, many] = [await blocks(call(8)), await blocks(call(1_000))]
    // Both return 8 events; all 100 would cost twelve times as much. A bound of twice is too strict: once autovacuum has made
    // statistics, read_partition reads fewer blocks for few events, and as many as before for many.
    expect(many, call(1_000)).toBeLessThan(4 * few)
  }
  await client.end()
})

test('a reader that goes on at its cursor skips nothing after a crash of the server', async () => {
  await using server = await dedicatedServer({ settings: { wal_writer_delay: '10s', synchronous_commit: 'on' } })
  const before = createLockstep({ connectionString: server.url })
  const events = createEvents(before)
  await events.append('s', many(10))
  // sequence numbers of a rolled-back transaction are on disk only if a later commit writes them
  const undone = before.kysely.transaction().execute(async (trx) => {
    await events.append('s', many(40), { trx })
    throw new Error('undone')
  })
  await expect(undone).rejects.toThrow('undone')
  const { next } = await events.readAll({ from: 11n })
  await server.crash()
  await server.start()
  await using after = createLockstep({ connectionString: server.url })
  const again = createEvents(after)
  await until('it is up', () => again.stream('s').catch(() => false))
  await again.append('s', { type: 'after' })
  const page = await again.readAll({ from: next as bigint })
  expect(page.events.map(({ type }) => type)).toEqual(['after'])
  await before.close()
})

test('near the end of the range of a lock’s key, an open append holds readers up at the right cursor', async () => {
  await using db = await freshDatabase()
  await using lockstep = createLockstep({ connectionString: db.url })
  const events = createEvents(lockstep)
  for (const at of [2n ** 31n, 2n ** 32n, 3n * 2n ** 32n, 2n ** 53n]) {
    await db.pool.query(`select setval('lockstep.event_sequence', ${at - 3n})`)
    const client = new pg.Client(db.url)
    await client.connect()
    await client.query('begin')
    await events.append(`late-${at}`, many(2), { trx: client })
    await events.append(`other-${at}`, many(5))
    expect((await events.readAll({ from: at - 2n })).events).toEqual([])
    await client.query('commit')
    await client.end()
    expect((await events.readAll({ from: at - 2n })).events).toHaveLength(7)
  }
})
