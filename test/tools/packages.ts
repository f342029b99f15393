/**
 * Packages that only some scripts and tests need: what deploys (infra/aws, infra/cloudflare), what the bench measures beside
 * Lockstep (test/bench), and Docker's client (test/containers). Each of these folders has a package.json and a lock file of its
 * own. They are installed where they are first used, so `npm ci` alone brings half of what it would.
 *
 * An install is made beside its place and then renamed, so nobody ever finds half of one. Two processes do not install the same
 * folder at once: one of them has `.packages.lock`, and touches it while it works. If it is killed, its npm ends with it, and the
 * next process removes what they have left.
 */
import { createHash } from 'node:crypto'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { guarded } from '../../lib/setup/guarded-process.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')

/** The time limit, in ms, of a hook that installs: a slow line needs minutes. */
export const INSTALL_MS = 900_000

// A process that has not touched what is its own for so long is dead, or was stopped.
const LEFT_MS = 30_000
const BEAT_MS = 2_000
const POLL_MS = 200

const OWNER = `${os.hostname()}-${process.pid}`

/**
 * Installs the packages of a folder, unless they are those of its lock file already.
 * @param folder  with a package.json, whose description says what is installed and how large it is; relative to the project's root.
 * @throws with what npm printed.
 */
export async function installPackages(folder: string): Promise<void> {
  const at = path.resolve(ROOT, folder)
  while (!isInstalled(at)) {
    using turn = takeTurn(at)
    if (!turn) await delay(POLL_MS)
    else if (!isInstalled(at)) await install(at)
  }
}

/** The environment for programs of such a folder: its commands come first, then those of the project, its Node too. */
export function environmentOf(folder: string): NodeJS.ProcessEnv {
  const bins = [path.resolve(ROOT, folder), ROOT].map((at) => path.join(at, 'node_modules/.bin'))
  return { ...process.env, PATH: [...bins, process.env.PATH].join(path.delimiter) }
}

const stampOf = (at: string) => path.join(at, 'node_modules/.installed')

/** What an install is made of: it is not right on another platform, and not for another lock file. */
function sourceOf(at: string): string {
  const lock = fs.readFileSync(path.join(at, 'package-lock.json'))
  return createHash('sha256').update(`${process.platform} ${process.arch}\n`).update(lock).digest('hex')
}

function isInstalled(at: string): boolean {
  return fs.existsSync(stampOf(at)) && fs.readFileSync(stampOf(at), 'utf8') === sourceOf(at)
}

/** The right to install this folder; undefined: another process has it. */
function takeTurn(at: string): Disposable | undefined {
  const lock = path.join(at, '.packages.lock')
  try {
    fs.writeFileSync(lock, OWNER, { flag: 'wx' })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    // Two may do this at once, and one then removes the other's new lock: both install, each in a folder of its own.
    if (isLeft(lock, read(lock))) fs.rmSync(lock, { force: true })
    return undefined
  }
  const beat = setInterval(() => [lock, workOf(at)].forEach(touch), BEAT_MS)
  return {
    [Symbol.dispose]() {
      clearInterval(beat)
      fs.rmSync(lock, { force: true })
    },
  }
}

async function install(at: string): Promise<void> {
  removeLeft(at)
  const { description } = JSON.parse(fs.readFileSync(path.join(at, 'package.json'), 'utf8'))
  process.stderr.write(`${path.relative(ROOT, at)}: downloading ${description} (once)\n`)
  const source = sourceOf(at)
  const work = workOf(at)
  fs.rmSync(work, { recursive: true, force: true }) // of an earlier process of the same number
  fs.mkdirSync(work)
  try {
    for (const file of ['package.json', 'package-lock.json'])
      fs.copyFileSync(path.join(at, file), path.join(work, file))
    await npmCi(work)
    fs.writeFileSync(stampOf(work), source)
    if (fs.existsSync(path.join(at, 'node_modules'))) {
      fs.renameSync(path.join(at, 'node_modules'), path.join(work, 'replaced'))
    }
    fs.renameSync(path.join(work, 'node_modules'), path.join(at, 'node_modules'))
  } finally {
    fs.rmSync(work, { recursive: true, force: true })
  }
}

const WORK = '.packages-'
const workOf = (at: string) => path.join(at, WORK + OWNER)

/** No package here needs its install script; some are nothing without their optional ones, which have the binaries. */
async function npmCi(at: string): Promise<void> {
  const quiet = ['--no-audit', '--no-fund', '--no-update-notifier', '--loglevel=error']
  const npm = ['npm', 'ci', `--prefix=${at}`, '--ignore-scripts', '--include=optional', ...quiet]
  const onOurNode = ['env', `PATH=${environmentOf('.').PATH}`]
  const running = guarded([...onOurNode, ...npm], { user: undefined, stopWith: 'KILL' })
  const status = await running.exited
  if (status !== 0) throw new Error(`npm ci of ${path.dirname(at)} ended with ${status}: ${running.log()}`)
}

function removeLeft(at: string): void {
  for (const name of fs.readdirSync(at).filter((each) => each.startsWith(WORK))) {
    const folder = path.join(at, name)
    if (isLeft(folder, name.slice(WORK.length))) fs.rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
  }
}

/** Whether the owner of a lock or of a folder has ended. */
function isLeft(file: string, owner: string): boolean {
  const touched = fs.statSync(file, { throwIfNoEntry: false })?.mtimeMs
  if (touched === undefined) return false
  const pid = owner.startsWith(`${os.hostname()}-`) ? Number(owner.slice(os.hostname().length + 1)) : 0
  return Date.now() - touched > LEFT_MS || (pid > 0 && !isAlive(pid))
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function read(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8')
  } catch {
    return '' // it has just been removed
  }
}

function touch(file: string): void {
  try {
    fs.utimesSync(file, new Date(), new Date())
  } catch {
    // not made yet, or renamed
  }
}
