/**
 * The cost of a lock, compared with the alternatives: `npm run bench -- locks`.
 *
 * harness.ts describes the method, servers.ts the servers. When you read the numbers, note:
 *
 * - Clients and servers share the cores of this machine, over loopback. With many at once, a rate is the CPU time of all of
 *   them together, which favours a peer whose server does little. With one at a time, the time is mostly the waking of
 *   idle cores, which is the same for every round trip.
 * - Against us: Redis is not durable, our leases are. redlock uses one Redis here, not the five it is designed for. The raw
 *   advisory locks are named prepared statements on a number; ours also check for a lease of that name, take a token, and
 *   learn when they are lost.
 * - For us: concurrent attempts and releases share a statement. So 64 at once are fast, and one alone gains nothing. A real
 *   network would hide more of the client's work. redlock polls, so its changes of holder depend on its retry settings: it
 *   is measured with its defaults, and on a second line with a tenth of its delay.
 * - One name: two sections in a row of the same contender are no change of holder. Passing the name within a process is a
 *   change, and most of ours are of that kind; the number of changes between processes is given too.
 */

import { setTimeout as delay } from 'node:timers/promises'
import pg from 'pg'
import { createLockstep, type Hold, type Lockstep } from '../../lib/index.ts'
import { type Contest, contenders } from './contender.ts'
import { door } from './door.ts'
import { atOnce, byTurns, figure, type Line, perSecond, ratio, type Settings, spread, WrongResult } from './harness.ts'
import { connectRedis, NO_REDIS, type Row, redlockOn, type Servers } from './servers.ts'

const TTL_MS = 15_000

export const LOCKS: Record<string, Row> = {
  alone,
  connections: (servers, settings) =>
    beside64(servers, settings, 'connection', {
      row: 'connection hold, 64 at once on 64 names',
      beside: 'rate of redlock',
      target: { atLeast: 5 },
    }),
  leases: (servers, settings) =>
    beside64(servers, settings, 'lease', {
      row: 'lease, 64 at once on 64 names, durable',
      beside: 'rate of redlock (not durable)',
      target: { atLeast: 1 },
    }),
  contended,
  waiters,
  http,
}

/** A connection hold should cost little more than its two round trips. */
async function alone({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const client = new pg.Client(databaseUrl)
  await client.connect()
  const ask = async (verb: string) => {
    const { rows } = await client.query({ name: verb, text: `select ${verb}($1) as done`, values: ['4711'] })
    if (rows[0].done !== true) throw new WrongResult(`${verb} was refused`)
  }
  const { ours, raw } = await byTurns(
    'alone',
    {
      ours: (seconds) => atOnce(1, seconds, cycle(lockstep, 'connection')),
      raw: (seconds) =>
        atOnce(1, seconds, async () => {
          await ask('pg_try_advisory_lock')
          await ask('pg_advisory_unlock')
        }),
    },
    settings,
  ).finally(() => client.end())
  return [
    {
      row: 'connection hold, one after another',
      beside: 'time of two raw prepared advisory round trips',
      target: { atMost: 1.3 },
      measured: ratio(raw, ours),
      rates: `${perSecond(ours)} · raw ${perSecond(raw)}`,
    },
  ]
}

/** 64 at once share their round trips; leases also share their commits. */
async function beside64(
  { databaseUrl, redisPort }: Servers,
  settings: Settings,
  kind: Hold['kind'],
  line: Omit<Line, 'measured' | 'rates'>,
): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const redis = redisPort === undefined ? undefined : connectRedis(redisPort)
  const other = redis && redlockOn(redis)
  const { ours, redlock } = await byTurns(
    `${kind}s`,
    {
      ours: (seconds) => atOnce(64, seconds, cycle(lockstep, kind)),
      redlock:
        other &&
        ((seconds) =>
          atOnce(64, seconds, async (lane) => {
            const held = await other.acquire([`bench-${lane}`], TTL_MS)
            await held.release()
          })),
    },
    settings,
  ).finally(() => redis?.disconnect())
  const measured = redis ? ratio(ours, redlock) : NO_REDIS
  return [{ ...line, measured, rates: `${perSecond(ours)} · redlock ${perSecond(redlock)}` }]
}

/** Acquires and releases one name for each loop; the tokens of a name must rise. */
function cycle(lockstep: Lockstep, kind: Hold['kind']): (lane: number) => Promise<void> {
  const options = kind === 'lease' ? { ttlMs: TTL_MS } : {}
  const tokens: bigint[] = []
  return async (lane) => {
    const held = await lockstep.locks.acquire(`bench-${lane}`, options)
    if (held.kind !== kind) throw new WrongResult(`A ${held.kind} hold instead of a ${kind} hold`)
    if (held.token <= (tokens[lane] ?? 0n)) throw new WrongResult(`Token ${held.token} after ${tokens[lane]}`)
    tokens[lane] = held.token
    await held.release()
  }
}

/** 64 contenders for one name, in 4 processes. */
async function contended(servers: Servers, settings: Settings): Promise<Line[]> {
  using all = await contenders(servers, 4, 16)
  const others = servers.redisPort !== undefined
  const { ours, redlock, redlock20 } = await byTurns(
    'contended',
    {
      ours: async (seconds) => {
        const contest = await all.contend('lockstep', seconds)
        if (contest.overlaps > 0) throw new WrongResult(`${contest.overlaps} sections overlapped or were out of order`)
        return contest
      },
      redlock: others ? (seconds) => all.contend('redlock', seconds) : undefined,
      redlock20: others ? (seconds) => all.contend('redlock20', seconds) : undefined,
    },
    settings,
  )
  const median = (samples: Contest[], what: keyof Contest) => spread(samples.map((s) => s[what] ?? 0)).median
  const shares = (s: Contest[]) =>
    `${figure(median(s, 'least'))} to ${figure(median(s, 'most'))} each, ${figure(median(s, 'starved'))} with none`
  const row = 'one name, 64 contenders in 4 processes'
  const between = figure(median(ours, 'betweenProcesses'))
  return [
    {
      row: `${row}: changes of holder`,
      beside: 'rate of redlock, default retries',
      target: { atLeast: 50 },
      measured: others ? ratio(ours, redlock) : NO_REDIS,
      rates: `${perSecond(ours)} (${between}/s between processes) · redlock ${perSecond(redlock)}`,
    },
    {
      row: `${row}: changes of holder`,
      beside: 'rate of redlock, retryDelay 20 ms',
      measured: others ? ratio(ours, redlock20) : NO_REDIS,
      rates: `${perSecond(ours)} · redlock ${perSecond(redlock20)}`,
    },
    {
      row: `${row}: most ÷ least sections of a contender`,
      beside: '–',
      target: { atMost: 2 },
      of: 'count',
      measured: spread(ours.map(({ most, least }) => most / least)),
      rates: [shares(ours), ...(others ? [`redlock ${shares(redlock)}`, `with 20 ms ${shares(redlock20)}`] : [])].join(
        ' · ',
      ),
    },
  ]
}

/** 1,000 waiters of one process, while another process holds the name: one of them must wait in the database. */
async function waiters({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  const [name, many, application] = ['bench-waiters', 1_000, 'bench-waiters']
  const client = new pg.Client(databaseUrl)
  await client.connect()
  const connections = async () => {
    const { rows } = await client.query(
      'select count(*)::integer as open from pg_stat_activity where application_name = $1',
      [application],
    )
    return rows[0].open as number
  }
  const run = async () => {
    await using elsewhere = createLockstep({ connectionString: databaseUrl })
    await using lockstep = createLockstep({ connectionString: databaseUrl, applicationName: application })
    const held = await elsewhere.locks.acquire(name)
    const served: number[] = []
    let inside = 0
    let over = false
    const waiting = Promise.all(
      Array.from({ length: many }, async (_, i) => {
        const hold = await lockstep.locks.acquire(name)
        if (++inside > 1) throw new WrongResult('Two of the waiters held at once')
        served.push(i)
        await undefined
        inside -= 1
        await hold.release()
      }),
    ).finally(() => {
      over = true
    })
    let most = 0
    for (const since = performance.now(); performance.now() - since < 300; await delay(10)) {
      most = Math.max(most, await connections())
    }
    if (served.length > 0) throw new WrongResult('A waiter got a name that another process held')
    const since = performance.now()
    await held.release()
    while (!over) most = Math.max(most, await connections())
    await waiting
    if (served.some((i, at) => i !== at)) throw new WrongResult('The waiters were not served first come, first served')
    return { rate: (many / (performance.now() - since)) * 1_000, connections: most }
  }
  const { ours } = await byTurns('waiters', { ours: run }, settings).finally(() => client.end())
  return [
    {
      row: '1,000 waiters on one name in a process: connections',
      beside: '–',
      target: { atMost: 2 },
      of: 'count',
      measured: spread(ours.map((sample) => sample.connections)),
      rates: `served ${perSecond(ours)}`,
    },
  ]
}

/** The cost of HTTP on top of its two SQL calls. The server does not prepare them, because of poolers. */
async function http({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  using server = await door(databaseUrl, 64)
  const lines: Line[] = []
  for (const width of [1, 64]) {
    const pool = new pg.Pool({ connectionString: databaseUrl, max: Math.min(width, SQL_CONNECTIONS) })
    const { ours, sql, prepared } = await byTurns(
      `http, ${width} at once`,
      {
        ours: (seconds) => atOnce(width, seconds, (lane) => server.acquireAndRelease(`bench-http-${lane}`)),
        sql: (seconds) => atOnce(width, seconds, (lane) => grantAndRevoke(pool, `bench-sql-${lane}`, false)),
        prepared: (seconds) => atOnce(width, seconds, (lane) => grantAndRevoke(pool, `bench-prepared-${lane}`, true)),
      },
      settings,
    ).finally(() => pool.end())
    lines.push({
      row: `HTTP acquire + release on Node, ${width === 1 ? 'one after another' : `${width} at once`}`,
      beside: 'time of the same two SQL calls',
      target: { atMost: 2.5 },
      measured: ratio(sql, ours),
      rates: `${perSecond(ours)} · SQL ${perSecond(sql)}, prepared ${perSecond(prepared)}`,
    })
  }
  return lines
}

/** Enough for 64 callers: the rates with 8, 16 and 64 differed by less than a tenth. */
const SQL_CONNECTIONS = 16

async function grantAndRevoke(pool: pg.Pool, name: string, prepared: boolean): Promise<void> {
  const grant = await pool.query({
    ...(prepared && { name: 'grant' }),
    text: 'select * from lockstep.grant_leases($1::text[], $2::text[], $3::integer[], $4::jsonb[])',
    values: [[name], [crypto.randomUUID()], [TTL_MS], [null]],
  })
  const { base, granted } = grant.rows[0]
  if (granted?.length !== 1) throw new WrongResult(`${name} was not granted`)
  const revoke = await pool.query({
    ...(prepared && { name: 'revoke' }),
    text: 'select revoked, busy from lockstep.revoke_leases($1::text[], $2::bigint[])',
    values: [[name], [base]],
  })
  if (revoke.rows[0].revoked?.length !== 1) throw new WrongResult(`${name} was not revoked`)
}
