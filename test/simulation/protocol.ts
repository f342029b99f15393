/** The messages of PostgreSQL's protocol, version 3, as far as pg sends and reads them. */

/** A message of the client. */
export type Asked =
  | { type: 'startup' }
  | { type: 'query'; text: string }
  | { type: 'parse'; name: string; text: string }
  | { type: 'bind'; statement: string; values: (string | null)[] }
  | { type: 'describe' }
  | { type: 'execute' }
  | { type: 'close' }
  | { type: 'sync' }
  | { type: 'flush' }
  | { type: 'terminate' }

/** Splits what a client has sent into messages. */
export class Reader {
  #rest: Buffer = Buffer.alloc(0)
  #started = false;

  *read(data: Buffer): Generator<Asked> {
    this.#rest = this.#rest.length === 0 ? data : Buffer.concat([this.#rest, data])
    for (;;) {
      const at = this.#started ? 1 : 0
      if (this.#rest.length < at + 4) return
      const length = at + this.#rest.readInt32BE(at)
      if (this.#rest.length < length) return
      const message = this.#rest.subarray(0, length)
      this.#rest = this.#rest.subarray(length)
      if (this.#started) yield asked(message)
      else {
        this.#started = true
        yield { type: 'startup' }
      }
    }
  }
}

function asked(message: Buffer): Asked {
  let at = 5
  const string = () => {
    const end = message.indexOf(0, at)
    const text = message.toString('utf8', at, end)
    at = end + 1
    return text
  }
  switch (String.fromCharCode(message[0] as number)) {
    case 'Q':
      return { type: 'query', text: string() }
    case 'P':
      return { type: 'parse', name: string(), text: string() }
    case 'B': {
      string() // the portal
      const statement = string()
      at += 2 + 2 * message.readInt16BE(at)
      const count = message.readInt16BE(at)
      at += 2
      const values = Array.from({ length: count }, () => {
        const length = message.readInt32BE(at)
        at += 4
        if (length < 0) return null
        at += length
        return message.toString('utf8', at - length, at)
      })
      return { type: 'bind', statement, values }
    }
    case 'D':
      return { type: 'describe' }
    case 'E':
      return { type: 'execute' }
    case 'C':
      return { type: 'close' }
    case 'S':
      return { type: 'sync' }
    case 'H':
      return { type: 'flush' }
    case 'X':
      return { type: 'terminate' }
  }
  throw new Error(`The simulated server does not know the message ${String.fromCharCode(message[0] as number)}`)
}

const framed = (type: string, ...parts: Buffer[]): Buffer => {
  const body = Buffer.concat(parts)
  const head = Buffer.alloc(5)
  head.write(type)
  head.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}
const int32 = (n: number) => {
  const buffer = Buffer.alloc(4)
  buffer.writeInt32BE(n)
  return buffer
}
const int16 = (n: number) => {
  const buffer = Buffer.alloc(2)
  buffer.writeInt16BE(n)
  return buffer
}
const text = (value: string) => Buffer.from(`${value}\0`)

/** A row: values, already as PostgreSQL writes them, by column; null is NULL. */
export type Row = Record<string, string | null>

/** The types of columns whose type is not text, by their oid. */
const OIDS: Record<string, number> = {
  bool: 16,
  int8: 20,
  int4: 23,
  float8: 701,
  timestamptz: 1184,
  'int8[]': 1016,
  'int4[]': 1007,
  'text[]': 1009,
  'float8[]': 1022,
  'timestamptz[]': 1185,
  jsonb: 3802,
}

const COLUMNS = new WeakMap<object, Buffer>()
const columns = (types: Record<string, string>): Buffer =>
  framed(
    'T',
    int16(Object.keys(types).length),
    ...Object.entries(types).flatMap(([name, type]) => [
      ...[text(name), int32(0), int16(0), int32(OIDS[type] ?? 25), int16(-1), int32(-1), int16(0)],
    ]),
  )

export const SAYS = {
  authenticated: framed('R', int32(0)),
  parameter: (name: string, value: string) => framed('S', text(name), text(value)),
  key: (pid: number) => framed('K', int32(pid), int32(0)),
  ready: (status: 'I' | 'T' | 'E') => framed('Z', Buffer.from(status)),
  parsed: framed('1'),
  bound: framed('2'),
  closed: framed('3'),
  noData: framed('n'),
  columns: (types: Record<string, string>) => {
    const known = COLUMNS.get(types) ?? columns(types)
    COLUMNS.set(types, known)
    return known
  },
  row: (row: Row, types: Record<string, string>) =>
    framed(
      'D',
      int16(Object.keys(types).length),
      ...Object.keys(types).flatMap((name) => {
        const value = row[name] ?? null
        return value === null ? [int32(-1)] : [int32(Buffer.byteLength(value)), Buffer.from(value)]
      }),
    ),
  complete: (tag: string) => framed('C', text(tag)),
  error: (code: string, message: string, fatal = false, detail?: string) =>
    framed(
      'E',
      ...[`S${fatal ? 'FATAL' : 'ERROR'}`, `V${fatal ? 'FATAL' : 'ERROR'}`, `C${code}`, `M${message}`].map(text),
      ...(detail === undefined ? [] : [text(`D${detail}`)]),
      Buffer.from([0]),
    ),
  notification: (pid: number, channel: string, payload: string) =>
    framed('A', int32(pid), text(channel), text(payload)),
}
