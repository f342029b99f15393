/**
 * Where a server is, as people write it: a name or an address, with or without a port.
 *
 *     db.example.com   db.example.com:5432   10.0.0.1:5432   ::1   [::1]   [::1]:5432   [fe80::1%eth0]:5432
 *
 * Without brackets an IPv6 address has no port: `::1:5432` is an address of its own. Nothing here is looked up.
 */

/** A server. */
export interface Endpoint {
  /** A name, or an address in its one spelling, without brackets: `0:0::1` is `::1`, and `::ffff:10.0.0.1` is `10.0.0.1`. */
  host: string
  /** 1–65,535; undefined: none is given. */
  port: number | undefined
}

/** Reads a host with or without a port. @returns undefined: it is none, or its port is out of range. */
export function endpointIn(text: string): Endpoint | undefined {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]*)\]|([^:[\]]*))(?::(\d{1,5}))?$/.exec(text) ?? []
  if (digits !== undefined && !isPort(digits)) return undefined
  const port = digits === undefined ? undefined : Number(digits)
  if (plain !== undefined) return isIPv4(plain) || isName(plain) ? { host: plain, port } : undefined
  const host = ipv6In(bracketed ?? text)
  return host === undefined ? undefined : { host, port }
}

/** An IPv6 address in its one spelling, with its zone. @returns undefined: it is none. */
export function ipv6In(text: string): string | undefined {
  const [, address = '', zone = ''] = /^([\da-f:.]+)(%[\w.~-]+)?$/i.exec(text) ?? []
  const spelled = URL.parse(`http://[${address}]/`)?.hostname.slice(1, -1)
  if (spelled === undefined) return undefined
  const [, high, low] = /^::ffff:([\da-f]+):([\da-f]+)$/.exec(spelled) ?? []
  if (high === undefined || low === undefined || zone !== '') return spelled + zone
  return [high, low].flatMap((hex) => [Number.parseInt(hex, 16) >> 8, Number.parseInt(hex, 16) & 255]).join('.')
}

/** Whether it is the number of a port, 1–65,535. */
export const isPort = (digits: string): boolean =>
  /^\d{1,5}$/.test(digits) && Number(digits) >= 1 && Number(digits) <= 65_535

/** Whether it has the form of an IPv4 address, but a part of it is above 255 or begins with a zero. */
export const isBadIPv4 = (host: string): boolean => DOTTED.test(host) && !isIPv4(host)

const isIPv4 = (host: string) =>
  DOTTED.test(host) && host.split('.').every((part) => Number(part) < 256 && String(Number(part)) === part)
const isName = (host: string) => host.length <= 253 && NAME.test(host) && !DOTTED.test(host)
const DOTTED = /^\d+(?:\.\d+){3}$/
const NAME = /^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?$/i
