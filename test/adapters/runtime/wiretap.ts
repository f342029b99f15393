/** A proxy between a client and PostgreSQL that records each statement of the client (without TLS). */
import { once } from 'node:events'
import * as net from 'node:net'

export interface Wiretap extends AsyncDisposable {
  /** The target's URL, through the proxy. */
  url: string
  /** The texts of all statements, in order, of all connections. */
  statements: string[]
  /** The texts of all statements that were run, each time: also those that were prepared before, and have a name. */
  runs: string[]
  /** The number of connections, and the largest number at a time. */
  connections: { all: number; most: number }
}

export async function wiretap(targetUrl: string): Promise<Wiretap> {
  const target = new URL(targetUrl)
  const statements: string[] = []
  const runs: string[] = []
  const connections = { all: 0, most: 0 }
  const open = new Set<net.Socket>()
  const listener = net.createServer({ noDelay: true }, (client) => {
    const server = net.connect({ host: target.hostname, port: Number(target.port), noDelay: true })
    open.add(client)
    connections.all++
    connections.most = Math.max(connections.most, open.size)
    const prepared = new Map<string, string>()
    const record = messages((type, body) => {
      // Query: text. Parse: a name, and the text.
      if (type === 'Q') statements.push(text(body, 0))
      if (type === 'P') statements.push(text(body, body.indexOf(0) + 1))
      if (type === 'Q') runs.push(text(body, 0))
      if (type === 'P') prepared.set(text(body, 0), text(body, body.indexOf(0) + 1))
      // Bind: a portal, and the name of what was prepared.
      if (type === 'B') runs.push(prepared.get(text(body, body.indexOf(0) + 1)) ?? '')
    })
    client.on('data', record)
    client.pipe(server).pipe(client)
    for (const socket of [client, server]) socket.on('error', () => {})
    client.on('close', () => {
      open.delete(client)
      server.destroy()
    })
    server.on('close', () => client.destroy())
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const url = new URL(targetUrl)
  url.port = String((listener.address() as net.AddressInfo).port)
  return {
    url: url.href,
    statements,
    runs,
    connections,
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy()
      listener.close()
    },
  }
}

const text = (body: Buffer, from: number) => body.toString('utf8', from, body.indexOf(0, from))

/** Splits the bytes into messages: a type, a length that includes itself, a body. The first message has no type. */
function messages(receive: (type: string, body: Buffer) => void): (bytes: Buffer) => void {
  let rest = Buffer.alloc(0)
  let began = false
  return (bytes) => {
    rest = Buffer.concat([rest, bytes])
    for (;;) {
      const head = began ? 5 : 4
      if (rest.length < head) return
      const end = head - 4 + rest.readUInt32BE(head - 4)
      if (rest.length < end) return
      if (began) receive(String.fromCharCode(rest[0] as number), rest.subarray(head, end))
      began = true
      rest = rest.subarray(end)
    }
  }
}
