/** Nothing stalls silently, nothing hangs, nothing is left over. Races are forced by locks. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import {
  type ConsumeOptions,
  type Consumer,
  createEvents,
  type EventHandler,
  type Events,
} from '../../lib/event/index.ts'
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
  await db.pool.query(`create table row (id text primary key, n integer); insert into row values ('x', 0)`)
})
const consumers: Consumer[] = []
afterEach(async () => {
  await Promise.all(consumers.splice(0).map((consumer) => consumer.stop({ graceMs: 0 })))
  errors.splice(0)
})
afterAll(async () => {
  await a?.close()
  await db?.close()
})
let n = 0
const fresh = () => ({ group: `g-${n}`, folder: `f-${n++}/` })
function consumes(from: Events, group: string, options: ConsumeOptions, handler: EventHandler): Consumer {
  const consumer = from.consume(group, options, handler)
  consumers.push(consumer)
  return consumer
}
async function client() {
  const it = new pg.Client(db.url)
  it.on('error', () => {})
  await it.connect()
  return it
}
const within = async <T>(ms: number, work: Promise<T>): Promise<T | 'too late'> => {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<'too late'>((resolve) => {
    timer = setTimeout(resolve, ms, 'too late')
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}
/** The name of a stream in a partition, in a group of `of` partitions. */
async function streamOf(folder: string, partition: number, of: number): Promise<string> {
  for (let i = 0; ; i++) {
    const { rows } = await db.pool.query('select lockstep.bucket($1) % $2 as p', [`${folder}${i}`, of])
    if (rows[0].p === partition) return `${folder}${i}`
  }
}

test('a handler that waits in the database is cut off after timeoutMs, and stop() ends', async () => {
  const { group, folder } = fresh()
  await events.append(`${folder}a`, { type: 'x' })
  const other = await client()
  await other.query('begin')
  await other.query(`update row set n = n + 1 where id = 'x'`)
  const begun = Promise.withResolvers<void>()
  const consumer = events.consume(
    group,
    { prefix: folder, partitions: 1, retryLimit: 0, timeoutMs: 1_000 },
    async (_, { trx }) => {
      begun.resolve()
      await sql`update row set n = n + 1 where id = 'x'`.execute(trx)
    },
  )
  await begun.promise
  const parked = until('it is parked', async () => (await events.parked(group)).length > 0).then(() => 'parked')
  parked.catch(() => {})
  const was = await within(8_000, parked)
  const stopped = await within(8_000, consumer.stop({ graceMs: 0 }))
  await other.query('rollback')
  await other.end()
  await consumer.stop()
  expect([was, stopped]).toEqual(['parked', undefined])
})

test('a batch that waits for a connection longer than timeoutMs leaves no rejection unhandled, and no event of it fails', async () => {
  const { group, folder } = fresh()
  const own = createLockstep({ connectionString: db.url, max: 1 })
  const ownEvents = createEvents(own, { onError: (error) => errors.push(error) })
  await events.append(`${folder}a`, { type: 'x' })
  const unhandled: unknown[] = []
  const listener = (reason: unknown) => unhandled.push(reason)
  const others = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', listener)
  const free = Promise.withResolvers<void>()
  const held = Promise.withResolvers<void>()
  const holding = own.kysely.transaction().execute(async (trx) => {
    await sql`set local idle_in_transaction_session_timeout = 0`.execute(trx) // the role may have one
    held.resolve()
    await free.promise
  })
  await held.promise
  let runs = 0
  const consumer = ownEvents.consume(group, { prefix: folder, partitions: 1, timeoutMs: 1_000, retryLimit: 0 }, () => {
    runs++
  })
  await within(1_500, new Promise(() => {})) // longer than a batch may take
  free.resolve()
  await holding
  await until('applied or parked', async () => {
    const { partitions, behind } = await events.lag(group)
    return runs > 0 || partitions[0]?.parked || behind === 0
  })
  const parked = await events.parked(group)
  await consumer.stop()
  await own.close()
  process.removeListener('unhandledRejection', listener)
  for (const each of others) process.on('unhandledRejection', each as never)
  expect({ unhandled: unhandled.length, parked, runs }).toEqual({ unhandled: 0, parked: [], runs: 1 })
})

const thrown: [string, () => unknown][] = [
  ['an error of the file system (ENOENT)', () => Object.assign(new Error('no such file'), { code: 'ENOENT' })],
  ['an error of another service (ECONNREFUSED)', () => Object.assign(new Error('refused'), { code: 'ECONNREFUSED' })],
  ['a long message, cut within a character', () => new Error(`${'x'.repeat(999)}${'😀'.repeat(2_000)}`)],
  [
    'an error with a getter that throws',
    () =>
      Object.defineProperty(new Error('x'), 'message', {
        get() {
          throw new Error('no')
        },
      }),
  ],
  [
    'an error with a code that throws',
    () =>
      Object.defineProperty(new Error('x'), 'code', {
        get() {
          throw new Error('no')
        },
      }),
  ],
  ['a value that cannot be made a string', () => Object.assign(Object.create(null), { n: 1n })],
  ['a message that is no string', () => Object.assign(new Error('x'), { message: { big: 'x'.repeat(5_000) } })],
  ['undefined', () => undefined],
  ['null', () => null],
  ['a frozen object', () => Object.freeze({ a: 1 })],
  ['10 MB', () => new Error('x'.repeat(10_000_000))],
  ['a symbol', () => Symbol('x')],
  ['a function', () => () => {}],
]
test.each(thrown)('a handler that throws %s fails its event; other streams do not wait', async (_, what) => {
  const { group, folder } = fresh()
  await events.append(`${folder}a`, { type: 'x' })
  await events.append(`${folder}b`, { type: 'x' })
  const applied: string[] = []
  consumes(events, group, { prefix: folder, partitions: 1, retryLimit: 0 }, ({ stream }) => {
    if (stream === `${folder}a`) throw what()
    applied.push(stream)
  })
  const done = until('it is parked, and the other applied', async () => {
    const parked = await events.parked(group).catch(() => [])
    return parked.length > 0 && (await events.lag(group)).behind === 0
  }).then(() => 'done')
  done.catch(() => {})
  expect(await within(6_000, done)).toBe('done')
})

test('the loss of a partition does not affect the others', async () => {
  const { group, folder } = fresh()
  const options = { prefix: folder, partitions: 2, ttlMs: 60_000 }
  const seen: string[] = []
  const consumer = consumes(events, group, options, ({ stream }) => void seen.push(stream))
  const [s0, s1] = [await streamOf(folder, 0, 2), await streamOf(folder, 1, 2)]
  await events.append(s0, { type: 'x' })
  await events.append(s1, { type: 'x' })
  await until('both', () => seen.length === 2 && consumer.partitions.length === 2)
  await until('committed', async () => (await events.lag(group)).behind === 0)
  await db.pool.query(`update lockstep.lease set token = token + 1, holder = 'another' where name = $1`, [
    `group\t${group}\t0`,
  ])
  await events.append(
    'elsewhere',
    Array.from({ length: 3_000 }, () => ({ type: 'x' })),
  )
  await events.append(s1, { type: 'y' })
  const done = until('it came', () => seen.length === 3).then(() => 'done')
  done.catch(() => {})
  expect(await within(10_000, done)).toBe('done')
})

test('a checkpoint that another transaction has locked holds up no other partition', async () => {
  const { group, folder } = fresh()
  const seen: string[] = []
  const consumer = consumes(events, group, { prefix: folder, partitions: 2 }, ({ stream }) => void seen.push(stream))
  const [s0, s1] = [await streamOf(folder, 0, 2), await streamOf(folder, 1, 2)]
  await events.append(s0, { type: 'x' })
  await events.append(s1, { type: 'x' })
  await until('both', () => seen.length === 2 && consumer.partitions.length === 2)
  await until('committed', async () => (await events.lag(group)).behind === 0)
  const other = await client()
  await other.query('begin')
  await other.query('select from lockstep.checkpoint where group_name = $1 and partition = 0 for update', [group])
  await events.append(
    'elsewhere',
    Array.from({ length: 3_000 }, () => ({ type: 'x' })),
  )
  await events.append(s1, { type: 'y' })
  const done = until('it came', () => seen.length === 3).then(() => 'done')
  done.catch(() => {})
  const was = await within(8_000, done)
  await other.query('rollback')
  await other.end()
  expect(was).toBe('done')
})

test('all partitions of a group that was made again with more of them are consumed by an older consumer', async () => {
  const { group, folder } = fresh()
  const seen = new Set<string>()
  consumes(events, group, { prefix: folder, ttlMs: 1_000 }, ({ stream }) => void seen.add(stream))
  await events.append(`${folder}first`, { type: 'x' })
  await until('it came', () => seen.size === 1)
  await until('committed', async () => (await events.lag(group)).behind === 0)
  await db.pool.query(`do $$ begin
    perform lockstep.delete_group('${group}');
    perform lockstep.declare_group('${group}', '${folder}', 16, 0, null, null);
  end $$`)
  for (let i = 0; i < 40; i++) await events.append(`${folder}${i}`, { type: 'x' })
  const other = createLockstep({ connectionString: db.url })
  const fromOutside = createEvents(other)
  const done = until('everything came, or it has stopped and said so', async () => {
    return (await fromOutside.lag(group)).behind === 0 || errors.length > 0
  }).then(() => 'done')
  done.catch(() => {})
  const was = await within(10_000, done)
  await other.close()
  expect(was).toBe('done')
})

test('all partitions of a group that was made again with more of them are polled', async () => {
  const { group, folder } = fresh()
  const other = createLockstep({ connectionString: db.url })
  const theirs = createEvents(other)
  await events.declareGroup(group, { prefix: folder, partitions: 1 })
  await events.poll(group, { holder: 'h' })
  await theirs.deleteGroup(group)
  await theirs.declareGroup(group, { prefix: folder, partitions: 8 })
  await other.close()
  for (let i = 0; i < 40; i++) await events.append(`${folder}${i}`, { type: 'x' })
  let got = 0
  for (let i = 0; i < 5; i++) {
    for (const batch of await events.poll(group, { holder: 'h' })) {
      got += batch.events.length
      await events.commit(group, batch)
    }
  }
  expect(got).toBe(40)
  expect((await events.lag(group)).behind).toBe(0)
})

test('a locked stream holds up appends to no other stream, also when many are locked', async () => {
  const { folder } = fresh()
  const names = ['a', 'b', 'c', 'd', 'e'].map((name) => folder + name)
  for (const name of names) await events.append(name, { type: 'x' })
  const holders = await Promise.all(names.map(() => client()))
  for (const [i, holder] of holders.entries()) {
    await holder.query('begin')
    await events.append(names[i] as string, { type: 'held' }, { trx: holder })
  }
  const stuck = names.slice(0, 4).map((name) => events.append(name, { type: 'y' }).catch(() => {}))
  await until('four wait', async () => {
    const { rows } = await db.pool.query(
      `select count(*)::int as n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
    )
    return rows[0].n >= 4
  })
  const fifth = events.append(names[4] as string, { type: 'y' }).then(
    () => 'appended',
    (error) => error.message,
  )
  await events.append(`${folder}free`, { type: 'x' }) // so the fifth was tried, and its stream was locked
  await holders[4]?.query('commit') // now it is free
  const was = await within(3_000, fifth)
  for (const holder of holders) await holder.end()
  await Promise.all([...stuck, fifth])
  expect(was).toBe('appended')
})

test('an onError that throws ends neither the process nor the consumer', async () => {
  const { group, folder } = fresh()
  const own = createLockstep({ connectionString: db.url })
  const ownEvents = createEvents(own, {
    onError: () => {
      throw new Error('from onError')
    },
  })
  const unhandled: unknown[] = []
  const listener = (reason: unknown) => unhandled.push(reason)
  const others = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', listener)
  await events.append(`${folder}a`, { type: 'x' })
  await events.append(`${folder}b`, { type: 'x' })
  const consumer = ownEvents.consume(group, { prefix: folder, partitions: 1, retryLimit: 0 }, ({ stream }) => {
    if (stream === `${folder}a`) throw new Error('x')
  })
  const done = until('the other is applied', async () => {
    return (await events.parked(group).catch(() => [])).length > 0 && (await events.lag(group)).behind === 0
  }).then(() => 'done')
  done.catch(() => {})
  const was = await within(6_000, done)
  const stop = await consumer.stop().catch((error) => error)
  await own.close().catch(() => {})
  process.removeListener('unhandledRejection', listener)
  for (const each of others) process.on('unhandledRejection', each as never)
  expect({ was, stop, unhandled: unhandled.length }).toEqual({ was: 'done', stop: undefined, unhandled: 0 })
})

test('a listener that a handler leaves on its signal is not kept in memory', async () => {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  const { group, folder } = fresh()
  const left: WeakRef<object>[] = []
  await events.append(
    `${folder}a`,
    Array.from({ length: 50 }, () => ({ type: 'x' })),
  )
  const consumer = events.consume(group, { prefix: folder, partitions: 1, batch: 1 }, (_, { signal }) => {
    const large = { large: new Array(1_000) }
    left.push(new WeakRef(large))
    signal.addEventListener('abort', () => large)
  })
  await until('all is applied', () => left.length >= 50)
  for (let i = 0; i < 5; i++) {
    await new Promise((resolve) => setImmediate(resolve))
    gc()
  }
  const kept = left.filter((each) => each.deref()).length
  await consumer.stop()
  expect(kept).toBeLessThan(5)
})
