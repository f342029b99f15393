/**
 * A program that never outlives us: the embedded PostgreSQL, and in tests what stands before it.
 *
 * A process killed with SIGKILL runs no handler, so somebody else must notice. A shell starts the program and a
 * watcher that reads from a pipe whose other end only we have. When we end in any way the kernel closes that end,
 * the watcher's `read` returns, and it signals the program. Only who kills us, the watcher and the shell at one
 * stroke leaves the program running; `self` and `lives` let the next one find that out, pids used again or not.
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

/** A user of the machine other than the one we run as. */
export interface User {
  name: string
  uid: number
  gid: number
}

export interface Guarded {
  /** Process id of the program, not of its shell. */
  readonly pid: Promise<number>
  /** Resolves with the exit status of the program (128 + n after signal n) once it has ended. */
  readonly exited: Promise<number | null>
  /** What it wrote to stdout and stderr: the last 20_000 characters. */
  log(): string
  /** Stops the program; `exited` tells when. */
  end(): void
  /** Lets this process end before the program, which then stops. */
  unref(): void
}

// Without job control a shell gives its background children /dev/null as stdin: hence the pipe on descriptor 3.
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
 * @param options.user      whom it runs as; undefined: as we do.
 * @param options.stopWith  the signal that stops it.
 * @param options.remove    a file or folder the shell removes after it, even if we are dead by then.
 */
export function guarded(
  command: string[],
  options: { user: User | undefined; stopWith: 'INT' | 'KILL'; remove?: string | undefined },
): Guarded {
  const child = spawn('sh', ['-c', guard, 'sh', options.stopWith, options.remove ?? '', ...command], {
    ...idsOf(options.user),
    cwd: '/', // ours may be closed to that user
    stdio: 'pipe',
    detached: true, // Ctrl-C in a terminal goes to the whole group: the owner decides instead
  })
  let log = ''
  child.stderr.on('data', (chunk) => {
    log = (log + chunk).slice(-20_000)
  })
  child.stdin.on('error', () => {}) // it ended first
  const exited = once(child, 'exit').then(async ([status]) => {
    // its last words may still be in the pipe; a child of its own may keep the pipe open
    if (!child.stderr.readableEnded) await Promise.race([once(child.stderr, 'end'), delay(500)])
    return status as number | null
  })
  const pid = Promise.race([
    once(child.stdout, 'data').then(([line]) => Number(line)),
    exited.then(() => Promise.reject(new Error('The program could not be started'))),
  ])
  for (const each of [pid, exited]) each.catch(() => {}) // not everybody asks for both
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

/** As root, the user to run a server as; undefined otherwise. */
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

/** Asked of the system, not worked out from mode bits: there are access lists too. */
export function canEnter(folder: string, user: User): boolean {
  return spawnSync('sh', ['-c', 'cd "$1"', 'sh', folder], { ...idsOf(user), cwd: '/' }).status === 0
}

/** A folder for temporary files that the user can enter: TMPDIR may be private to us. */
export function temporaryFolder(user: User | undefined): string {
  const folder = [os.tmpdir(), '/tmp', '/var/tmp'].find((each) => user === undefined || canEnter(each, user))
  if (folder === undefined) throw new Error(`There is no temporary folder that the user ${user?.name} can enter`)
  return fs.realpathSync(folder)
}

/** A port of 127.0.0.1 that is free now; nothing keeps it free. */
export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** This process, told apart from a later one with the same pid by its start time: `pid-start`. */
export const processIdentity = () => `${process.pid}-${startTime(process.pid)}`

/** Whether the process that called {@link processIdentity} still lives. */
export function isAlive(owner: string): boolean {
  const [pid, started] = owner.split('-')
  return startTime(Number(pid)) === started
}

/** When a process started, in a unit of the system's own; undefined: there is none, or only its remains. */
function startTime(pid: number): string | undefined {
  if (process.platform === 'linux') {
    // pid (name) state …: the name may contain anything, and the start is the 22nd field
    const [state, ...rest] = procFile(pid, 'stat')?.split(') ').at(-1)?.split(' ') ?? []
    return state === 'Z' || state === 'X' ? undefined : rest[18]
  }
  const [state, ...date] = ps(pid, '-o', 'stat=', '-o', 'lstart=').split(/\s+/)
  return state?.startsWith('Z') ? undefined : date.join('').replace(/\W/g, '') || undefined
}

/** The command line, a space after each word; undefined: no such process, or only its remains. */
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

/** For `spawn`. */
export const idsOf = (user: User | undefined) => (user === undefined ? {} : { uid: user.uid, gid: user.gid })
