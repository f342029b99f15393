/**
 * A wire between a client and PostgreSQL (without TLS) on which one statement fails, in each of the ways in which a statement can:
 *
 * | fault    | the server                                   | the client                                             |
 * |----------|----------------------------------------------|--------------------------------------------------------|
 * | `before` | never sees it                                | gets an error                                          |
 * | `undone` | runs it, and rolls it back                   | gets an error                                          |
 * | `after`  | runs it, and commits it                      | gets an error                                          |
 * | `cut`    | never sees it; the connection ends           | the connection ends                                    |
 * | `mute`   | runs it; the connection ends                 | the connection ends instead of an answer               |
 * | `fatal`  | never sees it; the connection ends           | a FATAL error, in one packet with the answer before it |
 *
 * Statements are counted over all connections, in the order in which the client sends them: a simple query, or the messages of an
 * extended query up to its Sync. `undone` happens when a function takes session locks and then fails: the locks stay.
 * No server does `after`; a proxy between client and server might.
 */
import { once } from 'node:events'
import * as net from 'node:net'

export const FAULTS = ['before', 'undone', 'after', 'cut', 'mute', 'fatal'] as const
export type Fault = (typeof FAULTS)[number]

/** Which statement meets which fault: the nth, or the first that contains `like`. */
export type Armed = { fault: Fault; sqlState: string } & ({ nth: number } | { like: RegExp })

export interface Wire extends AsyncDisposable {
  /** The connection string through the wire. */
  url: string
  /** Counts statements from now on, and makes the nth (from 1) meet the fault; without a fault it only counts. */
  arm(fault?: Armed): void
  /** The texts of the statements since `arm`, in order. */
  readonly statements: string[]
  /** The statement that met the fault. */
  readonly hit: string | undefined
}

interface Request {
  fault: Fault | undefined
  /** Whether its answer is kept from the client. */
  swallowed?: boolean
}

export async function wire(targetUrl: string): Promise<Wire> {
  const target = new URL(targetUrl)
  const open = new Set<net.Socket>()
  let statements: string[] = []
  let plan: Armed | undefined
  let hit: string | undefined

  const next = (text: string): Fault | undefined => {
    statements.push(text)
    const meant = plan && ('nth' in plan ? statements.length === plan.nth : hit === undefined && plan.like.test(text))
    if (!plan || !meant) return undefined
    hit = text
    return plan.fault
  }

  const listener = net.createServer({ noDelay: true }, (client) => {
    const server = net.connect({ host: target.hostname, port: Number(target.port), noDelay: true })
    const queue: Request[] = [{ fault: undefined }] // the first message is the login
    const prepared = new Map<string, string>()
    let group: Buffer[] = []
    let text = ''
    let idle = true // not within a transaction, as far as the server has answered
    let answer: Buffer[] = [] // held back while the next request is one that ends in FATAL
    open.add(client)
    const end = () => {
      client.destroy()
      server.destroy()
    }
    const flush = () => {
      const [head] = queue
      if (head?.fault === 'fatal') {
        client.write(Buffer.concat([...answer, failure('FATAL', plan?.sqlState ?? '57P01')]))
        client.end(() => setImmediate(end))
      } else if (answer.length > 0) client.write(Buffer.concat(answer))
      answer = []
    }

    const ask = (bytes: Buffer[], said: string) => {
      const fault = next(said)
      queue.push({ fault })
      if (fault === 'cut') return end()
      if (fault === 'fatal') {
        if (queue.length === 1) flush()
        return
      }
      if (fault === 'before') server.write(query(raising(plan?.sqlState ?? '')))
      else if (fault === 'undone' && idle) {
        queue.splice(-1, 0, { fault: undefined, swallowed: true })
        queue.push({ fault: undefined, swallowed: true })
        server.write(Buffer.concat([query('begin'), ...bytes, query('rollback')]))
      } else server.write(Buffer.concat(bytes))
    }

    client.on(
      'data',
      messages(false, (type, message) => {
        const body = message.subarray(5)
        if (type === undefined || type === 'X' || type === 'p') return void server.write(message)
        group.push(message)
        if (type === 'P') {
          const [name, statement] = [cString(body, 0), cString(body, body.indexOf(0) + 1)]
          text = statement
          if (name !== '') prepared.set(name, statement)
        } else if (type === 'B') {
          const name = cString(body, body.indexOf(0) + 1)
          text = prepared.get(name) ?? text
        } else if (type === 'Q') text = cString(body, 0)
        if (type !== 'Q' && type !== 'S') return
        const bytes = group
        group = []
        ask(bytes, text)
      }),
    )

    server.on(
      'data',
      messages(true, (type, message) => {
        const [head] = queue
        if (!head || 'ANS'.includes(type ?? '')) return void (head?.swallowed || client.write(message))
        if (type !== 'Z') {
          const failed = head.fault === 'after' || head.fault === 'undone'
          const dropped = head.swallowed || (failed && 'DCEI'.includes(type ?? ''))
          if (!dropped && head.fault !== 'mute') answer.push(message)
          return
        }
        if (head.fault === 'mute') return end()
        queue.shift()
        const status = String.fromCharCode(message[5] as number)
        if (head.fault === 'undone' && idle) {
          answer.push(failure('ERROR', plan?.sqlState ?? ''), Buffer.from('Z\0\0\0\x05I', 'latin1'))
          return flush()
        }
        if (!head.swallowed) idle = status === 'I'
        if (head.fault === 'after' || head.fault === 'undone') {
          answer.push(failure('ERROR', plan?.sqlState ?? ''))
          if (status !== 'I') {
            // it is within a transaction, which has failed now
            queue.unshift({ fault: undefined, swallowed: true })
            server.write(query(raising(plan?.sqlState ?? '')))
            answer.push(Buffer.from('Z\0\0\0\x05E', 'latin1'))
            return flush()
          }
        }
        if (!head.swallowed) answer.push(message)
        flush()
      }),
    )
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
  url.host = `127.0.0.1:${(listener.address() as net.AddressInfo).port}`
  return {
    url: url.href,
    arm(fault) {
      plan = fault
      statements = []
      hit = undefined
    },
    get statements() {
      return statements
    },
    get hit() {
      return hit
    },
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy()
      listener.close()
    },
  }
}

const cString = (body: Buffer, from: number) => body.toString('utf8', from, body.indexOf(0, from))

function framed(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5)
  head.write(type, 'latin1')
  head.writeUInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}
const query = (text: string) => framed('Q', Buffer.from(`${text}\0`))
const raising = (sqlState: string) => `do $$ begin raise exception 'injected' using errcode = '${sqlState}'; end $$`
// In Italian, as with lc_messages: nothing may depend on the texts. The field V is never translated, but pg does not show it.
const ITALIAN: Record<string, string> = { ERROR: 'ERRORE', FATAL: 'FATALE' }
const failure = (severity: string, code: string) =>
  framed('E', Buffer.from(`S${ITALIAN[severity]}\0V${severity}\0C${code}\0Miniettato\0\0`))

/** Splits a byte stream into whole messages; the client's first message has no type. */
function messages(typed: boolean, heard: (type: string | undefined, message: Buffer) => void): (bytes: Buffer) => void {
  let rest = Buffer.alloc(0)
  let began = typed
  return (bytes) => {
    rest = Buffer.concat([rest, bytes])
    for (;;) {
      const head = began ? 5 : 4
      if (rest.length < head) return
      const end = head - 4 + rest.readUInt32BE(head - 4)
      if (rest.length < end) return
      const message = rest.subarray(0, end)
      rest = rest.subarray(end)
      const type = began ? String.fromCharCode(message[0] as number) : undefined
      began = true
      heard(type, message)
    }
  }
}
