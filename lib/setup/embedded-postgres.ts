/**
 * The embedded PostgreSQL: a real server from npm binaries, for `npm start` without a database and for tests.
 *
 * Why a real one: advisory locks, LISTEN and `skip locked` between connections are what this package stands on,
 * and the in-process ports of PostgreSQL give all their clients one session. PostgreSQL 18: 60 MB of binaries,
 * 40 MB for an empty cluster; the first start takes about a second, later ones a tenth of it.
 *
 * Who may enter: it listens on 127.0.0.1 only, has no unix socket, and asks for **no password**. Every local
 * user and program can therefore connect as its superuser, who can read files and run programs as the server's
 * user. That is right for a developer's machine or a container of one's own, and wrong for a machine shared
 * with people you do not trust: use a server with passwords there.
 *
 * Whose it is: one process owns it, and it never outlives that process by more than a shutdown (`guarded-process.ts` says
 * how). A folder serves one owner at a time, on one machine. The owner stands in the server's own command
 * line, as the setting `lockstep.owner`, so that "it runs already" and "it is just stopping, because its owner
 * died" are told apart by the living process itself and not by a file that may be stale.
 *
 * As root the server runs as `postgres` or `nobody`, because PostgreSQL refuses to run as root; that user must
 * be able to enter the folders above the data.
 */

import * as fs from 'node:fs'
import * as path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { outOfRange } from '../base/index.ts'
import {
  binaries,
  codeOf,
  dataFolder,
  initialise,
  logTail,
  temporaryDataFolder,
  unlessAborted,
} from './embedded-files.ts'
import type { Guarded } from './guarded-process.ts'
import { canEnter, commandLine, freePort, guarded, isAlive, processIdentity, serverUser } from './guarded-process.ts'

export interface PostgresOptions {
  /** Folder for the data, kept after `stop`; made when missing. @default a temporary one, removed on `stop` */
  dir?: string
  /** TCP port on 127.0.0.1, 1–65_535. @default a free one, another each time */
  port?: number
  /** Server settings by name (`{ log_statement: 'all' }`); they win over ours. @default none */
  settings?: Record<string, string | number | boolean>
  /** Whether a commit survives a power cut. `false` is several times faster. @default whether `dir` is given */
  durable?: boolean
  /** Aborts the start: it rejects with the signal's reason and leaves nothing running. Later it does nothing. */
  signal?: AbortSignal
  /** @internal Folder of an npm package with other binaries: our tests run on older majors too. */
  binaries?: string
}

export interface Postgres {
  /** `postgres://postgres@127.0.0.1:port/postgres` */
  readonly url: string
  readonly port: number
  /** The data folder, absolute and without symlinks. */
  readonly dir: string
  /** Process id of the server. */
  readonly pid: number
  /** The end of the server's log, at most 20_000 characters. */
  log(): string
  /** Stops the server, cutting its clients off; idempotent. Resolves when it is gone. */
  stop(): Promise<void>
}

/**
 * Starts a PostgreSQL 18 of our own, which ends with this process at the latest.
 *
 * The running server does not keep the process alive by itself. Starting takes as long as it must: after a crash
 * PostgreSQL replays its log first.
 *
 * @throws {Error} a sentence that says what to do: a server runs already on `dir`, `port` is taken, `dir` holds
 *   something else or another major version, the server's user cannot enter it, no binaries for this platform.
 * @throws {RangeError} `port` is not a port.
 */
export async function startPostgres(options: PostgresOptions = {}): Promise<Postgres> {
  const { port, signal } = options
  if (port !== undefined && !(Number.isInteger(port) && port >= 1 && port <= 65_535)) {
    throw outOfRange('port', 'a whole number, 1–65535', port)
  }
  const since = performance.now()
  for (let attempt = 1; ; attempt++) {
    signal?.throwIfAborted()
    try {
      return await start(options, port ?? (await freePort()))
    } catch (error) {
      // Children of a killed server end by themselves, but not at once.
      const again = error instanceof RemainsError && performance.now() - since < 10_000
      // Between our finding a free port and the server's taking it, another program can take it.
      const elsewhere = error instanceof PortTakenError && port === undefined && attempt < 5
      if (!again && !elsewhere) throw error
      await delay(100)
    }
  }
}

async function start(options: PostgresOptions, port: number): Promise<Postgres> {
  const { signal } = options
  const place = options.dir === undefined ? temporaryDataFolder() : dataFolder(options.dir)
  const { dir } = place
  const user = place.owner ?? serverUser()
  if (user && !canEnter(path.dirname(dir), user)) {
    throw new Error(
      `PostgreSQL refuses to run as root, and the user it runs as instead (${user.name}) cannot enter ` +
        `${path.dirname(dir)}: choose another data folder (such as /var/lib/lockstep), or do not run as root`,
    )
  }
  const found = binaries(user, options.binaries)
  const { bin, major } = found
  const durable = options.durable ?? options.dir !== undefined
  if (place.version === undefined) await initialise(dir, found, durable, user, signal)
  else if (place.version !== major) {
    throw new Error(
      `${dir} holds data of PostgreSQL ${place.version}, the embedded server is ${major}: dump it with ` +
        `${place.version} and load the dump into a new folder, or choose another folder`,
    )
  }

  const stale = await previousGone(dir, signal)
  const settings = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: 200,
    timezone: 'UTC',
    ...(durable ? {} : { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' }),
    ...options.settings,
    'lockstep.owner': processIdentity(),
  }
  const server = guarded(
    [
      // If the pid left in postmaster.pid exists again, PostgreSQL would refuse to start. This variable, pg_ctl's, makes
      // it disregard that pid; it still looks for living remains of the old server, in shared memory.
      ...(stale === undefined ? [] : ['env', `PG_GRANDPARENT_PID=${stale}`]),
      path.join(bin, 'postgres'),
      ...['-D', dir, '-p', String(port)],
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ],
    { user, stopWith: 'INT', remove: options.dir === undefined ? dir : undefined },
  )
  const removed = () => {
    // the shell, not being root, may have been able to empty it only
    if (options.dir === undefined) fs.rmSync(dir, { recursive: true, force: true, maxRetries: 5 })
  }
  const pid = await ready(server, dir, port, signal).catch((error) => {
    removed()
    throw error
  })
  server.unref()

  let stopping: Promise<void> | undefined
  const stop = async () => {
    server.end()
    if ((await Promise.race([server.exited, delay(20_000, 'late', { ref: false })])) === 'late') {
      send(pid, 'SIGQUIT') // give up a tidy end: the next start replays the log
      await server.exited
    }
    removed()
  }
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    port,
    dir,
    pid,
    log: server.log,
    stop: () => (stopping ??= stop()),
  }
}

/**
 * Resolves when no server runs on `dir`: rejects if one does, waits (10 s at most) if one is stopping because its
 * owner died. The answer is the pid in a postmaster.pid left behind, if any: dead, a zombie, or a stranger's by now.
 */
async function previousGone(dir: string, signal?: AbortSignal): Promise<number | undefined> {
  for (const since = performance.now(); ; await delay(50)) {
    signal?.throwIfAborted()
    const file = postmasterFile(dir)
    const command = file && commandLine(file.pid)
    if (file === undefined) return undefined
    if (!(file.pid > 0)) {
      // Written a moment after it is made; still empty after a second, it is what a power cut at that moment left.
      if (performance.now() - since > 1_000) fs.rmSync(path.join(dir, 'postmaster.pid'))
      continue
    }
    if (!command?.includes(` -D ${dir} `)) return file.pid
    const owner = / lockstep\.owner=(\S+) /.exec(command)?.[1]
    const which = `${dir} (pid ${file.pid}, port ${file.port})`
    if (owner === undefined || isAlive(owner)) {
      throw new Error(`PostgreSQL runs already on ${which}: stop the process that uses it, or choose another folder`)
    }
    if (performance.now() - since > 10_000) {
      throw new Error(`PostgreSQL on ${which} is still stopping after its owner died: try again in a while`)
    }
    send(file.pid, 'SIGINT') // its guard may have been killed together with the owner
  }
}

/** Resolves with the pid once the server takes connections; rejects with its last words if it never does. */
async function ready(server: Guarded, dir: string, port: number, signal?: AbortSignal): Promise<number> {
  const pid = await unlessAborted(server, server.pid, signal)
  for (;;) {
    // pg_ctl looks here too: this line is written whatever the log settings are
    const file = postmasterFile(dir)
    if (file?.pid === pid && file.status === 'ready') return pid
    const event = await unlessAborted(server, Promise.race([server.exited, delay(15, 'waiting')]), signal)
    if (event === 'waiting') continue
    const message = `PostgreSQL did not start on ${dir}: ${logTail(server)}`
    if (server.log().includes('Address already in use')) throw new PortTakenError(port)
    if (/pre-existing shared memory block/.test(server.log())) throw new RemainsError(message)
    await previousGone(dir, signal) // another start on the same folder may have been first
    throw new Error(message)
  }
}

class PortTakenError extends Error {
  constructor(port: number) {
    super(`Port ${port} of 127.0.0.1 is taken by another program: stop that, or choose another port`)
  }
}

class RemainsError extends Error {}

/** What a server writes about itself: process, port, and `ready` once it takes connections. */
function postmasterFile(dir: string): { pid: number; port: number; status: string } | undefined {
  try {
    const lines = fs.readFileSync(path.join(dir, 'postmaster.pid'), 'utf8').split('\n')
    return { pid: Number(lines[0]), port: Number(lines[3]), status: (lines[7] ?? '').trim() }
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined
    throw error
  }
}

function send(pid: number, signal: 'SIGINT' | 'SIGQUIT'): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    if (codeOf(error) !== 'ESRCH') throw error
  }
}
