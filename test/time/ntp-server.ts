/**
 * NTP servers on loopback: a fake one whose time a test sets, and which can be wrong in every way that is known of NTP servers;
 * and Debian's chronyd, which is a real one.
 *
 * The true time of a test is its monotonic clock and an offset, as in fake-true-time.ts; so the server's timestamps are true to a
 * fraction of a microsecond, and an interval that misses is wrong.
 */

import dgram from 'node:dgram'
import { once } from 'node:events'
import * as fs from 'node:fs'
import type { AddressInfo } from 'node:net'
import * as path from 'node:path'
import { freePort, guarded, serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'

/** The fields of an answer, in the units of the packet; instants in microseconds since 1970. */
export interface Fields {
  leap: number
  version: number
  mode: number
  stratum: number
  /** 16.16 fixed-point seconds, here as seconds. */
  rootDelay: number
  rootDispersion: number
  reference: string
  receivedUs: number
  sentUs: number
  cookie: Uint8Array
}

export interface Behaviour {
  /** True time minus the monotonic clock, in microseconds. */
  offsetUs?: () => number
  /** How wrong this server is, in milliseconds. */
  wrongMs?: number | (() => number)
  /** Changes the fields of the answer. */
  says?: (fields: Fields) => Partial<Fields>
  /** Changes the packet; null: it sends none. */
  sends?: (packet: Buffer, request: Buffer) => Buffer | null
  /** Makes a forgery from the correct answer; it is sent before the answer. */
  first?: (packet: Buffer, request: Buffer) => Buffer
  /** Delays the answer after its timestamps were written: the way back. */
  back?: () => Promise<unknown> | undefined
  /** Sends `first` from a socket other than the one that was asked. */
  fromElsewhere?: boolean
  host?: string
  /** @default a free one */
  port?: number
}

export interface FakeServer extends AsyncDisposable {
  /** The name to configure: `127.0.0.1:port`. */
  name: string
  port: number
  /** The number of requests so far. */
  asked: number
  behaviour: Behaviour
}

const UNIX = 2_208_988_800

/** Starts a fake server on a free port. */
export async function fakeServer(behaviour: Behaviour = {}): Promise<FakeServer> {
  const { host = '127.0.0.1', port: wanted = 0 } = behaviour
  const family = host.includes(':') ? 'udp6' : 'udp4'
  const socket = dgram.createSocket(family)
  const elsewhere = dgram.createSocket(family)
  socket.bind({ port: wanted, address: host })
  elsewhere.bind(0, host)
  await Promise.all([once(socket, 'listening'), once(elsewhere, 'listening')])
  const { port } = socket.address() as AddressInfo
  let closed = false
  const server: FakeServer = {
    name: host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`,
    port,
    asked: 0,
    behaviour,
    async [Symbol.asyncDispose]() {
      if (closed) return
      closed = true
      socket.close()
      elsewhere.close()
    },
  }
  socket.on('message', async (request, from) => {
    const { offsetUs = wallOffset, wrongMs = 0, says, first, sends, back, fromElsewhere } = server.behaviour
    server.asked += 1
    const wrong = (typeof wrongMs === 'function' ? wrongMs() : wrongMs) * 1_000
    const clock = () => performance.now() * 1_000 + offsetUs() + wrong
    const fields: Fields = {
      ...{ leap: 0, version: 4, mode: 4, stratum: 2, rootDelay: 0.001, rootDispersion: 0.001, reference: 'GPS\0' },
      ...{ cookie: request.subarray(40, 48), receivedUs: clock(), sentUs: 0 },
    }
    fields.sentUs = clock()
    const packet = written({ ...fields, ...says?.(fields) })
    const sent = sends ? sends(packet, request) : packet
    if (first) {
      const forged = first(Buffer.from(packet), request)
      await new Promise((done) => (fromElsewhere ? elsewhere : socket).send(forged, from.port, from.address, done))
    }
    await back?.()
    if (sent && !closed) socket.send(sent, from.port, from.address, () => {})
  })
  return server
}

let wall: number | undefined
/** This machine's wall clock minus the monotonic one, to the microsecond: `Date.now()` alone is a millisecond coarse. */
export function wallOffset(): number {
  if (wall !== undefined) return wall
  wall = -Infinity
  for (let i = 0; i < 20; i++) {
    const before = Date.now()
    let tick = before
    while (tick === before) tick = Date.now() // the instant at which a millisecond begins
    wall = Math.max(wall, (tick - performance.now()) * 1_000) // the reading that was least late
  }
  return wall
}

function written(fields: Fields): Buffer {
  const packet = Buffer.alloc(48)
  packet[0] = (fields.leap << 6) | (fields.version << 3) | fields.mode
  packet[1] = fields.stratum
  packet[2] = 6
  packet.writeInt8(-20, 3)
  packet.writeUInt32BE(Math.round(fields.rootDelay * 65_536), 4)
  packet.writeUInt32BE(Math.round(fields.rootDispersion * 65_536), 8)
  packet.write(fields.reference.padEnd(4, '\0').slice(0, 4), 12, 'latin1')
  packet.set(fields.cookie, 24)
  stamp(packet, 16, fields.receivedUs)
  stamp(packet, 32, fields.receivedUs)
  stamp(packet, 40, fields.sentUs)
  return packet
}

/** Microseconds since 1970 as 32 bits of seconds, in any era, and 32 bits of a fraction. Negative: zeros. */
export function stamp(packet: Buffer, at: number, us: number): void {
  if (us < 0) {
    packet.fill(0, at, at + 8)
    return
  }
  const seconds = Math.floor(us / 1e6)
  packet.writeUInt32BE((seconds + UNIX) % 2 ** 32, at)
  packet.writeUInt32BE(Math.floor(((us - seconds * 1e6) / 1e6) * 2 ** 32), at + 4)
}

// ── A real server ────────────────────────────────────────────────────────────────────────────────────────────────────

function chronydPath(): string | undefined {
  const folders = (process.env.PATH ?? '').split(path.delimiter).filter(Boolean)
  const candidates = [process.env.CHRONYD ?? '', ...[...folders, '/usr/sbin'].map((each) => path.join(each, 'chronyd'))]
  return candidates.find((file) => file !== '' && fs.existsSync(file))
}

/** Whether chronyd is installed; if not, skip the test and print why. */
export const chronydAvailable = (): boolean => chronydPath() !== undefined

/**
 * Starts chronyd, which serves this machine's clock and never sets it (`-x`).
 *
 * @param options.local  it claims that its own clock is a stratum-1 source; otherwise it is a server that is not synchronized.
 */
export async function chronyd({
  host = '127.0.0.1',
  local = true,
} = {}): Promise<{ name: string; stop(): Promise<void> }> {
  const binary = chronydPath()
  if (binary === undefined) throw new Error('chronyd is not installed: see chronydAvailable')
  const dir = fs.mkdtempSync(path.join(temporaryFolder(serverUser()), 'lockstep-chrony-'))
  const port = await freePort()
  const conf = path.join(dir, 'chrony.conf')
  fs.writeFileSync(
    conf,
    [
      `port ${port}`,
      `bindaddress ${host}`,
      'cmdport 0',
      'bindcmdaddress /',
      `pidfile ${dir}/pid`,
      `driftfile ${dir}/drift`,
      'allow 127.0.0.0/8',
      ...(local ? ['local stratum 1'] : []),
    ].join('\n'),
  )
  const user = process.getuid?.() === 0 ? ['-u', 'root'] : []
  const child = guarded([binary, '-x', '-d', '-f', conf, ...user], { user: undefined, stopWith: 'INT', remove: dir })
  const name = `${host}:${port}`
  return {
    name,
    async stop() {
      child.end()
      await child.exited
    },
  }
}
