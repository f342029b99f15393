/**
 * The adapter for Lambda, in an execution environment (runtime/sandbox.ts), with the bundle that is deployed: its environment
 * variables, its secrets, its scheduled function, and the paths of an HTTP API.
 */
import { createHash } from 'node:crypto'
import * as fs from 'node:fs'
import { gzipSync } from 'node:zlib'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { lambda } from '../../functions/adapters/lambda.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type DedicatedServer, dedicatedServer, type FreshDatabase, freshDatabase } from '../support/database.ts'
import { MIGRATIONS } from '../support/migrations.ts'
import { until } from '../support/until.ts'
import { Truth } from '../time/fake-true-time.ts'
import { ask, gatewayEvent, lambdaEnv, lambdaFolder, startLambda, urlEvent } from './runtime/runtimes.ts'
import { type Sandbox, startSandbox } from './runtime/sandbox.ts'
import { askForPasswords, secretsManager } from './runtime/secrets.ts'

let db: FreshDatabase
let folder: string
let users: string
beforeAll(async () => {
  db = await freshDatabase()
  folder = await lambdaFolder()
  users = await lambdaFolder(new URL('runtime/user.lambda.ts', import.meta.url).pathname)
})
afterAll(() => db?.close())

const keyText = (secret: string) => `k:${createHash('sha256').update(secret).digest('hex')}:admin`
const whole = async (sandbox: Sandbox, event: unknown) => JSON.parse(String((await sandbox.invoke(event)).body))

describe('its environment', () => {
  test.each([
    [{}, 'DATABASE_URL or DATABASE_SECRET_ARN must be set'],
    [{ DATABASE_URL: 'postgres://x@127.0.0.1/x' }, 'LOCKSTEP_API_KEYS or LOCKSTEP_API_KEYS_SECRET_ARN must be set'],
    [{ DATABASE_URL: 'postgres://x@127.0.0.1/x', LOCKSTEP_API_KEYS: ' ' }, 'open to the world'],
    [{ DATABASE_URL: 'postgres://x@127.0.0.1/x', LOCKSTEP_API_KEYS: 'k:secret:admin' }, 'LOCKSTEP_API_KEYS'],
    [{ DATABASE_URL: 'postgres://x@127.0.0.1/x', LOCKSTEP_API_KEYS: 'off', LOCKSTEP_NTP_SERVERS: 'one' }, 'servers'],
  ])('%j ends its start with an error', async (env, sentence) => {
    const failed = await startSandbox(folder, 'index.handler', env as Record<string, string>).catch((error) => error)
    expect(failed).toBeInstanceOf(Error)
    expect(failed.message).toContain(sentence)
    expect(failed.message).not.toContain('k:secret')
  })

  test('a database that is away is a 503; it works when the database is back', async () => {
    await using server = await dedicatedServer()
    await using lambda = await startLambda(lambdaEnv(server.url))
    expect((await ask(lambda, '/readyz')).status).toBe(200)
    await server.stop()
    const away = await ask(lambda, '/v1/locks/x', 'POST', {})
    expect([away.status, away.json.code]).toEqual([503, 'UNAVAILABLE'])
    expect(lambda.log()).toContain('UNAVAILABLE')
    await server.start()
    await until('it is back', async () => (await ask(lambda, '/readyz')).status === 200)
  })

  test('locks alone need one connection, for any number of requests', async () => {
    await using lambda = await startLambda(lambdaEnv(db.url))
    for (let i = 0; i < 5; i++) {
      const { json } = await ask(lambda, `/v1/locks/n${i}`, 'POST', {})
      await ask(lambda, `/v1/locks/n${i}?token=${json.token}`, 'DELETE')
    }
    const text = `select from pg_stat_activity where datname = $1 and application_name = 'lockstep'`
    expect((await db.pool.query(text, [db.name])).rows).toHaveLength(1)
  })
})

describe('secrets', () => {
  let server: DedicatedServer
  let admin: pg.Pool
  beforeAll(async () => {
    server = await dedicatedServer({ empty: true })
    admin = new pg.Pool({ connectionString: server.url })
    admin.on('error', () => {})
    await askForPasswords(admin)
    await admin.query(`create role owner login createrole password 'of the owner'; grant create on database postgres to owner;
      grant usage, create on schema public to owner`)
  })
  afterAll(async () => {
    await admin?.end()
    await server?.close()
  })

  test('the deployment migrates as the owner and creates the role; the functions use the role, and survive a change of its password', async () => {
    await using secrets = await secretsManager()
    const { hostname: host, port } = new URL(server.url)
    const at = { host, port: Number(port), dbname: 'postgres' }
    secrets.put('owner', { username: 'owner', password: 'of the owner', ...at })
    secrets.put('role', { username: 'lockstep functions', password: "it's one", ...at })
    secrets.put('keys', '')
    const common = { ...secrets.env, DATABASE_SSLMODE: 'disable' }
    const deploy = { ...common, DATABASE_SECRET_ARN: 'owner', LOCKSTEP_ROLE_SECRET_ARN: 'role' }
    const serving = { ...common, DATABASE_SECRET_ARN: 'role', LOCKSTEP_API_KEYS_SECRET_ARN: 'keys' }

    await using migrates = await startSandbox(folder, 'migrate.handler', deploy)
    const first = JSON.parse(String((await migrates.invoke({})).body))
    expect(first).toMatchObject({ latest: MIGRATIONS.at(-1), role: 'lockstep functions' })
    expect(first.applied).toEqual(MIGRATIONS)
    expect(JSON.parse(String((await migrates.invoke({})).body))).toMatchObject({ applied: [] }) // again

    // A deployment that fails rolls back and calls the older function, which must not change a newer schema.
    await admin.query(`insert into lockstep.migration (name, "timestamp") values ('9999_later', '2099-01-01')`)
    const older = await migrates.invoke({})
    expect(older.error).toBeUndefined()
    expect(migrates.log()).toContain('NEWER_SCHEMA')
    await admin.query(`delete from lockstep.migration where name = '9999_later'`)

    await using lambda = await startSandbox(users, 'index.handler', serving)
    const locked = (secret: string) =>
      whole(
        lambda,
        urlEvent('/v1/locks/x', {
          method: 'POST',
          headers: { Authorization: `Bearer k.${secret}`, 'Content-Type': 'application/json' },
          body: '{"holder":"me"}',
        }),
      )
    const empty = await locked('s1')
    expect([empty.statusCode, JSON.parse(empty.body).code]).toEqual([503, 'UNAVAILABLE'])
    expect(lambda.log()).toContain('has no keys yet')

    secrets.put('keys', 'no keys yet') // as the stack creates it
    expect((await locked('s1')).statusCode).toBe(503)
    expect(lambda.log()).toContain('has something else than keys in it')
    expect(lambda.log()).not.toContain('INTERNAL')
    secrets.put('keys', keyText('s1'))
    expect((await locked('s1')).statusCode).toBe(201)
    expect((await locked('wrong')).statusCode).toBe(401)
    secrets.put('keys', keyText('s2'))
    await until('the old key is refused', async () => (await locked('s1')).statusCode === 401)
    expect((await locked('s2')).statusCode).toBe(200)

    secrets.put('role', { username: 'lockstep functions', password: 'two', ...at })
    await migrates.invoke({})
    await admin.query(`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'lockstep functions'`)
    await until('the new password works', async () => (await locked('s2')).statusCode === 200)
    const { rows } = await admin.query(
      `select rolconfig::text as set from pg_roles where rolname = 'lockstep functions'`,
    )
    expect(rows[0].set).toContain('idle_in_transaction_session_timeout=60s')
    expect(lambda.log() + migrates.log()).not.toMatch(/it's one|of the owner|two"/)
  })

  test('that are missing, or not JSON, are a 503 whose reason is in the log only; they are read again', async () => {
    await using secrets = await secretsManager()
    secrets.put('keys', keyText('s'))
    const env = {
      ...secrets.env,
      DATABASE_SECRET_ARN: 'database',
      LOCKSTEP_API_KEYS_SECRET_ARN: 'keys',
      DATABASE_SSLMODE: 'disable',
    }
    await using lambda = await startSandbox(users, 'index.handler', env)
    const ready = () => whole(lambda, urlEvent('/readyz', { headers: { Authorization: 'Bearer k.s' } }))
    const answer = await ready()
    expect(answer.statusCode).toBe(503)
    expect(answer.body).not.toContain('database"')
    expect(lambda.log()).toContain('The secret database cannot be read')
    secrets.put('database', 'postgres://u:hidden@h/d')
    expect((await ready()).statusCode).toBe(503)
    expect(lambda.log()).toContain('must be JSON')
    expect(lambda.log()).not.toContain('hidden')
    const { hostname: host, port } = new URL(server.url)
    secrets.put('database', { username: 'postgres', password: 'any', host, port })
    expect((await ready()).statusCode).toBe(200)
  })
})

describe('the scheduled function', () => {
  test('sends the due slots, once, and returns what it did', async () => {
    await using lockstep = createLockstep({ connectionString: db.url })
    const tasks = createTasks(lockstep)
    await tasks.declare('due')
    await tasks.schedule('yearly', '0 0 1 1 *', { queue: 'due' })
    await db.pool.query(
      `update lockstep.schedule set next_at = date_trunc('year', clock_timestamp(), 'UTC') where name = 'yearly'`,
    )
    await using lambda = await startSandbox(folder, 'index.scheduled', lambdaEnv(db.url))
    const first = JSON.parse(String((await lambda.invoke({})).body))
    expect(first).toMatchObject({ slots: 1, failed: 0 })
    expect(Date.parse(first.nextAt)).toBeGreaterThan(Date.now())
    await tasks.unschedule('yearly')
  })

  test('hands back a job that would outlast the invocation, before its end', async () => {
    await using lockstep = createLockstep({ connectionString: db.url })
    const tasks = createTasks(lockstep)
    await using lambda = await startSandbox(users, 'index.scheduled', lambdaEnv(db.url))
    await tasks.declare('lasting')
    const id = (await tasks.send('lasting', { ms: 60_000 })) as string
    const { body, error } = await lambda.invoke({}, { timeoutMs: 4_000 })
    expect(error).toBeUndefined()
    expect(JSON.parse(String(body))).toMatchObject({ jobs: 0, handedBack: 1 })
    expect(await tasks.get('lasting', id)).toMatchObject({ state: 'retry', progress: null })
    await tasks.cancel('lasting', id)
  })

  test('needs no keys', async () => {
    const env = { DATABASE_URL: db.url, LOCKSTEP_API_KEYS_SECRET_ARN: 'not even asked for' }
    await using lambda = await startSandbox(folder, 'index.scheduled', env)
    expect((await lambda.invoke({})).error).toBeUndefined()
  })

  test('throws its failures, so that Lambda counts them', async () => {
    await using server = await dedicatedServer({ empty: true })
    await using lambda = await startSandbox(folder, 'index.scheduled', lambdaEnv(server.url))
    const { error } = await lambda.invoke({})
    expect(error?.errorMessage).toMatch(/run the migrations/)
  })
})

describe('outside of Lambda', () => {
  afterEach(() => void vi.unstubAllGlobals())

  test.each([undefined, {}, { HttpResponseStream: {} }])(
    '`awslambda` of %j makes no handler that streams',
    (awslambda) => {
      vi.stubGlobal('awslambda', awslambda)
      const its = lambda({ env: lambdaEnv(db.url) })
      expect([its.stream, typeof its.handler, typeof its.scheduled]).toEqual([undefined, 'function', 'function'])
    },
  )

  test('`ntp` measures at a tick, with tasks and without', async () => {
    const ntp = new Truth().ntp()
    const opened: Lockstep[] = []
    const kept =
      <T>(part: (lockstep: Lockstep) => T) =>
      (lockstep: Lockstep) => {
        opened.push(lockstep)
        return part(lockstep)
      }
    const context = { getRemainingTimeInMillis: () => 20_000 }
    for (const parts of [{ events: kept(createEvents) }, { tasks: kept(createTasks) }]) {
      await db.pool.query('update lockstep.time_anchor set server = 0, claimed_until = null') // it is due
      const before = ntp.measured
      const { scheduled } = lambda({ env: lambdaEnv(db.url), ntp, ...parts })
      await scheduled({}, context)
      expect(ntp.measured - before).toBe(1)
    }
    for (const each of opened) await each.close()
    const { rows } = await db.pool.query('select server <> 0 as measured from lockstep.time_anchor')
    expect(rows).toEqual([{ measured: true }])
  })
})

test('of the responses 409 only a lost hold is logged', async () => {
  await using lambda = await startLambda(lambdaEnv(db.url))
  await ask(lambda, '/v1/tasks/logged', 'PUT', {})
  const { json } = await ask(lambda, '/v1/tasks/logged', 'POST', { data: 1 })
  await ask(lambda, `/v1/tasks/logged/${json.id}`, 'DELETE')
  expect((await ask(lambda, `/v1/tasks/logged/${json.id}`, 'DELETE')).status).toBe(409)
  expect((await ask(lambda, '/v1/locks/logged?token=1', 'DELETE')).status).toBe(409)
  expect(lambda.log().match(/LEASE_LOST/g)).toHaveLength(1)
})

test('its bundle has pg-boss in it, and no code that nothing needs (infra/no-rrule.ts, infra/own-cron.ts)', () => {
  const { sources } = JSON.parse(fs.readFileSync(`${folder}/index.mjs.map`, 'utf8')) as { sources: string[] }
  expect(sources.filter((file) => file.includes('/pg-boss/')).length).toBeGreaterThan(10)
  expect(sources.filter((file) => /rrule-temporal|cron-parser|luxon/.test(file))).toEqual([])
  expect(gzipSync(fs.readFileSync(`${folder}/index.mjs`)).length).toBeLessThanOrEqual(275_000)
})

describe('the paths of an HTTP API', () => {
  let lambda: Sandbox
  beforeAll(async () => {
    lambda = await startSandbox(folder, 'index.handler', lambdaEnv(db.url))
  })
  afterAll(() => lambda?.[Symbol.asyncDispose]())
  const nameOf = async (event: unknown) => {
    const { statusCode, body } = await whole(lambda, event)
    return statusCode === 200 ? JSON.parse(body).name : statusCode
  }

  test.each(['a b', '100%', '%2F', 'a#b', 'Köln', '+', "'()*!~", '猫', 'a&b=c;d'])(
    '%s is the name that was sent',
    async (name) => {
      const at = `/v1/locks/${encodeURIComponent(name)}`
      expect(await nameOf(gatewayEvent(at))).toBe(name)
      expect(await nameOf(gatewayEvent(at, {}, 'prod'))).toBe(name)
      expect(await nameOf(urlEvent(at))).toBe(name)
    },
  )

  test('of a function URL keep an encoded slash and question mark; an HTTP API decodes them', async () => {
    expect(await nameOf(urlEvent('/v1/locks/a%2Fb%3Fc'))).toBe('a/b?c')
    expect(await nameOf(gatewayEvent('/v1/locks/a%2Fb'))).toBe(404)
  })

  test('lose the stage at their beginning, once', async () => {
    expect(await nameOf(gatewayEvent('/v1/locks/prod', {}, 'prod'))).toBe('prod')
    expect(await nameOf(gatewayEvent('/v1/locks/v1', {}, 'v1'))).toBe('v1')
  })
})
