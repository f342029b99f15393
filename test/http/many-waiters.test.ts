/** Waiting is cheap: three hundred requests that wait over HTTP for one name do not slow down other requests. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { serve } from '../../functions/adapters/node.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let lockstep: Lockstep
let server: Awaited<ReturnType<typeof serve>>
beforeAll(async () => {
  db = await freshDatabase()
  lockstep = createLockstep({ connectionString: db.url, applicationName: 'the door' })
  server = await serve({ lockstep, port: 0 })
})
afterAll(async () => {
  await server?.close()
  await db?.close()
})

const call = async (method: string, path: string, body?: object) => {
  const response = await fetch(`${server.url}/v1/locks/${path}`, {
    method,
    ...(body && { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
  })
  // biome-ignore lint/suspicious/noExplicitAny: the answers are checked below
  return { status: response.status, body: (response.status === 204 ? null : await response.json()) as any }
}

test('300 POSTs wait for one name: other calls go on, the release comes through, all are served in turn', async () => {
  const { body: first } = await call('POST', 'crowded', { ttlMs: 60_000 })
  const tokens: bigint[] = []
  const crowd = Array.from({ length: 300 }, async () => {
    const { status, body } = await call('POST', 'crowded', { waitMs: 20_000, ttlMs: 60_000 })
    expect(status).toBe(201)
    tokens.push(BigInt(body.token))
    expect((await call('DELETE', `crowded?token=${body.token}`)).status).toBe(204)
  })
  await until('300 waiting', async () => (await lockstep.locks.query('crowded')).waiting === 300)

  for (let i = 0; i < 50; i++) {
    const { status, body } = await call('POST', `other-${i}`)
    expect(status).toBe(201)
    expect((await call('PATCH', `other-${i}`, { token: body.token })).status).toBe(200)
    expect((await call('DELETE', `other-${i}?token=${body.token}`)).status).toBe(204)
  }
  expect((await call('PATCH', 'crowded', { token: first.token })).status).toBe(200)
  expect((await call('GET', 'crowded')).body).toMatchObject({ held: true, token: first.token, waiting: 300 })
  // Two for the verbs, one in the queue: the crowd has cost one connection.
  const { rows } = await db.pool.query(`select from pg_stat_activity where application_name = 'the door'`)
  expect(rows.length).toBeLessThanOrEqual(3)

  expect((await call('DELETE', `crowded?token=${first.token}`)).status).toBe(204)
  await Promise.all(crowd)
  expect(tokens).toEqual([...tokens].sort((a, b) => (a < b ? -1 : 1)))
  expect((await call('GET', 'crowded')).body).toMatchObject({ held: false, waiting: 0 })
})
