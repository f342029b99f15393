/**
 * A server with a standby, for tests in which the server is lost and the standby takes over.
 *
 * The npm package has no pg_basebackup: a standby is a copy of the folder, made between pg_backup_start and pg_backup_stop
 * of the running server. It streams through a proxy, so that a test can hold back what has not arrived yet.
 */
import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { type Postgres, startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { BINARIES } from '../support/postgres-majors.ts'
import { type TcpProxy, tcpProxy } from '../support/proxy.ts'
import { ask } from '../support/query-once.ts'
import { until } from '../support/until.ts'

export interface Server extends AsyncDisposable {
  url: string
  /** Copies the running server, and starts the copy as its standby: 0.5 s. Resolves when the standby streams. */
  standby(): Promise<Standby>
  /** Loses the machine: none of its processes runs another instruction. */
  lose(): void
}

export interface Standby extends Server {
  /** The proxy between the two: while it is held, nothing that is written arrives at the standby. */
  replication: TcpProxy
  /** From now on the first server acknowledges a commit when the standby has it. */
  synchronous(): Promise<void>
  /** Resolves when the standby has everything of the first server. */
  caughtUp(): Promise<void>
  /** Promotes the standby. Resolves when it can be written. */
  promote(): Promise<void>
}

/** The data folder of a migrated server that does not run, to make servers from: 1–2 s. */
export async function template(): Promise<{ dir: string } & AsyncDisposable> {
  const dir = freshFolder()
  const server = await startPostgres({ ...BINARIES, dir, durable: false })
  await migrate(server.url)
  await server.stop()
  return { dir, [Symbol.asyncDispose]: async () => fs.rmSync(dir, { recursive: true, force: true }) }
}

export async function primary({ dir }: { dir: string }): Promise<Server> {
  const copy = freshFolder()
  execFileSync('cp', ['-a', dir, copy])
  return started(copy, {})
}

async function started(dir: string, settings: Record<string, string>): Promise<Server> {
  const server = await startPostgres({
    ...{ ...BINARIES, dir, durable: false },
    settings: {
      ...{ synchronous_commit: 'on', wal_level: 'replica', max_wal_senders: 4, wal_keep_size: '256MB' },
      ...{ hot_standby: 'on', wal_retrieve_retry_interval: '100ms' },
      dynamic_shared_memory_type: 'mmap', // shared memory as files in its folder: nothing else removes that of a server that was killed
      ...settings,
    },
  })
  const { url } = server
  return {
    url,
    standby: () => standbyOf(server),
    lose: () => kill(server),
    async [Symbol.asyncDispose]() {
      await server.stop()
      fs.rmSync(dir, { recursive: true, force: true })
    },
  }
}

async function standbyOf({ url, dir }: Postgres): Promise<Standby> {
  const replication = await tcpProxy(url)
  const copy = freshFolder()
  await backup(url, dir, copy)
  writeFor(copy, 'standby.signal', '')
  const { hostname, port } = new URL(replication.url)
  const server = await started(copy, {
    primary_conninfo: `host=${hostname} port=${port} user=postgres application_name=standby`,
  })
  const streams = (condition: string) => untilRows(url, 1, `select from pg_stat_replication where ${condition}`)
  await streams(`state = 'streaming'`)
  return {
    ...{ ...server, replication },
    async synchronous() {
      await ask(url, `alter system set synchronous_standby_names = 'standby'`)
      await ask(url, 'select pg_reload_conf()')
      await streams(`sync_state = 'sync'`)
    },
    caughtUp: () => streams('replay_lsn >= pg_current_wal_lsn()'),
    async promote() {
      await ask(server.url, 'select pg_promote()')
      await untilRows(server.url, 1, 'select where not pg_is_in_recovery()')
    },
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]()
      await replication.close()
    },
  }
}

/** The pg_hba.conf of initdb allows replication from the loopback without a password. */
async function backup(url: string, from: string, to: string): Promise<void> {
  const client = new pg.Client(url)
  await client.connect()
  try {
    const { rows } = await client.query('show server_version_num')
    const [start, stop] = Number(rows[0].server_version_num) < 150_000 ? OLD_BACKUP : BACKUP
    await client.query(start)
    await promisify(execFile)('cp', ['-a', from, to]).catch(() => {}) // a file that vanishes meanwhile is not needed
    const label = await client.query(stop)
    for (const name of ['postmaster.pid', 'postmaster.opts', 'postgresql.auto.conf']) {
      fs.rmSync(path.join(to, name), { force: true })
    }
    writeFor(to, 'backup_label', label.rows[0].labelfile)
  } finally {
    await client.end()
  }
}

/** Writes a file that belongs to the server's user, which may not be the user of this process. */
function writeFor(dir: string, name: string, text: string): void {
  const { uid, gid } = fs.statSync(dir)
  fs.writeFileSync(path.join(dir, name), text)
  fs.chownSync(path.join(dir, name), uid, gid)
}

const BACKUP = [`select pg_backup_start('standby', true)`, 'select labelfile from pg_backup_stop(false)'] as const
const OLD_BACKUP = [
  `select pg_start_backup('standby', true, false)`,
  'select labelfile from pg_stop_backup(false, false)',
] as const

/** Kills all processes of a server. The postmaster is stopped first, so that it neither starts a process nor reports a death. */
function kill({ pid, dir }: Postgres): void {
  process.kill(pid, 'SIGSTOP')
  const all = execFileSync('ps', ['-A', '-o', 'pid=', '-o', 'ppid='], { encoding: 'utf8' })
  const children = [...all.matchAll(/^ *(\d+) +(\d+) *$/gm)].filter(([, , parent]) => Number(parent) === pid)
  for (const [, child] of children) send(Number(child))
  send(pid)
  // the dead processes leave one thing behind: 56 bytes of System V memory, named in the pid file
  const id = fs.readFileSync(path.join(dir, 'postmaster.pid'), 'utf8').split('\n')[6]?.trim().split(/\s+/)[1]
  if (id) spawnSync('ipcrm', ['-m', id])
}

function send(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

const freshFolder = () =>
  path.join(temporaryFolder(serverUser()), `lockstep-failover-${randomBytes(6).toString('hex')}`)

/** Waits until a query returns so many rows, on one connection: a new connection for each try would cost more than the wait. */
export async function untilRows(url: string, count: number, text: string): Promise<void> {
  const client = new pg.Client(url)
  await client.connect()
  try {
    await until(`${count} of ${text}`, async () => (await client.query(text)).rows.length === count)
  } finally {
    await client.end()
  }
}
