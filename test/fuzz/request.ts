/**
 * Requests made from the OpenAPI document: for each operation paths, queries, headers and bodies that it takes, and the same
 * with something wrong in them.
 *
 * A body is made as text, not as a value: much of what a parser can be fooled with (a key twice, 1e400, a BOM) is no value.
 * Most fields are right most of the time; a request that is wrong in everything is refused at the first, and tests nothing
 * behind it. Tokens, ids and cursors are written as `@token:3` and become, when it is sent, one that an earlier answer told
 * ({@link Memory}): so what is generated stays the same for a seed, and still meets live locks and jobs.
 */
import { createHash } from 'node:crypto'
import * as fc from 'fast-check'
import { NAMES, oddBody, oddHeader, oddJson, oddSegment, oddString } from './odd.ts'

// biome-ignore lint/suspicious/noExplicitAny: a JSON document, looked into at many depths
export type Document = any

export interface Ask {
  method: string
  /** With its query, as it is sent. */
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
/** The keys that requests have: LOCKSTEP_API_KEYS. */
export const KEYS = Object.entries(SCOPES)
  .map(([id, scopes]) => `${id}:${createHash('sha256').update(SECRET).digest('hex')}:${scopes}`)
  .join(',')

/** A request, of any operation of the document. */
export function requests(document: Document): fc.Arbitrary<Ask> {
  const operations = Object.entries<Document>(document.paths).flatMap(([path, item]) =>
    Object.entries<Document>(item).map(([method, operation]) => requestOf(document, path, method, operation)),
  )
  return fc.oneof({ weight: 20, arbitrary: fc.oneof(...operations) }, { weight: 1, arbitrary: astray })
}

/** The same in one line, to be tried again by hand. */
export function curl({ method, path, headers, body }: Ask): string {
  const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`
  const shown = body && JSON.stringify(body.subarray(0, 2_000).toString('latin1'))
  const said = headers.map(([name, value]) => ` -H ${quoted(`${name}: ${value}`)}`).join('')
  return `curl -X ${method} ${quoted(`http://localhost:3000${path}`)}${said}${shown ? ` --data-binary ${shown}` : ''}`
}

/** What answers told, for the requests that follow. */
export class Memory {
  readonly #told: Record<string, string[]> = {
    token: ['1'],
    id: ['00000000-0000-4000-8000-000000000000'],
    next: ['1.1'],
  }

  /** Puts what was told in the place of `@token:3`. */
  recall(text: string): string {
    return text.replaceAll(/@(token|id|next)(?::|%3A)(\d+)/g, (_, kind: string, n: string) => {
      const told = this.#told[kind] ?? []
      return told.at(-1 - (Number(n) % told.length)) ?? ''
    })
  }

  /** Remembers tokens, ids and cursors of an answer: the latest of them. */
  learn(value: unknown): void {
    if (typeof value !== 'object' || value === null) return
    for (const [key, inner] of Object.entries(value)) {
      const kind = key === 'cursor' ? 'next' : key
      if (typeof inner === 'string' && Object.hasOwn(this.#told, kind)) {
        const told = this.#told[kind] as string[]
        told.push(inner)
        if (told.length > 20) told.shift()
      } else this.learn(inner)
    }
  }
}

/** Paths and methods of no operation. */
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

/** The first, but once in `times` the second. */
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
    const said = pairs.filter((pair) => pair !== '')
    return said.length > 0 ? `?${said.join('&')}` : ''
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

// By name, where the schema does not tell what makes sense; and waits, so that they are short.
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

/** Text of JSON that the schema takes, with something wrong in it now and then. */
const jsonText = (document: Document, schema: Document, name: string): fc.Arbitrary<string> =>
  often(rightly(document, schema, name), oddJson, name === '' ? 40 : 12)

/** What a `$ref` of the document leads to. */
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
