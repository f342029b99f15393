/**
 * The servers of a run: they are started for it and removed after it, so that no other server is measured by mistake.
 *
 * - PostgreSQL, **durable**: fsync on, commits synchronous. A lease is on the disk before it counts as acquired. The data is on
 *   the disk of the temporary folder; on a tmpfs an fsync costs nothing, and the line about the machine says so.
 * - Redis with its defaults, for locks and jobs: AOF, `appendfsync everysec`, but without snapshots (they only cost it time). It
 *   answers before the data is on the disk, so a crash loses up to a second: **not durable**. That favours Redis over our
 *   leases and jobs. Its server is one thread of C on the same cores as the clients and the Postgres backends.
 * - etcd with its defaults, for leaders: every change is on the disk before the answer. It is one node; three would wait for each
 *   other, so this favours etcd.
 * - ZooKeeper, one node, for `npm run prove`: with ticks of 500 ms, since a session lasts at least two ticks.
 *
 * All of them end with this process, however it ends (lib/setup/guarded-process.ts), and their data is removed.
 */

import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as net from 'node:net'
import * as path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Etcd3 } from 'etcd3'
import { Redis } from 'ioredis'
import pg from 'pg'
// @ts-expect-error its types are there, but its "exports" hide them from TypeScript
import Redlock from 'redlock'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { freePort, guarded, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import type { Line, Settings } from './harness.ts'

export interface Servers extends AsyncDisposable {
  databaseUrl: string
  /** undefined: redis-server is not installed. */
  redisPort: number | undefined
  /** undefined: etcd is not installed. */
  etcdPort: number | undefined
  /** undefined: ZooKeeper, or Java, is not installed. */
  zookeeperPort: number | undefined
  /** The versions, and anything unusual about the machine. */
  about: string
}

/** Measures one row of the table, or several that belong together. */
export type Row = (servers: Servers, settings: Settings) => Promise<Line[]>

export const NO_REDIS = 'not measured: redis-server not found (Debian: redis-server)'
export const NO_ETCD = 'not measured: etcd not found (Debian: etcd-server)'

/** Starts PostgreSQL and the given peers. */
export async function startServers(peers: ('redis' | 'etcd' | 'zookeeper')[]): Promise<Servers> {
  await using stack = new AsyncDisposableStack()
  const postgres = await startPostgres({ durable: true })
  stack.defer(() => postgres.stop())
  await migrate(postgres.url)
  const about = [await aboutPostgres(postgres.url)]
  if (fs.statfsSync(postgres.dir).type === TMPFS) about.push('data on a tmpfs: fsync costs nothing here')
  const redis = peers.includes('redis') ? await startRedis() : undefined
  if (redis) {
    stack.defer(redis.stop)
    about.push(`Redis ${redis.version} (AOF everysec)`)
  }
  const etcd = peers.includes('etcd') ? await startEtcd() : undefined
  if (etcd) {
    stack.defer(etcd.stop)
    about.push(`etcd ${etcd.version} (one node)`)
  }
  const zookeeper = peers.includes('zookeeper') ? await startZookeeper() : undefined
  if (zookeeper) {
    stack.defer(zookeeper.stop)
    about.push(`ZooKeeper ${zookeeper.version} (one node)`)
  }
  const started = stack.move()
  return {
    databaseUrl: postgres.url,
    redisPort: redis?.port,
    etcdPort: etcd?.port,
    zookeeperPort: zookeeper?.port,
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
  if (!rows[0].durable) throw new Error('The server of the bench is not durable: its rates would mean nothing')
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
  const client = connectRedis(port) // it retries until the server answers
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

async function startEtcd() {
  const found = spawnSync('etcd', ['--version'], { encoding: 'utf8' })
  if (found.error) return undefined
  const [port, peerPort] = [await freePort(), await freePort()]
  const dir = fs.mkdtempSync(path.join(temporaryFolder(undefined), 'lockstep-bench-etcd-'))
  const [clients, peers] = [`http://127.0.0.1:${port}`, `http://127.0.0.1:${peerPort}`]
  const settings = {
    ...{ name: 'bench', 'data-dir': dir, 'log-level': 'error' },
    ...{ 'listen-client-urls': clients, 'advertise-client-urls': clients },
    ...{ 'listen-peer-urls': peers, 'initial-advertise-peer-urls': peers, 'initial-cluster': `bench=${peers}` },
  }
  const server = guarded(['etcd', ...Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value])], {
    ...{ user: undefined, stopWith: 'INT', remove: dir },
  })
  server.unref()
  const stop = async () => {
    server.end()
    await server.exited
  }
  const died = server.exited.then(() => Promise.reject(new Error(`etcd did not start: ${server.log()}`)))
  try {
    await Promise.race([answers(port), died])
  } catch (error) {
    await stop()
    throw error
  }
  died.catch(() => {}) // stopped
  return { port, version: /Version: (\S+)/.exec(found.stdout)?.[1] ?? '?', stop }
}

/** Debian's package has the classes here. */
const ZOOKEEPER = '/usr/share/java/zookeeper.jar'

async function startZookeeper() {
  if (!fs.existsSync(ZOOKEEPER) || spawnSync('java', ['-version']).error) return undefined
  const port = await freePort()
  const dir = fs.mkdtempSync(path.join(temporaryFolder(undefined), 'lockstep-bench-zookeeper-'))
  const config = path.join(dir, 'zoo.cfg')
  const settings = { tickTime: 500, dataDir: dir, clientPort: port, clientPortAddress: '127.0.0.1', maxClientCnxns: 0 }
  const more = { 'admin.enableServer': 'false', '4lw.commands.whitelist': 'ruok,srvr' }
  const lines = Object.entries({ ...settings, ...more }).map(([name, value]) => `${name}=${value}`)
  fs.writeFileSync(config, `${lines.join('\n')}\n`)
  const main = 'org.apache.zookeeper.server.ZooKeeperServerMain'
  const server = guarded(['java', '-Xmx128m', '-cp', `/usr/share/java/*`, main, config], {
    ...{ user: undefined, stopWith: 'KILL', remove: dir }, // in the background a JVM ignores SIGINT
  })
  server.unref()
  const stop = async () => {
    server.end()
    await server.exited
  }
  const died = server.exited.then(() => Promise.reject(new Error(`ZooKeeper did not start: ${server.log()}`)))
  try {
    const version = await Promise.race([zookeeperVersion(port), died])
    died.catch(() => {}) // stopped
    return { port, version, stop }
  } catch (error) {
    await stop()
    throw error
  }
}

/** Asks ZooKeeper until it answers. */
async function zookeeperVersion(port: number): Promise<string> {
  for (const until = performance.now() + 30_000; ; await delay(100)) {
    try {
      const socket = net.connect(port, '127.0.0.1')
      socket.end('srvr')
      const answer = String(Buffer.concat(await socket.toArray()))
      const version = /version: ([\d.]+)/.exec(answer)?.[1]
      if (version) return version
    } catch {}
    if (performance.now() > until) throw new Error('ZooKeeper does not answer')
  }
}

/** Asks etcd until it answers. */
async function answers(port: number): Promise<void> {
  for (const until = performance.now() + 20_000; ; await delay(50)) {
    const client = connectEtcd(port) // a new client: a refused one waits longer after each attempt
    try {
      await client.get('up').exec()
      return
    } catch (error) {
      if (performance.now() > until) throw error
    } finally {
      client.close()
    }
  }
}

/** etcd3 as in its README, except that each client has its own connection, as if it were alone in its process. */
export function connectEtcd(port: number): Etcd3 {
  return new Etcd3({ hosts: `http://127.0.0.1:${port}`, grpcOptions: { 'grpc.use_local_subchannel_pool': 1 } })
}

/** The part of redlock that is used here. */
export interface RedlockClient {
  /** Rejects when the retries are used up. */
  acquire(keys: string[], ms: number): Promise<{ release(): Promise<unknown> }>
}

/** redlock as in its README: one Redis, one connection, the default settings unless others are passed. */
export function redlockOn(redis: Redis, settings: { retryDelay?: number } = {}): RedlockClient {
  const redlock = new Redlock([redis], settings)
  redlock.on('error', () => {}) // every refused attempt is an error
  return redlock
}

export function connectRedis(port: number): Redis {
  const redis = new Redis({ port, host: '127.0.0.1' })
  redis.on('error', () => {}) // not up yet
  return redis
}
