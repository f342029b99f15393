/** Time in a Worker and in a Lambda: NTP-corrected, from one statement. adapters/runtime/runtimes.ts lists what is real here. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import {
  ask,
  type Lambda,
  lambdaEnv,
  type Runtime,
  startLambda,
  startWorker,
  type Worker,
} from '../adapters/runtime/runtimes.ts'
import { installWrangler } from '../adapters/runtime/wrangler.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'
import { INSTALL_MS } from '../tools/packages.ts'
import { Truth } from './fake-true-time.ts'
import { fakeServer } from './ntp-server.ts'

let db: FreshDatabase
beforeAll(async () => {
  db = await freshDatabase()
})
afterAll(() => db?.close())

/** One process measures true time, which is 3 s away from the database's clock. */
async function measured(falsetickers = ['wrong.example:123']): Promise<Truth> {
  await db.pool.query('delete from lockstep.time_anchor')
  await db.pool.query('insert into lockstep.time_anchor (id) values (1)')
  const truth = new Truth(-3_000)
  await using lockstep = createLockstep({ connectionString: db.url, time: { ntp: truth.ntp({ falsetickers }) } })
  await lockstep.time.synchronize()
  return truth
}

async function expectTruth(truth: Truth, runtime: Runtime) {
  const before = truth.ms()
  const { status, headers, json } = await ask(runtime, '/v1/time')
  const after = truth.ms()
  expect(status).toBe(200)
  expect(headers.get('cache-control')).toBe('no-store')
  expect(Date.parse(json.earliest)).toBeLessThanOrEqual(after)
  expect(Date.parse(json.latest)).toBeGreaterThanOrEqual(before)
  expect(json).toMatchObject({ status: 'synchronized', source: 'database+ntp', falsetickers: ['wrong.example:123'] })
  return json
}

const connections = async () => {
  const text = `select count(*)::int as n from pg_stat_activity where datname = $1 and application_name = 'lockstep'`
  return (await db.pool.query(text, [db.name])).rows[0].n
}

describe('a Worker', () => {
  let worker: Worker
  beforeAll(installWrangler, INSTALL_MS)
  beforeAll(async () => {
    worker = await startWorker(db.url, 'off')
  }, 60_000)
  afterAll(() => worker?.[Symbol.asyncDispose]())

  test('knows true time from one statement, in each of 100 requests, some of them at once', async () => {
    const truth = await measured()
    for (let round = 0; round < 10; round++) {
      await Promise.all(Array.from({ length: 10 }, () => expectTruth(truth, worker)))
    }
    await until('it is known to within 100 ms', async () => (await expectTruth(truth, worker)).boundMs < 100)
    await until('no connection is left', async () => (await connections()) === 0)
  }, 120_000) // a new backend for each request: half a minute on a busy machine

  test('allows for a clock that stands still while it computes', async () => {
    const json = await expectTruth(await measured(), worker)
    expect(json.boundMs).toBeGreaterThan(50)
    expect(json.spreadMs).toBeGreaterThan(50)
    expect(json.boundMs).toBeGreaterThan(Date.parse(json.time) - Date.parse(json.earliest)) // `earliest` needs no allowance
  })

  test('is unsynchronized while there is no measurement, and locks all the same', async () => {
    await db.pool.query('update lockstep.time_anchor set server = 0')
    const { json } = await ask(worker, '/v1/time')
    expect(json).toMatchObject({ status: 'unsynchronized', source: 'database', earliest: null, latest: null })
    const granted = await ask(worker, '/v1/locks/from-a-worker', 'POST', { ttlMs: 5_000 })
    expect(granted.status).toBe(201)
    expect(granted.json.token).toMatch(/^\d+$/)
  })
})

describe('a Lambda', () => {
  async function thawed(lambda: Lambda): Promise<void> {
    await until('it has the database again', async () => (await ask(lambda, '/readyz')).status === 200)
  }

  test('knows true time from one statement, again after it was frozen and its connection was cut', async () => {
    const truth = await measured()
    await using lambda = await startLambda(lambdaEnv(db.url))
    await until('it is known to within 100 ms', async () => (await expectTruth(truth, lambda)).boundMs < 100)
    lambda.freeze()
    const cut = 'select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()'
    await db.pool.query(`${cut} and application_name = 'lockstep'`, [db.name])
    lambda.thaw()
    await thawed(lambda)
    await expectTruth(truth, lambda)
  })

  test('that is frozen during its statement answers correctly after it', async () => {
    const truth = await measured()
    await using lambda = await startLambda(lambdaEnv(db.url))
    const locking = await db.pool.connect()
    // Its statement waits for the row that the sample reads.
    await locking.query('begin; lock lockstep.time_anchor in access exclusive mode')
    const asked = truth.ms()
    const answer = ask(lambda, '/v1/time')
    await until('it waits', async () => {
      const { rows } = await db.pool.query(
        `select from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'`,
        [db.name],
      )
      return rows.length === 1
    })
    lambda.freeze()
    await locking.query('commit')
    locking.release()
    lambda.thaw()
    const { json } = await answer
    expect(Date.parse(json.earliest)).toBeLessThanOrEqual(truth.ms())
    expect(Date.parse(json.latest)).toBeGreaterThanOrEqual(asked)
    expect(json.status).toBe('synchronized')
  })

  test('with NTP servers measures for all, and names the falseticker', async () => {
    await db.pool.query('update lockstep.time_anchor set server = 0')
    const servers = await Promise.all([0, 0, 0, 10_000].map((wrongMs) => fakeServer({ wrongMs })))
    const names = servers.map(({ name }) => name)
    await using lambda = await startLambda(lambdaEnv(db.url, names))
    const { json } = await ask(lambda, '/v1/time')
    expect(json).toMatchObject({ status: 'synchronized', falsetickers: [names[3]] })
    expect(json.boundMs).toBeLessThan(100)
    expect(Math.abs(Date.parse(json.time) - Date.now())).toBeLessThan(100)
    for (const each of servers) await each[Symbol.asyncDispose]()
  })
})
