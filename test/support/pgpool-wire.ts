/**
 * A wire that behaves like Pgpool-II 4.3.5 in front of a server, as far as a client can see it: it answers `show pool_version` and
 * `pgpool show …`, and in its mode `raw` a transaction is open after the first INSERT.
 */
import { once } from 'node:events'
import * as net from 'node:net'

export interface PgpoolWire extends AsyncDisposable {
  url: string
}

export async function pgpoolWire(targetUrl: string, settings: Record<string, string>): Promise<PgpoolWire> {
  const target = new URL(targetUrl)
  const open = new Set<net.Socket>()
  const listener = net.createServer({ noDelay: true }, (client) => {
    const server = net.connect({ host: target.hostname, port: Number(target.port), noDelay: true })
    let began = false // the login has no type, and is one packet here
    let inserts = false
    client.on('data', (bytes) => {
      const asked = /^Q....(?:pgpool show |show (?=pool_version))(\w+)\0$/s.exec(bytes.toString('latin1'))?.[1]
      if (began && asked) return void client.write(answer(asked, settings[asked] ?? '4.3.5'))
      began = true
      inserts = settings.backend_clustering_mode === 'raw' && /\binsert into\b/i.test(bytes.toString('latin1'))
      if (inserts) server.write(framed('Q', text('begin')))
      server.write(bytes)
    })
    // The answer to that BEGIN is kept from the client, as Pgpool-II does.
    server.on('data', (bytes) => {
      const end = inserts ? bytes.indexOf(READY_IN_TRANSACTION) + READY_IN_TRANSACTION.length : 0
      inserts = false
      client.write(bytes.subarray(end))
    })
    for (const [socket, other] of [
      [client, server],
      [server, client],
    ] as const) {
      open.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => other.destroy())
    }
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const url = Object.assign(new URL(targetUrl), { port: (listener.address() as net.AddressInfo).port }).href
  return {
    url,
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy()
      listener.close()
    },
  }
}

const READY_IN_TRANSACTION = Buffer.from('Z\0\0\0\x05T', 'latin1')
const text = (value: string) => Buffer.from(`${value}\0`)

function framed(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5)
  head.write(type, 'latin1')
  head.writeUInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}

/** One row of one column. */
function answer(name: string, value: string): Buffer {
  const column = Buffer.alloc(18)
  column.writeUInt32BE(25, 6) // text
  column.writeInt16BE(-1, 10)
  column.writeInt32BE(-1, 12)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(Buffer.byteLength(value))
  const one = Buffer.from([0, 1])
  return Buffer.concat([
    framed('T', Buffer.concat([one, text(name), column])),
    framed('D', Buffer.concat([one, length, Buffer.from(value)])),
    framed('C', text('SELECT 1')),
    framed('Z', Buffer.from('I')),
  ])
}
