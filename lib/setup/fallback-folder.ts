/**
 * Another place for the data of the embedded PostgreSQL, when its folder cannot serve.
 *
 * `npm start` begins in any folder, and some cannot hold the data: a folder that is closed to the server's user (root's home; the
 * server does not run as root), one that is read-only, one that belongs to somebody else. There the data goes to the first
 * fallback that can hold it, into a folder whose name is made of the wanted one: the next start finds it again. A cluster that is
 * already in the wanted folder is never passed over: that start fails with a sentence.
 *
 * A fallback below a folder that everybody may write to, such as /tmp, could have been put there by another user. So it must
 * belong to the user of this process, and nobody else may be able to write to it.
 */
import { createHash } from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { canEnter, type User } from './guarded-process.ts'

/** Why a cluster cannot be made in `dir`, as the end of a sentence; undefined: it can. */
export function whyUnusable(dir: string, user: User | undefined): string | undefined {
  const above = existing(path.dirname(dir))
  if (user && !canEnter(above, user)) return `the server's user, ${user.name}, cannot enter ${above}`
  try {
    fs.accessSync(above, fs.constants.W_OK)
  } catch {
    return `${above} cannot be written to`
  }
  return undefined
}

/**
 * The folder for the data: `wanted` where it can serve, else a folder in the first fallback that can.
 * @returns `why`: it is another one than was wanted, because …
 */
export function usableFolder(
  wanted: string,
  fallbacks: readonly string[],
  user: User | undefined,
): { dir: string; why?: string } {
  const dir = path.resolve(wanted)
  if (fs.existsSync(path.join(dir, 'PG_VERSION'))) return { dir }
  const why = whyUnusable(dir, user)
  if (why === undefined) return { dir }
  const name = `${path.basename(path.dirname(dir)) || 'root'}-${createHash('sha256').update(dir).digest('hex').slice(0, 8)}`
  const fallback = fallbacks.find(
    (folder) => makeOwnFolder(folder, user) && !whyUnusable(path.join(folder, name), user),
  )
  return fallback === undefined ? { dir } : { dir: path.join(fallback, name), why }
}

/** Makes a folder, if it is missing, that only the user of this process can write to. @returns whether it is there. */
function makeOwnFolder(folder: string, user: User | undefined): boolean {
  try {
    // With umask 077 the server's user could not enter it.
    if (fs.mkdirSync(folder, { recursive: true, mode: 0o700 }) && user) fs.chmodSync(folder, 0o711)
    const { uid, mode } = fs.lstatSync(folder)
    return uid === process.getuid?.() && (mode & 0o022) === 0 && fs.statSync(folder).isDirectory()
  } catch {
    return false
  }
}

/** The nearest folder above that exists. */
function existing(folder: string): string {
  return fs.existsSync(folder) || folder === path.dirname(folder) ? folder : existing(path.dirname(folder))
}
