/**
 * An NTP packet: the request, and the checks that an answer must pass.
 *
 * The request reveals nothing about us: its transmit timestamp is a random number of 64 bits, the cookie, which the answer must
 * repeat. A sender that does not see our packets cannot guess it. A packet without the cookie, a short packet, or one that is
 * no answer of a server, is not an answer to us, and is ignored (otherwise any sender could end the wait). Every other fault is
 * a reason not to use this server now.
 *
 * @see RFC 5905 §7.3 (the packet), §8 (checks); RFC 4330 §5
 */
import type { Interval } from '../interval.ts'

export const PACKET_BYTES = 48
/** Seconds from 1900, where NTP begins, to 1970. */
const UNIX = 2_208_988_800
const ERA_SECONDS = 2 ** 32
/** Microseconds: a server that claims a larger distance from true time than this (RFC 4330 §5) is not used. */
const MAX_DISTANCE = 1_000_000

const [LEAP_VERSION_MODE, STRATUM, PRECISION, ROOT_DELAY, ROOT_DISPERSION, REFERENCE] = [0, 1, 3, 4, 8, 12] as const
const [ORIGIN, RECEIVE, TRANSMIT] = [24, 32, 40] as const
const [UNSYNCHRONIZED, CLIENT, SERVER] = [3, 3, 4] as const

/** The codes of a Kiss-o'-death: the rate is too high, denied, restricted. */
const KISS_CODES = ['RATE', 'DENY', 'RSTR']

/** The content of a good answer. Microseconds. */
export interface Answer {
  /** The server's clock when it received the request, and when it sent the answer: since 1970. */
  received: number
  sent: number
  /** The largest error of the server's clock, by its own claim: half the root delay, plus the root dispersion and the precision. */
  distance: number
  stratum: number
}

/** A request: version 4, mode client. */
export function request(cookie: Uint8Array): Uint8Array {
  const packet = new Uint8Array(PACKET_BYTES)
  packet[LEAP_VERSION_MODE] = (4 << 3) | CLIENT
  packet.set(cookie, TRANSMIT)
  return packet
}

/**
 * Reads an answer.
 *
 * @param waited  microseconds since the request was sent.
 * @param near    the approximate time, microseconds since 1970: NTP's seconds start again at 0 every 136 years, next in 2036.
 * @returns the answer; or the reason not to use this server, in a few words; or null: this is no answer to us.
 */
export function read(packet: Uint8Array, cookie: Uint8Array, waited: number, near: number): Answer | string | null {
  if (packet.length < PACKET_BYTES) return null
  const view = new DataView(packet.buffer, packet.byteOffset, packet.byteLength)
  const first = view.getUint8(LEAP_VERSION_MODE)
  const [leap, version, mode] = [first >> 6, (first >> 3) & 7, first & 7]
  if (!cookie.every((byte, i) => packet[ORIGIN + i] === byte)) return null
  if (mode !== SERVER || (version !== 3 && version !== 4)) return null

  const stratum = view.getUint8(STRATUM)
  // Stratum 0 with another code is a server that has just started (INIT, STEP), or an unknown one.
  const kiss = String.fromCharCode(...packet.subarray(REFERENCE, REFERENCE + 4))
  if (stratum === 0 && KISS_CODES.includes(kiss)) return `KoD ${kiss}`
  if (stratum === 0 || leap === UNSYNCHRONIZED || stratum > 15) return 'not synchronized'
  if (blank(view, RECEIVE) || blank(view, TRANSMIT)) return 'a timestamp of zero'
  const received = stamp(view, RECEIVE, near)
  const sent = stamp(view, TRANSMIT, near)
  if (sent < received) return 'sent before it was received'
  if (sent - received > waited + 50) return 'longer at the server than we waited' // 50 µs for clocks that tick unevenly
  const distance =
    (view.getUint32(ROOT_DELAY) / 65_536 / 2 + view.getUint32(ROOT_DISPERSION) / 65_536) * 1e6 +
    2 ** view.getInt8(PRECISION) * 1e6
  if (!(distance < MAX_DISTANCE)) return `${Math.round(distance / 1_000)} ms from true time, by its own claim`
  return { received, sent, distance, stratum }
}

/** True time minus our clock, from an answer between two readings of our clock: the interval includes the server's own distance. */
export function offsetOf({ received, sent, distance }: Answer, before: number, after: number): Interval {
  return { lo: sent - after - distance, hi: received - before + distance }
}

/** Moves an instant, in milliseconds since 1970, by whole NTP eras to the place nearest to `nearMs`. */
export function inEra(ms: number, nearMs: number): number {
  const era = ERA_SECONDS * 1_000
  return ms + Math.round((nearMs - ms) / era) * era
}

// Seconds and fraction are computed apart: otherwise a double would lose the microsecond.
function stamp(view: DataView, at: number, near: number): number {
  const seconds = view.getUint32(at) - UNIX
  const era = Math.round((near / 1e6 - seconds) / ERA_SECONDS) * ERA_SECONDS
  return (seconds + era) * 1e6 + (view.getUint32(at + 4) / ERA_SECONDS) * 1e6
}

const blank = (view: DataView, at: number) => view.getUint32(at) === 0 && view.getUint32(at + 4) === 0
