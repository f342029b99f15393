/**
 * Databases for tests, and the ways they fail: a fresh one per file, a transaction pooler in front of it, a network
 * that breaks, a server that stops.
 *
 * Every helper leaves something to close; all are `await using`-able. A test run that is killed leaves nothing
 * running either: servers and poolers end with their process (lib/setup/guarded-process.ts).
 */

import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import pg from 'pg'
import { inject } from 'vitest'
import type { Postgres, PostgresOptions } from '../../lib/setup/embedded-postgres.ts'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { oddStatements } from './odd.ts'
import { type PoolSize, pgbouncer } from './pgbouncer.ts'
import { BINARIES } from './postgres-majors.ts'

export { type PoolSize, pgbouncerAvailable } from './pgbouncer.ts'
export { type TcpProxy, tcpProxy } from './proxy.ts'

export interface FreshDatabase extends AsyncDisposable {
  name: string
  /** A direct connection string: each connection has its own session. */
  url: string
  /** A pool of at most 10 direct connections. */
  pool: pg.Pool
  /** Drops the database, even while it is in use. Idempotent. */
  close(): Promise<void>
}

export interface PooledDatabase extends FreshDatabase {
  /** Through PgBouncer, `pool_mode = transaction`. */
  pooledUrl: string
}

export interface RoleDatabase extends FreshDatabase {
  /** A role that may log in and has exactly the rights that the functions need. It is dropped with the database. */
  role: string
  /** A direct connection string, as that role. */
  roleUrl: string
}

export interface PooledRoleDatabase extends PooledDatabase, RoleDatabase {
  /** Through a separate PgBouncer, as that role. */
  pooledRoleUrl: string
}

export interface FreshOptions {
  /** Whether it is without Lockstep's schema: nothing was ever migrated. @default false */
  empty?: boolean
  /** PgBouncer in front of it ({@link pgbouncerAvailable}): true, or its size. @default false */
  pooled?: boolean | PoolSize
  /** Whether it has the usual settings, also in a run where everything is odd (odd.ts). @default false */
  standard?: boolean
  /** Whether to add a role with the rights of `lockstep migrate --grant`: 0.1 s more. @default false */
  role?: boolean
}

type Made = FreshDatabase & Partial<Omit<PooledRoleDatabase, keyof FreshDatabase>>

/** A new database on the server of this run: a copy of the migrated template, 0.1–0.3 s. */
export async function freshDatabase(
  options: FreshOptions & { pooled: true | PoolSize; role: true },
): Promise<PooledRoleDatabase>
export async function freshDatabase(options: FreshOptions & { pooled: true | PoolSize }): Promise<PooledDatabase>
export async function freshDatabase(options: FreshOptions & { role: true }): Promise<RoleDatabase>
export async function freshDatabase(options?: FreshOptions): Promise<FreshDatabase>
export async function freshDatabase(options: FreshOptions = {}): Promise<Made> {
  const name = `lockstep_test_${randomBytes(6).toString('hex')}`
  await onServer(`create database ${name} template ${options.empty ? 'template1' : inject('template')}`)
  if (!options.standard) await onServer(...oddStatements(name))
  const url = withDatabase(inject('serverUrl'), name)
  const pooler = (to: string) => pgbouncer(to, typeof options.pooled === 'object' ? options.pooled : {})
  const poolers = options.pooled ? [await pooler(url)] : []
  const role = options.role ? await freshRole(url, name) : undefined
  if (role && options.pooled) poolers.push(await pooler(role.roleUrl))
  const pool = new pg.Pool({ connectionString: url, max: 10 })
  pool.on('error', () => {}) // dropping the database ends idle connections
  const closed = async () => {
    for (const each of poolers) await each.stop()
    await onServer(`drop database if exists ${name} with (force)`) // and with it all rights of the role
    if (role) await onServer(`drop role if exists ${role.role}`)
    await pool.end()
  }
  let closing: Promise<void> | undefined
  const close = () => (closing ??= closed())
  const [ours, theirs] = poolers
  return {
    ...{ name, url, pool, close, [Symbol.asyncDispose]: close },
    ...(ours && { pooledUrl: ours.url }),
    ...role,
    ...(theirs && { pooledRoleUrl: theirs.url }),
  }
}

/** Roles belong to the whole server, so each is named after its database. */
async function freshRole(url: string, name: string): Promise<{ role: string; roleUrl: string }> {
  const role = `${name}_role`
  const password = randomBytes(12).toString('hex')
  await onServer(`create role ${role} login password '${password}'`)
  await migrate(url, { grant: role })
  const roleUrl = new URL(url)
  roleUrl.username = role
  roleUrl.password = password
  return { role, roleUrl: roleUrl.href }
}

// ---- A server that stops -----------------------------------------------------------------------------------------

export interface DedicatedServer extends AsyncDisposable {
  /** The connection string, the same before and after a restart. */
  url: string
  /** Stops the server and disconnects its clients; the data and the port stay. */
  stop(): Promise<void>
  /** Kills it as a power cut would; `start` recovers it. */
  crash(): Promise<void>
  start(): Promise<void>
  /** Stops it and removes its data. */
  close(): Promise<void>
}

/** A separate server, migrated unless `empty`, for tests that stop the database and start it again: 1–2 s. */
export async function dedicatedServer(
  options: { empty?: boolean; settings?: PostgresOptions['settings'] } = {},
): Promise<DedicatedServer> {
  const { settings = {}, empty = false } = options
  const dir = path.join(temporaryFolder(serverUser()), `lockstep-test-${randomBytes(6).toString('hex')}`)
  const start = (port?: number) => startPostgres({ ...BINARIES, dir, settings, durable: false, ...(port && { port }) })
  let server: Postgres | undefined = await start()
  const { url, port } = server
  const client = new pg.Client(url)
  await client.connect()
  for (const statement of oddStatements(new URL(url).pathname.slice(1))) await client.query(statement)
  await client.end()
  if (!empty) await migrate(url)
  const stop = async () => {
    await server?.stop()
    server = undefined
  }
  const close = async () => {
    await stop()
    fs.rmSync(dir, { recursive: true, force: true })
  }
  return {
    url,
    stop,
    async crash() {
      if (server) process.kill(server.pid, 'SIGQUIT') // kills its children too, without a checkpoint
      await stop()
    },
    async start() {
      server ??= await start(port)
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

// ---- The server of this run --------------------------------------------------------------------------------------

async function onServer(...statements: string[]): Promise<void> {
  if (statements.length === 0) return
  const client = new pg.Client(inject('serverUrl'))
  await client.connect()
  try {
    for (const statement of statements) await client.query(statement)
  } finally {
    await client.end()
  }
}

function withDatabase(url: string, name: string): string {
  const other = new URL(url)
  other.pathname = `/${name}`
  return other.href
}
