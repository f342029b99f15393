/**
 * A Lambda is frozen in the middle of a hold, past its ttl, and thawed. It must not write after another holder has taken over.
 * Tested at every step of a hold that is acquired with the library, and of one that is acquired over HTTP from a frozen function.
 *
 * The table is fenced, and it keeps every write: the writer, its token, the order.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { freshDatabase, type RoleDatabase, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'
import { ask, type Lambda, lambdaEnv, lambdaFolder, startLambda, urlEvent } from './runtime/runtimes.ts'
import { type Sandbox, startSandbox } from './runtime/sandbox.ts'

/** The points where the test can stop the function: see user.lambda.ts. */
const POINTS = ['granted', 'begun', 'asserted', 'written'] as const

let db: RoleDatabase
let other: Lockstep
let folder: string
beforeAll(async () => {
  db = await freshDatabase({ role: true })
  await db.pool.query(`create table effect (n bigserial, name text, who text, token bigint);
    select lockstep.fence_table('effect');
    grant select, insert on effect to ${db.role}; grant usage on sequence effect_n_seq to ${db.role};
    alter role ${db.role} set idle_in_transaction_session_timeout = '1s'`)
  other = createLockstep({ connectionString: db.roleUrl, applicationName: 'other' })
  folder = await lambdaFolder(new URL('runtime/user.lambda.ts', import.meta.url).pathname)
})
afterAll(async () => {
  await other?.close()
  await db?.close()
})

const effects = async (name: string) =>
  (await db.pool.query('select who, token from effect where name = $1 order by n', [name])).rows

/** Another holder acquires the lock, and writes. */
async function takesOver(name: string): Promise<bigint> {
  await using held = await other.locks.acquire(name, { ttlMs: 60_000 })
  await held.transaction((trx) => trx.insertInto('effect').values({ name, who: 'other', token: held.token }).execute())
  return held.token
}

/** Stops the function at this point, until `open` is called. */
async function closed(point: (typeof POINTS)[number]) {
  const client = await db.pool.connect()
  await client.query('select pg_advisory_lock(hashtext($1))', [point])
  return {
    reached: () =>
      until(`it waits at ${point}`, async () => {
        const { rows } = await db.pool.query(
          `select from pg_locks where locktype = 'advisory' and not granted and objid = hashtext($1)::bigint::bit(32)::bigint
             and database = (select oid from pg_database where datname = current_database())`,
          [point],
        )
        return rows.length > 0
      }),
    async open() {
      await client.query('select pg_advisory_unlock(hashtext($1))', [point])
      client.release()
    },
  }
}

describe('a Lambda that holds a lease, frozen, and thawed after another holder has taken over', () => {
  let lambda: Sandbox
  beforeAll(async () => {
    lambda = await startSandbox(folder, 'index.holder', lambdaEnv(db.roleUrl))
  })
  afterAll(() => lambda?.[Symbol.asyncDispose]())

  for (const how of ['asserts', 'fenced'] as const) {
    test.each(POINTS)(
      `when it has %s and its write is ${how === 'fenced' ? 'fenced by the table' : 'asserted'}`,
      async (point) => {
        const name = `${how} ${point}`
        const gate = await closed(point)
        const answer = lambda.invoke({ name, me: 'frozen', how })
        await gate.reached()
        lambda.freeze()
        await gate.open()
        const token = await takesOver(name) // waits for the ttl, and for the frozen transaction to be ended
        lambda.thaw()
        const { body, error } = await answer
        expect(error).toBeUndefined()
        expect(JSON.parse(String(body))).toMatchObject({ wrote: false, trusted: false })
        expect(await effects(name)).toEqual([{ who: 'other', token: String(token) }])

        // and the same environment works again
        const again = JSON.parse(String((await lambda.invoke({ name, me: 'again', how })).body))
        expect(again).toEqual({ wrote: true, trustedAt: true })
        const rows = await effects(name)
        expect(rows.map(({ who }) => who)).toEqual(['other', 'again'])
        expect(BigInt(rows[1].token)).toBeGreaterThan(token)
      },
    )
  }
})

test('a Lambda that is frozen while it grants responds with a lease that has expired by then; the table refuses the late writer', async () => {
  await using lambda: Lambda = await startLambda(lambdaEnv(db.roleUrl))
  const name = 'late answer'
  const gate = await db.pool.connect()
  await gate.query('begin; lock lockstep.lease in access exclusive mode')
  const answer = ask(lambda, `/v1/locks/${encodeURIComponent(name)}`, 'POST', { ttlMs: 1_000, holder: 'caller' })
  await until('the grant is requested', async () => {
    const { rows } = await db.pool.query(
      `select from pg_stat_activity where usename = $1 and wait_event = 'relation'`,
      [db.role],
    )
    return rows.length > 0
  })
  lambda.freeze()
  await gate.query('commit')
  gate.release()
  await until('it is granted', async () => (await other.locks.query(name)).holder === 'caller')
  const token = await takesOver(name)
  lambda.thaw()
  const { status, json } = await answer
  expect(status).toBe(201)
  expect(Date.parse(json.expiresAt)).toBeLessThan(Date.now())
  expect(BigInt(json.token)).toBeLessThan(token)

  const writes = await db.pool.connect()
  await writes.query(`begin; set local lockstep.fence = '${name}:${json.token}'`)
  await writes.query(`insert into effect (name, who, token) values ($1, 'late', $2)`, [name, json.token])
  await expect(writes.query('commit')).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
  writes.release()
  expect((await ask(lambda, `/v1/locks/${encodeURIComponent(name)}`, 'PATCH', { token: json.token })).status).toBe(409)
  expect((await effects(name)).map(({ who }) => who)).toEqual(['other'])
  expect(lambda.log()).toContain('LEASE_LOST') // the alarm counts these
})

test('an environment that was frozen opens new connections: one that was cut without notice delays no request', async () => {
  await using proxy = await tcpProxy(db.roleUrl)
  await using lambda = await startSandbox(folder, 'index.handler', lambdaEnv(proxy.url))
  const ready = async () => JSON.parse(String((await lambda.invoke(urlEvent('/readyz'))).body)).statusCode
  expect(await ready()).toBe(200)
  const before = await backends()
  lambda.freeze()
  proxy.blackhole()
  await new Promise((resolve) => setTimeout(resolve, 600)) // longer than restMs
  proxy.target(db.roleUrl)
  lambda.thaw()
  proxy.resume() // new connections work; the old ones may have lost bytes
  expect(await ready()).toBe(200)
  // The answer does not wait for the old ones to be closed; if one were used, it would stay.
  await until('the old connections are closed', async () => (await backends()).every((pid) => !before.includes(pid)))
})

async function backends(): Promise<number[]> {
  const { rows } = await db.pool.query(
    `select pid from pg_stat_activity where usename = $1 and application_name = 'lockstep'`,
    [db.role],
  )
  return rows.map(({ pid }) => pid)
}
