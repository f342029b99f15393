/**
 * Paths: what they begin with, and what they may not contain.
 *
 * `.` and `..` as segments of a path mean "here" and "one up" (RFC 3986 §5.2.4), also as `%2E`. Most clients, and most of what is
 * between a client and a server, resolve them before anybody could see a name in them. So nothing may have such a name
 * (lib/base/arguments.ts), and where such a path arrives unresolved it is refused, not taken for another one.
 */
import { invalid } from './problem.ts'

export interface PathOptions {
  /**
   * What every path begins with, such as `/coord`: where a domain, or something in front, hands on its own part of the path. Other
   * paths are a 404. One or more segments of letters, digits, `-`, `_`, `.` and `~`. @default '' (nothing)
   */
  basePath?: string | undefined
}

/** @param from  the option, or the variable. @throws {Error} it is no base path. */
export function checkBasePath(basePath = '', from = 'basePath'): void {
  if (basePath === '' || (/^(\/[\w.~-]+)+$/.test(basePath) && !DOTS.test(basePath))) return
  throw new Error(`${from} must be like /coord: segments, no slash at the end, not ${JSON.stringify(basePath)}`)
}

/** The path below the base path. One that is not below it is `//`, where nothing is. */
export function below(basePath: string, path: string): string {
  if (basePath === '') return path
  if (path === basePath) return '/'
  return path.startsWith(`${basePath}/`) ? path.slice(basePath.length) : '//'
}

/** @param target  the path, or the URL, as it was sent. @throws {Problem} 400: a segment of its path is `.` or `..`. */
export function refuseDots(target: string): void {
  if (!DOTS.test(target)) return
  const query = target.search(/[?#]/)
  if (query >= 0 && !DOTS.test(target.slice(0, query))) return
  throw invalid({ field: 'path', expected: 'without the segments `.` and `..`, which a URL cannot name' })
}

const DOTS = /\/(?:\.|%2e){1,2}(?=[/?#]|$)/i
