/** A network between client and server that breaks in the ways networks do. */

import { once } from 'node:events'
import * as net from 'node:net'

export interface TcpProxy extends AsyncDisposable {
  /** The connection string through the proxy. */
  url: string
  /** How many connections are open now. */
  open(): number
  /** Sends new connections to the server of another connection string. */
  target(url: string): void
  /** Resets all connections, and accepts new ones. */
  cut(): void
  /** Resets all connections and every new one, until `resume`. */
  refuse(): void
  /** Drops every byte, both ways, without an error, until `resume`. Bytes that are sent meanwhile are lost. */
  blackhole(): void
  /** Holds back every byte, both ways, until `resume` delivers them. */
  hold(): void
  /** Back to normal. Connections that lost bytes are reset: no protocol survives a gap. */
  resume(): void
  close(): Promise<void>
}

/** Starts a TCP proxy in front of the server of a connection string. */
export async function tcpProxy(targetUrl: string): Promise<TcpProxy> {
  let target = new URL(targetUrl)
  const pairs = new Set<{ client: net.Socket; server: net.Socket; gap: boolean }>()
  let mode: 'open' | 'refuse' | 'blackhole' | 'hold' = 'open'

  const listener = net.createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
    client.on('error', () => {})
    if (mode === 'refuse') return client.resetAndDestroy()
    const server = net.connect({
      host: target.hostname,
      port: Number(target.port || 5432),
      noDelay: true,
      allowHalfOpen: true,
    })
    const pair = { client, server, gap: false }
    pairs.add(pair)
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      if (mode === 'hold') from.pause()
      from.on('data', (bytes) => {
        if (mode === 'blackhole') pair.gap = true
        else to.write(bytes)
      })
      from.on('end', () => {
        if (mode === 'blackhole') pair.gap = true
        else to.end()
      })
      from.on('error', () => {})
      from.on('close', () => {
        if (mode === 'blackhole' || mode === 'hold')
          pair.gap = true // the other side sees it on `resume`
        else if (pairs.delete(pair)) to.destroySoon()
      })
    }
    return
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')

  const reset = (which: (pair: { gap: boolean }) => boolean) => {
    for (const pair of pairs) {
      if (!which(pair)) continue
      pairs.delete(pair)
      for (const socket of [pair.client, pair.server]) if (!socket.destroyed) socket.resetAndDestroy()
    }
  }
  const change = (to: typeof mode) => {
    mode = to
    for (const { client, server } of pairs) {
      for (const socket of [client, server]) to === 'hold' ? socket.pause() : socket.resume()
    }
  }
  const close = async () => {
    change('refuse')
    reset(() => true)
    if (!listener.listening) return
    listener.close()
    await once(listener, 'close')
  }
  const url = new URL(targetUrl)
  url.host = `127.0.0.1:${(listener.address() as net.AddressInfo).port}`
  return {
    url: url.href,
    open: () => pairs.size,
    target(to) {
      target = new URL(to)
    },
    cut: () => reset(() => true),
    refuse() {
      change('refuse')
      reset(() => true)
    },
    blackhole: () => change('blackhole'),
    hold: () => change('hold'),
    resume() {
      change('open')
      reset((pair) => pair.gap)
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}
