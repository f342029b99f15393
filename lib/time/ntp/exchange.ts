/**
 * One exchange with one NTP server, by `ntp-client`, made safe from below.
 *
 * `ntp-client` (2013) hands its caller a Date and nothing else: not whether the server was synchronized at all, nor when the
 * question left and the answer came. It takes the first datagram from anybody, has no cookie, calls back twice after a slow
 * lookup, and keeps its socket open after an error. None of that can be mended from above, by wrapping the callback: a
 * Kiss-o'-death with a plausible time, or an answer that says "I am not synchronized", arrive as good Dates.
 *
 *     ntp-client ◄──► guard on 127.0.0.1 ◄── checked ── connected socket ◄──► server
 *
 * So it talks to a guard. The guard asks the server itself, with a random cookie from a connected socket (the kernel then
 * passes on what this server sends, and nobody else), reads the clock on both sides, and checks the answer (packet.ts).
 * Only a good one is passed on; and the Date that comes out must be the instant that the guard saw, or somebody spoke in
 * between. The guard is in the same process, and outside the bracket: it costs a tenth of a millisecond and no accuracy.
 *
 * An empty datagram makes `ntp-client` call back and close; so it is ended whenever we end, and the guard stays open until it
 * has called back. Its own time limit is a variable of its module, and is set so high that it never decides.
 */
import { randomFillSync } from 'node:crypto'
import dgram from 'node:dgram'
import ntpClient from 'ntp-client'
import { type Answer, inEra, PACKET_BYTES, question, read } from './packet.ts'

export interface Address {
  address: string
  family: 4 | 6
  port: number
}

/** An answer, and our monotonic clock on both sides of it: microseconds. */
export interface Exchange extends Answer {
  before: number
  after: number
}

const NEVER_MS = 2 ** 31 - 1
const now = () => performance.now() * 1_000

/**
 * Asks once.
 *
 * @param near    microseconds since 1970, roughly now.
 * @param signal  ends it: rejects with its reason, with everything closed.
 * @throws {Error} in a few words, why this server gave no time.
 */
export function exchange(to: Address, near: number, signal: AbortSignal): Promise<Exchange> {
  const { promise, resolve, reject } = Promise.withResolvers<Exchange>()
  const cookie = randomFillSync(new Uint8Array(8))
  const upstream = dgram.createSocket(to.family === 6 ? 'udp6' : 'udp4')
  const guard = dgram.createSocket('udp4')
  let client: dgram.RemoteInfo | undefined
  let before = Number.NaN
  let good: Exchange | undefined
  let calling = false // ntp-client, which has a socket open then
  let over = false

  const finish = (settle: () => void) => {
    if (over) return
    over = true
    signal.removeEventListener('abort', aborted)
    close(upstream)
    if (!calling) close(guard)
    else if (client) dismiss(client)
    settle()
  }
  // Makes ntp-client close its socket and call back. If it has not spoken yet, that waits until it does.
  const dismiss = ({ port, address }: dgram.RemoteInfo) => guard.send(new Uint8Array(), port, address)
  const fail = (why: string) => finish(() => reject(new Error(why)))
  const aborted = () => finish(() => reject(signal.reason))
  signal.addEventListener('abort', aborted)

  upstream.on('error', (error: NodeJS.ErrnoException) => fail(error.code ?? error.message))
  upstream.on('message', (packet) => {
    const after = now()
    if (over || good) return
    const answer = read(packet, cookie, after - before, near)
    if (answer === null) return
    if (typeof answer === 'string') return fail(answer)
    good = { ...answer, before, after }
    if (client) guard.send(packet, client.port, client.address)
  })
  guard.on('error', (error) => fail(error.message))
  guard.on('message', (packet, from) => {
    if (packet.length !== PACKET_BYTES) return
    if (over || client) return dismiss(from) // the second to speak: one of the two is a stranger
    client = from
    before = now()
    upstream.send(question(cookie), (error) => {
      if (error) fail((error as NodeJS.ErrnoException).code ?? error.message)
    })
  })
  const heard = (error: Error | string | null, date: Date | null) => {
    calling = false
    if (over) return close(guard)
    if (error || !date || !good) return fail(error ? String(error) : 'ntp-client was answered by somebody else')
    // It counts milliseconds from 1900, in whole ones.
    const difference = inEra(date.getTime(), near / 1_000) - Math.floor(good.sent / 1_000)
    if (!(Math.abs(difference) <= 1)) return fail('ntp-client was answered by somebody else')
    const answer = good
    finish(() => resolve(answer))
  }
  if (signal.aborted) aborted()
  else {
    // Not as a callback of connect, which is handed the error too, of a network that is not there.
    upstream.on('connect', () => {
      if (over) return
      guard.bind(0, '127.0.0.1', () => {
        if (over) return
        ntpClient.ntpReplyTimeout = NEVER_MS
        calling = true
        ntpClient.getNetworkTime('127.0.0.1', guard.address().port, heard)
      })
    })
    upstream.connect(to.port, to.address)
  }
  return promise
}

function close(socket: dgram.Socket): void {
  try {
    socket.close()
  } catch {
    // It never was open, or is closed.
  }
}
