/**
 * The cost of knowing the time, and its uncertainty: `npm run bench -- time`.
 *
 * - `now()` compared with `performance.now()`, the clock that it reads. The difference is the wall clock, which shows a sleep,
 *   and the arithmetic.
 * - The bound, compared with half a round trip of a bare statement on the same kind of connection, on an idle server. From one
 *   exchange a clock is known at best to half of the fastest round trip. The source is 'database', whose bound is nothing else;
 *   with NTP, the servers' own distance and a millisecond for disturbances are added.
 * - The anchor, with 20 Locksteps that all have NTP servers, as 20 processes would: how often the row is written in a minute.
 */
import { setTimeout as delay } from 'node:timers/promises'
import pg from 'pg'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'
import { fakeServer } from '../time/ntp-server.ts'
import { byTurns, figure, type Line, ratio, type Sample, type Settings, spread, WrongResult } from './harness.ts'
import type { Row, Servers } from './servers.ts'

export const TIME: Record<string, Row> = { now, bound, anchor }

const BATCH = 10_000

/** `batch` reads the clock {@link BATCH} times in its own loop: otherwise each reading would include a function call. */
function looped(batch: () => unknown): (seconds: number) => Promise<Sample> {
  return async (seconds) => {
    const since = performance.now()
    let count = 0
    while (performance.now() - since < seconds * 1_000) {
      batch()
      count += BATCH
      await delay(0) // for the work in the background
    }
    return { rate: (count / (performance.now() - since)) * 1_000 }
  }
}

async function now({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  const servers = await Promise.all([0, 0, 0].map(() => fakeServer()))
  const clock = ntp({ servers: servers.map(({ name }) => name) })
  await using lockstep = createLockstep({ connectionString: databaseUrl, time: { ntp: clock } })
  const { time } = lockstep
  await time.ready()
  if (time.now().status !== 'synchronized') throw new WrongResult(`Time is ${time.now().status}`)
  const { ours, raw } = await byTurns(
    'now',
    {
      ours: looped(() => {
        let last = 0
        for (let i = 0; i < BATCH; i++) last = time.now().timeMs
        return last
      }),
      raw: looped(() => {
        let last = 0
        for (let i = 0; i < BATCH; i++) last = performance.now()
        return last
      }),
    },
    settings,
  )
  for (const each of servers) await each[Symbol.asyncDispose]()
  return [
    {
      row: 'time.now()',
      beside: 'time of performance.now()',
      target: { atMost: 8 },
      measured: ratio(raw, ours),
      rates: `${figure(1e9 / spread(ours.map(({ rate }) => rate)).median)} ns · ${figure(1e9 / spread(raw.map(({ rate }) => rate)).median)} ns`,
    },
  ]
}

/** Measured as rates, 1/boundMs and 1/(half a round trip), so the ratio is inverted. */
async function bound({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  const client = new pg.Client(databaseUrl)
  await client.connect()
  const { ours, raw } = await byTurns(
    'bound',
    {
      ours: async (seconds) => {
        await using lockstep = createLockstep({ connectionString: databaseUrl, time: { source: 'database' } })
        const since = performance.now()
        do {
          await lockstep.time.ready()
          await delay(20)
        } while (performance.now() - since < seconds * 1_000)
        const { boundMs } = lockstep.time.now()
        return { rate: 1 / Number(boundMs) }
      },
      raw: async (seconds) => {
        const since = performance.now()
        const trips: number[] = []
        while (performance.now() - since < seconds * 1_000) {
          const sent = performance.now()
          await client.query('select clock_timestamp()')
          trips.push(performance.now() - sent)
          await delay(20)
        }
        return { rate: 2 / spread(trips).median }
      },
    },
    settings,
  ).finally(() => client.end())
  return [
    {
      row: "bound on the database's clock, idle, over loopback",
      beside: 'half a round trip',
      target: { atMost: 2 },
      measured: ratio(raw, ours),
      rates: `± ${figure(1e3 / spread(ours.map(({ rate }) => rate)).median)} µs · ${figure(1e3 / spread(raw.map(({ rate }) => rate)).median)} µs`,
    },
  ]
}

const MANY = 20
const WATCHED_S = 200

async function anchor({ databaseUrl }: Servers): Promise<Line[]> {
  const servers = await Promise.all([0, 0, 0, 10_000].map((wrongMs) => fakeServer({ wrongMs })))
  const names = servers.map(({ name }) => name)
  const all: Lockstep[] = Array.from({ length: MANY }, () =>
    createLockstep({ connectionString: databaseUrl, time: { ntp: ntp({ servers: names }) } }),
  )
  const client = new pg.Client(databaseUrl)
  await client.connect()
  const written = async () => {
    const text = `select n_tup_upd::int as n from pg_stat_user_tables where relid = 'lockstep.time_anchor'::regclass`
    return (await client.query(text)).rows[0].n as number
  }
  try {
    await Promise.all(all.map(({ time }) => time.ready()))
    await delay(1_500) // the statistics of PostgreSQL come late
    const before = await written()
    console.error(`anchor: ${MANY} Locksteps, ${WATCHED_S} s …`)
    await delay(WATCHED_S * 1_000)
    const perMinute = ((await written()) - before) / (WATCHED_S / 60)
    for (const { time } of all) {
      const { status, falsetickers } = time.now()
      if (status !== 'synchronized' || falsetickers[0] !== names[3]) throw new WrongResult(`Time is ${status}`)
    }
    console.log(JSON.stringify({ row: 'anchor', perMinute }))
    return [
      {
        row: `the anchor, ${MANY} with NTP servers: writes in a minute`,
        beside: '–',
        target: { atMost: 2 },
        of: 'count',
        measured: { median: perMinute, min: perMinute, max: perMinute },
        rates: `claims and offers, of ${WATCHED_S} s`,
      },
    ]
  } finally {
    await client.end()
    await Promise.all(all.map((each) => each.close()))
    for (const each of servers) await each[Symbol.asyncDispose]()
  }
}
