/**
 * Streams over HTTP: what the routes take, refuse and answer, what keys may do, and how clients wait for events and follow them. Groups:
 * groups.test.ts.
 *
 * Every answer in JSON passes through `call`, which remembers its status; the last tests compare that with openapi.json.
 * Tests that need a socket (clients that go away, a server that stops) have their own server.
 */
import { createHash } from 'node:crypto'
import * as net from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { type ServeOptions, serve } from '../../functions/adapters/node.ts'
import { createApp } from '../../functions/app.ts'
import { createEvents, type Events, type StoredEvent, type SubscribeOptions } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { seeded } from '../chaos/random.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

type App = ReturnType<typeof createApp>
// biome-ignore lint/suspicious/noExplicitAny: JSON of any route, looked into at many depths
type Json = any

let database: FreshDatabase
let lockstep: Lockstep
let events: Events
let app: App
const seen = new Map<string, Set<number>>()

beforeAll(async () => {
  database = await freshDatabase()
  lockstep = createLockstep({ connectionString: database.url })
  events = createEvents(lockstep)
  app = createApp(lockstep, { events })
})
afterAll(async () => {
  await lockstep?.close()
  await database?.close()
})

const leftovers: (() => unknown)[] = []
afterEach(async () => {
  vi.useRealTimers()
  for (const remove of leftovers.splice(0).reverse()) await remove()
})

interface Ask {
  /** A string is sent as it is, anything else as JSON. */
  body?: unknown
  key?: string
  signal?: AbortSignal
  on?: App
  headers?: Record<string, string>
}

async function call(method: string, path: string, { body, key, signal, on = app, headers = {} }: Ask = {}) {
  const response = await on.request(path, {
    method,
    body: (body === undefined || typeof body === 'string' ? (body as string) : JSON.stringify(body)) ?? null,
    headers: {
      ...(body !== undefined && { 'content-type': 'application/json' }),
      ...(key && { authorization: key }),
      ...headers,
    },
    ...(signal && { signal }),
  })
  note(method, path, response.status)
  expect(response.headers.get('cache-control')).toBe('no-store')
  const streams = response.headers.get('content-type') === 'text/event-stream'
  if (streams) await response.body?.cancel()
  const text = streams ? '' : await response.text()
  expect(text).not.toMatch(/postgres:|select |insert |\bat .*\.[tj]s:\d/i)
  const json: Json = text === '' ? undefined : JSON.parse(text)
  if (!response.ok) {
    expect(response.headers.get('content-type')).toBe('application/problem+json')
    expect(json).toMatchObject({ status: response.status, code: expect.stringMatching(/^[A-Z_]+$/) })
    expect(json.title).toBeTruthy()
  }
  return { status: response.status, headers: response.headers, json }
}

function note(method: string, path: string, status: number): void {
  const route = new URL(path, 'http://x').pathname.replace(/^\/v1\/streams\/[^/]+/, '/v1/streams/{name}')
  seen.set(`${method} ${route}`, (seen.get(`${method} ${route}`) ?? new Set()).add(status))
}

/** A stream of events, read as a client reads it. */
class Reader {
  readonly response: Response
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>
  readonly #decoder = new TextDecoder()
  #text = ''

  constructor(response: Response) {
    expect([response.status, response.headers.get('content-type')]).toEqual([200, 'text/event-stream'])
    if (!response.body) throw new Error('There is no body')
    this.response = response
    this.#reader = response.body.getReader()
    leftovers.push(() => this.cancel())
  }

  /** The next block, up to an empty line; `undefined`: the stream has ended. */
  async block(): Promise<string | undefined> {
    for (;;) {
      const at = this.#text.indexOf('\n\n')
      if (at >= 0) {
        const block = this.#text.slice(0, at)
        this.#text = this.#text.slice(at + 2)
        return block
      }
      const { done, value } = await this.#reader.read()
      if (done) return undefined
      this.#text += this.#decoder.decode(value, { stream: true })
    }
  }

  /** The next event. */
  async event(): Promise<{ event: string; id: string; data: Json }> {
    for (;;) {
      const block = await this.block()
      if (block === undefined) throw new Error('The stream has ended')
      const [, event = '', id = '', data] = /^event: ([^\r\n]*)\nid: ([^\r\n]*)\ndata: ([^\r\n]*)$/.exec(block) ?? []
      if (data !== undefined) return { event, id, data: JSON.parse(data) }
      expect(block).toMatch(/^(retry: \d+|: .*)$/)
    }
  }

  /** The data of the next so many events. */
  async next(count: number): Promise<Json[]> {
    const all: Json[] = []
    while (all.length < count) all.push((await this.event()).data.data)
    return all
  }

  cancel = () => this.#reader.cancel().catch(() => {})
}

const STREAM = { accept: 'text/event-stream' }

async function follow(path: string, { on = app, last, key }: { on?: App; last?: string; key?: string } = {}) {
  const headers = { ...STREAM, ...(last && { 'last-event-id': last }), ...(key && { authorization: key }) }
  const response = await on.request(path, { headers })
  note('GET', path, response.status)
  return new Reader(response)
}

async function door(options: Partial<ServeOptions> = {}) {
  const lockstep = createLockstep({ connectionString: database.url })
  const server = await serve({ lockstep, events: createEvents(lockstep), port: 0, ...options })
  leftovers.push(() => server.close())
  return server
}

let count = 0
const fresh = (prefix = 'stream') => `${prefix} ${++count}.` // none is the beginning of another
const at = (stream: string, more = '') => `/v1/streams/${encodeURIComponent(stream)}${more}`
const all = (prefix: string, more = '') => `/v1/events?prefix=${encodeURIComponent(prefix)}${more}`
const instant = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
const place = expect.stringMatching(/^[1-9]\d*$/)

const append = (stream: string, body: unknown, more: Ask = {}) => call('POST', at(stream), { body, ...more })
/** Appends events with these data, and nothing else. */
async function appended(stream: string, ...data: unknown[]): Promise<{ first: string; last: string }> {
  const { status, json } = await append(stream, { events: data.map((data) => ({ type: 'happened', data })) })
  expect([status, json]).toEqual([201, { first: place, last: place }])
  return json
}
const page = async (path: string) => {
  const { status, json } = await call('GET', path)
  expect(status).toBe(200)
  return json as { events: Json[]; next: string | null }
}
const dataOf = (events: Json[]) => events.map(({ data }) => data)

/** Holds every statement on events up while `during` runs; `queued` waits until so many stand there. */
async function locked<T>(during: (queued: (count?: number) => Promise<void>) => Promise<T>): Promise<T> {
  const other = await database.pool.connect()
  try {
    await other.query('begin; lock table lockstep.event in access exclusive mode')
    return await during((count = 1) =>
      until(`statements wait for events: ${count}`, async () => {
        const { rows } = await other.query(
          `select from pg_locks where not granted and relation = 'lockstep.event'::regclass
             and database = (select oid from pg_database where datname = current_database())`,
        )
        return rows.length >= count
      }),
    )
  } finally {
    await other.query('commit')
    other.release()
  }
}

/** A read that has asked the database, got nothing, and waits. In an object: awaited, it would be the answer. */
async function waitingRead(path: string, more: Ask = {}) {
  return locked(async (queued) => {
    const answer = call('GET', `${path}${path.includes('?') ? '&' : '?'}waitMs=20000`, more)
    await queued()
    return { answer }
  })
}

/** The same events, but for how they are subscribed to. */
function subscribing(subscribe: (options: SubscribeOptions) => AsyncGenerator<StoredEvent, void, void>): Events {
  const get = (target: Events, key: keyof Events) =>
    key === 'subscribe' ? subscribe : (target[key] as () => unknown).bind(target)
  return new Proxy(events, { get: get as ProxyHandler<Events>['get'] & object })
}

describe('a stream', () => {
  test('is appended to, read, listed and looked at', async () => {
    const stream = fresh()
    expect(await page(at(stream))).toEqual({ events: [], next: '1' })
    const sent = [
      { type: 'ordered', data: { items: ['a', 1, null] }, meta: { by: 'me' }, id: 'order 1' },
      { type: 'paid', id: 'order 1, paid' },
    ]
    expect(await append(stream, { events: sent })).toMatchObject({ status: 201, json: { first: '1', last: '2' } })
    expect((await append(stream, { events: [{ type: 'sent', data: 'by post' }] })).json).toEqual({
      first: '3',
      last: '3',
    })

    const { events, next } = await page(at(stream))
    const common = { stream, cursor: place, at: instant }
    expect(events).toEqual([
      { ...common, position: '1', ...sent[0] },
      { ...common, position: '2', type: 'paid', data: null, meta: null, id: 'order 1, paid' },
      { ...common, position: '3', type: 'sent', data: 'by post', meta: null, id: null },
    ])
    expect(next).toBe('4')
    const cursors = events.map(({ cursor }) => BigInt(cursor))
    expect(cursors).toEqual(cursors.toSorted((a, b) => (a < b ? -1 : 1)))
    expect(new Set(cursors).size).toBe(3)

    const { json } = await call('GET', `/v1/streams?prefix=${encodeURIComponent(stream)}`)
    expect(json).toEqual({ streams: [{ name: stream, first: '1', position: '3' }], next: null })
  })

  test.each([
    [null],
    [0],
    [-1.5e300],
    [''],
    ['text 🔒\n'],
    [false],
    [[]],
    [{}],
    [{ a: { b: [] }, '': 1 }],
    ['\\u0000'],
  ])('carries %j as it was sent, as data and as meta', async (value) => {
    const stream = fresh()
    await append(stream, { events: [{ type: 't', data: value, meta: value }] })
    expect((await page(at(stream))).events[0]).toMatchObject({ data: value, meta: value })
    expect((await page(all(stream))).events[0]).toMatchObject({ data: value, meta: value })
  })

  test('is read in pages, forwards and backwards, each event once', async () => {
    const stream = fresh()
    await appended(stream, 1, 2, 3, 4, 5)
    const pages = async (path: string) => {
      const found: unknown[][] = []
      for (let next: string | null = ''; next !== null && found.length < 5; ) {
        const { events, next: more }: { events: Json[]; next: string | null } = await page(
          `${path}${next && `&from=${next}`}`,
        )
        if (events.length === 0) break
        found.push(dataOf(events))
        next = more
      }
      return found
    }
    expect(await pages(at(stream, '?limit=2'))).toEqual([[1, 2], [3, 4], [5]])
    expect(await pages(at(stream, '?limit=2&backwards=true'))).toEqual([[5, 4], [3, 2], [1]])
    expect((await page(at(stream, '?limit=2&backwards=true&from=1'))).next).toBe(null)
    expect(await page(at(stream, '?from=6'))).toEqual({ events: [], next: '6' })
    expect(await page(at(stream, '?from=9223372036854775807'))).toEqual({ events: [], next: '9223372036854775807' })
    expect(dataOf((await page(at(stream, '?backwards=true&from=9223372036854775807'))).events)).toEqual([5, 4, 3, 2, 1])
    expect(await page(at(fresh(), '?backwards=true'))).toEqual({ events: [], next: null })
  })

  test('takes as many events, and as large ones, as it may', async () => {
    const stream = fresh()
    const many = Array.from({ length: 10_000 }, (_, i) => ({ type: 't', data: i }))
    expect((await append(stream, { events: many })).json).toEqual({ first: '1', last: '10000' })
    const large = fresh()
    const data = 'x'.repeat(1_048_574)
    expect((await append(large, { events: [{ type: 't', data }] })).status).toBe(201)
    const events = [0, 1, 2].map(() => ({ type: 't', data }))
    expect((await append(large, { events })).json).toEqual({ first: '2', last: '4' })
    const found: Json[] = []
    for (let next = '1'; found.length < 4; ) {
      const { events, next: more } = await page(at(large, `?from=${next}`))
      found.push(...events)
      next = more ?? ''
    }
    expect(found.every((event) => event.data === data)).toBe(true)
  })
})

describe('an append', () => {
  test('is made only where the stream is as expected; otherwise it gets the position: 412', async () => {
    const stream = fresh()
    const events = [{ type: 't' }]
    for (const [expected, actual] of [
      ['exists', '0'],
      ['1', '0'],
      ['9223372036854775807', '0'],
      ['none', undefined],
      ['none', '1'],
      ['0', '1'],
      ['2', '1'],
      ['1', undefined],
      ['exists', undefined],
      ['any', undefined],
    ] as const) {
      const { status, json } = await append(stream, { events, expected })
      if (actual === undefined) expect([expected, status]).toEqual([expected, 201])
      else {
        expect(json).toMatchObject({ title: 'Precondition Failed', status: 412, code: 'POSITION_CONFLICT' })
        expect([json.expected, json.actual]).toEqual([expected, actual])
        expect(json.detail).toContain(stream)
      }
    }
    expect((await page(at(stream))).events.map(({ position }) => position)).toEqual(['1', '2', '3', '4'])
    const empty = fresh()
    expect((await append(empty, { events, expected: '0' })).json).toEqual({ first: '1', last: '1' })
  })

  test('of many callers that have read the same is made by one of them', async () => {
    const stream = fresh()
    await appended(stream, 'read by all')
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, i) => append(stream, { events: [{ type: 't', data: i }], expected: '1' })),
    )
    expect(answers.map(({ status }) => status).sort()).toEqual([201, ...Array(7).fill(412)])
    for (const { status, json } of answers)
      if (status === 412) expect(json).toMatchObject({ expected: '1', actual: '2' })
    expect(dataOf((await page(at(stream, '?from=2'))).events)).toEqual([answers.findIndex((a) => a.status === 201)])
  })

  test('made again with the same ids is 200 with the positions they have, whatever is expected', async () => {
    const stream = fresh()
    await appended(stream, 'before')
    const body = { events: ['a', 'b'].map((id) => ({ type: 't', data: id, id })), expected: '1' }
    expect(await append(stream, body)).toMatchObject({ status: 201, json: { first: '2', last: '3' } })
    await appended(stream, 'after')
    for (const expected of ['1', 'any', 'none']) {
      const again = await append(stream, { ...body, expected })
      expect([again.status, again.json]).toEqual([200, { first: '2', last: '3' }])
    }
    expect(dataOf((await page(at(stream))).events)).toEqual(['before', 'a', 'b', 'after'])
    const other = await append(fresh(), { events: body.events })
    expect(other).toMatchObject({ status: 201, json: { first: '1', last: '2' } }) // an id is of its stream
  })

  test('made by two at once with the same ids is made once', async () => {
    const stream = fresh()
    const body = { events: [{ type: 't', id: 'once' }] }
    const answers = await Promise.all(Array.from({ length: 4 }, () => append(stream, body)))
    expect(answers.map(({ status }) => status).sort()).toEqual([200, 200, 200, 201])
    for (const { json } of answers) expect(json).toEqual({ first: '1', last: '1' })
  })

  test.each([
    ['of which another event has one', [{ id: 'there' }, { id: 'new' }]],
    ['in another order', [{ id: 'there too' }, { id: 'there' }]],
    ['for some of them', [{ id: 'a' }, {}]],
    ['twice the same', [{ id: 'a' }, { id: 'a' }]],
  ])('with ids %s is 400, the field is `id`, and nothing is appended', async (_, ids) => {
    const stream = fresh()
    await append(stream, {
      events: [
        { type: 't', id: 'there' },
        { type: 't', id: 'there too' },
      ],
    })
    const answer = await append(stream, { events: ids.map((id) => ({ type: 't', ...id })) })
    expect(answer).toMatchObject({ status: 400, json: { code: 'INVALID_ARGUMENT', errors: [{ field: 'id' }] } })
    expect((await page(at(stream))).next).toBe('3')
  })

  test('of which one event is wrong is not made at all', async () => {
    const stream = fresh()
    const answer = await append(stream, { events: [{ type: 't' }, { type: '' }] })
    expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'events.1.type' }] } })
    expect((await page(at(stream))).events).toEqual([])
  })

  test('with the data of an event over 1 MiB is 413 and names it', async () => {
    const stream = fresh()
    const data = 'x'.repeat(1_048_575) // and two quotes
    const answer = await append(stream, { events: [{ type: 't' }, { type: 't', data }] })
    expect(answer).toMatchObject({ status: 413, json: { code: 'TOO_LARGE', errors: [{ field: 'events.1.data' }] } })
    expect(answer.json.errors[0].expected).toContain('1048576')
    expect((await page(at(stream))).events).toEqual([])
  })

  test('over 4 MiB is 413 and names the limit; up to there it is read', async () => {
    const body = (bytes: number) => `{ "events": "${'x'.repeat(bytes - 16)}" }`
    expect(body(4_194_304).length).toBe(4_194_304)
    const fits = await append(fresh(), body(4_194_304))
    expect(fits).toMatchObject({ status: 400, json: { errors: [{ field: 'events' }] } })
    const over = await append(fresh(), body(4_194_305))
    expect(over).toMatchObject({ status: 413, json: { code: 'TOO_LARGE' } })
    expect(over.json.detail).toContain('4194304')
  })
})

describe('all streams', () => {
  test('are read in one order, that of cursors, in which each stream has its own', async () => {
    const prefix = `${fresh('all')}/`
    const next = seeded(7)
    const sent: [string, number][] = []
    for (let i = 0; i < 30; i++) {
      const stream = `${prefix}${Math.floor(next() * 3)}`
      await appended(stream, i)
      sent.push([stream, i])
    }
    const found: Json[] = []
    for (let from = '1'; found.length < 30; ) {
      const { events, next } = await page(all(prefix, `&limit=7&from=${from}`))
      found.push(...events)
      from = next ?? ''
    }
    expect(found.map(({ stream, data }) => [stream, data])).toEqual(sent)
    const cursors = found.map(({ cursor }) => BigInt(cursor))
    expect(cursors).toEqual(cursors.toSorted((a, b) => (a < b ? -1 : 1)))
    const from = found[10].cursor
    expect(dataOf((await page(all(prefix, `&from=${from}&limit=2`))).events)).toEqual([10, 11])
    expect(dataOf((await page(all(`${prefix}0`))).events)).toEqual(
      sent.flatMap(([stream, i]) => (stream === `${prefix}0` ? [i] : [])),
    )
  })

  test('end before an event that may still commit, and go on with it', async () => {
    const prefix = `${fresh('all')}/`
    const opened = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const open = lockstep.kysely.transaction().execute(async (trx) => {
      await events.append(`${prefix}late`, { type: 't', data: 'late' }, { trx })
      opened.resolve()
      await release.promise
    })
    await Promise.race([opened.promise, open])
    await appended(`${prefix}early`, 'early')
    expect(dataOf((await page(at(`${prefix}early`))).events)).toEqual(['early'])
    const { events: none, next } = await page(all(prefix))
    expect(none).toEqual([])
    const { json } = await call('GET', at(`${prefix}early`, '/lag'))
    expect(json.horizon).toEqual({
      cursor: expect.any(String),
      last: place,
      holdups: [
        {
          pid: expect.any(Number),
          database: database.name,
          application: expect.stringContaining('lockstep'),
          user: expect.any(String),
          state: 'idle in transaction',
          ageMs: expect.any(Number),
        },
      ],
    })
    expect(BigInt(json.horizon.cursor)).toBeLessThan(BigInt(json.horizon.last))
    release.resolve()
    await open
    expect(dataOf((await page(all(prefix, `&from=${next}`))).events)).toEqual(['late', 'early'])
    expect((await call('GET', at(`${prefix}early`, '/lag'))).json.horizon.holdups).toEqual([])
  })

  test('are listed page by page, by name', async () => {
    const prefix = `${fresh('list')}/`
    const names = Array.from({ length: 5 }, (_, i) => `${prefix}${i}`)
    for (const name of names.toReversed()) await appended(name, 1)
    const pages: string[][] = []
    for (let next: string | null = ''; next !== null; ) {
      const query: string = `prefix=${encodeURIComponent(prefix)}&limit=2${next && `&after=${encodeURIComponent(next)}`}`
      const { json } = await call('GET', `/v1/streams?${query}`)
      pages.push(json.streams.map(({ name }: Json) => name))
      next = json.next
    }
    expect(pages).toEqual([names.slice(0, 2), names.slice(2, 4), names.slice(4)])
  })
})

describe('a caller that waits for an event', () => {
  test.each([
    ['of a stream', at],
    ['of all', all],
  ])('%s gets the one that is appended meanwhile', async (_, path) => {
    const stream = fresh()
    const { answer } = await waitingRead(path(stream))
    await appended(stream, 'awaited')
    const { status, json } = await answer
    expect([status, dataOf(json.events)]).toEqual([200, ['awaited']])
    expect(json.next).toBe(String(BigInt(path === at ? json.events[0].position : json.events[0].cursor) + 1n))
  })

  test.each([
    ['of a stream', at],
    ['of all', all],
  ])('%s is not answered for an event of another', async (_, path) => {
    const [stream, other] = [fresh(), fresh()]
    const { answer } = await waitingRead(path(stream))
    await appended(other, 'another')
    await appended(stream, 'awaited')
    expect(dataOf((await answer).json.events)).toEqual(['awaited'])
  })

  test('that is there does not wait, and in vain is answered with nothing', async () => {
    const stream = fresh()
    await appended(stream, 'there')
    expect(dataOf((await page(at(stream, '?waitMs=20000'))).events)).toEqual(['there'])
    expect(dataOf((await page(all(stream, '&waitMs=20000'))).events)).toEqual(['there'])
    expect(await page(at(stream, '?from=2&waitMs=50'))).toEqual({ events: [], next: '2' })
    expect((await page(all(fresh(), '&waitMs=50'))).events).toEqual([])
  })

  test.each([
    ['of a stream', at],
    ['of all', all],
  ])('%s and hangs up only stops waiting', async (_, path) => {
    const stream = fresh()
    const client = new AbortController()
    const { answer } = await waitingRead(path(stream), { signal: client.signal })
    client.abort()
    expect((await answer).status).toBe(499)
    await appended(stream, 'later')
    expect(dataOf((await page(path(stream))).events)).toEqual(['later'])
  })

  test.each([
    ['of a stream', at],
    ['of all', all],
  ])('%s gets 503 when the server stops; requests that do not wait still get an answer', async (_, path) => {
    const stopping = new AbortController()
    const on = createApp(lockstep, { events, signal: stopping.signal })
    const stream = fresh()
    const { answer } = await waitingRead(path(stream), { on })
    stopping.abort()
    expect(await answer).toMatchObject({ status: 503, json: { code: 'UNAVAILABLE' } })
    expect((await answer).headers.get('retry-after')).toBe('1')
    expect((await call('GET', path(stream), { on })).status).toBe(200)
    expect((await append(stream, { events: [{ type: 't' }] }, { on })).status).toBe(201)
  })
})

describe('truncating', () => {
  const truncate = (stream: string, before: number | string, more = '') =>
    call('DELETE', at(stream, `?before=${before}${more}`))

  test('removes what is before a position, and positions go on', async () => {
    const stream = fresh()
    await appended(stream, 1, 2, 3)
    expect(await truncate(stream, 3)).toMatchObject({ status: 200, json: { removed: 2, first: '3', waitingFor: [] } })
    expect((await truncate(stream, 3)).json).toEqual({ removed: 0, first: '3', waitingFor: [], more: false })
    expect(dataOf((await page(at(stream))).events)).toEqual([3])
    expect((await truncate(stream, '9223372036854775807')).json).toEqual({
      removed: 1,
      first: '4',
      waitingFor: [],
      more: false,
    })
    expect((await page(at(stream))).events).toEqual([])
    expect(await appended(stream, 4)).toEqual({ first: '4', last: '4' })
    const { json } = await call('GET', `/v1/streams?prefix=${encodeURIComponent(stream)}`)
    expect(json.streams).toEqual([{ name: stream, first: '4', position: '4' }])
    expect((await truncate(fresh(), 1)).json).toMatchObject({ removed: 0, waitingFor: [] })
  })

  test('waits for groups that have yet to read, and names them; by force it does not', async () => {
    const prefix = `${fresh('kept')}/`
    const stream = `${prefix}x`
    await appended(stream, 1, 2, 3)
    const group = fresh('group')
    await events.declareGroup(group, { prefix, partitions: 1 })
    expect((await truncate(stream, 3)).json).toEqual({ removed: 0, first: '1', waitingFor: [group], more: false })
    const [batch] = await events.poll(group, { holder: 'me', limit: 1 })
    if (!batch) throw new Error('There was nothing to poll')
    await events.commit(group, batch)
    expect((await truncate(stream, 3)).json).toEqual({ removed: 1, first: '2', waitingFor: [group], more: false })
    expect((await truncate(stream, 3, '&force=true')).json).toMatchObject({ removed: 1, first: '3' })
    expect(dataOf((await page(at(stream))).events)).toEqual([3])
  })
})

describe('the lag of a stream', () => {
  test('says of each group that reads it how far it is', async () => {
    const prefix = `${fresh('behind')}/`
    const stream = `${prefix}x`
    await appended(stream, 1, 2, 3)
    await events.declareGroup(`${prefix}all`, { partitions: 2, retryLimit: 0 })
    await events.declareGroup(`${prefix}mine`, { prefix, partitions: 2, retryLimit: 0 })
    await events.declareGroup(`${prefix}other`, { prefix: fresh(), partitions: 1 })
    const [batch] = await events.poll(`${prefix}mine`, { holder: 'me' })
    const [, second] = batch?.events ?? []
    if (!batch || !second) throw new Error('There was nothing to poll')
    await events.fail(`${prefix}mine`, { ...batch, event: second.cursor, reason: 'No' })
    const { status, json } = await call('GET', at(stream, '/lag'))
    expect(status).toBe(200)
    expect(json).toEqual({
      stream,
      position: '3',
      groups: [
        { group: `${prefix}all`, position: '0', behind: '3', state: 'reading' },
        { group: `${prefix}mine`, position: '1', behind: '2', state: 'parked' },
      ],
      more: false,
      horizon: { cursor: place, last: place, holdups: [] },
    })
    for (const name of ['all', 'mine', 'other']) await events.deleteGroup(`${prefix}${name}`)
  })

  test('to which nothing was ever appended is 404', async () => {
    expect(await call('GET', at(fresh(), '/lag'))).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
  })
})

describe('a follower', () => {
  test('of a stream gets when to connect again, what there is, and then what comes', async () => {
    const stream = fresh()
    await appended(stream, 1, { line: 'a\nb\u2028c' })
    const reader = await follow(at(stream))
    expect(reader.response.headers.get('cache-control')).toBe('no-store')
    expect(await reader.block()).toBe('retry: 1000')
    const first = await reader.event()
    expect(first).toEqual({
      event: 'event',
      id: '1',
      data: { stream, position: '1', cursor: place, type: 'happened', data: 1, meta: null, id: null, at: instant },
    })
    expect(first.data).toEqual((await page(at(stream))).events[0])
    expect(await reader.event()).toMatchObject({ id: '2', data: { data: { line: 'a\nb\u2028c' } } })
    for (let i = 3; i < 6; i++) {
      await appended(stream, i)
      expect(await reader.event()).toMatchObject({ event: 'event', id: String(i), data: { data: i } })
    }
  })

  test('all streams, or those under a prefix, is sent cursors for ids', async () => {
    const prefix = `${fresh('followed')}/`
    await appended(`${prefix}a`, 1)
    const reader = await follow(all(prefix))
    const first = await reader.event()
    expect(first).toMatchObject({ event: 'event', data: { stream: `${prefix}a`, position: '1', data: 1 } })
    expect(first.id).toBe(first.data.cursor)
    await appended(fresh(), 'of another')
    await appended(`${prefix}b`, 2)
    const second = await reader.event()
    expect(second.data).toMatchObject({ stream: `${prefix}b`, position: '1', data: 2 })
    const again = await follow(all(prefix), { last: first.id })
    expect(await again.event()).toEqual(second)
    const everything = await follow('/v1/events', { last: first.id })
    expect((await everything.next(2)) satisfies Json[]).toEqual(['of another', 2])
  })

  test('begins where it says, and after the last that was seen', async () => {
    const stream = fresh()
    await appended(stream, 1, 2, 3, 4)
    expect(await (await follow(at(stream, '?from=3'))).next(2)).toEqual([3, 4])
    expect(await (await follow(at(stream), { last: '3' })).next(1)).toEqual([4])
    expect(await (await follow(at(stream, '?from=1'), { last: '2' })).next(2)).toEqual([3, 4])
    const { events } = await page(all(stream))
    expect(await (await follow(all(stream, `&from=${events[2].cursor}`))).next(2)).toEqual([3, 4])
    expect(await (await follow(all(stream, '&from=1'), { last: events[2].cursor })).next(1)).toEqual([4])
    const ahead = await follow(at(stream, '?from=6'))
    expect(await ahead.block()).toBe('retry: 1000')
    await appended(stream, 5, 6)
    expect(await ahead.next(1)).toEqual([6])
    for (const path of [at(stream), all(stream)]) {
      const last = await call('GET', path, { headers: { ...STREAM, 'last-event-id': '9223372036854775806' } })
      expect(last.status).toBe(200)
    }
  })

  test.each(['x', '0', '-1', '1.5', '01', '1e3', '1,2', '9223372036854775807', '9'.repeat(50), '{}', '%00'])(
    'and sends the Last-Event-ID %j, which is none of ours, is told 400',
    async (last) => {
      for (const path of [at('x'), '/v1/events']) {
        const answer = await call('GET', path, { headers: { ...STREAM, 'last-event-id': last } })
        expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'last-event-id' }] } })
        expect(answer.json.errors[0].expected).toBe('a decimal string, 1–9223372036854775806')
      }
    },
  )

  test.each([
    ['limit', 'limit=10'],
    ['waitMs', 'waitMs=0'],
    ['backwards', 'backwards=true'],
  ])('cannot ask for %s as well', async (field, query) => {
    const paths = [at('x', `?${query}`), ...(field === 'backwards' ? [] : [`/v1/events?${query}`])]
    for (const path of paths) {
      const answer = await call('GET', path, { headers: STREAM })
      expect(answer).toMatchObject({ status: 400, json: { errors: [{ field }] } })
    }
  })

  test.each([
    ['text/event-stream', true],
    ['Text/Event-Stream; charset=utf-8', true],
    ['text/event-stream, application/json;q=0.9', true],
    ['text/html , text/event-stream;q=0.1, */*;q=0.5', true],
    ['', false],
    ['*/*', false],
    ['text/*', false],
    ['application/json', false],
    ['application/json, text/event-stream', false],
    ['text/event-stream;q=0.5, application/json', false],
    ['text/event-stream; q=0', false],
    ['text/event-stream;q=x', false],
    ['text/event-streams', false],
    ['x', false],
  ])('says so: Accept: %s', async (accept, streams) => {
    for (const path of [at('accept'), all('accept')]) {
      const { status, headers } = await call('GET', path, { headers: { accept } })
      expect(status).toBe(200)
      expect(headers.get('content-type')).toMatch(streams ? /^text\/event-stream$/ : /^application\/json\b/)
    }
  })

  test('is answered at once, and gets a comment whenever there was nothing to tell for a while', async () => {
    const on = createApp(lockstep, { events, keepAliveMs: 10 })
    const stream = fresh()
    for (const path of [at(stream), all(stream)]) {
      const reader = await follow(path, { on })
      expect(await reader.block()).toBe('retry: 1000')
      for (let i = 0; i < 3; i++) expect(await reader.block()).toMatch(/^: /)
      await appended(stream, path)
      expect((await reader.next(1))[0]).toBe(path)
      expect(await reader.block()).toMatch(/^: /)
      await reader.cancel()
      await call('DELETE', at(stream, '?before=100'))
    }
  })

  test('goes on after every cut where it was: nothing is lost, and nothing sent twice', async () => {
    const prefix = `${fresh('cut')}/`
    const chance = seeded(11)
    const whole = Array.from({ length: 300 }, (_, i) => i)
    const writing = (async () => {
      for (const i of whole) await appended(`${prefix}${i % 3}`, i)
      for (const i of whole) await appended(prefix, i)
    })()
    const everything: Json[] = []
    const one: Json[] = []
    const cut = async (path: string, into: Json[]) => {
      for (let last = ''; into.length < (path === at(prefix) ? 300 : 600); ) {
        const reader = await follow(path, { last })
        for (
          let left = 1 + Math.floor(chance() * 40);
          left > 0 && into.length < (path === at(prefix) ? 300 : 600);
          left--
        ) {
          const { id, data } = await reader.event()
          last = id
          into.push(data)
        }
        await reader.cancel()
      }
    }
    await Promise.all([writing, cut(all(prefix), everything), cut(at(prefix), one)])
    expect(dataOf(one)).toEqual(whole)
    expect(dataOf(everything)).toEqual([...whole, ...whole]) // one writer: so their order is that of cursors
    expect((await page(all(prefix, '&limit=1000'))).events).toEqual(everything)
  })

  test('and does not read is not read for, and misses nothing when it reads', async () => {
    const stream = fresh()
    const data = Array.from({ length: 3_000 }, (_, i) => i)
    for (let i = 0; i < 3; i++) await appended(stream, ...data.slice(i * 1_000, (i + 1) * 1_000))
    let taken = 0
    const counting = subscribing(async function* (options) {
      for await (const event of events.subscribe(options)) {
        taken++
        yield event
      }
    })
    const on = createApp(lockstep, { events: counting })
    const reader = await follow(at(stream), { on })
    expect(await reader.next(10)).toEqual(data.slice(0, 10)) // so that a page of a thousand is there
    await appended(stream, 'last')
    expect(taken).toBe(10)
    expect(await reader.next(2_991)).toEqual([...data.slice(10), 'last'])
  })

  test('counts towards maxStreams, as observers of leaders do; one more is 503 until one ends', async () => {
    const on = createApp(lockstep, { events, maxStreams: 3 })
    const stream = fresh()
    const leader = new Reader(await on.request('/v1/leaders/x/observe'))
    await leader.event()
    const readers = [await follow(at(stream), { on }), await follow(all(stream), { on })]
    for (const path of [at(stream), all(stream)]) {
      const refused = await call('GET', path, { on, headers: STREAM })
      expect(refused).toMatchObject({ status: 503, json: { code: 'UNAVAILABLE' } })
      expect(refused.headers.get('retry-after')).toBe('1')
      expect((await on.request(path, { method: 'HEAD', headers: STREAM })).status).toBe(503)
      expect((await call('GET', path, { on })).status).toBe(200)
    }
    expect((await on.request('/v1/leaders/x/observe')).status).toBe(503)
    for (const gone of [leader, ...readers]) {
      await gone.cancel()
      const path = gone === leader ? all(stream) : at(stream)
      await (await follow(path, { on })).block()
      expect((await call('GET', path, { on, headers: STREAM })).status).toBe(503)
    }
  })

  test('and asks by HEAD gets the headers, and no stream is left open', async () => {
    const on = createApp(lockstep, { events, maxStreams: 1 })
    for (const path of [at('x'), '/v1/events', at('x')]) {
      const response = await on.request(path, { method: 'HEAD', headers: STREAM })
      expect([response.status, response.headers.get('content-type')]).toEqual([200, 'text/event-stream'])
      expect(await response.text()).toBe('')
    }
    await (await follow(at('x'), { on })).block()
  })

  test('sees the end of the stream, and no failure, when the library is closed', async () => {
    const other = createLockstep({ connectionString: database.url })
    const on = createApp(other, { events: createEvents(other) })
    const stream = fresh()
    await appended(stream, 1)
    const readers = [await follow(at(stream), { on }), await follow(all(stream), { on })]
    for (const reader of readers) expect(await reader.next(1)).toEqual([1])
    const ends = readers.map((reader) => reader.block())
    await other.close()
    for (const end of ends) expect(await end).toBe(undefined)
  })

  test('sees the end of the stream when what it reads ends by itself', async () => {
    const stream = fresh()
    await appended(stream, 1)
    const ending = subscribing(async function* (options) {
      for await (const event of events.subscribe(options)) {
        yield event
        return
      }
    })
    const reader = await follow(at(stream), { on: createApp(lockstep, { events: ending }) })
    expect(await reader.next(1)).toEqual([1])
    expect(await reader.block()).toBe(undefined)
  })

  test('gets 503 once the server is stopping, and streams that were open have ended', async () => {
    const stopping = new AbortController()
    const on = createApp(lockstep, { events, signal: stopping.signal })
    const readers = [await follow(at('stop'), { on }), await follow(all('stop'), { on })]
    for (const reader of readers) expect(await reader.block()).toBe('retry: 1000')
    stopping.abort()
    for (const reader of readers) expect(await reader.block()).toBe(undefined)
    for (const path of [at('stop'), all('stop')]) {
      expect((await call('GET', path, { on, headers: STREAM })).status).toBe(503)
    }
  })
})

describe('over a socket', () => {
  test('a client that goes away gives its stream back', async () => {
    const { url } = await door({ maxStreams: 1, drainMs: 3_600_000 })
    const stream = fresh()
    for (const path of [at(stream), all(stream), at(stream)]) {
      const client = new AbortController()
      let response: Response | undefined
      await until('there is room again', async () => {
        response = await fetch(`${url}${path}`, { headers: STREAM, signal: client.signal })
        if (response.status !== 200) await response.text()
        return response.status === 200
      })
      expect(await new Reader(response as Response).block()).toBe('retry: 1000')
      const refused = await fetch(`${url}${path}`, { headers: STREAM })
      expect([refused.status, await refused.json()]).toMatchObject([503, { code: 'UNAVAILABLE' }])
      client.abort()
    }
  })

  test('an event is sent when it happens, not when a buffer is full', async () => {
    const { url } = await door()
    const stream = fresh()
    const reader = new Reader(await fetch(`${url}${at(stream)}`, { headers: STREAM }))
    expect(await reader.block()).toBe('retry: 1000') // before there is any event
    for (let i = 0; i < 3; i++) {
      await appended(stream, i)
      expect(await reader.next(1)).toEqual([i])
    }
  })

  test('a client that does not read gets all of it when it does', async () => {
    const { url } = await door()
    const stream = fresh()
    const data = Array.from({ length: 8 }, (_, i) => `${i}`.repeat(1_000_000)) // more than sockets hold
    for (const each of data) await appended(stream, each)
    const reader = new Reader(await fetch(`${url}${at(stream)}`, { headers: STREAM }))
    expect(await reader.block()).toBe('retry: 1000')
    await appended(stream, 'last')
    for (const each of [...data, 'last']) expect((await reader.next(1))[0] === each).toBe(true)
  })

  test('a client that hangs up while it waits is waited for no more', async () => {
    const lockstep = createLockstep({ connectionString: database.url })
    const mine = createEvents(lockstep)
    const reads = [vi.spyOn(mine, 'read'), vi.spyOn(mine, 'readAll')]
    const { url } = await door({ lockstep, events: mine })
    const stream = fresh()
    for (const [i, path] of [at(stream, '?'), all(stream, '&')].entries()) {
      const client = new AbortController()
      const wait = fetch(`${url}${path}waitMs=20000`, { signal: client.signal }).catch((error) => error.name)
      await until('it waits', () => reads[i]?.mock.results.length)
      client.abort()
      expect(await wait).toBe('AbortError')
      await expect(reads[i]?.mock.results[0]?.value).rejects.toThrow()
    }
  })

  test('a stop ends streams and waits at once and cleanly', async () => {
    const { url, close } = await door({ drainMs: 3_600_000 }) // longer than this test may last
    const stream = fresh()
    // the waits first: nobody else is there who could be the one that has been seen to ask
    const waits = await locked(async (queued) => {
      const waits = [at(stream, '?'), all(stream, '&')].map((path) => fetch(`${url}${path}waitMs=20000`))
      await queued(2)
      return { answers: Promise.all(waits) } // not awaited yet
    })
    const readers = [at(stream), all(stream)].map(
      async (path) => new Reader(await fetch(`${url}${path}`, { headers: STREAM })),
    )
    for (const reader of readers) expect(await (await reader).block()).toBe('retry: 1000')
    const closed = close()
    for (const reader of readers) expect(await (await reader).block()).toBe(undefined)
    for (const answer of await waits.answers) {
      expect([answer.status, await answer.json()]).toMatchObject([503, { code: 'UNAVAILABLE' }])
    }
    await closed
    await expect(fetch(url)).rejects.toThrow()
  })

  test.each([
    ['an append', at('large'), 4_194_304],
    ['anything else', at('large', '/lag'), 65_536],
    ['a group', '/v1/groups/large/poll', 65_536],
  ])('of %s a body that is announced as too large is 413 before it is sent', async (_, path, limit) => {
    const { url } = await door()
    const { hostname, port } = new URL(url)
    const socket = net.connect(Number(port), hostname)
    socket.write(
      `POST ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: ${limit + 1}\r\n\r\n`,
    )
    let text = ''
    for await (const chunk of socket) text += chunk
    expect(text).toMatch(/^HTTP\/1.1 413 /)
    expect(JSON.parse(text.split('\r\n\r\n')[1] ?? '').detail).toBe(`The body is over ${limit} bytes`)
  })

  test('the door sweeps events by itself, and tells of a sweep that failed', async () => {
    const lockstep = createLockstep({ connectionString: database.url })
    const mine = createEvents(lockstep)
    const stream = `${fresh('swept')}/x`
    await mine.retain(stream, { maxCount: 1 })
    await appended(stream, 1, 2, 3)
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] })
    const told: unknown[][] = []
    const server = await door({ lockstep, events: mine, onError: (...all) => told.push(all) })
    const before = await fetch(`${server.url}${at(stream)}`)
    expect(((await before.json()) as Json).events.length).toBe(3)
    vi.advanceTimersByTime(600_000)
    await until('it was swept', async () => (await page(at(stream))).events.length === 1)

    const failure = new Error('No')
    const sweep = vi.spyOn(mine, 'sweep').mockRejectedValue(failure)
    vi.advanceTimersByTime(600_000)
    await until('it was told', () => told.length)
    expect(told).toEqual([[failure, '']])
    const [{ signal } = {}] = sweep.mock.calls[0] ?? []
    expect(signal?.aborted).toBe(false)
    await server.close()
    expect(signal?.aborted).toBe(true)
    await events.retain(stream, null)
  })
})

describe('names', () => {
  test.each(['a/b', 'a/lag', 'lag', '%', 'a%2Fb', 'ä', '🔒', '{name}', '__proto__', '..a', ':x', '*', 'x'.repeat(255)])(
    '%j arrives as it was sent, in every route',
    async (name) => {
      await appended(name, 1)
      expect((await page(at(name))).events).toMatchObject([{ stream: name, data: 1 }])
      expect((await page(all(name))).events[0]).toMatchObject({ stream: name })
      expect((await (await follow(at(name))).event()).data).toMatchObject({ stream: name, position: '1' })
      expect((await (await follow(all(name))).event()).data).toMatchObject({ stream: name })
      expect((await call('GET', at(name, '/lag'))).json).toMatchObject({ stream: name, position: '1' })
      const { json } = await call('GET', `/v1/streams?prefix=${encodeURIComponent(name)}`)
      expect(json.streams[0]).toEqual({ name, first: '1', position: '1' })
      expect((await call('DELETE', at(name, '?before=2'))).json).toMatchObject({ removed: 1 })
    },
  )

  test.each(['%00', 'a%0a', '%7f', '%zz', '%', '%ff', '%ED%A0%80', 'x'.repeat(256)])(
    '%s is refused by every route, and the field is `name`',
    async (name) => {
      for (const [method, path, body] of [
        ['POST', '', { events: [{ type: 't' }] }],
        ['GET', ''],
        ['DELETE', '?before=1'],
        ['GET', '/lag'],
      ] as const) {
        const answer = await call(method, `/v1/streams/${name}${path}`, { body })
        expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'name' }] } })
      }
      const answer = await call('GET', `/v1/streams/${name}`, { headers: STREAM })
      expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'name' }] } })
    },
  )

  test.each(['/v1/streams/', '/v1/streams/a/b', '/v1/streams/a/lag/', '/v1/stream', '/v1/events/', '/v1/events/a'])(
    '%s is another path, where there is nothing',
    async (path) => {
      for (const method of ['GET', 'POST']) {
        expect(await call(method, path)).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
      }
    },
  )

  test.each([
    ['PUT', at('a'), 'POST, GET, HEAD, DELETE'],
    ['PATCH', '/v1/streams/a%2Flag', 'POST, GET, HEAD, DELETE'],
    ['POST', at('a', '/lag'), 'GET, HEAD'],
    ['POST', '/v1/streams', 'GET, HEAD'],
    ['POST', '/v1/events', 'GET, HEAD'],
    ['DELETE', '/v1/events', 'GET, HEAD'],
  ])('%s %s is 405 and says what the path takes', async (method, path, allow) => {
    const answer = await call(method, path)
    expect(answer).toMatchObject({ status: 405, json: { code: 'METHOD_NOT_ALLOWED' } })
    expect(answer.headers.get('allow')).toBe(allow)
  })

  test('HEAD is GET without a body', async () => {
    for (const path of ['/v1/streams', at('head'), '/v1/events']) {
      const response = await app.request(path, { method: 'HEAD' })
      expect([response.status, await response.text()]).toEqual([200, ''])
    }
  })
})

describe('a body', () => {
  const json = (...values: unknown[]) => values.map((value) => JSON.stringify(value))
  const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)
  const text = json('', 'x'.repeat(256), '🔒'.repeat(256), 'a\0', 'a\n', '\x7f', '\ud800', 7, null, true, ['a'], {})
  const values = [...json('a\0', { 'a\0': 1 }, '\ud800', ['\udc00'], '\\\0'), nested(1_001), nested(30_000)]
  const WRONG: Record<string, string[]> = {
    type: text,
    data: values,
    meta: [...json('x'.repeat(4095), 'ä'.repeat(2048), 'a\0', '\ud800'), nested(2_049), nested(1_900_000)],
    id: text,
  }
  const short = (value: string) => (value.length > 40 ? `${value.slice(0, 40)}… (${value.length})` : value)
  const cases = Object.entries(WRONG).flatMap(([field, wrong]) =>
    wrong.map((value) => [field, short(value), value] as const),
  )

  test.each(cases)('with a wrong %s of an event is refused: %s', async (field, _, value) => {
    const type = field === 'type' ? '' : '"type": "t", '
    const { status, json } = await append('body', `{ "events": [{ "type": "t" }, { ${type}"${field}": ${value} }] }`)
    expect(status).toBe(400)
    expect(json.errors).toEqual([{ field: `events.1.${field}`, expected: expect.stringMatching(/\d|JSON/) }])
    expect(json.errors[0].expected).not.toMatch(/^Invalid|expected/)
    expect(json.detail.length).toBeLessThan(200)
  })

  test.each([
    ...json(null, '', 7, true, {}, []).map((value) => [value, value]),
    ['1,390,000 of them', `[${'{},'.repeat(1_389_999)}{}]`],
    ['10,001 of them', `[${'{"type":"t"},'.repeat(10_000)}{"type":"t"}]`],
  ])('with wrong events is refused: %s', async (_, value) => {
    const { status, json } = await append('body', `{ "events": ${value} }`)
    expect(status).toBe(400)
    expect(json.errors).toEqual([{ field: 'events', expected: 'an array of 1–10000 events' }])
  })

  test.each([
    ...json(
      '',
      '-1',
      '01',
      '1.0',
      '1e3',
      ' 1',
      '9223372036854775808',
      '9'.repeat(9000),
      'None',
      'ANY',
      'empty',
      'null',
    ),
    ...json(0, 5, null, true, ['any'], {}),
    '5.0',
  ])('with a wrong expected is refused: %s', async (value) => {
    const { status, json } = await append('body', `{ "events": [{ "type": "t" }], "expected": ${value} }`)
    expect(status).toBe(400)
    expect(json.errors).toEqual([
      { field: 'expected', expected: 'a decimal string, 0–9223372036854775807, none, exists or any' },
    ])
  })

  test.each([
    [undefined, 'events'],
    [{}, 'events'],
    ['[]', 'body'],
    ['{', 'body'],
    ['"text"', 'body'],
    [{ events: [{ type: 't' }], trx: 1 }, 'trx'],
    [{ events: [{ type: 't' }], stream: 'x' }, 'stream'],
    [{ events: [{ type: 't' }], Expected: 'any' }, 'Expected'],
    [{ events: [{}] }, 'events.0.type'],
    [{ events: [7] }, 'events.0'],
    [{ events: [null] }, 'events.0'],
    [{ events: [['t']] }, 'events.0'],
    [{ events: [{ type: 't', at: 1 }] }, 'events.0.at'],
    ['{ "events": [{ "type": "t", "__proto__": 1 }] }', 'events.0.__proto__'],
  ])('%j is refused, and the field is %s', async (body, field) => {
    expect(await append('body', body)).toMatchObject({ status: 400, json: { errors: [{ field }] } })
  })

  test('of another type, or that is not UTF-8, is refused', async () => {
    const body = '{ "events": [{ "type": "t" }] }'
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/jsonx']) {
      const answer = await append('body', body, { headers: { 'content-type': type } })
      expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'content-type' }] } })
    }
    const response = await app.request(at('body'), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: new Uint8Array([...new TextEncoder().encode('{ "events": [{ "type": "'), 0xff, 0x22, 0x7d, 0x5d, 0x7d]),
    })
    expect([response.status, await response.json()]).toMatchObject([400, { errors: [{ field: 'body' }] }])
  })

  test('that was refused has appended nothing', async () => {
    expect(await page(at('body'))).toEqual({ events: [], next: '1' })
    expect((await call('GET', '/v1/streams?prefix=body')).json.streams).toEqual([])
  })

  test('that is just allowed is allowed', async () => {
    const stream = fresh()
    const deepest = JSON.parse(nested(1_000))
    const edges = [
      { type: '🔒'.repeat(255), id: '🔒'.repeat(255) },
      { type: 't', id: 'x' },
      { type: 't', id: 'y', data: deepest },
      { type: 't', id: 'z', meta: 'x'.repeat(4094) },
      { type: 't', id: ' ', meta: 'ä'.repeat(2047) },
    ]
    expect((await append(stream, { events: edges })).json).toEqual({ first: '1', last: '5' })
    const { events } = await page(at(stream))
    expect(events.map(({ type, id }) => ({ type, id }))).toEqual(edges.map(({ type, id }) => ({ type, id })))
    expect(events[2].data).toEqual(deepest)
  })
})

describe('a query', () => {
  const bad: [method: string, path: string, query: string, field: string][] = []
  const wrong = (method: string, path: string, field: string, values: string[], others = '') => {
    for (const value of values) bad.push([method, path, `${others}${field}=${value}`, field])
  }
  const places = ['', '0', '-1', '01', '1.0', '1e3', '%201', 'x', 'end', '9223372036854775808', '9'.repeat(5000)]
  const texts = ['%00', '%zz', '%ff', 'x'.repeat(256)]
  for (const path of [at('q'), '/v1/events']) {
    wrong('GET', path, 'from', [...places.filter((place) => place !== 'end'), 'start', '1&from=1'])
    wrong('GET', path, 'limit', ['0', '1001', '-1', '1e2', '', 'x'])
    wrong('GET', path, 'waitMs', ['20001', '-1', '1.5', '', 'x', '9'.repeat(50)])
    wrong('GET', path, 'page', ['2'])
  }
  wrong('GET', at('q'), 'backwards', ['false', '1', '', 'TRUE'])
  wrong('GET', at('q'), 'prefix', ['q'])
  wrong('GET', at('q'), 'waitMs', ['1'], 'backwards=true&')
  wrong('GET', '/v1/events', 'prefix', texts)
  wrong('GET', '/v1/events', 'backwards', ['true'])
  wrong('GET', '/v1/events', 'stream', ['q'])
  wrong('GET', '/v1/streams', 'prefix', texts)
  wrong('GET', '/v1/streams', 'after', ['', ...texts])
  wrong('GET', '/v1/streams', 'limit', ['0', '1001', 'x', ''])
  wrong('GET', '/v1/streams', 'from', ['1'])
  wrong('GET', at('q', '/lag'), 'limit', ['1'])
  wrong('POST', at('q'), 'expected', ['any'])
  wrong('DELETE', at('q'), 'before', [...places, '1&before=1'])
  wrong('DELETE', at('q'), 'force', ['false', '1', '', 'TRUE'], 'before=1&')
  wrong('DELETE', at('q'), 'from', ['1'], 'before=1&')
  const short = (value: string) => (value.length > 40 ? `${value.slice(0, 40)}… (${value.length})` : value)

  test.each(bad.map(([method, path, query, field]) => [method, path, short(query), field, query] as const))(
    '%s %s?%s is refused, and the field is %s',
    async (method, path, _, field, query) => {
      const { status, json } = await call(method, `${path}?${query}`)
      expect([status, json.errors?.[0].field]).toEqual([400, field])
      expect(json.errors[0].expected).not.toMatch(/^Invalid|expected/)
    },
  )

  test('without `before` truncates nothing', async () => {
    for (const query of ['', '?force=true']) {
      const answer = await call('DELETE', at('q', query))
      expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'before' }] } })
    }
  })
})

describe('without events', () => {
  test('there are no such routes, and they are not in the document', async () => {
    const on = createApp(lockstep)
    for (const [method, path] of [
      ['GET', '/v1/streams'],
      ['POST', at('q')],
      ['GET', at('q')],
      ['GET', '/v1/events'],
      ['GET', '/v1/groups'],
      ['POST', '/v1/groups/g/poll'],
    ] as const) {
      const response = await on.request(path, { method }) // not by `call`: this is another document
      expect([response.status, await response.json()]).toMatchObject([404, { code: 'NOT_FOUND' }])
    }
    const document = await (await on.request('/openapi.json')).text()
    expect(document).not.toMatch(/\/v1\/(streams|events|groups)/)
  })
})

test('a database that is away is 503 with Retry-After on every route, and no stream that breaks', async () => {
  await using server = await dedicatedServer()
  const lockstep = createLockstep({ connectionString: server.url })
  const on = createApp(lockstep, { events: createEvents(lockstep), maxStreams: 1 })
  await server.stop()
  for (const [method, path, body, headers] of [
    ['POST', at('x'), { events: [{ type: 't' }] }],
    ['GET', at('x')],
    ['GET', at('x', '?waitMs=20000')],
    ['GET', at('x'), undefined, STREAM],
    ['GET', at('x'), undefined, STREAM], // the first gave its place back
    ['DELETE', at('x', '?before=1')],
    ['GET', at('x', '/lag')],
    ['GET', '/v1/streams'],
    ['GET', '/v1/events'],
    ['GET', '/v1/events?waitMs=20000'],
    ['GET', '/v1/events', undefined, STREAM],
    ['GET', '/v1/events', undefined, STREAM],
  ] as const) {
    const answer = await call(method, path, { on, body, headers: { ...headers } })
    expect([method, path, answer.status, answer.json?.code]).toEqual([method, path, 503, 'UNAVAILABLE'])
    expect(answer.headers.get('retry-after')).toBe('1')
  }
  await server.start()
  const sent = { on, body: { events: [{ type: 't', data: 'back' }] } }
  await until('it is back', async () => (await call('POST', at('x'), sent)).status === 201)

  // an outage does not cut a follower off: later events come on the same stream
  const reader = await follow(at('x'), { on })
  expect(await reader.next(1)).toEqual(['back'])
  await server.stop()
  await server.start()
  await until('it is back', async () => (await call('GET', at('x'), { on })).status === 200)
  const { first } = (await call('POST', at('x'), { on, body: { events: [{ type: 't', data: 'after' }] } })).json
  expect(await reader.event()).toMatchObject({ id: first, data: { data: 'after' } })
  await lockstep.close()
})

describe('keys', () => {
  const hash = (secret: string) => createHash('sha256').update(secret).digest('hex')
  const keyed = () =>
    createApp(lockstep, {
      events,
      keys: [
        ['reader', 'streams:read'],
        ['writer', 'streams:write'],
        ['admin', 'admin'],
        ['other', 'locks:write+leaders:write+tasks:write+time:write'],
        ['ours', 'streams:write:ours/'],
        ['chief', 'admin:ours/'],
      ]
        .map(([id = '', scopes]) => `${id}:${hash(`secret-of-${id}`)}:${scopes}`)
        .join(', '),
    })
  const bearer = (id: string) => `Bearer ${id}.secret-of-${id}`
  const routes: Record<string, (name: string) => [string, string, Ask?]> = {
    append: (name) => ['POST', at(name), { body: { events: [{ type: 't' }] } }],
    read: (name) => ['GET', at(name)],
    follow: (name) => ['GET', at(name), { headers: STREAM }],
    lag: (name) => ['GET', at(name, '/lag')],
    truncate: (name) => ['DELETE', at(name, '?before=1')],
    force: (name) => ['DELETE', at(name, '?before=1&force=true')],
    list: (name) => ['GET', `/v1/streams?prefix=${encodeURIComponent(name)}`],
    readAll: (name) => ['GET', all(name)],
    followAll: (name) => ['GET', all(name), { headers: STREAM }],
  }
  const every = Object.keys(routes)
  const write = every.filter((route) => route !== 'force')
  const read = write.filter((route) => route !== 'append' && route !== 'truncate')
  const lists = ['list', 'readAll', 'followAll']

  test.each([
    ['reader', 'ours/x', read],
    ['writer', 'ours/x', write],
    ['admin', 'ours/x', every],
    ['other', 'ours/x', []],
    ['ours', 'ours/x', write],
    ['ours', 'ours', lists],
    ['ours', 'theirs/x', []],
    ['chief', 'ours/x', every],
    ['chief', 'theirs/x', []],
  ])('let %s do to %s only %j', async (id, name, allowed) => {
    for (const [verb, ask] of Object.entries(routes)) {
      const [method, path, more] = ask(name)
      expect((await call(method, path, { ...more, on: keyed() })).status).toBe(401)
      const { status, json } = await call(method, path, { ...more, on: keyed(), key: bearer(id) })
      expect([verb, status === 403]).toEqual([verb, !allowed.includes(verb)])
      if (status === 403) expect(json.code).toBe('FORBIDDEN')
      else expect([200, 201, 404]).toContain(status)
    }
  })

  test('show what is read of all streams, followed or listed, cut down to the prefix of the key', async () => {
    for (const name of ['ours/1', 'theirs/1', 'ours/2']) await appended(name, name)
    for (const query of ['', '?prefix=', '?prefix=o', '?prefix=ours%2F']) {
      const asked = { on: keyed(), key: bearer('ours') }
      const { events } = (await call('GET', `/v1/events${query}`, asked)).json
      const { streams } = (await call('GET', `/v1/streams${query}`, asked)).json
      const names: string[] = [...events.map(({ stream }: Json) => stream), ...streams.map(({ name }: Json) => name)]
      expect(names).toEqual(expect.arrayContaining(['ours/1', 'ours/2']))
      expect(names.filter((name) => !name.startsWith('ours/'))).toEqual([])
      const reader = await follow(`/v1/events${query}`, asked)
      for (const event of events) expect((await reader.event()).data).toEqual(event)
      await reader.cancel()
    }
  })
})

describe('openapi.json', () => {
  const document = async (): Promise<Json> => (await app.request('/openapi.json')).json()
  const operations = async () =>
    Object.entries<object>((await document()).paths)
      .filter(([path]) => /^\/v1\/(streams|events)/.test(path))
      .flatMap(([path, item]) =>
        Object.entries<Json>(item).map(
          ([method, operation]) => [`${method.toUpperCase()} ${path}`, operation] as const,
        ),
      )

  test('has every route and every status that was answered above, and none that never was', async () => {
    const all = await operations()
    expect(all.length).toBe(6)
    for (const [route, { responses }] of all) {
      // 405 belongs to no operation, 499 nobody reads, and no route was made to fail
      const answered = [...(seen.get(route) ?? [])].filter((status) => status !== 405 && status !== 499)
      // 406 is answered by a Lambda's adapter: adapters/contract.long.test.ts
      const streams = 'text/event-stream' in (responses[200]?.content ?? {}) ? [406] : []
      expect([...answered, ...streams, 500].sort(), route).toEqual(Object.keys(responses).map(Number).sort())
    }
  })

  test('describes every operation: summary, parameters, key, answers; and every reference resolves', async () => {
    for (const [route, operation] of await operations()) {
      expect(operation.summary, route).toBeTruthy()
      expect(operation.security, route).toEqual([{ key: [] }])
      const inPath = (operation.parameters ?? []).filter((p: Json) => p.in === 'path').map((p: Json) => p.name)
      expect(inPath, route).toEqual([...route.matchAll(/\{(\w+)\}/g)].map(([, name]) => name))
      for (const [status, answer] of Object.entries<Json>(operation.responses)) {
        expect(answer.description, `${route} ${status}`).toBeTruthy()
        const followed = route === 'GET /v1/streams/{name}' || route === 'GET /v1/events'
        const types = followed ? ['application/json', 'text/event-stream'] : ['application/json']
        expect(Object.keys(answer.content)).toEqual(Number(status) < 400 ? types : ['application/problem+json'])
      }
    }
    const doc = await document()
    for (const [, ref = ''] of JSON.stringify(doc).matchAll(/"\$ref":"#\/([^"]+)"/g)) {
      const found = ref.split('/').reduce((node: Json, step) => node?.[step], doc)
      expect(found, ref).toBeTypeOf('object')
    }
  })

  test('states the limits that are enforced, and the extra members of a problem', async () => {
    const { components, paths } = await document()
    expect(components.schemas.AppendEvents).toMatchObject({
      additionalProperties: false,
      required: ['events'],
      properties: {
        events: { minItems: 1, maxItems: 10_000, items: { $ref: '#/components/schemas/NewEvent' } },
        expected: {
          type: 'string',
          description: expect.stringContaining('Default: "any"'),
          pattern: '^(none|exists|any|0|[1-9][0-9]{0,18})$',
        },
      },
    })
    expect(components.schemas.NewEvent).toMatchObject({
      additionalProperties: false,
      required: ['type'],
      properties: { type: { minLength: 1, maxLength: 255 }, id: { minLength: 1, maxLength: 255 } },
    })
    const { get, post } = paths['/v1/streams/{name}']
    expect(post.responses[413].description).toMatch(/4 MiB.*1 MiB/)
    expect(post.responses[412].description).toMatch(/^POSITION_CONFLICT/)
    expect(Object.keys(components.schemas.Problem.properties)).toEqual(expect.arrayContaining(['expected', 'actual']))
    expect(get.parameters.map((p: Json) => [p.in, p.name])).toEqual([
      ['path', 'name'],
      ['query', 'from'],
      ['query', 'limit'],
      ['query', 'waitMs'],
      ['query', 'backwards'],
      ['header', 'last-event-id'],
    ])
  })
})
