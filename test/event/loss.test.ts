/** The promises about events under faults: of consumers, of the network, of lost answers, of the database. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEvents, type EventHandler, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let lockstep: Lockstep
let events: Events
beforeAll(async () => {
  db = await freshDatabase()
  await db.pool.query(EFFECT)
  lockstep = createLockstep({ connectionString: db.url })
  events = createEvents(lockstep)
})
afterAll(async () => {
  await lockstep?.close()
  await db?.close()
})

const EFFECT = 'create table effect (n bigserial, stream text, position bigint)'
let n = 0
const fresh = () => ({ group: `loss-${n}`, folder: `loss-${n++}/` })
const writes: EventHandler = async ({ stream, position }, { trx }) => {
  await sql`insert into effect (stream, position) values (${stream}, ${position})`.execute(trx)
}
const upTo = (count: number) => Array.from({ length: count }, (_, i) => i + 1)
/** The positions of a stream that were applied, in order. */
async function effects(pool: pg.Pool, stream: string): Promise<number[]> {
  const { rows } = await pool.query('select position from effect where stream = $1 order by n', [stream])
  return rows.map(({ position }) => Number(position))
}
const done = async (of: Events, group: string) =>
  until(`${group} has applied everything`, async () => {
    const lag = await of.lag(group).catch(() => undefined) // not made yet, or the database is away
    return lag?.behind === 0 && lag.partitions.every(({ retrying, parked }) => retrying === 0 && parked === 0)
  })

/** A process with a consumer; `says` waits for a line of its output. */
function streamer(group: string, folder: string) {
  const program = fileURLToPath(new URL('consumer-process.ts', import.meta.url))
  const child = spawn(process.execPath, [program, db.url, group, folder], { stdio: ['ignore', 'pipe', 'inherit'] })
  const lines: string[] = []
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(line))
  return {
    child,
    lines,
    says: (line: string) => until(line, () => lines.includes(line)),
    async end(signal: NodeJS.Signals) {
      child.kill(signal)
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
    },
  }
}

describe('a consumer', () => {
  test('that is killed mid-batch: nothing is lost, nothing applied twice', async () => {
    const { group, folder } = fresh()
    await events.append(`${folder}a`, [{ type: 'x' }, { type: 'x' }, { type: 'x' }])
    const process = streamer(group, folder)
    await process.says('began 2')
    await process.end('SIGKILL')
    await using consumer = events.consume(group, { prefix: folder, partitions: 1 }, writes)
    await done(events, group)
    expect(await effects(db.pool, `${folder}a`)).toEqual([1, 2, 3])
    expect(consumer.partitions).toEqual([0])
  })

  test('that is paused in its transaction is replaced, and its later writes are rolled back', async () => {
    const { group, folder } = fresh()
    await events.append(`${folder}a`, [{ type: 'x' }, { type: 'x' }, { type: 'x' }])
    const process = streamer(group, folder)
    await process.says('began 2')
    process.child.kill('SIGSTOP')
    await using _ = events.consume(group, { prefix: folder, partitions: 1 }, writes)
    await done(events, group)
    expect(await effects(db.pool, `${folder}a`)).toEqual([1, 2, 3])
    process.child.kill('SIGCONT')
    await process.says('aborted')
    await events.append(`${folder}a`, { type: 'x' })
    await done(events, group)
    expect(await effects(db.pool, `${folder}a`)).toEqual([1, 2, 3, 4])
    await process.end('SIGKILL')
  })

  test('that is asked to stop frees its partition at once', async () => {
    const { group, folder } = fresh()
    await events.append(`${folder}a`, [{ type: 'x' }, { type: 'x' }])
    const process = streamer(group, folder)
    await process.says('began 2')
    await process.end('SIGTERM')
    expect(process.lines.at(-1)).toBe('stopped')
    const { partitions } = await events.lag(group)
    expect(partitions).toMatchObject([{ holder: null, cursor: 0n }])
    expect(await effects(db.pool, `${folder}a`)).toEqual([])
  })

  test('whose connections are cut, or silent for a while, goes on without a gap or a duplicate', async () => {
    const { group, folder } = fresh()
    await using proxy = await tcpProxy(db.url)
    await using c = createLockstep({ connectionString: proxy.url })
    const faults: unknown[] = []
    const cut = createEvents(c, { onError: (error) => faults.push(error) })
    const options = { prefix: folder, partitions: 4, ttlMs: 1_000, timeoutMs: 2_000, retryDelayMs: 10, batch: 3 }
    let cuts = 0
    await using _ = cut.consume(group, options, async (event, context) => {
      await writes(event, context)
      if (event.position === 3n && ++cuts <= 3) proxy.cut()
    })
    for (const stream of ['a', 'b', 'c']) {
      await events.append(
        folder + stream,
        Array.from({ length: 5 }, () => ({ type: 'x' })),
      )
    }
    await done(events, group)
    expect(cuts).toBeGreaterThan(2)
    proxy.blackhole()
    for (const stream of ['a', 'b', 'c']) await events.append(folder + stream, { type: 'x' })
    await using others = events.consume(group, options, writes)
    await until('another has them', () => others.partitions.length === 4)
    await done(events, group)
    proxy.resume()
    await until('both have some again', () => others.partitions.length === 2)
    for (const stream of ['a', 'b', 'c']) await events.append(folder + stream, { type: 'x' })
    await done(events, group)
    for (const stream of ['a', 'b', 'c']) expect(await effects(db.pool, folder + stream)).toEqual(upTo(7))
    expect(faults).toEqual([])
  })
})

describe('an append', () => {
  test('whose answer is lost can be repeated: with ids its events are stored once', async () => {
    const { folder } = fresh()
    await using proxy = await tcpProxy(db.url)
    await using c = createLockstep({ connectionString: proxy.url })
    const cut = createEvents(c)
    await cut.append(`${folder}a`, { type: 'first', id: '1' })
    // the connection is cut after the append has been done, before its answer
    const gate = await db.pool.connect()
    await gate.query(`
      create function gate() returns trigger language plpgsql as 'begin perform pg_advisory_xact_lock(42); return null; end';
      create trigger gate after insert on lockstep.event for each statement execute function gate();
      select pg_advisory_lock(42)`)
    const lost = cut.append(`${folder}a`, { type: 'second', id: '2' })
    lost.catch(() => {})
    await until('it is under way', async () => {
      const { rows } = await gate.query(
        `select from pg_locks where locktype = 'advisory' and objid = 42 and not granted
           and database = (select oid from pg_database where datname = current_database())`,
      )
      return rows.length > 0
    })
    proxy.cut()
    await expect(lost).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await gate.query('select pg_advisory_unlock(42)')
    await until('it is done', async () => (await events.stream(`${folder}a`))?.position === 2n)
    await gate.query('drop function gate() cascade')
    gate.release()
    expect(await cut.append(`${folder}a`, { type: 'second', id: '2' })).toEqual({ first: 2n, last: 2n, repeated: true })
    expect((await events.read(`${folder}a`)).events.map(({ type }) => type)).toEqual(['first', 'second'])
  })

  test('that is queued between two transactions in a deadlock succeeds', async () => {
    const { folder } = fresh()
    const [a, b] = [`${folder}a`, `${folder}b`]
    const [one, two] = [new pg.Client(db.url), new pg.Client(db.url)]
    for (const client of [one, two]) {
      client.on('error', () => {})
      await client.connect()
      await client.query('begin')
    }
    await events.append(a, { type: 'one' }, { trx: one })
    await events.append(b, { type: 'two' }, { trx: two })
    const waiting = (n: number) =>
      until(`${n} wait`, async () => {
        const { rows } = await db.pool.query(
          `select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
        )
        return rows.length >= n
      })
    const between = events.append(a, { type: 'between' })
    await waiting(1)
    const deadlocked = [
      events.append(a, { type: 'two' }, { trx: two }),
      events.append(b, { type: 'one' }, { trx: one }),
    ]
    const ends = deadlocked.map((append, i) =>
      append
        .then(
          () => 'made',
          (error) => error.code,
        )
        .then(async (how) => {
          await (i === 0 ? two : one).query(how === 'made' ? 'commit' : 'rollback')
          return how
        }),
    )
    expect((await Promise.all(ends)).filter((how) => how === '40P01').length).toBeLessThanOrEqual(1)
    expect((await between).repeated).toBe(false)
    await Promise.all([one.end(), two.end()])
  })

  test('to a stream that a forgotten transaction has locked fails after a while, and appends nothing', async () => {
    const { folder } = fresh()
    await events.append(`${folder}a`, { type: 'x' })
    const client = new pg.Client(db.url)
    client.on('error', () => {})
    await client.connect()
    await client.query('begin')
    await events.append(`${folder}a`, { type: 'y' }, { trx: client })
    await expect(events.append(`${folder}a`, { type: 'z' })).rejects.toMatchObject({
      ...{ code: 'UNAVAILABLE', message: expect.stringContaining('has been open for 10000 ms') },
    })
    await client.query('commit')
    expect((await events.read(`${folder}a`)).events.map(({ type }) => type)).toEqual(['x', 'y'])
    await client.end()
  })
})

describe('the database', () => {
  test('crashes under load, twice: every event that was acknowledged is there, and applied once, in order', async () => {
    await using server = await dedicatedServer({ settings: { synchronous_commit: 'on' } })
    const pool = new pg.Pool({ connectionString: server.url, max: 3 })
    pool.on('error', () => {})
    await pool.query(EFFECT)
    await using c = createLockstep({ connectionString: server.url })
    await using d = createLockstep({ connectionString: server.url })
    const parked: unknown[] = []
    const writing = createEvents(c)
    const reading = createEvents(d, { onError: (error) => parked.push(error) })
    const options = { prefix: 's', partitions: 4, ttlMs: 1_000, timeoutMs: 5_000, batch: 5, retryDelayMs: 10 }
    const consumers = [writing, reading].map((each) => each.consume('g', options, writes))
    const subscription = reading.subscribe({ prefix: 's' })
    const followed: string[] = []
    const following = (async () => {
      for await (const { stream, position } of subscription) followed.push(`${stream}:${position}`)
    })()
    following.catch(() => {}) // it rejects before the test awaits it
    let over = false
    const acknowledged = new Map<string, number>()
    const writers = Array.from({ length: 6 }, async (_, w) => {
      for (let i = 0; !over; i++) {
        const stream = `s${(w + i) % 4}`
        const event = { type: 'x', id: `${w}.${i}` }
        for (;;) {
          try {
            await writing.append(stream, event)
            acknowledged.set(stream, (acknowledged.get(stream) ?? 0) + 1)
            break
          } catch (error) {
            if ((error as { code?: string }).code !== 'UNAVAILABLE') {
              console.error(error)
              throw error
            }
            await new Promise((resolve) => setTimeout(resolve, 50))
          }
        }
      }
    })
    const count = () => [...acknowledged.values()].reduce((sum, each) => sum + each, 0)
    for (const least of [30, 60]) {
      await until(`${least} are appended`, () => count() >= least)
      await server.crash()
      await server.start()
    }
    await until('more are appended', () => count() >= 90)
    over = true
    await Promise.all(writers)
    await done(reading, 'g')
    await until('all is followed', () => followed.length >= count())
    expect(new Set(followed).size).toBe(followed.length)
    for (const [stream, each] of acknowledged) {
      expect((await writing.stream(stream))?.position).toBe(BigInt(each))
      expect(await effects(pool, stream)).toEqual(upTo(each))
      expect(followed.filter((one) => one.startsWith(`${stream}:`))).toEqual(upTo(each).map((i) => `${stream}:${i}`))
    }
    expect(parked).toEqual([])
    await Promise.all(consumers.map((consumer) => consumer.stop()))
    await c.close()
    await d.close()
    await following.catch((error) => expect(error).toMatchObject({ code: 'UNAVAILABLE' }))
    await pool.end()
  }, 90_000)

  test('is not there: subscribe, read and append fail at once', async () => {
    await using c = createLockstep({ connectionString: 'postgres://127.0.0.1:1/nowhere' })
    const nowhere = createEvents(c)
    for (const call of [
      () => nowhere.append('s', { type: 'x' }),
      () => nowhere.read('s'),
      () => nowhere.readAll(),
      () => nowhere.subscribe().next(),
      () => nowhere.poll('g', { holder: 'h' }),
      () => nowhere.lag('g'),
    ]) {
      await expect(call()).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    }
  })

  test('with prepared transactions: one that has appended holds readers up, and is named', async () => {
    await using server = await dedicatedServer({ settings: { max_prepared_transactions: '5' } })
    await using c = createLockstep({ connectionString: server.url })
    const there = createEvents(c)
    const client = new pg.Client(server.url)
    client.on('error', () => {})
    await client.connect()
    await client.query('begin')
    await there.append('a', { type: 'prepared' }, { trx: client })
    await client.query(`prepare transaction 'p'`)
    await there.append('b', { type: 'behind it' })
    await there.declareGroup('g')
    expect((await there.readAll()).events).toEqual([])
    expect((await there.lag('g')).horizon.holdups).toMatchObject([{ pid: null }])
    await client.query(`commit prepared 'p'`)
    expect((await there.readAll()).events.map(({ type }) => type)).toEqual(['prepared', 'behind it'])
    await client.end()
  })
})
