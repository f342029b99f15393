/**
 * A dump that is restored into another cluster. With its sequences everything goes on. Without them (tables alone, or logical
 * replication) no token or cursor is given twice, and a run of the migrations sets the sequences right.
 */
import { execFileSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import pg from 'pg'
import { describe, expect, test } from 'vitest'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { freePort, guarded, serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { dedicatedServer, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

/** The state before the dump: many numbers are used, a group is half-way, a lock is held. */
async function filled(url: string) {
  const lockstep = createLockstep({ connectionString: url })
  const events = createEvents(lockstep)
  for (let i = 0; i < 30; i++)
    await events.append(
      `s${i % 3}`,
      Array.from({ length: 10 }, () => ({ type: String(i), data: i })),
    )
  await events.declareGroup('g', { partitions: 1 })
  const [batch] = await events.poll('g', { holder: 'h', limit: 120 })
  if (batch) await events.commit('g', batch)
  await events.leave('g', 'h')
  for (let i = 0; i < 20; i++) await (await lockstep.locks.acquire(`lock-${i}`, { ttlMs: 1_000 })).release()
  const { token } = await lockstep.locks.grant('held', { holder: 'before', ttlMs: 3_600_000 })
  await lockstep.close()
  return { token }
}

async function goesOn(events: Events, token: bigint, url: string): Promise<void> {
  const seen = []
  for (let from = 1n; ; ) {
    const page = await events.readAll({ from, limit: 1_000 })
    if (page.events.length === 0) break
    seen.push(...page.events)
    from = page.next as bigint
  }
  expect(seen).toHaveLength(300)
  const [batch] = await events.poll('g', { holder: 'other', limit: 1_000 })
  expect(batch?.events.map(({ cursor }) => cursor)).toEqual(seen.slice(120).map(({ cursor }) => cursor))
  await events.append('s0', { type: 'new' }, { expected: 100n })
  const from = (seen.at(-1)?.cursor as bigint) + 1n
  expect((await events.readAll({ from })).events.map(({ type }) => type)).toEqual(['new'])
  if (batch) await events.commit('g', batch)
  const [next] = await events.poll('g', { holder: 'other' })
  expect(next?.events.map(({ type }) => type)).toEqual(['new'])
  await using lockstep = createLockstep({ connectionString: url })
  expect(await lockstep.locks.query('held')).toMatchObject({ holder: 'before', token })
  const held = await lockstep.locks.acquire('another', { ttlMs: 1_000 })
  expect(held.token).toBeGreaterThan(token)
}

test('tables without their sequences: appends are refused until the migrations are run, and then all goes on', async () => {
  await using before = await freshDatabase()
  const { token } = await filled(before.url)
  await using server = await dedicatedServer()
  const [source, target] = [new pg.Client(before.url), new pg.Client(server.url)]
  await Promise.all([source.connect(), target.connect()])
  const tables = ['stream', 'event', 'consumer_group', 'checkpoint', 'stuck', 'retention', 'lease']
  for (const table of tables) {
    const { rows } = await source.query(`select json_agg(t)::text as all from lockstep.${table} t`)
    await target.query(
      `insert into lockstep.${table} overriding system value select * from json_populate_recordset(null::lockstep.${table}, $1)`,
      [rows[0].all ?? '[]'],
    )
  }
  await target.query(`select setval(pg_get_serial_sequence('lockstep.stream', 'id'), max(id)) from lockstep.stream`)

  const lockstep = createLockstep({ connectionString: server.url })
  const events = createEvents(lockstep)
  await expect(events.append('s0', { type: 'too early' })).rejects.toMatchObject({
    ...{ code: 'UNAVAILABLE', message: expect.stringContaining('run the migrations') },
  })
  expect(await migrate(server.url)).toMatchObject({ applied: [] })
  const values =
    'select (select last_value from lockstep.token) as token, (select last_value from lockstep.event_sequence) as event'
  const { rows } = await target.query(values)
  expect(Number(rows[0].event)).toBe(300)
  await migrate(server.url) // one run is enough
  expect((await target.query(values)).rows).toEqual(rows)
  await goesOn(events, token, server.url)
  await lockstep.close()
  await Promise.all([source.end(), target.end()])
})

// The embedded PostgreSQL has no pg_dump; Debian's package has server and pg_dump, of the same version.
const BIN = ['18', '17', '16', '15', '14']
  .map((version) => `/usr/lib/postgresql/${version}/bin`)
  .find((bin) => fs.existsSync(path.join(bin, 'pg_dump')) && fs.existsSync(path.join(bin, 'initdb')))

/** A cluster of Debian's PostgreSQL. */
async function cluster(bin: string) {
  const user = serverUser()
  const dir = fs.mkdtempSync(path.join(temporaryFolder(user), 'lockstep-restore-'))
  const ids = user ? { uid: user.uid, gid: user.gid } : {}
  if (user) fs.chownSync(dir, user.uid, user.gid)
  const data = path.join(dir, 'data')
  const options = ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync']
  execFileSync(path.join(bin, 'initdb'), options, { ...ids, cwd: '/', stdio: 'ignore' })
  const port = await freePort()
  const settings = [
    '-c',
    'listen_addresses=127.0.0.1',
    '-c',
    `unix_socket_directories=`,
    '-c',
    'fsync=off',
    '-p',
    String(port),
  ]
  const server = guarded([path.join(bin, 'postgres'), '-D', data, ...settings], { user, stopWith: 'INT', remove: dir })
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`
  await until('it answers', async () => {
    const client = new pg.Client(url)
    try {
      await client.connect()
      return true
    } catch {
      return false
    } finally {
      await client.end().catch(() => {})
    }
  })
  return {
    url,
    async [Symbol.asyncDispose]() {
      server.end()
      await server.exited
    },
  }
}

describe.skipIf(BIN === undefined)('pg_dump (skipped where Debian’s PostgreSQL is not installed)', () => {
  test('into a fresh cluster: everything is there at once, in its order, and goes on', async () => {
    const bin = BIN as string
    await using before = await cluster(bin)
    await migrate(before.url)
    const { token } = await filled(before.url)
    await using after = await cluster(bin)
    const dump = path.join(os.tmpdir(), `lockstep-dump-${process.pid}.sql`)
    execFileSync(path.join(bin, 'pg_dump'), ['-d', before.url, '-f', dump])
    execFileSync(path.join(bin, 'psql'), ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', after.url, '-f', dump], {
      stdio: 'pipe',
    })
    fs.rmSync(dump)
    await using lockstep = createLockstep({ connectionString: after.url })
    await goesOn(createEvents(lockstep), token, after.url)
    expect(await migrate(after.url)).toMatchObject({ applied: [] })
  })
})
