/**
 * The cost of an event, compared with the alternatives: `npm run bench -- events`.
 *
 * harness.ts describes the method, servers.ts the servers. When you read the numbers, note:
 *
 * - A plain insert writes one row into a table with a generated key, by a prepared statement, on as many connections as there
 *   are callers, as one would write it by hand. Our append adds a position without gaps, in a row that is locked until the
 *   commit, a place in the order of all events, a check of the expected position, and two indexes.
 * - Redis is durable here: `appendfsync always`, so that XADD is on the disk when it answers, as an append is.
 * - Clients and servers share the cores of this machine, over loopback. With many at once, a rate is the CPU time of all of
 *   them together, and of the disk.
 * - For us: concurrent appends share a statement. One alone gains nothing.
 * - Deliveries are measured after a twentieth of a second without any work, so that each round trip has to wake an idle core,
 *   ours and NOTIFY's alike. The time begins with the call of `append`, so it includes a durable commit; NOTIFY has none.
 */
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import pg from 'pg'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import {
  atOnce,
  byTurns,
  figure,
  type Line,
  perSecond,
  ratio,
  type Sample,
  type Settings,
  spread,
  WrongResult,
} from './harness.ts'
import { connectRedis, NO_REDIS, type Row, type Servers } from './servers.ts'

export const EVENTS: Record<string, Row> = { appends, 'append-batch': appendBatch, delivery, stream }

const WIDTH = 64
const BATCH = 100
const DATA = { order: 7, amount: 12.5, customer: 'customer-1234', items: ['a', 'b', 'c'] }
const TEXT = JSON.stringify(DATA)
const QUIET_MS = 50
const MANY = 1_000_000

async function table(databaseUrl: string) {
  const pool = new pg.Pool({ connectionString: databaseUrl, max: WIDTH })
  await pool.query(
    'create table if not exists plain (id bigint generated always as identity primary key, stream text, type text, data jsonb)',
  )
  return Object.assign(pool, { [Symbol.asyncDispose]: () => pool.end() })
}

/** Checks that exactly so many events are stored: positions have no gaps. */
async function checked(events: Events, prefix: string, appended: number): Promise<void> {
  let there = 0n
  for (let after = ''; ; ) {
    const page = await events.streams({ prefix, limit: 1_000, after })
    for (const { position } of page) there += position
    if (page.length < 1_000) break
    after = page.at(-1)?.name ?? ''
  }
  if (there !== BigInt(appended)) throw new WrongResult(`${there} events are stored, ${appended} were appended`)
}

/** 64 callers, each with its own stream. */
async function appends({ databaseUrl, redisPort }: Servers, settings: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const events = createEvents(lockstep)
  await using pool = await table(databaseUrl)
  const redis = redisPort ? connectRedis(redisPort) : undefined
  await redis?.config('SET', 'appendfsync', 'always')
  let appended = 0
  const insert = { name: 'insert', text: 'insert into plain (stream, type, data) values ($1, $2, $3)' }
  const { ours, one, plain, xadd } = await byTurns(
    'appends',
    {
      ours: (seconds) =>
        atOnce(WIDTH, seconds, async (lane) => {
          await events.append(`appends-${lane}`, { type: 'placed', data: DATA })
          appended++
        }),
      one: (seconds) =>
        atOnce(WIDTH, seconds, async () => {
          await events.append('appends-one', { type: 'placed', data: DATA })
          appended++
        }),
      plain: (seconds) =>
        atOnce(WIDTH, seconds, async (lane) => {
          await pool.query({ ...insert, values: [`s-${lane}`, 'placed', JSON.stringify(DATA)] })
        }),
      xadd:
        redis &&
        ((seconds: number) =>
          atOnce(
            WIDTH,
            seconds,
            async (lane) => void (await redis.xadd(`s-${lane}`, '*', 'placed', JSON.stringify(DATA))),
          )),
    },
    settings,
  )
  await checked(events, 'appends-', appended)
  await redis?.config('SET', 'appendfsync', 'everysec')
  redis?.disconnect()
  const rates = `${perSecond(ours)}, to one stream ${perSecond(one)} · insert ${perSecond(plain)}`
  return [
    {
      ...{ row: '64 appends at once, to 64 streams', beside: 'rate of plain inserts', target: { atLeast: 5 } },
      ...{ measured: ratio(ours, plain), rates },
    },
    {
      row: '64 appends at once, to 64 streams',
      beside: 'rate of Redis XADD, appendfsync always',
      target: { atLeast: 1 },
      measured: redis ? ratio(ours, xadd) : NO_REDIS,
      rates: `${perSecond(ours)} · XADD ${redis ? perSecond(xadd) : '–'}`,
    },
  ]
}

/** A hundred events in a call, compared with a hundred rows in a statement. */
async function appendBatch({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const events = createEvents(lockstep)
  await using pool = await table(databaseUrl)
  const batch = Array.from({ length: BATCH }, () => ({ type: 'placed', data: DATA }))
  const insert = {
    name: 'insert-many',
    text: 'insert into plain (stream, type, data) select $1, t, d from unnest($2::text[], $3::jsonb[]) a(t, d)',
  }
  let appended = 0
  const { ours, plain } = await byTurns(
    'append-batch',
    {
      ours: (seconds) =>
        atOnce(1, seconds, async () => {
          await events.append('batch', batch)
          appended += BATCH
        }),
      plain: (seconds) =>
        atOnce(1, seconds, async () => {
          const values = ['batch', batch.map(({ type }) => type), batch.map(({ data }) => JSON.stringify(data))]
          await pool.query({ ...insert, values })
        }),
    },
    settings,
  )
  await checked(events, 'batch', appended)
  const many = (samples: Sample[]) => samples.map((sample) => ({ ...sample, rate: sample.rate * BATCH }))
  return [
    {
      row: 'append of 100, one after another: events',
      beside: 'rate of insert … select unnest of 100',
      target: { atLeast: 0.7 },
      measured: ratio(ours, plain),
      rates: `${perSecond(many(ours))} · insert ${perSecond(many(plain))}`,
    },
  ]
}

/** From the call of an append until a subscriber on other connections gets the event. */
async function delivery({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  await using writer = createLockstep({ connectionString: databaseUrl })
  await using reader = createLockstep({ connectionString: databaseUrl })
  const [writing, reading] = [createEvents(writer), createEvents(reader)]
  const subscription = reading.subscribe({ stream: 'delivery' })
  await writing.append('delivery', { type: 'first', data: DATA })
  await subscription.next()
  const [sender, receiver] = [new pg.Client(databaseUrl), new pg.Client(databaseUrl)]
  await Promise.all([sender.connect(), receiver.connect()])
  await receiver.query('listen bench')
  const { ours, notify } = await byTurns(
    'delivery',
    {
      ours: (seconds) =>
        inTurn(seconds, async () => {
          const next = subscription.next().then(({ value }) => ({ value, at: performance.now() }))
          await delay(QUIET_MS)
          const since = performance.now()
          const [{ value, at }, { last }] = await Promise.all([
            next,
            writing.append('delivery', { type: 'x', data: DATA }),
          ])
          if (value?.position !== last) throw new WrongResult('Another event was delivered')
          return at - since
        }),
      notify: (seconds) =>
        inTurn(seconds, async () => {
          await delay(QUIET_MS)
          const received = once(receiver, 'notification').then(() => performance.now())
          const since = performance.now()
          const sent = sender.query({ name: 'notify', text: 'select pg_notify($1, $2)', values: ['bench', TEXT] })
          const [at] = await Promise.all([received, sent])
          return at - since
        }),
    },
    { ...settings, seconds: settings.seconds * 2 },
  )
  await subscription.return(undefined as never)
  await Promise.all([sender.end(), receiver.end()])
  const ms = (samples: Sample[]) => `${figure(1_000 / spread(samples.map(({ rate }) => rate)).median)} ms`
  return [
    {
      row: 'append, until a subscriber on another connection has it (p50)',
      beside: 'time of one raw NOTIFY',
      target: { atMost: 2 },
      measured: ratio(notify, ours),
      rates: `${ms(ours)} · NOTIFY ${ms(notify)}; ${settings.rounds} rounds of ${settings.seconds * 2} s`,
    },
  ]
}

/** One after another; the rate is that of the median. */
async function inTurn(seconds: number, once: () => Promise<number>): Promise<Sample> {
  const until = performance.now() + seconds * 1_000
  const times: number[] = []
  while (performance.now() < until) times.push(await once())
  return { rate: 1_000 / spread(times).median }
}

/** A million events, read by a subscription. */
async function stream({ databaseUrl }: Servers, { rounds }: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const events = createEvents(lockstep)
  const batch = Array.from({ length: 10_000 }, () => ({ type: 'placed', data: DATA }))
  for (let i = 0; i < MANY / batch.length; i++) await events.append(`stream-${i % 10}`, batch)
  const read = async (options: { prefix: string } | { stream: string }, count: number): Promise<Sample> => {
    const before = heap()
    let most = 0
    let seen = 0
    const since = performance.now()
    for await (const { data } of events.subscribe(options)) {
      if ((data as typeof DATA).order !== 7) throw new WrongResult('Another event was read')
      if (++seen % 100_000 === 0) most = Math.max(most, heap() - before)
      if (seen === count) break
    }
    const rate = (seen / (performance.now() - since)) * 1_000
    // all events together would be about 600 MiB; garbage that is not yet collected counts too
    if (most > 200 * 1_024 * 1_024) throw new WrongResult(`The heap grew by ${most} bytes while ${seen} were read`)
    return { rate, heap: most }
  }
  const turns = Math.min(rounds, 3)
  const { all, one } = await byTurns(
    'stream',
    { all: () => read({ prefix: 'stream-' }, MANY), one: () => read({ stream: 'stream-0' }, MANY / 10) },
    { rounds: turns, seconds: 1 },
  )
  const grew = Math.max(...all.map((sample) => sample.heap ?? 0)) / 1_024 / 1_024
  return [
    {
      row: '1,000,000 events of 10 streams, subscribed to: events a second',
      beside: '–',
      target: { atLeast: 50_000 },
      measured: spread(all.map(({ rate }) => rate)),
      of: 'count',
      rates: `of one stream ${perSecond(one)}; the heap grew by ${figure(Math.max(grew, 0))} MiB; ${turns} rounds`,
    },
  ]
}

function heap(): number {
  globalThis.gc?.()
  return process.memoryUsage().heapUsed
}
