/**
 * One exchange with one NTP server: `ntp-client` behind a local proxy that makes it safe.
 *
 * `ntp-client` (2013) gives its caller a Date and nothing else: neither whether the server was synchronized, nor when the
 * request left and the answer arrived. It accepts the first datagram from any sender, has no cookie, calls back twice after a
 * slow lookup, and keeps its socket open after an error. A wrapper around the callback cannot repair this: a Kiss-o'-death with
 * a plausible time, or an answer with the flag "not synchronized", arrives as a good Date.
 *
 *     ntp-client ◄──► proxy on 127.0.0.1 ◄── checked ── connected socket ◄──► server
 *
 * So `ntp-client` talks to a proxy. The proxy asks the server itself, with a random cookie and from a connected socket (the
 * kernel then drops datagrams from other senders). It reads our clock before and after, and checks the answer (packet.ts).
 * It forwards only a good answer. The Date from `ntp-client` must be the instant that the proxy saw; otherwise another
 * sender answered. The proxy is in the same process, and outside the time bracket: it costs a tenth of a millisecond and no accuracy.
 *
 * An empty datagram makes `ntp-client` call back and close. So every exchange ends with one, and the proxy stays open until
 * `ntp-client` has called back. Its own time limit is a variable of its module, and is set so high that it never applies.
 */
import { randomFillSync } from 'node:crypto'
import dgram from 'node:dgram'
import ntpClient from 'ntp-client'
import { onAbort } from '../../base/index.ts'
import { type Answer, inEra, PACKET_BYTES, read, request } from './packet.ts'

export interface Address {
  address: string
  family: 4 | 6
  port: number
}

/** An answer, and our monotonic clock before the request and after the answer: microseconds. */
export interface Exchange extends Answer {
  before: number
  after: number
}

const NEVER_MS = 2 ** 31 - 1
const ANOTHER_SENDER = 'ntp-client was answered by another sender'
const now = () => performance.now() * 1_000

/**
 * Asks a server once.
 *
 * @param near    the approximate time: microseconds since 1970.
 * @param signal  ends the exchange: it closes its sockets and rejects with the signal's reason.
 * @throws {Error} the reason why this server gave no time, in a few words.
 */
export function exchange(to: Address, near: number, signal: AbortSignal): Promise<Exchange> {
  const { promise, resolve, reject } = Promise.withResolvers<Exchange>()
  const cookie = randomFillSync(new Uint8Array(8))
  const upstream = dgram.createSocket(to.family === 6 ? 'udp6' : 'udp4')
  const proxy = dgram.createSocket('udp4')
  let client: dgram.RemoteInfo | undefined
  let before = Number.NaN
  let good: Exchange | undefined
  let calling = false // ntp-client works, and has a socket open
  let ended = false
  let off = () => {}

  const finish = (settle: () => void) => {
    if (ended) return
    ended = true
    off()
    close(upstream)
    if (!calling) close(proxy)
    else if (client) dismiss(client)
    settle()
  }
  // Makes ntp-client close its socket and call back. This needs its port, which is known when it has sent its request.
  const dismiss = ({ port, address }: dgram.RemoteInfo) => proxy.send(new Uint8Array(), port, address)
  const fail = (why: string) => finish(() => reject(new Error(why)))
  off = onAbort(signal, () => finish(() => reject(signal.reason)))

  upstream.on('error', (error: NodeJS.ErrnoException) => fail(error.code ?? error.message))
  upstream.on('message', (packet) => {
    const after = now()
    if (ended || good) return
    const answer = read(packet, cookie, after - before, near)
    if (answer === null) return
    if (typeof answer === 'string') return fail(answer)
    good = { ...answer, before, after }
    if (client) proxy.send(packet, client.port, client.address)
  })
  proxy.on('error', (error) => fail(error.message))
  proxy.on('message', (packet, from) => {
    if (packet.length !== PACKET_BYTES) return
    if (ended || client) return dismiss(from) // a second sender: one of the two is not ntp-client
    client = from
    before = now()
    upstream.send(request(cookie), (error) => {
      if (error) fail((error as NodeJS.ErrnoException).code ?? error.message)
    })
  })
  const onTime = (error: Error | string | null, date: Date | null) => {
    calling = false
    if (ended) return close(proxy)
    if (error || !date || !good) return fail(error ? String(error) : ANOTHER_SENDER)
    // ntp-client counts whole milliseconds from 1900.
    const difference = inEra(date.getTime(), near / 1_000) - Math.floor(good.sent / 1_000)
    if (!(Math.abs(difference) <= 1)) return fail(ANOTHER_SENDER)
    const answer = good
    finish(() => resolve(answer))
  }
  if (!ended) {
    // Not a callback of connect(): that is also called with an error, when the network is unreachable.
    upstream.on('connect', () => {
      if (ended) return
      proxy.bind(0, '127.0.0.1', () => {
        if (ended) return
        ntpClient.ntpReplyTimeout = NEVER_MS
        calling = true
        ntpClient.getNetworkTime('127.0.0.1', proxy.address().port, onTime)
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
    // It was never open, or it is closed.
  }
}
