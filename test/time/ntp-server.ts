/**
 * NTP servers on loopback: one that keeps whatever time a test says and can be wrong in every way that is known of them, and
 * Debian's chronyd, which is a real one.
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

/** What an answer says, in the units of the packet; microseconds since 1970 where it is an instant. */
export interface Said {
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
  /** Changes what it says. */
  says?: (said: Said) => Partial<Said>
  /** Changes the packet; null: it is silent. */
  sends?: (packet: Buffer, question: Buffer) => Buffer | null
  /** What it sends before the answer, given one as it should be: a forgery that comes first. */
  first?: (packet: Buffer, question: Buffer) => Buffer
  /** Waits before the answer is sent, after it was stamped: the way back. */
  back?: () => Promise<unknown> | undefined
  /** Sends `first` from another socket than was asked. */
  fromElsewhere?: boolean
  host?: string
}

export interface FakeServer extends AsyncDisposable {
  /** As it is configured: `127.0.0.1:port`. */
  name: string
  port: number
  /** How often it was asked. */
  asked: number
  behaviour: Behaviour
}

const UNIX = 2_208_988_800

/** Starts one on a port of its own. */
export async function fakeServer(behaviour: Behaviour = {}): Promise<FakeServer> {
  const { host = '127.0.0.1' } = behaviour
  const family = host.includes(':') ? 'udp6' : 'udp4'
  const socket = dgram.createSocket(family)
  const elsewhere = dgram.createSocket(family)
  socket.bind(0, host)
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
  socket.on('message', async (question, from) => {
    const { offsetUs = wallOffset, wrongMs = 0, says, first, sends, back, fromElsewhere } = server.behaviour
    server.asked += 1
    const wrong = (typeof wrongMs === 'function' ? wrongMs() : wrongMs) * 1_000
    const clock = () => performance.now() * 1_000 + offsetUs() + wrong
    const said: Said = {
      ...{ leap: 0, version: 4, mode: 4, stratum: 2, rootDelay: 0.001, rootDispersion: 0.001, reference: 'GPS\0' },
      ...{ cookie: question.subarray(40, 48), receivedUs: clock(), sentUs: 0 },
    }
    said.sentUs = clock()
    const packet = written({ ...said, ...says?.(said) })
    const sent = sends ? sends(packet, question) : packet
    if (first) {
      const forged = first(Buffer.from(packet), question)
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
    wall = Math.max(wall, (tick - performance.now()) * 1_000) // the least late look at it
  }
  return wall
}

function written(said: Said): Buffer {
  const packet = Buffer.alloc(48)
  packet[0] = (said.leap << 6) | (said.version << 3) | said.mode
  packet[1] = said.stratum
  packet[2] = 6
  packet.writeInt8(-20, 3)
  packet.writeUInt32BE(Math.round(said.rootDelay * 65_536), 4)
  packet.writeUInt32BE(Math.round(said.rootDispersion * 65_536), 8)
  packet.write(said.reference.padEnd(4, '\0').slice(0, 4), 12, 'latin1')
  packet.set(said.cookie, 24)
  stamp(packet, 16, said.receivedUs)
  stamp(packet, 32, said.receivedUs)
  stamp(packet, 40, said.sentUs)
  return packet
}

/** Microseconds since 1970 as 32 bits of seconds, of whatever era, and 32 of a fraction. Negative: a blank one. */
export function stamp(packet: Buffer, at: number, us: number): void {
  if (us < 0) {
    packet.fill(0, at, at + 8)
    return
  }
  const seconds = Math.floor(us / 1e6)
  packet.writeUInt32BE((seconds + UNIX) % 2 ** 32, at)
  packet.writeUInt32BE(Math.floor(((us - seconds * 1e6) / 1e6) * 2 ** 32), at + 4)
}

// ── A real one ────────────────────────────────────────────────────────────────────────────────────────────────────

function chronydPath(): string | undefined {
  const folders = (process.env.PATH ?? '').split(path.delimiter).filter(Boolean)
  const candidates = [process.env.CHRONYD ?? '', ...[...folders, '/usr/sbin'].map((each) => path.join(each, 'chronyd'))]
  return candidates.find((file) => file !== '' && fs.existsSync(file))
}

/** Whether there is one to start; else skip the test and say why. */
export const chronydAvailable = (): boolean => chronydPath() !== undefined

/**
 * Starts chronyd, which serves this machine's clock and never sets it (`-x`).
 *
 * @param options.local  it says that its own clock is a stratum-1 source; else it is a real server that is not synchronized.
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
