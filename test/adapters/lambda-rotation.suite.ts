/**
 * Secrets that change while a Lambda is warm: every way in which AWS rotates the secret of a database, a database that moves, and
 * keys that are taken away. The handlers run in this process, against a server that asks for passwords.
 */
import { createHash } from 'node:crypto'
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, vi } from 'vitest'
import { type LambdaOptions, lambda } from '../../functions/adapters/lambda.ts'
import type { Lockstep } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { createTasks } from '../../lib/task/index.ts'
import { chosen } from '../support/chosen.ts'
import { type DedicatedServer, dedicatedServer } from '../support/database.ts'
import { until } from '../support/until.ts'
import { whole } from './runtime/events.ts'
import { urlEvent } from './runtime/runtimes.ts'
import { askForPasswords, type Secrets, secretsManager } from './runtime/secrets.ts'

/** The tests that `npm test` runs: the others last longer. */
const SHORT = ['leaves no old key valid', 'with another host']

/** Registers the tests that `npm test` runs, or all others. */
export function rotations(which: 'short' | 'others'): void {
  const test = chosen((name) => SHORT.some((words) => name.includes(words)) === (which === 'short'))

  let server: DedicatedServer
  let secrets: Secrets
  let admin: pg.Pool
  let at: { host: string; port: number; dbname: string }
  beforeAll(async () => {
    server = await dedicatedServer()
    secrets = await secretsManager()
    for (const [name, value] of Object.entries(secrets.env)) vi.stubEnv(name, value)
    vi.stubEnv('AWS_REGION', 'eu-central-1')
    vi.spyOn(console, 'warn').mockImplementation(() => {})
    admin = new pg.Pool({ connectionString: server.url })
    admin.on('error', () => {})
    await askForPasswords(admin)
    const { hostname, port, pathname } = new URL(server.url)
    at = { host: hostname, port: Number(port), dbname: pathname.slice(1) }
    // It would end the connection that goes on while the secret is away.
    await admin.query(`alter database ${at.dbname} set idle_session_timeout = 0`)
  })
  afterAll(async () => {
    vi.restoreAllMocks()
    vi.unstubAllEnvs()
    await admin?.end()
    await secrets?.[Symbol.asyncDispose]()
    await server?.close()
  })

  let role: string
  let made = 0
  beforeEach(async () => {
    role = `app${made++}`
    await admin.query(`create role ${role} login password 'one'`)
    await migrate(server.url, { grant: role })
    secrets.put('database', { username: role, password: 'one', ...at })
  })

  const now = Date.now
  afterEach(() => {
    Date.now = now
  })

  /** Two seconds later by the clock, in which a secret that was just read is read again. */
  function later(): void {
    const before = Date.now
    Date.now = () => before() + 2_000
  }

  const key = (secret: string) => `k:${createHash('sha256').update(secret).digest('hex')}:admin`

  /** A warm function. `ask` sends a request that needs the database, unless it is another path. */
  async function warm(options: LambdaOptions, env: Record<string, string> = {}) {
    const opened: Lockstep[] = []
    const its = lambda({
      ...options,
      tasks(lockstep) {
        opened.push(lockstep)
        return createTasks(lockstep)
      },
      env: { DATABASE_SECRET_ARN: 'database', DATABASE_SSLMODE: 'disable', LOCKSTEP_API_KEYS: 'off', ...env },
    })
    const ask = async (path = '/v1/locks/a', secret = 's') => {
      const { status } = await whole(its, urlEvent(path, { headers: { Authorization: `Bearer k.${secret}` } }))
      return status
    }
    expect(await ask()).toBe(200)
    return {
      ask,
      opened,
      [Symbol.asyncDispose]: async () => void (await Promise.all(opened.map((each) => each.close()))),
    }
  }

  const connected = async (as: string) =>
    (await admin.query('select from pg_stat_activity where usename = $1', [as])).rows.length
  const cutOff = (as: string) =>
    admin.query('select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = $1', [as])
  const served = (ask: () => Promise<number>) => until('it serves again', async () => (await ask()) === 200)

  describe('the database’s secret', () => {
    test.each([
      ['with its address', false],
      ['of RDS, which has user and password only', true],
    ])('%s: a new password of the same user ends no connection, and is used by new ones', async (_, managed) => {
      const { host, port, dbname } = at
      const where = managed ? {} : at
      const env = managed ? { DATABASE_HOST: host, DATABASE_PORT: String(port), DATABASE_NAME: dbname } : {}
      secrets.put('database', { username: role, password: 'one', ...where })
      await using function_ = await warm({}, env)
      const { ask, opened } = function_
      await admin.query(`alter role ${role} password 'two'`) // the database is first, the secret second
      expect(await ask()).toBe(200)
      await cutOff(role)
      await until('new connections are refused', async () => (await ask()) === 503)
      secrets.put('database', { username: role, password: 'two', ...where })
      await served(ask)
      expect(opened).toHaveLength(1) // the same environment
    })

    test('with two users that take turns: no request fails, and the other user follows', async () => {
      const clone = `${role}_clone`
      // As AWS's function makes it.
      await admin.query(`create role ${clone} login password 'two'; grant ${role} to ${clone}`)
      await using function_ = await warm({ keysMs: 3_600_000 })
      const { ask, opened } = function_
      secrets.put('database', { username: clone, password: 'two', ...at })
      expect(await ask()).toBe(200)
      expect(await connected(clone)).toBe(0)
      later()
      // Another connection, while the one that there is is busy: with the password that the first user still has.
      await opened[0]?.kysely.transaction().execute(async (trx) => {
        await sql`select`.execute(trx)
        expect(await ask()).toBe(200)
      })
      expect(await connected(clone)).toBe(0)
      await until('the other user is used', async () => (await ask()) === 200 && (await connected(clone)) > 0)
      await until('the first is not', async () => (await connected(role)) === 0)
      expect([await ask('/readyz'), await ask('/v1/tasks'), await ask('/v1/leaders/e')]).toEqual([200, 200, 200])
      // The next turn.
      await admin.query(`alter role ${role} password 'three'`)
      secrets.put('database', { username: role, password: 'three', ...at })
      later()
      await cutOff(clone)
      await served(ask)
      await until('it is the first again', async () => (await ask()) === 200 && (await connected(role)) > 0)
      expect(opened.length).toBeLessThanOrEqual(3)
    })

    test('with a user that may not log in any more, is followed by the first request after one that failed', async () => {
      await using function_ = await warm({ keysMs: 3_600_000 })
      const { ask } = function_
      const other = `${role}_other`
      await admin.query(`create role ${other} login password 'two'`)
      await migrate(server.url, { grant: other })
      await admin.query(`alter role ${role} nologin`)
      await cutOff(role)
      await until('it is refused', async () => (await ask()) === 503)
      secrets.put('database', { username: other, password: 'two', ...at })
      await served(ask)
    })

    test('with another host: after a failure if the old one is gone, and with the keys if it still answers', async () => {
      const old = await dedicatedServer()
      const { hostname, port, pathname } = new URL(old.url)
      const there = { host: hostname, port: Number(port), dbname: pathname.slice(1) }
      secrets.put('database', { username: 'postgres', password: 'any', ...there })
      await using patient = await warm({ keysMs: 3_600_000 })
      await using quick = await warm({ keysMs: 0 })
      try {
        secrets.put('database', { username: role, password: 'one', ...at })
        await until('the new one is used', async () => (await quick.ask()) === 200 && (await connected(role)) > 0)
        expect(await patient.ask()).toBe(200)
        expect(patient.opened).toHaveLength(1)
      } finally {
        await old.close()
      }
      await served(patient.ask)
      expect(patient.opened).toHaveLength(2)
    })

    test.each(['gone', 'silent'] as const)('that is %s while it is warm: it goes on', async (how) => {
      await using function_ = await warm({ keysMs: 0 })
      secrets.remove('database', how)
      const before = secrets.asked.get('database') as number
      later()
      expect(await function_.ask()).toBe(200)
      expect(secrets.asked.get('database')).toBeGreaterThan(before)
      expect(function_.opened).toHaveLength(1)
    })

    test('is read once for connections that are made together', async () => {
      await using function_ = await warm({})
      const before = secrets.asked.get('database') as number
      later()
      await cutOff(role)
      await served(function_.ask)
      await Promise.all(Array.from({ length: 8 }, (_, i) => function_.ask(`/v1/locks/${i}`)))
      expect((secrets.asked.get('database') as number) - before).toBeLessThanOrEqual(2)
    })
  })

  describe('the keys’ secret', () => {
    const KEYED = { LOCKSTEP_API_KEYS: '', LOCKSTEP_API_KEYS_SECRET_ARN: 'keys' }

    test.each([
      ['empty', ''],
      ['a line break', '\n'],
      ['a comma', ','],
      ['something else', 'no keys'],
    ])('that is %s leaves no old key valid, and new ones are valid at once', async (_, text) => {
      secrets.put('keys', key('s'))
      await using function_ = await warm({ keysMs: 0 }, KEYED)
      const { ask } = function_
      secrets.put('keys', text)
      for (let i = 0; i < 3; i++) expect(await ask()).toBe(503)
      secrets.remove('keys', 'gone')
      expect(await ask()).toBe(503)
      secrets.put('keys', key('t'))
      expect([await ask('/v1/locks/a', 's'), await ask('/v1/locks/a', 't')]).toEqual([401, 200])
    })

    test.each(['gone', 'silent'] as const)(
      'that is %s, and so cannot be read, leaves the old keys valid',
      async (how) => {
        secrets.put('keys', key('s'))
        await using function_ = await warm({ keysMs: 0 }, KEYED)
        secrets.remove('keys', how)
        expect(await function_.ask()).toBe(200)
        expect(await function_.ask('/v1/locks/a', 'wrong')).toBe(401)
      },
    )
  })
}
