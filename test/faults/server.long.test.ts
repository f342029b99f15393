/**
 * Every verb of every room on a server that is in trouble: its lock table is full, it takes no connection, its disk is full, or its role
 * has a `statement_timeout` of 50 ms. While that lasts each verb does its work, or rejects with a code of docs/errors.md. When it is over
 * the same process goes on by itself: the same call succeeds, and what it was to do is done, once.
 *
 * The verbs, and what must be true of each, are those of verbs.suite.ts. All of them are called at the same time.
 */
import pg from 'pg'
import { expect, test } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type ChaosServer, chaosServer } from '../chaos/server.ts'
import { dedicatedServer } from '../support/database.ts'
import { ask } from '../support/query-once.ts'
import { leftOnServer } from '../support/resources.ts'
import { until } from '../support/until.ts'
import { CODES } from './codes.ts'
import { settles } from './settles.ts'
import type { Call, Rooms } from './verbs/verb.ts'
import { answerOf, succeeds, VERBS } from './verbs.suite.ts'

/** These wait for their end by asking the database, which cannot answer then. */
const WAITS = ['Tasks.work', 'Events.consume', 'Tasks.run', 'Tasks.outcome', 'Tasks.broadcast']

/** These wait as long as it takes, and so for the end of the trouble. */
const PATIENT = ['Leaders.lead']

interface Trouble {
  /** The service's connection string. */
  url: string
  /** The owner's. */
  owner: string
  begin(): Promise<void>
  end(): Promise<void>
  /** How many of the verbs must fail at least: so the trouble was real. */
  failing: number
}

test('a full lock table: each verb does its work or says so, and goes on by itself', { timeout: 300_000 }, async () => {
  await using server = await dedicatedServer({ settings: { max_locks_per_transaction: 10, max_connections: 60 } })
  const url = await service(server.url)
  const fillers: pg.Client[] = []
  await underTrouble({
    ...{ url, owner: server.url, failing: 5 },
    async begin() {
      const filler = new pg.Client({ connectionString: server.url, application_name: 'filler' })
      filler.on('error', () => {})
      await filler.connect()
      fillers.push(filler)
      for (let n = 0; ; n += 100) {
        const full = await filler
          .query('select pg_advisory_lock(n, 0) from generate_series($1::int, $1 + 99) n', [n])
          .then(
            () => false,
            (error) => error.code === '53200',
          )
        if (full) break
      }
      // The last places, one by one.
      for (let n = -1; ; n--) {
        const taken = await filler.query('select pg_advisory_lock($1, 0)', [n]).then(
          () => true,
          () => false,
        )
        if (!taken) break
      }
    },
    async end() {
      for (const filler of fillers) await filler.end()
      await until('there is room', () =>
        ask(server.url, 'select 1').then(
          () => true,
          () => false,
        ),
      )
    },
  })
})

test('no free connection: each verb does its work or says so, and goes on by itself', {
  timeout: 300_000,
}, async () => {
  await using server = await dedicatedServer()
  const url = await service(server.url)
  await underTrouble({
    ...{ url, owner: server.url, failing: 20 },
    async begin() {
      await ask(server.url, 'alter role service connection limit 0')
      await ask(server.url, `select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'service'`)
    },
    end: async () => void (await ask(server.url, 'alter role service connection limit -1')),
  })
})

test('a statement_timeout of 50 ms of the role: every verb does its work all the same', {
  timeout: 300_000,
}, async () => {
  await using server = await dedicatedServer()
  const url = await service(server.url)
  await ask(server.url, `alter role service set statement_timeout = '50ms'`)
  await underTrouble({ ...{ url, owner: server.url, failing: 0, begin: async () => {}, end: async () => {} } })
})

test('a full disk: each verb does its work or says so, and goes on by itself', {
  timeout: 300_000,
}, async (context) => {
  await using server: ChaosServer = await chaosServer(200)
  const { fill } = server
  if (!fill) return context.skip('mounting is not allowed here')
  const url = await service(server.url)
  let filled: Promise<void> | undefined
  await underTrouble({
    ...{ url, owner: server.url, failing: 1 },
    async begin() {
      filled = fill(4_000)
      await until('it cannot write', () =>
        ask(server.url, 'create table full_ as select n from generate_series(1, 100000) n').then(
          () =>
            ask(server.url, 'drop table full_').then(
              () => false,
              () => true,
            ),
          () => true,
        ),
      )
    },
    async end() {
      await filled
      await until('it can write', () =>
        ask(server.url, 'create temporary table t as select 1').then(
          () => true,
          () => false,
        ),
      )
    },
  })
})

/** A role with the rights of `migrate --grant`. @returns its connection string. */
async function service(owner: string): Promise<string> {
  await ask(owner, `create role service login password 'secret'`)
  await migrate(owner, { grant: 'service' })
  const url = new URL(owner)
  url.username = 'service'
  url.password = 'secret'
  return url.href
}

const rooms = (lockstep: Lockstep): Rooms => ({
  lockstep,
  tasks: createTasks(lockstep, { onError: () => {} }),
  events: createEvents(lockstep, { onError: () => {} }),
})

async function underTrouble({ url, owner, begin, end, failing }: Trouble): Promise<void> {
  const others: Lockstep[] = []
  const also = <L extends Lockstep>(lockstep: L) => {
    others.push(lockstep)
    return lockstep
  }
  const pool = new pg.Pool({ connectionString: owner, max: 2 })
  pool.on('error', () => {})
  const a = rooms(also(createLockstep({ connectionString: url, applicationName: 'in trouble' })))
  const b = rooms(also(createLockstep({ connectionString: owner, applicationName: 'in trouble too' })))
  try {
    const calls: [string, Call][] = []
    for (const [room, table] of Object.entries(VERBS)) {
      for (const [verb, prepare] of Object.entries(table)) {
        const label = `${room}.${verb}`
        if (WAITS.includes(label)) continue
        calls.push([label, await prepare({ a, b, url, also, name: `trouble-${label}`, pool })])
      }
    }
    await begin()
    const patient = calls.filter(([label]) => PATIENT.includes(label)).map(([, { act }]) => act())
    const outcomes = await Promise.all(
      calls
        .filter(([label]) => !PATIENT.includes(label))
        .map(async ([label, { act }]) => ({ label, ...(await settles(label, answerOf(act))) })),
    )
    await end()
    await settles('those that wait', Promise.all(patient))
    const failed = outcomes.filter(({ error }) => error !== undefined)
    const undocumented = failed.filter(({ error }) => !CODES.includes(String((error as { code?: unknown }).code)))
    expect(undocumented.map(({ label, error }) => `${label}: ${error}`)).toEqual([])
    expect(failed.length).toBeGreaterThanOrEqual(failing)
    if (failing === 0) expect(failed.map(({ label, error }) => `${label}: ${error}`)).toEqual([])
    const wrong: string[] = []
    for (const [label, { act, again = act, is, or = [], afterwards }] of calls) {
      try {
        await settles(`${label} succeeds by and by`, succeeds(again, is, or))
        await settles(`what must be true of ${label}`, afterwards?.() ?? Promise.resolve())
      } catch (error) {
        wrong.push(`${label}: ${(error as Error).message}`)
      }
    }
    expect(wrong).toEqual([])
  } finally {
    await settles('close', Promise.all(others.map((each) => each.close())))
    await pool.end()
  }
  expect(await leftOnServer(owner, 'in trouble%')).toEqual([])
}
