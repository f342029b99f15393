/**
 * The time of a change of leaders, and the cost of leading and waiting: `npm run bench -- leaders`.
 *
 * harness.ts describes the method, servers.ts the servers. When you read the numbers, note:
 *
 * - All times are taken in this process, by one clock. When a leader resigns, the leader and the next one are two Lockstep
 *   objects (two etcd3 clients) of this process, each with its own connections. A leader that is killed is a separate
 *   process, and the next leader is in this one; so the time begins before the signal is sent.
 * - All candidates are in the wait queue, and nothing happens for a fifth of a second, before a change. So each round trip
 *   has to wake idle cores, for NOTIFY and for all others alike. The comparison is with one raw NOTIFY, from sending
 *   `pg_notify` on one connection to receiving it on another. Our change does more: it announces the resignation, the
 *   candidate asks the server, and the grant is on the disk before the answer.
 * - After a kill the machine still runs, and its kernel closes the connections of the dead process. If a machine loses its power
 *   or its network, they are not closed: then a fail-over takes the ttl, for `failover: 'connection'` too.
 * - When its leader is killed, a term has between two thirds of the ttl and all of it left, because it is renewed every third
 *   of the ttl. Each kill comes at another point of that time.
 * - For etcd: it is one node; a quorum would be slower. Against etcd: its client for Node costs some milliseconds.
 */

import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { Etcd3 } from 'etcd3'
import pg from 'pg'
import { createLockstep, type Lockstep, type Term } from '../../lib/index.ts'
import { Candidate, countStatements, type Failover, type Statements } from './candidate.ts'
import {
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
import { connectEtcd, NO_ETCD, type Row, type Servers } from './servers.ts'

export const LEADERS: Record<string, Row> = { handover, killed, renewals, idle }

const TTL_MS = 15_000
/** The ttl of a leader that is killed. */
const KILLED_TTL_MS = 5_000
/** A ttl so short that many heartbeats can be counted. */
const RENEWED_TTL_MS = 3_000
/** Until all processes are idle, and etcd watches: at first it checks only ten times a second for changes. */
const QUIET_MS = 200

/** A leader resigns, and the first in the wait queue leads. */
async function handover({ databaseUrl, etcdPort }: Servers, { rounds, seconds }: Settings): Promise<Line[]> {
  const long = { rounds, seconds: Math.max(seconds, 3) }
  const etcdClients = etcdPort === undefined ? undefined : ([connectEtcd(etcdPort), connectEtcd(etcdPort)] as const)
  const { ours, notify, commit, etcd } = await byTurns(
    'handover',
    {
      ours: async (seconds) => {
        await using one = createLockstep({ connectionString: databaseUrl })
        await using other = createLockstep({ connectionString: databaseUrl })
        return await oursInTurn([one, other], seconds)
      },
      notify: (seconds) => rawNotify(databaseUrl, seconds),
      commit: (seconds) => durableCommit(databaseUrl, seconds),
      etcd: etcdClients && ((seconds) => etcdInTurn(etcdClients, seconds)),
    },
    long,
  ).finally(() => {
    for (const client of etcdClients ?? []) client.close()
  })
  const row = 'a leader resigns: until the next leads'
  return [
    {
      row,
      beside: 'time of one raw NOTIFY',
      target: { atMost: 5 },
      measured: ratio(notify, ours),
      rates: `${ms(ours)} · NOTIFY ${ms(notify)}, a durable commit ${ms(commit)}; ${of(long)}`,
    },
    {
      row,
      beside: "time of etcd3's election",
      measured: etcdClients ? ratio(etcd, ours) : NO_ETCD,
      rates: `${ms(ours)} · etcd3 ${ms(etcd)}; ${of(long)}`,
    },
  ]
}

async function oursInTurn(both: [Lockstep, Lockstep], seconds: number): Promise<Sample> {
  const name = `bench-handover-${crypto.randomUUID()}`
  let [leads, waits] = both
  let term: Term = await leads.leaders.campaign(name, { ttlMs: TTL_MS })
  const sample = await inTurn(seconds, async () => {
    const next = waits.leaders.campaign(name, { ttlMs: TTL_MS }).then((elected) => ({ elected, at: performance.now() }))
    next.catch(() => {}) // if this one fails first
    await inLine(leads, name, 1)
    await delay(QUIET_MS)
    const since = performance.now()
    const [{ elected, at }] = await Promise.all([next, term.resign()])
    if (elected.token <= term.token) throw new WrongResult(`Token ${elected.token} after ${term.token}`)
    term = elected
    ;[leads, waits] = [waits, leads]
    return at - since
  })
  await term.resign()
  return sample
}

async function etcdInTurn(both: readonly [Etcd3, Etcd3], seconds: number) {
  const name = `bench-handover-${crypto.randomUUID()}`
  let [leads, waits] = both
  let term = leads.election(name, TTL_MS / 1_000).campaign('one')
  await term.wait()
  const sample = await inTurn(seconds, async () => {
    const campaign = waits.election(name, TTL_MS / 1_000).campaign('other')
    const next = campaign.wait().then(() => performance.now())
    next.catch(() => {}) // if this one fails first
    await once(campaign, '_isWaiting') // it begins to watch
    await delay(QUIET_MS)
    const since = performance.now()
    const [at] = await Promise.all([next, term.resign()])
    term = campaign
    ;[leads, waits] = [waits, leads]
    return at - since
  })
  await term.resign()
  return sample
}

async function rawNotify(databaseUrl: string, seconds: number): Promise<Sample> {
  const [sender, receiver] = [new pg.Client(databaseUrl), new pg.Client(databaseUrl)]
  await Promise.all([sender.connect(), receiver.connect()])
  try {
    await receiver.query('listen bench')
    return await inTurn(seconds, async () => {
      await delay(QUIET_MS)
      const received = once(receiver, 'notification').then(() => performance.now())
      const since = performance.now()
      const sent = sender.query({ name: 'notify', text: 'select pg_notify($1, $2)', values: ['bench', 'payload'] })
      const [at] = await Promise.all([received, sent])
      return at - since
    })
  } finally {
    await Promise.all([sender.end(), receiver.end()])
  }
}

/** A durable commit, which every grant needs: a disk may need longer for it than a whole NOTIFY takes. */
async function durableCommit(databaseUrl: string, seconds: number): Promise<Sample> {
  const client = new pg.Client(databaseUrl)
  await client.connect()
  try {
    await client.query('create table if not exists public.bench (i integer)')
    return await inTurn(seconds, async () => {
      await delay(QUIET_MS)
      const since = performance.now()
      await client.query({ name: 'insert', text: 'insert into public.bench values (1)' })
      return performance.now() - since
    })
  } finally {
    await client.end()
  }
}

/** One change after another: the rate per second if there were no pauses. The first change is not counted. */
async function inTurn(seconds: number, change: () => Promise<number>): Promise<Sample> {
  await change()
  const times: number[] = []
  for (const until = performance.now() + seconds * 1_000; performance.now() < until; ) {
    const took = await change()
    if (!(took >= 0)) throw new WrongResult('The next one led before the last one was asked to resign')
    times.push(took)
  }
  const { median, max } = spread(times)
  return { rate: 1_000 / median, worst: max, changes: times.length }
}

/** The process of a leader is killed, and the first in the wait queue leads. */
async function killed(servers: Servers, { rounds }: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: servers.databaseUrl })
  const client = servers.etcdPort === undefined ? undefined : connectEtcd(servers.etcdPort)
  const few = { rounds: Math.min(rounds, 3), seconds: 0 } // one kill is a turn
  const { connection, lease, etcd } = await byTurns(
    'killed',
    {
      connection: () => killOurs(servers, lockstep, 'connection'),
      lease: () => killOurs(servers, lockstep, 'lease'),
      etcd: client && (() => killEtcd(servers, client)),
    },
    few,
  ).finally(() => client?.close())
  const row = 'a leader is killed (SIGKILL): until the next leads'
  const inRounds = `${few.rounds} rounds`
  return [
    {
      row: `${row}, failover by connection`,
      beside: "time of etcd3's election, ttl 5 s",
      target: { atMost: 0.02 },
      measured: client ? ratio(etcd, connection) : NO_ETCD,
      rates: `${ms(connection)} · etcd3 ${ms(etcd)}; ${inRounds}`,
    },
    {
      row: `${row}, failover by lease, ttl 5 s`,
      beside: 'the ttl',
      measured: spread(lease.map(({ rate }) => 1_000 / rate / KILLED_TTL_MS)),
      rates: `${ms(lease)}; ${inRounds}`,
    },
    {
      row: `${row}, failover by lease, ttl 5 s`,
      beside: "time of etcd3's election, ttl 5 s",
      measured: client ? ratio(etcd, lease) : NO_ETCD,
      rates: `${ms(lease)} · etcd3 ${ms(etcd)}; ${inRounds}`,
    },
  ]
}

async function killOurs(servers: Servers, { leaders }: Lockstep, failover: Failover): Promise<Sample> {
  const name = `bench-killed-${crypto.randomUUID()}`
  using leader = await Candidate.start(servers)
  const { token } = await leader.lead(failover, name, KILLED_TTL_MS)
  const next = leaders
    .campaign(name, { ttlMs: KILLED_TTL_MS, failover })
    .then((elected) => ({ elected, at: performance.now() }))
  next.catch(() => {}) // if this one fails first
  // A candidate takes over an expired lease only after it has watched the database's clock for a ttl.
  await delay(failover === 'lease' ? KILLED_TTL_MS * 1.1 : 500)
  await anyMoment()
  const before = await leaders.members(name)
  if (before.leader?.token !== token || before.waiting.length !== 1) throw new WrongResult('It no longer led')
  const since = performance.now()
  leader.kill()
  const { elected, at } = await next
  if (elected.token <= token) throw new WrongResult(`Token ${elected.token} after ${token}`)
  const after = await leaders.leader(name)
  if (failover === 'lease' && !(after && after.grantedAt >= before.leader.expiresAt)) {
    throw new WrongResult('The next one led before the lease had expired')
  }
  await elected.resign()
  return { rate: 1_000 / (at - since) }
}

async function killEtcd(servers: Servers, client: Etcd3): Promise<Sample> {
  const name = `bench-killed-${crypto.randomUUID()}`
  using leader = await Candidate.start(servers)
  await leader.lead('etcd', name, KILLED_TTL_MS)
  const campaign = client.election(name, KILLED_TTL_MS / 1_000).campaign('next')
  let at = Number.NaN
  const next = campaign.wait().then(() => {
    at = performance.now()
  })
  next.catch(() => {}) // if this one fails first
  await once(campaign, '_isWaiting')
  await delay(500)
  await anyMoment()
  if (!Number.isNaN(at)) throw new WrongResult('Two lead')
  const since = performance.now()
  leader.kill()
  await next
  await campaign.resign()
  return { rate: 1_000 / (at - since) }
}

/** The part of the time between two renewals. */
const anyMoment = () => delay((Math.random() * KILLED_TTL_MS) / 3)

/** 200 terms of one process, begun at different times. */
async function renewals({ databaseUrl }: Servers, { rounds }: Settings): Promise<Line[]> {
  const many = 200
  const few = { rounds: Math.min(rounds, 3), seconds: 10 }
  const counted = countStatements()
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const terms = await Promise.all(
    Array.from({ length: many }, async (_, i) => {
      await delay((RENEWED_TTL_MS * i) / many)
      return lockstep.leaders.campaign(`bench-renewals-${i}`, { ttlMs: RENEWED_TTL_MS })
    }),
  )
  const { ours } = await byTurns(
    'renewals',
    {
      ours: async (seconds) => {
        const [since, before] = [performance.now(), counted()]
        await delay(seconds * 1_000)
        const after = counted()
        const heartbeats = (performance.now() - since) / (RENEWED_TTL_MS / 3)
        const lost = terms.filter((term) => !term.isTrusted() || term.signal.aborted).length
        if (lost > 0) throw new WrongResult(`${lost} of ${many} terms were lost`)
        const statements = after.renewals - before.renewals
        return {
          rate: statements / heartbeats,
          terms: (after.renewed - before.renewed) / statements,
          others: (after.all - before.all - statements) / ((heartbeats * RENEWED_TTL_MS) / 3_000),
        }
      },
    },
    few,
  )
  const median = (what: 'terms' | 'others') => figure(spread(ours.map((sample) => sample[what])).median)
  return [
    {
      row: '200 terms of one process: renewal statements per heartbeat (ttl ÷ 3)',
      beside: '–',
      target: { atMost: 1 },
      of: 'count',
      measured: spread(ours.map(({ rate }) => rate)),
      rates:
        `${median('terms')} terms in each; ${median('others')}/s other statements; ` +
        `${of(few)}, ttl ${RENEWED_TTL_MS / 1_000} s`,
    },
  ]
}

/** An idle leader and 20 candidates: all in one process, compared with each in its own process. */
async function idle(servers: Servers, { rounds }: Settings): Promise<Line[]> {
  const many = 20
  const few = { rounds: Math.min(rounds, 2), seconds: 30 }
  await using stack = new AsyncDisposableStack()
  const start = async () => stack.use(await Candidate.start(servers))
  await using lockstep = createLockstep({ connectionString: servers.databaseUrl })
  const together = await start()
  await together.lead('lease', 'bench-idle-together', TTL_MS)
  together.wait('bench-idle-together', many)
  const apart = [await start()]
  await apart[0]?.lead('lease', 'bench-idle-apart', TTL_MS)
  for (let i = 0; i < many; i++) {
    const candidate = await start()
    candidate.wait('bench-idle-apart', 1)
    apart.push(candidate)
  }
  await Promise.all([inLine(lockstep, 'bench-idle-together', many), inLine(lockstep, 'bench-idle-apart', many)])

  const client = new pg.Client(servers.databaseUrl)
  await client.connect()
  const commits = async () => {
    const { rows } = await client.query(
      'select xact_commit::integer as commits from pg_stat_database where datname = current_database()',
    )
    return rows[0].commits as number
  }
  const counts = () => Promise.all([together, ...apart].map((each) => each.count()))
  const { ours } = await byTurns(
    'idle',
    {
      ours: async (seconds) => {
        const [since, before, commitsBefore] = [performance.now(), await counts(), await commits()]
        await delay(seconds * 1_000)
        const [after, commitsAfter, passed] = [await counts(), await commits(), (performance.now() - since) / 1_000]
        const each = (what: keyof Statements) =>
          after.map((count, i) => (count[what] - (before[i]?.[what] ?? 0)) / passed)
        const [inOne = 0, ...inMany] = each('all')
        return {
          rate: inOne,
          apart: sum(inMany) / inMany.length,
          most: Math.max(...inMany),
          withoutBeats: sum(each('all')) - sum(each('beats')),
          connections: sum(each('connections')),
          commits: (commitsAfter - commitsBefore) / passed,
        }
      },
    },
    few,
  ).finally(() => client.end())
  const seen = (what: keyof (typeof ours)[number]) => spread(ours.map((sample) => sample[what]))
  // The server counts a commit for each connection too, and none for a beat until that connection touches a table.
  const both =
    `all processes sent ${figure(seen('withoutBeats').median)}/s without heartbeats and opened ` +
    `${figure(seen('connections').median)} connections/s, the server counted ${figure(seen('commits').median)} commits/s`
  return [
    {
      row: 'idle, a leader and 20 candidates in one process: its statements a second',
      beside: '–',
      target: { atMost: 1 },
      of: 'count',
      measured: seen('rate'),
      rates: `${perSecond(ours)}; ${of(few)}`,
    },
    {
      row: 'idle, a leader and 20 candidates in 21 processes: statements a second of each',
      beside: '–',
      target: { atMost: 1 },
      of: 'count',
      measured: seen('apart'),
      rates: `the most of one ${figure(seen('most').max)}/s; ${both}; ${of(few)}`,
    },
  ]
}

const sum = (values: number[]) => values.reduce((a, b) => a + b, 0)

async function inLine({ leaders }: Lockstep, name: string, many: number): Promise<void> {
  for (const until = performance.now() + 30_000; ; await delay(1)) {
    const { waiting } = await leaders.members(name)
    if (waiting.length === many) return
    if (performance.now() > until) throw new WrongResult(`${waiting.length} instead of ${many} are in the wait queue`)
  }
}

const of = ({ rounds, seconds }: Settings) => `${rounds} rounds of ${seconds} s`

/** The median time, for the table. */
function ms(samples: Sample[]): string {
  return `${figure(spread(samples.map(({ rate }) => 1_000 / rate)).median)} ms`
}
