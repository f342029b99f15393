/**
 * Connection strings: what is wrong with one is said when the Lockstep is made, and not at the first use. No error shows the string,
 * since it may have a password in it.
 *
 * SSLMODE. pg reads `prefer`, `require` and `verify-ca` as `verify-full`: the server's certificate must be valid, and must be for this
 * host. It warns that a later version of it will do less. Here they are given to pg as `verify-full`, which means the same now and
 * later. With `uselibpqcompat=true` the string is given to pg as it is.
 *
 * IPV6. pg takes an address in brackets as the host of the URL, and one without as the parameter `host`. It looks up a name like
 * `[::1]` if the parameter has brackets, and cannot read a zone in the host (`[fe80::1%25eth0]`, RFC 6874). Both are given to it as
 * the parameter, without brackets.
 */
import { type InvalidArgument, ipv6In, isBadIPv4, isPort, wrongType } from '../base/index.ts'

/** Checks a connection string. @returns it in the form for pg. @throws {TypeError} INVALID_ARGUMENT `field`, which does not show it. */
export function checkedConnectionString(field: string, text: unknown): string {
  if (typeof text !== 'string' || text === '') throw wrongType(field, 'a Postgres URL', text)
  const why = whyUnreadable(text)
  if (why !== undefined) throw unreadable(field, why)
  const reached = readable(text)
  return /[?&]uselibpqcompat=true/.test(reached)
    ? reached
    : reached.replaceAll(/([?&]sslmode=)(?:prefer|require|verify-ca)(?=&|$)/g, '$1verify-full')
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
  return whyNotReached(authority.replace(/^.*@/s, ''), query) ?? (canParse(readable(text)) ? undefined : ENCODED)
}

// What is wrong with the host or the port, in the URL or in its parameters.
function whyNotReached(address: string, query: string): string | undefined {
  const [, literal, name, digits = ''] = /^(?:\[(.*)\]|([^:[\]]*))(?::([^:]*))?$/s.exec(address) ?? []
  if (name === undefined && !ipv6In(decoded(literal ?? ''))) return WITH_BRACKETS
  const [host, port] = ['host', 'port'].map((each) => new RegExp(`[?&]${each}=([^&]*)`).exec(query)?.[1])
  const bare = decoded(host ?? '').replace(/^\[(.*)\]$/s, '$1')
  if (/[:[\]]/.test(bare) && !bare.startsWith('/') && !ipv6In(bare)) return WITHOUT_PORT
  if (isBadIPv4(name ?? '') || isBadIPv4(bare)) return 'whose IPv4 address has four numbers of 0–255'
  const wrong = (/^\d+$/.test(digits) && !isPort(digits)) || (port !== undefined && !isPort(port))
  return wrong && !query.includes('@') ? 'whose port is an integer, 1–65535' : undefined
}

// In the form that pg can read.
function readable(text: string): string {
  const [, before, literal, port, path, query] = ZONED.exec(text) ?? []
  if (literal !== undefined) {
    const host = `host=${decoded(literal).replace('%', '%25')}`
    return `${before}${path || '/'}?${[host, port && `port=${port}`, query].filter(Boolean).join('&')}`
  }
  return text.replace(/([?&]host=)(?:\[|%5b)([^&]*)(?:\]|%5d)(?=&|$)/i, '$1$2')
}
const ZONED = /^([a-z][a-z\d+.-]*:\/\/(?:[^/?]*@)?)\[([^\]]+%[^\]]+)\](?::(\d*))?([^?]*)\??(.*)$/is

// An encoded zone (%25eth0) and one as people type it (%eth0).
function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
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
const WITH_BRACKETS = 'whose IPv6 address is valid and in brackets, like postgres://user:password@[::1]:5432/database'
const WITHOUT_PORT = 'whose parameter host is a name or an address without a port (port=5432)'
const ENCODED = `like ${FORM}, with special characters percent-encoded (/ as %2F, ? as %3F, @ as %40, % as %25)`

function unreadable(field: string, expected: string): InvalidArgument {
  const wanted = `a Postgres URL ${expected}`
  return Object.assign(new TypeError(`Expected \`${field}\` to be ${wanted}`), {
    code: 'INVALID_ARGUMENT' as const,
    field,
    expected: wanted,
  })
}
