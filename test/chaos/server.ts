/**
 * The server of a run: it is stopped and crashed, and its disk is filled. After a crash it still has what it acknowledged; a crash
 * of the machine is not tested.
 *
 * Where mounting is allowed, its disk is a separate memory file system. When that is full the server cannot write, as with any disk.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Postgres, startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { isAlive, processIdentity, serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { BINARIES } from '../support/postgres-majors.ts'
import { ask } from '../support/query-once.ts'

export interface ChaosServer extends AsyncDisposable {
  /** The connection string of a migrated database; it does not change. */
  url: string
  /** Stops it, or crashes it, and starts it again at the same place. */
  restart(how: 'stop' | 'crash'): Promise<void>
  /** Fills its disk, and frees it after `ms` milliseconds. Absent where mounting is not allowed. */
  fill?(ms: number): Promise<void>
}

const PREFIX = 'lockstep-chaos-server-'
const DISK = '2g' // of memory, which is allocated only as it is used
const PIECES = 32 * 2 ** 20
const COMES_BACK_MS = 10_000

/**
 * @param connections  the maximum number of connections.
 * @param locks        entries in the shared lock table for each connection.
 */
export async function chaosServer(connections: number, locks = 64): Promise<ChaosServer> {
  unmountLeft()
  const dir = path.join(
    temporaryFolder(serverUser()),
    `${PREFIX}${processIdentity()}.${randomBytes(6).toString('hex')}`,
  )
  const disk = mount(dir)
  const data = path.join(dir, 'data')
  const settings = {
    max_connections: connections,
    synchronous_commit: 'on',
    max_wal_size: '256MB',
    max_locks_per_transaction: locks,
  }
  const start = (port?: number) =>
    startPostgres({ ...BINARIES, dir: data, settings, durable: false, ...(port && { port }) })
  let server: Postgres = await start()
  const { url, port } = server
  await migrate(url)

  async function restart(how: 'stop' | 'crash'): Promise<void> {
    if (how === 'crash') fs.existsSync(`/proc/${server.pid}`) && process.kill(server.pid, 'SIGQUIT') // without a checkpoint
    await server.stop()
    server = await start(port)
  }
  async function fill(ms: number): Promise<void> {
    const ballast = path.join(dir, 'ballast')
    writeAll(ballast)
    await sleep(ms)
    fs.rmSync(ballast)
    // A server that could not write its log has stopped, and may have failed to recover too.
    if (!(await answers(url))) await restart('crash')
  }
  const end = async () => {
    await server.stop()
    if (disk) execFileSync('umount', ['--lazy', dir])
    fs.rmSync(dir, { recursive: true, force: true })
  }
  const interrupted = () => void end().then(() => process.exit(130))
  process.once('SIGINT', interrupted)
  return {
    ...{ url, restart, ...(disk && { fill }) },
    async [Symbol.asyncDispose]() {
      process.off('SIGINT', interrupted)
      await end()
    },
  }
}

function mount(dir: string): boolean {
  fs.mkdirSync(dir, { recursive: true })
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${DISK},mode=755`, 'lockstep-chaos', dir], { stdio: 'ignore' })
  } catch {
    return false
  }
  const user = serverUser()
  if (user) fs.chownSync(dir, user.uid, user.gid)
  return true
}

/** Removes the mounts of runs that were killed. */
function unmountLeft(): void {
  const folder = temporaryFolder(serverUser())
  for (const name of fs.readdirSync(folder).filter((each) => each.startsWith(PREFIX))) {
    if (isAlive(name.slice(PREFIX.length).split('.')[0] as string)) continue
    spawnSync('umount', ['--lazy', path.join(folder, name)], { stdio: 'ignore' })
    fs.rmSync(path.join(folder, name), { recursive: true, force: true })
  }
}

// The server uses some space at the same time, so the last part is filled in small pieces.
function writeAll(file: string): void {
  const { bavail, bsize } = fs.statfsSync(path.dirname(file))
  execFileSync('fallocate', ['--length', String(Math.max(bavail * bsize - PIECES, bsize)), file])
  const rest = fs.openSync(file, 'a')
  try {
    for (;;) fs.writeSync(rest, Buffer.alloc(65_536))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  } finally {
    fs.closeSync(rest)
  }
}

async function answers(url: string): Promise<boolean> {
  for (const since = performance.now(); performance.now() - since < COMES_BACK_MS; await sleep(100)) {
    const written = await ask(url, 'create temporary table written as select 1').catch(() => undefined)
    if (written) return true
  }
  return false
}
