/** The look at what a run has left behind (support/resources.ts): that it finds each thing which can be left. */
import pg from 'pg'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { leftInProcess, leftOnServer, ofProcess } from '../support/resources.ts'

let db: FreshDatabase
beforeAll(async () => {
  db = await freshDatabase()
})
afterAll(() => db?.close())

test('a connection that is left is found, with its transaction and its advisory locks; without them nothing is', async () => {
  const client = new pg.Client({ connectionString: db.url, application_name: 'left over' })
  client.on('error', () => {}) // a test that failed leaves it
  await client.connect()
  await client.query('begin; select pg_advisory_lock(1, 2), pg_advisory_xact_lock_shared(3)')
  const left = await leftOnServer(db.url, 'left%', 0)
  expect(left.sort()).toEqual([
    expect.stringMatching(/^a connection of 'left over' \(idle in transaction\): begin; select/),
    "an advisory lock (0, 3, 1) that 'left over' has",
    "an advisory lock (1, 2, 2) that 'left over' has",
    "an open transaction of 'left over'",
  ])
  expect(await leftOnServer(db.url, 'another%', 0)).toEqual([])
  await client.end()
  expect(await leftOnServer(db.url, 'left%')).toEqual([])
})

test('a timer, a socket and a heap that grows are found; what has gone is not', async () => {
  const before = await ofProcess()
  expect(await leftInProcess(before)).toEqual([])
  // Several: `before` may have one that was about to go.
  const timers = Array.from({ length: 5 }, () => setTimeout(() => {}, 60_000))
  const clients = timers.map(() => new pg.Client(db.url))
  for (const client of clients) client.on('error', () => {})
  await Promise.all(clients.map((client) => client.connect()))
  const kept = Array.from({ length: 300_000 }, (_, i) => ({ i }))
  const now = await ofProcess()
  for (const kind of ['Timeout', 'TCPSocketWrap']) {
    expect(now.handles.get(kind)).toBeGreaterThan(before.handles.get(kind) ?? 0)
  }
  expect(now.heap).toBeGreaterThan(before.heap + kept.length)
  kept.length = 0
  for (const timer of timers) clearTimeout(timer)
  await Promise.all(clients.map((client) => client.end()))
  expect(await leftInProcess(before)).toEqual([])
})
