/**
 * Requests that are generated from the OpenAPI document: for each operation, the paths, queries, headers and bodies that it
 * accepts, and the same with a fault in them.
 *
 * A body is generated as text, not as a value: many texts that confuse a parser (a key twice, 1e400, a BOM) have no value.
 * Most fields are correct most of the time: a request with many faults is refused for the first one, and does not test the code
 * behind that. Tokens, ids and cursors are generated as `@token:3`. When the request is sent, they are replaced by a value from
 * an earlier answer ({@link Memory}). So a seed always generates the same requests, and they still reach live locks and jobs.
 */
import { createHash } from 'node:crypto'
import * as fc from 'fast-check'
import { NAMES, oddBody, oddHeader, oddJson, oddSegment, oddString } from './odd.ts'

// biome-ignore lint/suspicious/noExplicitAny: a JSON document, read at many depths
export type Document = any

export interface Ask {
  method: string
  /** The path with its query, as it is sent. */
  path: string
  headers: [string, string][]
  body: Buffer | undefined
}

const SECRET = 'secret'
const SCOPES = {
  all: 'locks:write+leaders:write+tasks:write+streams:write+time:read+admin',
  reader: 'locks:read+leaders:read+tasks:read+streams:read+time:read',
  bound: 'locks:write+leaders:write+tasks:write+streams:write+admin:a',
  narrow: 'time:read',
}
/** The keys of the requests: LOCKSTEP_API_KEYS. */
export const KEYS = Object.entries(SCOPES)
  .map(([id, scopes]) => `${id}:${createHash('sha256').update(SECRET).digest('hex')}:${scopes}`)
  .join(',')

/** Generates a request of any operation of the document. */
export function requests(document: Document): fc.Arbitrary<Ask> {
  const operations = Object.entries<Document>(document.paths).flatMap(([path, item]) =>
    Object.entries<Document>(item).map(([method, operation]) => requestOf(document, path, method, operation)),
  )
  return fc.oneof({ weight: 20, arbitrary: fc.oneof(...operations) }, { weight: 1, arbitrary: astray })
}

/** The request as a command line, to repeat it by hand. */
export function curl({ method, path, headers, body }: Ask): string {
  const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`
  const shown = body && JSON.stringify(body.subarray(0, 2_000).toString('latin1'))
  const options = headers.map(([name, value]) => ` -H ${quoted(`${name}: ${value}`)}`).join('')
  return `curl -X ${method} ${quoted(`http://localhost:3000${path}`)}${options}${shown ? ` --data-binary ${shown}` : ''}`
}

/** Values from earlier answers, for later requests. */
export class Memory {
  readonly #values: Record<string, string[]> = {
    token: ['1'],
    id: ['00000000-0000-4000-8000-000000000000'],
    next: ['1.1'],
  }

  /** Replaces `@token:3` by a value. */
  recall(text: string): string {
    return text.replaceAll(/@(token|id|next)(?::|%3A)(\d+)/g, (_, kind: string, n: string) => {
      const values = this.#values[kind] ?? []
      return values.at(-1 - (Number(n) % values.length)) ?? ''
    })
  }

  /** Stores the tokens, ids and cursors of an answer; keeps the latest twenty. */
  learn(value: unknown): void {
    if (typeof value !== 'object' || value === null) return
    for (const [key, inner] of Object.entries(value)) {
      const kind = key === 'cursor' ? 'next' : key
      if (typeof inner === 'string' && Object.hasOwn(this.#values, kind)) {
        const values = this.#values[kind] as string[]
        values.push(inner)
        if (values.length > 20) values.shift()
      } else this.learn(inner)
    }
  }
}

/** Paths and methods that belong to no operation. */
const astray = fc
  .record({
    method: fc.constantFrom('GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS', 'PROPFIND'),
    segments: fc.array(
      fc.oneof(fc.constantFrom('v1', 'locks', 'tasks', 'streams', 'groups', 'healthz', 'a'), oddSegment),
    ),
    headers: fc.array(fc.constant<[string, string]>(['Authorization', `Bearer all.${SECRET}`]), { maxLength: 1 }),
  })
  .map(({ method, segments, headers }): Ask => ({ method, path: `/${segments.join('/')}`, headers, body: undefined }))

function requestOf(document: Document, path: string, method: string, operation: Document): fc.Arbitrary<Ask> {
  const content = operation.requestBody?.content['application/json'].schema
  return fc
    .record({
      path: fc.tuple(...path.split('/').map(segment)).map((segments) => segments.join('/')),
      query: query(operation.parameters ?? []),
      headers: headers(content !== undefined),
      body: content ? often(jsonText(document, content, ''), oddBody, 12) : fc.constant(undefined),
      bytes: often(fc.constant(undefined), fc.uint8Array({ minLength: 1, maxLength: 4 }), 40),
    })
    .map(({ path, query, headers, body, bytes }) => ({
      method: method.toUpperCase(),
      path: path + query,
      headers,
      body: body === undefined ? undefined : Buffer.concat([Buffer.from(body), ...(bytes ? [bytes] : [])]),
    }))
}

/** Generates the first, and once in `times` the second. */
const often = <A, B>(right: fc.Arbitrary<A>, wrong: fc.Arbitrary<B>, times: number): fc.Arbitrary<A | B> =>
  fc.oneof({ weight: times - 1, arbitrary: right }, { weight: 1, arbitrary: wrong })

function segment(template: string): fc.Arbitrary<string> {
  const name = fc.constantFrom(...NAMES).map(encodeURIComponent)
  if (template === '{name}') return often(name, oddSegment, 5)
  if (template === '{id}') return often(remembered('id'), oddSegment, 5)
  return fc.constant(template)
}

const remembered = (kind: string) => fc.nat({ max: 5 }).map((n) => `@${kind}:${n}`)

function query(parameters: Document[]): fc.Arbitrary<string> {
  const known = parameters
    .filter((each) => each.in === 'query')
    .map(({ name, required, schema }) => {
      const right = rightly({}, schema, name).map((text) => String(JSON.parse(text)))
      const pair = often(right.map(encoded), oddSegment, 8).map((text) => `${name}=${text}`)
      return fc.option(pair, { freq: required ? 20 : 2, nil: '' })
    })
  const extra = often(
    fc.constant(''),
    fc.tuple(oddSegment, oddSegment).map((pair) => pair.join('=')),
    25,
  )
  return fc.tuple(...known, extra).map((pairs) => {
    const present = pairs.filter((pair) => pair !== '')
    return present.length > 0 ? `?${present.join('&')}` : ''
  })
}
const encoded = (text: string) => encodeURIComponent(text.toWellFormed()).replaceAll('%40', '@').replaceAll('%3A', ':')

function headers(withBody: boolean): fc.Arbitrary<[string, string][]> {
  const one = (name: string, right: fc.Arbitrary<string | undefined>, times: number) =>
    often(right, oddHeader, times).map((value): [string, string][] => (value === undefined ? [] : [[name, value]]))
  const key = fc.constantFrom('all', 'all', 'all', 'all', 'all', 'all', 'bound', 'reader', 'narrow', 'nobody')
  return fc
    .tuple(
      one(
        'Authorization',
        key.map((id) => `Bearer ${id}.${SECRET}`),
        40,
      ),
      one('Content-Type', fc.constant(withBody ? 'application/json' : undefined), 30),
      one('Accept', fc.constantFrom(undefined, undefined, undefined, 'application/json', 'text/event-stream'), 20),
      one('Last-Event-ID', fc.constantFrom(undefined, undefined, undefined, '1', '7'), 20),
      one('X-Request-Id', fc.constant(undefined), 30),
      one('Expect', fc.constant(undefined), 60),
    )
    .map((all) => all.flat())
}

// Values by field name, where the schema allows senseless ones; and waits, so that they are short.
const BY_NAME: Record<string, fc.Arbitrary<unknown>> = {
  waitMs: fc.integer({ min: 0, max: 20 }),
  budgetMs: fc.integer({ min: 100, max: 120 }),
  token: remembered('token'),
  next: remembered('next'),
  event: remembered('next'),
  id: remembered('id'),
  holder: fc.constantFrom('h1', 'h2'),
  prefix: fc.constantFrom('', 'a', 'a/'),
  after: fc.constantFrom(...NAMES),
  stream: fc.constantFrom(...NAMES),
  queue: fc.constantFrom('a', 'b', 'a/b'),
  deadLetter: fc.constantFrom('a', 'b', 'nowhere'),
  cron: fc.constantFrom('* * * * *', '*/2 * * * * *', '30 2 * * 0', '0 0 29 2 *'),
  timezone: fc.constantFrom('UTC', 'Europe/Berlin', 'Nowhere/At_all'),
  startAfter: fc.constantFrom('2026-01-01T00:00:00Z', '9999-12-31T23:59:59+14:00'),
  expected: fc.constantFrom('any', 'none', 'exists', '0', '1', '2'),
  from: fc.oneof(fc.constantFrom('1', '2', 'start', 'end'), remembered('next')),
  before: fc.constantFrom('1', '2', '3', '9223372036854775807'),
  type: fc.constantFrom('t', 'placed'),
}

/** JSON text that the schema accepts, sometimes with a fault. */
const jsonText = (document: Document, schema: Document, name: string): fc.Arbitrary<string> =>
  often(rightly(document, schema, name), oddJson, name === '' ? 40 : 12)

/** The target of a `$ref` of the document. */
export const referred = (document: Document, ref: string): Document =>
  ref
    .slice(2)
    .split('/')
    .reduce((node, step) => node[step], document)

function rightly(document: Document, schema: Document, name: string): fc.Arbitrary<string> {
  const known = BY_NAME[name]
  if (known) return known.map((value) => JSON.stringify(value))
  if (schema.$ref) return rightly(document, referred(document, schema.$ref), name)
  if (schema.anyOf) return fc.oneof(...(schema.anyOf as Document[]).map((each) => jsonText(document, each, '')))
  if ('const' in schema) return fc.constant(JSON.stringify(schema.const))
  if (schema.enum) return fc.constantFrom<unknown>(...schema.enum).map((each) => JSON.stringify(each) ?? '')
  const { minimum: min = 0, maximum: max = 1_000 } = schema
  switch (schema.type) {
    case 'integer':
      return fc.oneof(fc.constantFrom(min, max), fc.integer({ min, max })).map(String)
    case 'number':
      return fc.double({ min, max, noNaN: true }).map((each) => JSON.stringify(each))
    case 'boolean':
      return fc.constantFrom('true', 'false')
    case 'string':
      return often(fc.constantFrom(...NAMES), oddString, 6).map((each) => JSON.stringify(each))
    case 'array':
      return fc.array(jsonText(document, schema.items, ''), { minLength: 1, maxLength: 3 }).map((all) => `[${all}]`)
    case 'object':
      return objectText(document, schema)
    default:
      return fc.json({ maxDepth: 2 })
  }
}

function objectText(document: Document, { properties = {}, required = [] }: Document): fc.Arbitrary<string> {
  const known = Object.entries<Document>(properties).map(([name, schema]) => {
    const field = jsonText(document, schema, name).map((text) => `${JSON.stringify(name)}:${text}`)
    return fc.option(field, { freq: required.includes(name) ? 30 : 1, nil: undefined })
  })
  const key = fc.constantFrom('x', '__proto__', 'token', 'ttlMs', '', '\ud800').map((name) => JSON.stringify(name))
  const extra = often(
    fc.constant(undefined),
    fc.tuple(key, oddJson).map((pair) => pair.join(':')),
    30,
  )
  return fc.tuple(...known, extra).map((fields) => `{${fields.filter((each) => each !== undefined)}}`)
}
