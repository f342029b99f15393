/**
 * The Node adapter: the application on node:http, and a stop that breaks no promise.
 *
 * To stop is: accept no new connection; end every wait (503, the caller asks another server) and every stream (its client
 * connects to another server) at once; hand back the jobs that run; let the other requests finish, ten seconds at most;
 * close the library, which gives back its connections. Answers during that time say `Connection: close`, so that no client
 * sends its next request into a closing socket.
 *
 * A client gets ten seconds for its headers and thirty for its whole request, then 408: slow senders cannot collect
 * connections. That limits the sending, not the answer: a wait of twenty seconds is not affected. A client that reads nothing of
 * its answer for `unreadMs`, be it a page or a stream, is disconnected: slow readers cannot collect memory. What node itself
 * refuses before there is a request (431, 408, CONNECT, broken HTTP) is a problem+json too.
 *
 * Without keys it serves the loopback interface only (the address that HOST resolves to decides), and there no web pages.
 */
import { lookup } from 'node:dns/promises'
import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import { type AddressInfo, BlockList, isIP, isIPv6, type Socket } from 'node:net'
import { getRequestListener, RequestError } from '@hono/node-server'
import type { Lockstep } from '../../lib/index.ts'
import { type AppOptions, createApp } from '../app.ts'
import {
  checkOptions,
  isListed,
  isProblem,
  known,
  type OriginOptions,
  Problem,
  parseKeys,
  problemAnswer,
  problemBody,
  refuseDots,
} from '../http/index.ts'

export interface ServeOptions extends Omit<AppOptions, 'signal'> {
  /** Closed by `close`. */
  lockstep: Lockstep
  /** Address or name to listen on. Anything but loopback needs keys. @default '127.0.0.1' */
  host?: string | undefined
  /** 0–65_535, 0 for a free one. @default 3000 */
  port?: number | undefined
  /** How long requests in flight may take once `close` is called. @default 10_000 */
  drainMs?: number | undefined
  /** Milliseconds that a client may read nothing of its answer, 1_000–3_600_000. It is disconnected after at most twice that. @default 30_000 */
  unreadMs?: number | undefined
}

export interface Server {
  /** `http://host:port` */
  readonly url: string
  /** Stops gracefully, then closes the library; idempotent. Resolves when no connection is left. */
  close(): Promise<void>
}

const SERVE = known<ServeOptions>({
  ...{ lockstep: true, host: true, port: true, drainMs: true, unreadMs: true, tasks: true, events: true, keys: true },
  ...{
    version: true,
    keepAliveMs: true,
    maxStreams: true,
    onError: true,
    onLeaseLost: true,
    basePath: true,
    origins: true,
  },
})

/**
 * Listens for requests.
 *
 * @throws {Error} in one sentence: the port is taken, the host is not ours, a public address without keys, keys that
 *   cannot be read. `lockstep` is then still open.
 */
export async function serve(options: ServeOptions): Promise<Server> {
  checkOptions(options, SERVE)
  const { lockstep, host = '127.0.0.1', port = 3000, drainMs = 10_000, unreadMs = 30_000, ...application } = options
  if (!Number.isInteger(unreadMs) || unreadMs < 1_000 || unreadMs > 3_600_000) {
    throw new Error(`unreadMs must be an integer, 1000–3600000, not ${unreadMs}`)
  }
  const address = await listenAddress(host, options.keys)
  const stopping = new AbortController()
  const app = createApp(lockstep, { ...application, signal: stopping.signal })
  const keyed = parseKeys(options.keys).length > 0
  const answer = (request: Request, { incoming }: { incoming: { url?: string | undefined } }) => {
    refuseDots(incoming.url ?? '')
    if (!keyed) refuseBrowsers(request, options)
    return app.fetch(request)
  }
  const listener = getRequestListener(answer, { hostname: 'localhost', errorHandler: malformed })
  const open = new Set<ServerResponse>()
  const server = createServer(LIMITS, (incoming, outgoing) => {
    open.add(outgoing)
    outgoing.once('close', () => {
      open.delete(outgoing)
      // A stream's answer had begun, too early to say `Connection: close`.
      if (stopping.signal.aborted) server.closeIdleConnections()
    })
    if (stopping.signal.aborted) outgoing.setHeader('Connection', 'close')
    return listener(incoming, outgoing)
  })
  const connections = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    connections.add(socket)
    socket.once('close', () => connections.delete(socket))
  })
  const unread = new Map<Socket, string>()
  const looking = setInterval(() => {
    for (const socket of unread.keys()) if (socket.destroyed) unread.delete(socket)
    for (const socket of connections) {
      const left = unsent(socket)
      // Reset, or the kernel would keep the unread bytes for minutes.
      if (left !== '' && unread.get(socket) === left) socket.resetAndDestroy()
      else unread.set(socket, left)
    }
  }, unreadMs)
  looking.unref()
  server.on('checkExpectation', (incoming, outgoing) => server.emit('request', incoming, outgoing)) // not a bare 417
  server.on('connect', (_, socket: Socket) => {
    // Node has taken its listeners away: nobody reads it, and an error would end the process.
    socket.on('error', () => {}).write(refusal('CONNECT'))
    socket.destroySoon()
  })
  server.on('clientError', (error: NodeJS.ErrnoException, socket: Socket) => {
    // Never into an answer that has begun, nor in place of one that is due for an earlier request.
    const busy = [...open].some((to) => to.socket === socket && (to.headersSent || to.req.complete))
    if (socket.writable && !busy && error.code !== 'ECONNRESET') socket.write(refusal(error.code))
    socket.destroySoon()
  })
  await listen(server.listen(port, address), host, port).catch((error) => {
    clearInterval(looking)
    throw error
  })

  const sweeping = setInterval(() => {
    void lockstep.locks.sweep().catch(() => {})
    const swept = options.events?.sweep({ signal: stopping.signal })
    void swept?.catch((error) => stopping.signal.aborted || options.onError?.(error, ''))
  }, SWEEP_MS)
  sweeping.unref()
  // From now on the clock is sampled by itself, and true time measured if possible.
  void lockstep.time.ready().catch(() => {})
  // With `tasks` it is a worker too: it runs the queues that have a handler in this process, and ticks.
  const worker = options.tasks?.work()

  async function stop(): Promise<void> {
    clearInterval(sweeping)
    const closed = once(server, 'close')
    server.close() // idle connections close with it, but not those that clients opened in advance
    for (const socket of connections) if (socket.bytesRead === 0) socket.destroy()
    for (const outgoing of open) if (!outgoing.headersSent) outgoing.setHeader('Connection', 'close')
    stopping.abort(new Error('The server is stopping'))
    const late = setTimeout(() => server.closeAllConnections(), drainMs)
    // A worker whose database does not answer is ended with the library.
    const { promise: drained, resolve } = Promise.withResolvers<void>()
    const longest = setTimeout(resolve, drainMs)
    await Promise.all([closed, Promise.race([worker?.stop(), drained])])
    clearTimeout(late)
    clearTimeout(longest)
    clearInterval(looking)
    await lockstep.close()
  }
  let stopped: Promise<void> | undefined
  return {
    url: `http://${isIPv6(host) ? `[${host}]` : host}:${(server.address() as AddressInfo).port}`,
    close: () => (stopped ??= stop()),
  }
}

// How much a client has still to read; '': nothing. How far a large write is, only Node's internal handle knows. The socket's own
// timeout will not do: it starts again with everything that the client sends.
function unsent(socket: Socket): string {
  const { _handle } = socket as { _handle?: { writeQueueSize?: number } }
  return socket.writableLength === 0 ? '' : `${socket.bytesWritten} ${_handle?.writeQueueSize}`
}

// Removes names that were not used for a day, and events that need not be kept. A failure is tried again next time.
const SWEEP_MS = 600_000

const LIMITS = {
  headersTimeout: 10_000,
  requestTimeout: 30_000,
  connectionsCheckingInterval: 2_000,
  // Longer than the minute for which load balancers keep a connection: they should be the ones to close an idle one.
  keepAliveTimeout: 65_000,
  requireHostHeader: false, // node-server refuses it too, and lets us write the answer
}

/**
 * The address that a host name means, if it may be served with these keys.
 *
 * @param port  makes sure that it can be listened on now, before more is begun. @default not looked at
 * @throws {Error} in one sentence: there is no such name, or it is public and there are no keys, or the port is taken.
 */
export async function listenAddress(host: string, keys: string | undefined, port?: number): Promise<string> {
  const address = isIP(host) ? host : (await lookup(host).catch(() => undefined))?.address
  if (!address) throw new Error(`HOST is ${host}, which is no address and no known name`)
  if (parseKeys(keys).length === 0 && !loopback.check(address, isIPv6(address) ? 'ipv6' : 'ipv4')) {
    throw new Error(
      `Without keys it listens on loopback only, and HOST is ${host}: set LOCKSTEP_API_KEYS, or HOST=127.0.0.1`,
    )
  }
  if (port === undefined) return address
  const server = createServer()
  await listen(server.listen(port, address), host, port)
  server.close()
  await once(server, 'close')
  return address
}

const loopback = new BlockList()
loopback.addSubnet('127.0.0.0', 8, 'ipv4')
loopback.addAddress('::1', 'ipv6')

async function listen(server: ReturnType<typeof createServer>, host: string, port: number): Promise<void> {
  try {
    await once(server, 'listening')
  } catch (error) {
    const sentences: Record<string, string> = {
      EADDRINUSE: `Port ${port} on ${host} is taken by another program: stop it, or choose another PORT`,
      EACCES: `Port ${port} may not be opened by this user: choose a PORT above 1023`,
      EADDRNOTAVAIL: `HOST is ${host}, which is not an address of this machine`,
    }
    const { code = '', message } = error as NodeJS.ErrnoException
    throw new Error(sentences[code] ?? `Cannot listen on ${host}, port ${port}: ${message}`)
  }
}

/**
 * Without keys every program on this machine may do everything, but web pages in a browser here may not. A page of another site
 * is known by its `Sec-Fetch-Site`, or by an `Origin` that is not this one (http/origins.ts), and a page whose name was made to mean
 * this machine (DNS rebinding) by the name it asks for.
 */
function refuseBrowsers(request: Request, options: OriginOptions): void {
  const { hostname } = new URL(request.url)
  const address = hostname.replace(/^\[|\]$/g, '')
  const local =
    hostname === 'localhost' || (isIP(address) > 0 && loopback.check(address, isIPv6(address) ? 'ipv6' : 'ipv4'))
  const elsewhere = /^(cross|same)-site$/.test(request.headers.get('Sec-Fetch-Site') ?? '')
  if (local && (!elsewhere || isListed(request, options))) return
  throw new Problem(403, 'FORBIDDEN', 'Without keys it answers programs of this machine only, asked as localhost')
}

function malformed(error: unknown): Response {
  if (isProblem(error)) return problemAnswer(error)
  const known = error instanceof RequestError
  return problemAnswer(
    known
      ? new Problem(400, 'INVALID_ARGUMENT', `The request cannot be read: ${error.message}`)
      : new Problem(500, 'INTERNAL', 'An error of ours'),
  )
}

function refusal(code: string | undefined): string {
  const body =
    code === 'HPE_HEADER_OVERFLOW'
      ? problemBody(431, 'TOO_LARGE', 'Path and headers are over 16 KiB', 'Request Header Fields Too Large')
      : code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? problemBody(408, 'TIMEOUT', 'The request did not arrive in time', 'Request Timeout')
        : code === 'CONNECT'
          ? problemBody(405, 'METHOD_NOT_ALLOWED', 'This is no proxy')
          : problemBody(
              400,
              'INVALID_ARGUMENT',
              'This is not valid HTTP (in its target, everything but ASCII must be percent-encoded)',
            )
  const text = JSON.stringify(body)
  const headers = ['Connection: close', 'Content-Type: application/problem+json', `Content-Length: ${text.length}`]
  return `HTTP/1.1 ${body.status} ${body.title}\r\n${headers.join('\r\n')}\r\n\r\n${text}`
}
