/**
 * The servers of a run, started for it and gone after it: nothing that is already on the machine is measured by mistake.
 *
 * - PostgreSQL **durable**: fsync on, commits synchronous. What Lockstep acquires by lease is on the disk when we count
 *   it. The data is on the disk of the temporary folder; on a tmpfs an fsync costs nothing, and the machine line says so.
 * - Redis as it comes for locks: AOF, `appendfsync everysec`, snapshots off (they only cost it). It answers before
 *   anything is on the disk, so a crash forgets up to a second of locks: **not durable**, which flatters Redis beside a
 *   lease. Its server is one thread of C that works on the same cores as we do; so are the Postgres backends.
 *
 * Both end with this process in whatever way it ends (lib/child.ts), and take their data along.
 */

import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { Redis } from 'ioredis'
import pg from 'pg'
// @ts-expect-error its types are there, but its "exports" hide them from TypeScript
import Redlock from 'redlock'
import { freePort, guarded, temporaryFolder } from '../../lib/child.ts'
import { migrate } from '../../lib/migrate.ts'
import { startPostgres } from '../../lib/postgres.ts'

export interface Servers extends AsyncDisposable {
  databaseUrl: string
  /** undefined: there is no redis-server to start. */
  redisPort: number | undefined
  /** Versions, and what is unusual about the place. */
  about: string
}

export const NO_REDIS = 'not measured: redis-server not found (Debian: redis-server)'

export async function startServers(): Promise<Servers> {
  await using stack = new AsyncDisposableStack()
  const postgres = await startPostgres({ durable: true })
  stack.defer(() => postgres.stop())
  await migrate(postgres.url)
  const about = [await aboutPostgres(postgres.url)]
  if (fs.statfsSync(postgres.dir).type === TMPFS) about.push('data on a tmpfs: fsync costs nothing here')
  const redis = await startRedis()
  if (redis) {
    stack.defer(redis.stop)
    about.push(`Redis ${redis.version} (AOF everysec)`)
  }
  const started = stack.move()
  return {
    databaseUrl: postgres.url,
    redisPort: redis?.port,
    about: about.join(', '),
    [Symbol.asyncDispose]: () => started.disposeAsync(),
  }
}

const TMPFS = 0x01021994

async function aboutPostgres(url: string): Promise<string> {
  const client = new pg.Client(url)
  await client.connect()
  const { rows } = await client.query(
    `select current_setting('server_version') as version, current_setting('fsync') = 'on'
        and current_setting('synchronous_commit') = 'on' and current_setting('full_page_writes') = 'on' as durable`,
  )
  await client.end()
  if (!rows[0].durable) throw new Error('The server of the bench is not durable: its rates would be worth nothing')
  return `PostgreSQL ${rows[0].version} (fsync on)`
}

async function startRedis() {
  const found = spawnSync('redis-server', ['--version'], { encoding: 'utf8' })
  if (found.error) return undefined
  const port = await freePort()
  const dir = fs.mkdtempSync(path.join(temporaryFolder(undefined), 'lockstep-bench-redis-'))
  const settings = { port, bind: '127.0.0.1', dir, save: '', appendonly: 'yes', appendfsync: 'everysec' }
  const server = guarded(
    ['redis-server', ...Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)])],
    { user: undefined, stopWith: 'INT', remove: dir },
  )
  server.unref()
  const client = connectRedis(port) // asks until it answers
  const died = server.exited.then(() => Promise.reject(new Error(`redis-server did not start: ${server.log()}`)))
  await Promise.race([client.ping(), died])
  died.catch(() => {}) // stopped
  client.disconnect()
  const stop = async () => {
    server.end()
    await server.exited
  }
  return { port, version: /v=(\S+)/.exec(found.stdout)?.[1] ?? '?', stop }
}

/** What we use of redlock. */
export interface RedlockClient {
  /** Rejects when the retries are used up. */
  acquire(keys: string[], ms: number): Promise<{ release(): Promise<unknown> }>
}

/** redlock as its README makes it: one Redis, one connection, settings by default unless given. */
export function redlockOn(redis: Redis, settings: { retryDelay?: number } = {}): RedlockClient {
  const redlock = new Redlock([redis], settings)
  redlock.on('error', () => {}) // every refused attempt is one
  return redlock
}

export function connectRedis(port: number): Redis {
  const redis = new Redis({ port, host: '127.0.0.1' })
  redis.on('error', () => {}) // not up yet
  return redis
}
