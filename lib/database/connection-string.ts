/**
 * Connection strings: what is wrong with one is said when the Lockstep is made, and not at the first use. No error shows the string,
 * since it may have a password in it.
 *
 * SSLMODE. pg reads `prefer`, `require` and `verify-ca` as `verify-full`: the server's certificate must be valid, and must be for this
 * host. It warns that a later version of it will do less. Here they are given to pg as `verify-full`, which means the same now and
 * later. With `uselibpqcompat=true` the string is given to pg as it is.
 */
import { type InvalidArgument, wrongType } from '../base/index.ts'

/** Checks a connection string. @returns it in the form for pg. @throws {TypeError} INVALID_ARGUMENT `field`, which does not show it. */
export function checkedConnectionString(field: string, text: unknown): string {
  if (typeof text !== 'string' || text === '') throw wrongType(field, 'a Postgres URL', text)
  const why = whyUnreadable(text)
  if (why !== undefined) throw unreadable(field, why)
  return /[?&]uselibpqcompat=true/.test(text)
    ? text
    : text.replaceAll(/([?&]sslmode=)(?:prefer|require|verify-ca)(?=&|$)/g, '$1verify-full')
}

function whyUnreadable(text: string): string | undefined {
  if (text.startsWith('/')) return undefined // the folder of a socket, and a database
  const [, rest] = /^[a-z][a-z\d+.-]*:(.*)$/is.exec(text) ?? []
  if (rest === undefined) {
    return /^\s*\w+\s*=/.test(text) ? `not in the form host=… port=…: write it as ${FORM}` : `like ${FORM}`
  }
  if (text.includes('#')) return 'without #: write it as %23'
  const [, authority = '', path = '', query = ''] = /^(?:\/\/([^/?]*))?([^?]*)(.*)$/s.exec(rest) ?? []
  if (/,/.test(authority.replace(/^.*@/s, '')) || /[?&](?:host|port)=[^&]*(?:,|%2c)/i.test(query)) {
    return 'of one host: several are not supported yet; give that of the primary, or an address that leads to it'
  }
  if (!authority.includes('@') && path.includes('@')) return ENCODED // a slash in the password
  return canParse(text) ? undefined : ENCODED
}

// As pg parses it, but for the files of certificates: they are read at each connection.
function canParse(text: string): boolean {
  const odd = / |%[^a-f0-9]|%[a-f0-9][^a-f0-9]/i.test(text)
  const encoded = odd ? encodeURI(text).replace(/%25(\d\d)/g, '%$1') : text
  const url = URL.parse(encoded) ?? URL.parse(encoded.replace('@/', '@host/'))
  if (url === null) return false
  try {
    for (const part of [url.username, url.password, url.hostname]) decodeURIComponent(part)
    decodeURI(url.pathname)
    return true
  } catch {
    return false
  }
}

const FORM = 'postgres://user:password@host:port/database'
const ENCODED = `like ${FORM}, with special characters percent-encoded (/ as %2F, ? as %3F, @ as %40, % as %25)`

function unreadable(field: string, expected: string): InvalidArgument {
  const wanted = `a Postgres URL ${expected}`
  return Object.assign(new TypeError(`Expected \`${field}\` to be ${wanted}`), {
    code: 'INVALID_ARGUMENT' as const,
    field,
    expected: wanted,
  })
}
