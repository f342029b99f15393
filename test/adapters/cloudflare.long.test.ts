/**
 * The adapter for Cloudflare's Workers, in workerd, with the wrangler.jsonc that is deployed: one connection per request, no
 * statement that Hyperdrive does not support or that its cache may answer, and the cron trigger.
 */
import * as path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { freshDatabase, type RoleDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'
import { INSTALL_MS } from '../tools/packages.ts'
import { contract, KEYS, transcript } from './runtime/contract.ts'
import { ask, startWorker } from './runtime/runtimes.ts'
import { cacheable, unsupported } from './runtime/statements.ts'
import { wiretap } from './runtime/wiretap.ts'
import { dryRun, installWrangler } from './runtime/wrangler.ts'

const LEAN = path.join(import.meta.dirname, 'runtime/lean.worker.ts')
const LOCKS = path.join(import.meta.dirname, 'runtime/locks.worker.ts')

beforeAll(installWrangler, INSTALL_MS)

let db: RoleDatabase
beforeAll(async () => {
  db = await freshDatabase({ role: true })
})
afterAll(() => db?.close())

describe('each request', () => {
  test('has one connection, and closes it at its end', async () => {
    await using wire = await wiretap(db.roleUrl)
    await using worker = await startWorker(wire.url, 'off')
    const requests = ['/readyz', '/v1/locks/x', '/v1/streams/x', '/v1/time', '/v1/tasks', '/v1/leaders/x']
    for (const [i, at] of requests.entries()) {
      expect((await ask(worker, at)).status).toBe(200)
      expect(wire.connections).toEqual({ all: i + 1, most: 1 })
      await until('it is closed', async () => {
        const { rows } = await db.pool.query('select from pg_stat_activity where usename = $1', [db.role])
        return rows.length === 0
      })
    }
  })

  test('of twenty at once for one lock, one gets it, also without Hyperdrive', async () => {
    await using worker = await startWorker(db.roleUrl, 'off', { direct: true })
    const answers = await Promise.all(Array.from({ length: 20 }, () => ask(worker, '/v1/locks/contended', 'POST', {})))
    expect(answers.map(({ status }) => status).sort()).toEqual([201, ...Array(19).fill(423)])
  })

  test('without keys, or without a database, is a 503 whose reason is in the log only', async () => {
    await using worker = await startWorker(db.roleUrl, '')
    const { status, json } = await ask(worker, '/v1/locks/x')
    expect([status, json.code]).toEqual([503, 'UNAVAILABLE'])
    expect(JSON.stringify(json)).not.toContain('LOCKSTEP')
    expect(worker.log()).toContain('LOCKSTEP_API_KEYS is missing')
    await using alone = await startWorker('postgres://u:p@127.0.0.1:1/none', 'off')
    const away = await ask(alone, '/v1/locks/x')
    expect([away.status, away.json.code]).toEqual([503, 'UNAVAILABLE'])
    expect(JSON.stringify(away.json)).not.toContain('127.0.0.1')
  })
})

describe('Hyperdrive', () => {
  /** The statements that a Worker sends to its database for the whole contract. */
  let messages: string[]
  beforeAll(async () => {
    await using fresh = await freshDatabase({ role: true })
    await using wire = await wiretap(fresh.roleUrl)
    await using worker = await startWorker(wire.url, KEYS)
    const document = await (
      await worker.fetch('/openapi.json', { headers: { Authorization: `Bearer all.${'a'.repeat(64)}` } })
    ).json()
    await transcript(worker, contract(document))
    messages = [...new Set(wire.statements)]
  }, 90_000)

  test('gets no statement that it does not support', () => {
    expect(messages.length).toBeGreaterThan(40)
    expect(unsupported(messages)).toEqual([])
  })

  test('gets no statement that its cache could answer: each writes, begins a transaction, or calls a volatile or stable function', async () => {
    expect(await cacheable(messages, db.pool)).toEqual([])
  })
})

describe('the cron trigger', () => {
  test('sends due jobs, and leaves no connection open; a failure is an exception', async () => {
    await using lockstep = createLockstep({ connectionString: db.url })
    const tasks = createTasks(lockstep)
    await tasks.declare('due')
    await tasks.schedule('yearly', '0 0 1 1 *', { queue: 'due' })
    await db.pool.query(
      `update lockstep.schedule set next_at = date_trunc('year', clock_timestamp(), 'UTC') where name = 'yearly'`,
    )
    await using worker = await startWorker(db.roleUrl, KEYS)
    expect(await worker.scheduled()).toBe('ok')
    expect((await tasks.scheduled('yearly'))?.lastSlot).toBeInstanceOf(Date)
    expect((await tasks.counts('due')).ready).toBe(1)
    await until('it is closed', async () => {
      const { rows } = await db.pool.query('select from pg_stat_activity where usename = $1', [db.role])
      return rows.length === 0
    })
    await using away = await startWorker('postgres://u:p@127.0.0.1:1/none', KEYS)
    expect(await away.scheduled()).toBe('exception')
  })
})

describe('wrangler', () => {
  test('deploys it without a warning', async () => {
    const { printed, bytes, sources } = await dryRun()
    expect(printed).not.toMatch(/warning|error/i)
    expect(printed).toContain('env.HYPERDRIVE')
    expect(bytes).toBeGreaterThan(100_000)
    expect(bytes).toBeLessThanOrEqual(280_000)
    // infra/no-rrule.ts, infra/own-cron.ts, infra/cloudflare/no-pgpass.cjs
    expect(sources.filter((file) => file.includes('/pg-boss/')).length).toBeGreaterThan(10)
    expect(sources.filter((file) => /rrule-temporal|cron-parser|luxon|pgpass\//.test(file))).toEqual([])
  })

  test('bundles only the rooms that a deployment uses: without tasks it is half as large', async () => {
    expect((await dryRun(LEAN)).bytes).toBeLessThanOrEqual(155_000)
    expect((await dryRun(LOCKS)).bytes).toBeLessThanOrEqual(140_000)
  })
})
