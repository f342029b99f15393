/**
 * A program that ends when this process ends: the embedded PostgreSQL, and in tests a pooler in front of it.
 *
 * A process that is killed with SIGKILL runs no handler, so another process must watch it. A shell starts the program, and a
 * watcher that reads from a pipe. Only this process has the other end of the pipe. When this process ends in any way, the kernel
 * closes that end, the watcher's `read` returns, and the watcher signals the program. The program goes on only if this process, the
 * watcher and the shell are killed at once. Then the next start finds out by `processIdentity` and `isAlive` that the owner is
 * dead, even if its pid is in use again.
 *
 * Linux and macOS; Windows has neither `sh` nor uids.
 */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as net from 'node:net'
import * as os from 'node:os'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'

/** A user of the machine, other than the one that this process runs as. */
export interface User {
  name: string
  uid: number
  gid: number
}

/** A running program that ends with this process. */
export interface Guarded {
  /** Process id of the program, not of its shell. */
  readonly pid: Promise<number>
  /** Resolves with the exit status of the program (128 + n after signal n) once it has ended. */
  readonly exited: Promise<number | null>
  /** The last 20_000 characters that it wrote to stdout and stderr. */
  log(): string
  /** Stops the program; `exited` resolves when it has ended. */
  end(): void
  /** Lets this process end before the program, which then stops. */
  unref(): void
}

// Without job control a shell gives its background children /dev/null as stdin. So the pipe is on descriptor 3.
const guard = `
stop_with=$1 remove=$2; shift 2
exec 3<&0
"$@" </dev/null >&2 3<&- &
program=$!
echo $program
{ read -r _ <&3; kill -s "$stop_with" $program; } 2>/dev/null &
watcher=$!
wait $program; status=$?
{ kill $watcher; wait $watcher; } 2>/dev/null
[ -z "$remove" ] || rm -rf "$remove"
exit $status`

/**
 * Starts a program that is stopped when this process ends in whatever way.
 *
 * @param options.user      the user it runs as; undefined: the same as this process.
 * @param options.stopWith  the signal that stops it.
 * @param options.remove    a file or folder that the shell removes after the program has ended, even if this process is dead.
 */
export function guarded(
  command: string[],
  options: { user: User | undefined; stopWith: 'INT' | 'KILL'; remove?: string | undefined },
): Guarded {
  const child = spawn('sh', ['-c', guard, 'sh', options.stopWith, options.remove ?? '', ...command], {
    ...idsOf(options.user),
    cwd: '/', // that user may not be able to enter the working directory of this process
    stdio: 'pipe',
    detached: true, // Ctrl-C in a terminal goes to the whole process group; here the owner decides when to stop
  })
  let log = ''
  child.stderr.on('data', (chunk) => {
    log = (log + chunk).slice(-20_000)
  })
  child.stdin.on('error', () => {}) // it ended first
  const exited = once(child, 'exit').then(async ([status]) => {
    // the end of its output may still be in the pipe; a child of the program may keep the pipe open
    if (!child.stderr.readableEnded) await Promise.race([once(child.stderr, 'end'), delay(500)])
    return status as number | null
  })
  const pid = Promise.race([
    once(child.stdout, 'data').then(([line]) => Number(line)),
    exited.then(() => Promise.reject(new Error('The program could not be started'))),
  ])
  for (const each of [pid, exited]) each.catch(() => {}) // a caller need not await both
  return {
    pid,
    exited,
    log: () => log,
    end: () => {
      child.ref()
      child.stdin.end()
    },
    unref: () => {
      child.unref()
      for (const pipe of child.stdio) (pipe as (Readable & { unref?(): void }) | null)?.unref?.()
    },
  }
}

/** The user to run a server as, if this process is root; else undefined. */
export function serverUser(): User | undefined {
  if (process.getuid?.() !== 0) return undefined
  for (const name of ['postgres', 'nobody']) {
    const [uid, gid] = ['-u', '-g'].map((which) => spawnSync('id', [which, name], { encoding: 'utf8' }))
    if (uid?.status === 0 && gid?.status === 0) return { name, uid: Number(uid.stdout), gid: Number(gid.stdout) }
  }
  throw new Error(
    'PostgreSQL refuses to run as root, and there is no user "postgres" or "nobody" to run it as: add one, ' +
      'do not run as root, or set DATABASE_URL to a server of your own',
  )
}

/** Whether a user can enter a folder. It is tried, not computed from mode bits: there may be access lists too. */
export function canEnter(folder: string, user: User): boolean {
  return spawnSync('sh', ['-c', 'cd "$1"', 'sh', folder], { ...idsOf(user), cwd: '/' }).status === 0
}

/** A folder for temporary files that the user can enter: TMPDIR may be private to this process's user. */
export function temporaryFolder(user: User | undefined): string {
  const folder = [os.tmpdir(), '/tmp', '/var/tmp'].find((each) => user === undefined || canEnter(each, user))
  if (folder === undefined) throw new Error(`There is no temporary folder that the user ${user?.name} can enter`)
  return fs.realpathSync(folder)
}

/** A port of 127.0.0.1 that is free now; another program may take it at any time. */
export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** The identity of this process: `pid-start`. The start time distinguishes it from a later process with the same pid. */
export const processIdentity = () => `${process.pid}-${startTime(process.pid)}`

/** Whether the process that called {@link processIdentity} still lives. */
export function isAlive(owner: string): boolean {
  const [pid, started] = owner.split('-')
  return startTime(Number(pid)) === started
}

/** When a process started, in a unit of the operating system; undefined: there is no such process, or it is a zombie. */
function startTime(pid: number): string | undefined {
  if (process.platform === 'linux') {
    // pid (name) state …: the name may contain anything, and the start is the 22nd field
    const [state, ...rest] = procFile(pid, 'stat')?.split(') ').at(-1)?.split(' ') ?? []
    return state === 'Z' || state === 'X' ? undefined : rest[18]
  }
  const [state, ...date] = ps(pid, '-o', 'stat=', '-o', 'lstart=').split(/\s+/)
  return state?.startsWith('Z') ? undefined : date.join('').replace(/\W/g, '') || undefined
}

/** The command line of a process, with a space after each word; undefined: there is no such process, or it is a zombie. */
export function commandLine(pid: number): string | undefined {
  if (process.platform === 'linux') return procFile(pid, 'cmdline')?.replaceAll('\0', ' ') || undefined
  const line = ps(pid, '-ww', '-o', 'command=')
  return line === '' ? undefined : `${line} `
}

function procFile(pid: number, name: string): string | undefined {
  try {
    return fs.readFileSync(`/proc/${pid}/${name}`, 'utf8')
  } catch {
    return undefined
  }
}

const ps = (pid: number, ...options: string[]) =>
  spawnSync('ps', [...options, '-p', String(pid)], { encoding: 'utf8' }).stdout.trim()

/** The options of `spawn` that run a program as that user. */
export const idsOf = (user: User | undefined) => (user === undefined ? {} : { uid: user.uid, gid: user.gid })
