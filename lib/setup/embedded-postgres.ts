/**
 * The embedded PostgreSQL: a real server from npm binaries, for `npm start` without a database and for tests.
 *
 * Why a real server: this package depends on advisory locks, LISTEN and `skip locked` between connections, and the in-process
 * ports of PostgreSQL give all clients one session. PostgreSQL 18 needs 60 MB for its binaries and 40 MB for an empty
 * cluster. The first start takes about a second, later ones a tenth of that.
 *
 * Access: it listens on 127.0.0.1 only, has no unix socket, and asks for **no password**. Every local user and program can
 * therefore connect as its superuser, who can read files and run programs as the server's user. That is right for a
 * developer's machine or for a container, and wrong for a machine that you share with people whom you do not trust: use a
 * server with passwords there.
 *
 * Ownership: one process owns the server. When that process ends, the server shuts down (`guarded-process.ts` explains how). A
 * folder serves one owner at a time, on one machine. The owner is written into the server's command line, as the setting
 * `lockstep.owner`. So another start can ask the living process, and not a file that may be stale, whether the server is in use
 * or is just stopping because its owner died.
 *
 * When this process is root, the server runs as `postgres` or `nobody`, because PostgreSQL refuses to run as root. That user
 * must be able to enter the folders above the data; where it cannot, the data may go elsewhere (fallback-folder.ts).
 */

import * as fs from 'node:fs'
import * as path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { checkOptions, known, outOfRange } from '../base/index.ts'
import {
  binaries,
  codeOf,
  dataFolder,
  diskFull,
  initialise,
  isFull,
  logTail,
  temporaryDataFolder,
  unlessAborted,
} from './embedded-files.ts'
import { usableFolder } from './fallback-folder.ts'
import type { Guarded } from './guarded-process.ts'
import { canEnter, commandLine, freePort, guarded, isAlive, processIdentity, serverUser } from './guarded-process.ts'

/** Options of {@link startPostgres}. */
export interface PostgresOptions {
  /** The data folder. It is made when it is missing, and kept after `stop`. @default a temporary one, removed on `stop` */
  dir?: string | undefined
  /**
   * Folders for the data, tried in turn, when `dir` cannot hold it: the folder above is read-only, or closed to the server's user
   * when this process is root. The data is in a folder of its own there, which the next start finds again. @default none
   */
  fallbacks?: readonly string[] | undefined
  /** The TCP port on 127.0.0.1, 1–65_535. @default a free port, another one each time */
  port?: number | undefined
  /** Server settings by name (`{ log_statement: 'all' }`). They override Lockstep's. @default none */
  settings?: Record<string, string | number | boolean> | undefined
  /** Whether a commit survives a power cut. `false` is several times faster. @default true with `dir`, else false */
  durable?: boolean | undefined
  /** Aborts the start: it rejects with the signal's reason and leaves nothing running. After the start it has no effect. */
  signal?: AbortSignal | undefined
  /** @internal Folder of an npm package with other binaries: Lockstep's tests also run on older major versions. */
  binaries?: string | undefined
}

const START = known<PostgresOptions>({
  ...{ dir: true, fallbacks: true, port: true, settings: true, durable: true, signal: true, binaries: true },
})

/** A running embedded server. */
export interface Postgres {
  /** The connection string: `postgres://postgres@127.0.0.1:port/postgres` */
  readonly url: string
  /** The TCP port on 127.0.0.1. */
  readonly port: number
  /** The data folder, absolute and without symlinks. */
  readonly dir: string
  /** Why the data is in a fallback and not in `dir`, as the end of a sentence; undefined: it is in `dir`. */
  readonly whyElsewhere?: string
  /** Process id of the server. */
  readonly pid: number
  /** The end of the server's log, at most 20_000 characters. */
  log(): string
  /** Stops the server and disconnects its clients. Resolves when the server has ended; a second call does the same. */
  stop(): Promise<void>
}

/**
 * Starts an embedded PostgreSQL 18. It ends with this process at the latest.
 *
 * The running server does not keep the process alive. The start has no time limit: after a crash PostgreSQL replays its log
 * first.
 *
 * @throws {Error} a sentence that says what to do: a server runs already on `dir`, `port` is taken, `dir` holds
 *   something else or another major version, the server's user cannot enter it, no binaries for this platform.
 * @throws {RangeError} `port` is not a port.
 */
export async function startPostgres(options: PostgresOptions = {}): Promise<Postgres> {
  checkOptions(options, START)
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
      // The children of a killed server end by themselves, but not at once.
      const again = error instanceof RemainsError && performance.now() - since < 10_000
      // Another program may take the free port before the server does.
      const elsewhere = error instanceof PortTakenError && port === undefined && attempt < 5
      if (!again && !elsewhere) throw error
      await delay(100)
    }
  }
}

async function start(options: PostgresOptions, port: number): Promise<Postgres> {
  const { signal } = options
  const { fallbacks = [] } = options
  const chosen = options.dir === undefined ? undefined : usableFolder(options.dir, fallbacks, serverUser())
  const place = chosen === undefined ? temporaryDataFolder() : dataFolder(chosen.dir)
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

  const stale = await waitForPrevious(dir, signal)
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
      // If a process has the pid in the old postmaster.pid again, PostgreSQL would refuse to start. With this variable, which pg_ctl
      // sets too, it ignores that pid. It still checks the shared memory for living processes of the old server.
      ...(stale === undefined ? [] : ['env', `PG_GRANDPARENT_PID=${stale}`]),
      path.join(bin, 'postgres'),
      ...['-D', dir, '-p', String(port)],
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ],
    { user, stopWith: 'INT', remove: options.dir === undefined ? dir : undefined },
  )
  const removed = () => {
    // the shell is not root, so it may have emptied the folder without removing it
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
      send(pid, 'SIGQUIT') // an immediate shutdown: the next start replays the log
      await server.exited
    }
    removed()
  }
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    port,
    dir,
    ...(chosen?.why !== undefined && { whyElsewhere: chosen.why }),
    pid,
    log: server.log,
    stop: () => (stopping ??= stop()),
  }
}

/**
 * Resolves when no server runs on `dir`. It rejects if one runs, and waits (10 s at most) if one is stopping because its owner
 * died.
 * @returns the pid in a postmaster.pid that was left behind, if there is one. That process is dead, a zombie, or another program.
 */
async function waitForPrevious(dir: string, signal?: AbortSignal): Promise<number | undefined> {
  for (const since = performance.now(); ; await delay(50)) {
    signal?.throwIfAborted()
    const file = postmasterFile(dir)
    const command = file && commandLine(file.pid)
    if (file === undefined) return undefined
    if (!(file.pid > 0)) {
      // The file is written shortly after it is made. If it is still empty after a second, a power cut has left it so.
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
    send(file.pid, 'SIGINT') // the watcher may have been killed together with the owner
  }
}

/** Resolves with the pid once the server accepts connections; rejects with the end of its log if it ends before. */
async function ready(server: Guarded, dir: string, port: number, signal?: AbortSignal): Promise<number> {
  const pid = await unlessAborted(server, server.pid, signal)
  for (;;) {
    // pg_ctl reads this line too: it does not depend on the log settings
    const file = postmasterFile(dir)
    if (file?.pid === pid && file.status === 'ready') return pid
    const event = await unlessAborted(server, Promise.race([server.exited, delay(15, 'waiting')]), signal)
    if (event === 'waiting') continue
    if (isFull(server.log())) throw diskFull(dir)
    const message = `PostgreSQL did not start on ${dir}: ${logTail(server)}`
    if (server.log().includes('Address already in use')) throw new PortTakenError(port)
    if (/pre-existing shared memory block/.test(server.log())) throw new RemainsError(message)
    await waitForPrevious(dir, signal) // another start on the same folder may have been faster
    throw new Error(message)
  }
}

class PortTakenError extends Error {
  constructor(port: number) {
    super(`Port ${port} of 127.0.0.1 is taken by another program: stop that, or choose another port`)
  }
}

class RemainsError extends Error {}

/** Reads the server's postmaster.pid: its pid, its port, and its status, which is `ready` once it accepts connections. */
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
