/** Effects happen exactly once and no event is skipped, whatever a handler, a caller or a COMMIT does. Races are forced by locks. */
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Batch, createEvents, type EventContext, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let a: Lockstep
let events: Events
const errors: unknown[] = []
beforeAll(async () => {
  db = await freshDatabase()
  a = createLockstep({ connectionString: db.url, max: 20 })
  events = createEvents(a, { onError: (error) => errors.push(error) })
  await db.pool.query(`
    create table effect (n bigserial, stream text, position bigint);
    create table slow (id text);
    create function slow_commit() returns trigger language plpgsql as $$
    begin perform pg_advisory_xact_lock_shared(4711); return null; end $$;
    create constraint trigger slow after insert on slow deferrable initially deferred for each row execute function slow_commit()`)
})
afterAll(async () => {
  await a?.close()
  await db?.close()
})
let n = 0
const fresh = () => ({ group: `g-${n}`, folder: `f-${n++}/` })
const effects = async (folder: string) =>
  (
    await db.pool.query('select stream, position from effect where starts_with(stream, $1) order by n', [folder])
  ).rows.map((r) => `${r.stream.slice(folder.length)}:${r.position}`)
const poll = async (group: string, options = {}): Promise<Batch> =>
  (await events.poll(group, { holder: 'h', ...options }))[0] as Batch
const positions = (batch: Batch | undefined) =>
  batch?.events.map(({ stream, position }) => `${stream.split('/')[1]}:${position}`)

test('a COMMIT that waits longer than timeoutMs holds up its partition no longer than that, and effects happen exactly once', async () => {
  const { group, folder } = fresh()
  await events.append(`${folder}a`, { type: 'x' })
  const gate = new pg.Client(db.url)
  await gate.connect()
  await gate.query('select pg_advisory_lock(4711)')
  let runs = 0
  const consumer = events.consume(
    group,
    { prefix: folder, partitions: 1, timeoutMs: 1_000 },
    async ({ stream, position }, { trx }) => {
      runs++
      await sql`insert into effect (stream, position) values (${stream}, ${position})`.execute(trx)
      if (runs === 1) await sql`insert into slow values ('x')`.execute(trx)
    },
  )
  await until('the commit waits, and the next attempt waits for it, or has begun', async () => {
    const { rows } = await db.pool.query(
      `select count(*)::int as n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
    )
    return rows[0].n >= 2 || runs >= 2
  })
  await gate.query('select pg_advisory_unlock(4711)')
  await gate.end()
  await until('applied', async () => (await events.lag(group)).behind === 0)
  await consumer.stop()
  expect(await effects(folder)).toEqual(['a:1'])
  errors.splice(0)
})

test('a repeated commit changes nothing: no event of a parked stream is skipped', async () => {
  const { group, folder } = fresh()
  await events.declareGroup(group, { prefix: folder, partitions: 1, retryLimit: 0 })
  await events.append(`${folder}a`, { type: '1' })
  const first = await poll(group)
  await events.fail(group, { ...first, event: first.events[0]?.cursor as bigint })
  await events.append(`${folder}b`, { type: '1' })
  await events.append(`${folder}a`, { type: '2' })
  const batch = await poll(group)
  expect(positions(batch)).toEqual(['b:1'])
  await events.commit(group, batch)
  await events.commit(group, batch) // its answer was lost
  expect(await events.parked(group)).toMatchObject([{ stream: `${folder}a`, position: 1n }])
  await events.redeliver(group)
  expect(positions(await poll(group))?.[0]).toBe('a:1')
})

test('effects that commit with `commit({ trx })` happen once, also if the answer to COMMIT is lost and the transaction is run again', async () => {
  const { group, folder } = fresh()
  await events.declareGroup(group, { prefix: folder, partitions: 1 })
  await events.append(`${folder}a`, { type: '1' })
  const batch = await poll(group)
  const attempt = () =>
    a.kysely.transaction().execute(async (trx) => {
      await events.commit(group, batch, { trx })
      for (const { stream, position } of batch.events)
        await sql`insert into effect (stream, position) values (${stream}, ${position})`.execute(trx)
    })
  await attempt()
  await attempt().catch((error) => expect(error.code).toBe('LEASE_LOST'))
  expect(await effects(folder)).toEqual(['a:1'])
})

test('the failure of an event that was not delivered skips nothing: an event after the batch', async () => {
  const { group, folder } = fresh()
  await events.declareGroup(group, { prefix: folder, partitions: 1, retryDelayMs: 0 })
  await events.append(`${folder}a`, [{ type: '1' }, { type: '2' }, { type: '3' }])
  await events.append(`${folder}b`, [{ type: '1' }])
  const batch = await poll(group, { limit: 1 })
  const { events: all } = await events.readAll({ prefix: folder })
  await events.fail(group, { ...batch, event: all[3]?.cursor as bigint }).catch(() => {})
  expect(positions(await poll(group))?.[0]).toBe('a:1')
})

test('the failure of an event that was not delivered skips nothing: an event of a parked stream', async () => {
  const { group, folder } = fresh()
  await events.declareGroup(group, { prefix: folder, partitions: 1, retryLimit: 0 })
  await events.append(`${folder}a`, { type: '1' })
  const first = await poll(group)
  await events.fail(group, { ...first, event: first.events[0]?.cursor as bigint })
  await events.append(`${folder}b`, { type: '1' })
  const two = await events.append(`${folder}a`, { type: '2' })
  await events.append(`${folder}b`, { type: '2' })
  const batch = await poll(group)
  const { events: of } = await events.read(`${folder}a`, { from: two.first })
  await events.fail(group, { ...batch, event: of[0]?.cursor as bigint }).catch(() => {})
  expect(await events.parked(group)).toMatchObject([{ stream: `${folder}a`, position: 1n }])
})

test('an event whose handler ends the transaction fails, and is not retried for ever in silence', async () => {
  const { group, folder } = fresh()
  await events.append(`${folder}a`, { type: 'x' })
  let runs = 0
  const consumer = events.consume(group, { prefix: folder, partitions: 1, retryLimit: 0 }, async (_, { trx }) => {
    runs++
    await sql`rollback`.execute(trx)
  })
  await until('it is parked, or was run many times', async () => {
    return runs > 20 || (await events.parked(group).catch(() => [])).length > 0
  })
  await consumer.stop()
  errors.splice(0)
  expect(runs).toBeLessThan(5)
})

test('a statement that a handler sends after its return cannot write in another transaction', async () => {
  const { group, folder } = fresh()
  await using own = createLockstep({ connectionString: db.url, max: 1 })
  await events.append(`${folder}a`, { type: 'x' })
  let stale: EventContext['trx'] | undefined
  const consumer = createEvents(own).consume(group, { prefix: folder, partitions: 1 }, (_, { trx }) => {
    stale ??= trx
  })
  await until('applied', async () => stale && (await events.lag(group)).behind === 0)
  await consumer.stop()
  const late = sql`insert into effect (stream, position) values (${`${folder}zombie`}, 1)`.execute(
    stale as EventContext['trx'],
  )
  await expect(late).rejects.toThrow('Transaction is already committed')
  expect(await effects(folder)).toEqual([])
})
