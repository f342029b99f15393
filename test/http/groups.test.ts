/**
 * Groups over HTTP: what the routes take, refuse and answer, what keys may do, and how consumers share events, fail them and die.
 * Streams: streams.test.ts.
 *
 * Every answer passes through `call`, which remembers its status; the last tests compare that with openapi.json.
 */
import { createHash } from 'node:crypto'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { serve } from '../../functions/adapters/node.ts'
import { createApp } from '../../functions/app.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
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
  for (const remove of leftovers.splice(0).reverse()) await remove()
})

interface Ask {
  /** A string is sent as it is, anything else as JSON. */
  body?: unknown
  key?: string
  signal?: AbortSignal
  on?: App
}

async function call(method: string, path: string, { body, key, signal, on = app }: Ask = {}) {
  const response = await on.request(path, {
    method,
    body: (body === undefined || typeof body === 'string' ? (body as string) : JSON.stringify(body)) ?? null,
    headers: { ...(body !== undefined && { 'content-type': 'application/json' }), ...(key && { authorization: key }) },
    ...(signal && { signal }),
  })
  note(method, path, response.status)
  expect(response.headers.get('cache-control')).toBe('no-store')
  const text = await response.text()
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
  const route = new URL(path, 'http://x').pathname.replace(/^\/v1\/groups\/[^/]+/, '/v1/groups/{name}')
  seen.set(`${method} ${route}`, (seen.get(`${method} ${route}`) ?? new Set()).add(status))
}

let count = 0
const fresh = () => `group ${++count}.` // none is the beginning of another
const at = (group: string, verb = '') => `/v1/groups/${encodeURIComponent(group)}${verb && `/${verb}`}`
const instant = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
const place = expect.stringMatching(/^[1-9]\d*$/)

/** A group of its own for a test, of the streams that begin as it is called. */
async function made(options: object = {}, name = fresh()): Promise<string> {
  const { status } = await call('PUT', at(name), {
    body: { prefix: name, partitions: 1, retryDelayMs: 0, ...options },
  })
  expect(status).toBe(201)
  return name
}
async function append(stream: string, ...data: unknown[]): Promise<void> {
  const body = { events: data.map((data) => ({ type: 't', data })) }
  const response = await app.request(`/v1/streams/${encodeURIComponent(stream)}`, {
    method: 'POST',
    body: JSON.stringify(body),
    headers: { 'content-type': 'application/json' },
  })
  expect(response.status).toBe(201)
}
const verb = (group: string, word: string, body: object, more: Ask = {}) =>
  call('POST', at(group, word), { body, ...more })
async function poll(group: string, body: object = {}): Promise<Json[]> {
  const { status, json } = await verb(group, 'poll', { holder: 'me', ...body })
  expect(status).toBe(200)
  return json.batches
}
/** The only batch that there is. */
async function polled(group: string, body: object = {}): Promise<Json> {
  const batches = await poll(group, body)
  expect(batches.length).toBe(1)
  return batches[0]
}
const end = ({ partition, token, next }: Json) => ({ partition, token, next })
const commit = (group: string, batch: Json) => verb(group, 'commit', end(batch))
const fail = (group: string, batch: Json, event: Json, reason?: unknown) =>
  verb(group, 'fail', { ...end(batch), event: event.cursor, ...(reason !== undefined && { reason }) })
const redeliver = async (group: string, body?: object) =>
  (await call('POST', at(group, 'redeliver'), { body })).json.redelivered
const lag = async (group: string) => (await call('GET', at(group, 'lag'))).json
const parked = async (group: string) => (await call('GET', at(group, 'parked'))).json.parked
const dataOf = (batch: Json) => batch.events.map(({ data }: Json) => data)

/** Holds every statement on events up while `during` runs; `queued` waits until one stands there. */
async function locked<T>(during: (queued: () => Promise<void>) => Promise<T>): Promise<T> {
  const other = await database.pool.connect()
  try {
    await other.query('begin; lock table lockstep.event in access exclusive mode')
    return await during(() =>
      until('a statement waits for events', async () => {
        const { rows } = await other.query(
          `select from pg_locks where not granted and relation = 'lockstep.event'::regclass
             and database = (select oid from pg_database where datname = current_database())`,
        )
        return rows.length
      }),
    )
  } finally {
    await other.query('commit')
    other.release()
  }
}

/** A poll that has asked the database, got nothing, and waits. In an object: awaited, it would be the answer. */
async function waitingPoll(group: string, body: object = {}, more: Ask = {}) {
  return locked(async (queued) => {
    const answer = verb(group, 'poll', { holder: 'me', waitMs: 20_000, ...body }, more)
    await queued()
    return { answer }
  })
}

describe('a group', () => {
  test('is made, changed, looked at, listed and ended', async () => {
    const name = fresh()
    const group = { name, prefix: 'x/', partitions: 3, retryLimit: 7, retryDelayMs: 50 }
    const { name: _, ...options } = group
    expect(await call('PUT', at(name), { body: { ...options, from: 'end' } })).toMatchObject({
      status: 201,
      json: group,
    })
    expect((await call('GET', at(name))).json).toEqual(group)
    const changed = await call('PUT', at(name), { body: { retryLimit: 0 } })
    expect([changed.status, changed.json]).toEqual([200, { ...group, retryLimit: 0 }])
    expect((await call('PUT', at(name), { body: options })).json).toEqual(group)
    expect((await call('GET', `/v1/groups?prefix=${encodeURIComponent(name)}`)).json).toEqual({
      groups: [group],
      next: null,
    })
    expect((await call('DELETE', at(name))).status).toBe(204)
    expect(await call('DELETE', at(name))).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
    expect((await call('GET', at(name))).status).toBe(404)
  })

  test('needs no body: it reads all streams from the start, in 8 partitions', async () => {
    for (const ask of [{}, { body: '' }, { body: {} }]) {
      const name = fresh()
      const { status, json } = await call('PUT', at(name), ask)
      const defaults = { prefix: '', partitions: 8, retryLimit: 5, retryDelayMs: 1_000 }
      expect([status, json]).toEqual([201, { name, ...defaults }])
      await call('DELETE', at(name))
    }
  })

  test('of other streams, or partitions, than it was made for is 400 and stays as it was', async () => {
    const name = await made({ partitions: 2 })
    const before = (await call('GET', at(name))).json
    for (const [field, body] of [
      ['prefix', { prefix: 'other' }],
      ['prefix', { prefix: '', retryLimit: 9 }],
      ['partitions', { partitions: 3, retryLimit: 9 }],
    ] as const) {
      const answer = await call('PUT', at(name), { body })
      expect(answer).toMatchObject({ status: 400, json: { errors: [{ field }] } })
    }
    expect((await call('GET', at(name))).json).toEqual(before)
  })

  test('begins at the start, at the end, or at a cursor', async () => {
    const prefix = fresh()
    await append(prefix, 1, 2, 3)
    const all = await polled(await made({ prefix, from: 'start' }))
    expect(dataOf(all)).toEqual([1, 2, 3])
    const late = await made({ prefix, from: 'end' })
    const middle = await made({ prefix, from: all.events[1].cursor })
    expect(await poll(late)).toEqual([])
    await append(prefix, 4)
    expect(dataOf(await polled(late))).toEqual([4])
    expect(dataOf(await polled(middle))).toEqual([2, 3, 4])
    await call('PUT', at(late), { body: { from: 'start' } }) // of one that is there it changes nothing
    expect(dataOf(await polled(late))).toEqual([4])
  })

  test('is listed page by page, by name', async () => {
    const prefix = fresh()
    const names = Array.from({ length: 5 }, (_, i) => `${prefix}${i}`)
    for (const name of names.toReversed()) await made({}, name)
    const pages: string[][] = []
    for (let next: string | null = ''; next !== null; ) {
      const query: string = `prefix=${encodeURIComponent(prefix)}&limit=2${next && `&after=${encodeURIComponent(next)}`}`
      const { json } = await call('GET', `/v1/groups?${query}`)
      pages.push(json.groups.map(({ name }: Json) => name))
      expect(json.groups[0]).toEqual((await call('GET', at(json.groups[0].name))).json)
      next = json.next
    }
    expect(pages).toEqual([names.slice(0, 2), names.slice(2, 4), names.slice(4)])
  })

  test('that does not exist, or no longer, is 404 for every request that names it', async () => {
    const ended = await made()
    await append(ended, 1)
    const batch = await polled(ended)
    expect((await call('DELETE', at(ended))).status).toBe(204)
    for (const name of [fresh(), ended]) {
      for (const [method, path, body] of [
        ['GET', at(name)],
        ['DELETE', at(name)],
        ['GET', at(name, 'lag')],
        ['GET', at(name, 'parked')],
        ['POST', at(name, 'redeliver')],
        ['POST', at(name, 'poll'), { holder: 'me', waitMs: 20_000 }],
        ['POST', at(name, 'leave'), { holder: 'me' }],
      ] as const) {
        const answer = await call(method, path, { body })
        expect([method, path, answer.status, answer.json.code]).toEqual([method, path, 404, 'NOT_FOUND'])
      }
      for (const answer of [await commit(name, batch), await fail(name, batch, batch.events[0])]) {
        expect(answer).toMatchObject({ status: 409, json: { code: 'LEASE_LOST' } })
      }
    }
  })

  test('that is made again begins anew, and what the one before had given is 409', async () => {
    const name = await made()
    await append(name, 1)
    const batch = await polled(name)
    await commit(name, batch)
    await call('DELETE', at(name))
    await made({}, name)
    const again = await polled(name, { holder: 'another' })
    expect(dataOf(again)).toEqual([1])
    expect((await commit(name, batch)).status).toBe(409)
    expect((await commit(name, again)).status).toBe(204)
  })
})

describe('a consumer', () => {
  test('polls, applies, commits, and polls what is next', async () => {
    const group = await made()
    expect(await poll(group)).toEqual([])
    await append(group, { n: 1 }, 2)
    const batch = await polled(group)
    const common = { stream: group, cursor: place, type: 't', meta: null, id: null, at: instant, attempt: 1 }
    expect(batch).toEqual({
      partition: 0,
      token: place,
      next: expect.any(String),
      events: [
        { ...common, position: '1', data: { n: 1 } },
        { ...common, position: '2', data: 2 },
      ],
    })
    expect((await commit(group, batch)).status).toBe(204)
    expect(await poll(group)).toEqual([])
    await append(group, 3)
    expect(dataOf(await polled(group))).toEqual([3])
  })

  test('is given the same again until it commits, as an answer may have got lost; so may a commit be made again', async () => {
    const group = await made()
    await append(group, 1, 2)
    const batch = await polled(group)
    for (let i = 0; i < 3; i++) expect(await polled(group)).toEqual(batch)
    for (let i = 0; i < 3; i++) expect((await commit(group, batch)).status).toBe(204)
    await append(group, 3)
    const next = await polled(group)
    expect((await commit(group, batch)).status).toBe(204) // and takes nothing back
    expect(dataOf(next)).toEqual([3])
    expect((await commit(group, next)).status).toBe(204)
    expect(await poll(group)).toEqual([])
  })

  test('is given as many events of each partition as it wants', async () => {
    const group = await made()
    await append(group, 1, 2, 3, 4, 5)
    const found: unknown[] = []
    for (const limit of [2, 1, 1_000]) {
      const batch = await polled(group, { limit })
      expect(batch.events.length).toBe(Math.min(limit, 2))
      found.push(...dataOf(batch))
      await commit(group, batch)
    }
    expect(found).toEqual([1, 2, 3, 4, 5])
  })

  test('that waits is given what is appended meanwhile, and nothing of what it does not read', async () => {
    const group = await made()
    const { answer } = await waitingPoll(group)
    await append(`not of ${group}`, 'another')
    await append(group, 'awaited')
    const { status, json } = await answer
    expect([status, json.batches.map(dataOf)]).toEqual([200, [['awaited']]])
  })

  test('that waits in vain is given nothing', async () => {
    const group = await made()
    expect(await poll(group, { waitMs: 50 })).toEqual([])
    expect(await poll(group, { waitMs: 0 })).toEqual([])
  })

  test('that hangs up while it waits loses nothing: it is given it when it comes again', async () => {
    const group = await made()
    const client = new AbortController()
    const { answer } = await waitingPoll(group, {}, { signal: client.signal })
    client.abort()
    expect((await answer).status).toBe(499)
    await append(group, 1)
    expect(dataOf(await polled(group))).toEqual([1])
  })

  test.each([0, 20_000])(
    'that hangs up while its events are on the way loses nothing, and nor do others (waitMs %i)',
    async (waitMs) => {
      const group = await made()
      await append(group, 1)
      const client = new AbortController()
      const { answer } = await locked(async (queued) => {
        const answer = verb(group, 'poll', { holder: 'gone', waitMs, leaseMs: 1_000 }, { signal: client.signal })
        await queued()
        client.abort()
        return { answer }
      })
      expect([200, 499]).toContain((await answer).status) // nobody reads it
      const [batch] = (await verb(group, 'poll', { holder: 'other', waitMs: 20_000 })).json.batches
      expect(dataOf(batch)).toEqual([1])
      expect((await commit(group, batch)).status).toBe(204)
    },
  )

  test('gets 503 when the server stops; requests that do not wait still get an answer', async () => {
    const stopping = new AbortController()
    const on = createApp(lockstep, { events, signal: stopping.signal })
    const group = await made()
    const { answer } = await waitingPoll(group, {}, { on })
    stopping.abort()
    expect(await answer).toMatchObject({ status: 503, json: { code: 'UNAVAILABLE' } })
    expect((await answer).headers.get('retry-after')).toBe('1')
    await append(group, 1)
    expect((await verb(group, 'poll', { holder: 'me', waitMs: 20_000 }, { on })).status).toBe(503)
    const { json } = await verb(group, 'poll', { holder: 'me' }, { on })
    expect(json.batches.map(dataOf)).toEqual([[1]])
  })

  test('shares the partitions with another: each event goes to one of them', async () => {
    const group = await made({ partitions: 4 })
    for (let i = 0; i < 40; i++) await append(`${group}${i}`, i)
    const held: Record<string, Set<number>> = { one: new Set(), two: new Set() }
    await until('each has its half', async () => {
      for (const [holder, has] of Object.entries(held)) {
        has.clear()
        for (const { partition } of await poll(group, { holder })) has.add(partition)
      }
      return Object.values(held).every(({ size }) => size === 2)
    })
    const given: number[] = []
    for (const holder of Object.keys(held)) {
      for (const batch of await poll(group, { holder })) {
        expect(held[holder]).toContain(batch.partition)
        given.push(...dataOf(batch))
        expect((await commit(group, batch)).status).toBe(204)
      }
    }
    expect(given.sort((a, b) => a - b)).toEqual(Array.from({ length: 40 }, (_, i) => i))
    const { partitions } = await lag(group)
    for (const { partition, holder, behind } of partitions) {
      expect([held[holder]?.has(partition), behind]).toEqual([true, 0])
    }
  })

  test('that leaves gives up what it has at once, and may leave again', async () => {
    const group = await made({ partitions: 2 })
    for (let i = 0; i < 10; i++) await append(`${group}${i}`, i)
    const mine = await poll(group, { leaseMs: 3_600_000 })
    expect(mine.length).toBe(2)
    expect(await poll(group, { holder: 'other' })).toEqual([])
    for (let i = 0; i < 2; i++) expect((await verb(group, 'leave', { holder: 'me' })).status).toBe(204)
    const theirs = await poll(group, { holder: 'other' })
    const given = (batches: Json[]) => Object.fromEntries(batches.map((batch) => [batch.partition, batch.events]))
    expect(given(theirs)).toEqual(given(mine))
    for (const batch of mine) expect(await commit(group, batch)).toMatchObject({ status: 409 })
    expect((await verb(group, 'leave', { holder: 'nobody' })).status).toBe(204)
  })

  test('that is silent has lost its partitions to others, under larger tokens, and gets 409', async () => {
    const group = await made()
    await append(group, 1, 2)
    const stale = await polled(group, { holder: 'stale', leaseMs: 1_000 })
    const batch = await polled(group, { holder: 'new', waitMs: 20_000 })
    expect(dataOf(batch)).toEqual([1, 2])
    expect(BigInt(batch.token)).toBeGreaterThan(BigInt(stale.token))
    const lost = async () => {
      for (const late of [stale, { ...batch, token: '9223372036854775807' }, { ...batch, partition: 1 }]) {
        for (const answer of [await commit(group, late), await fail(group, late, late.events[0])]) {
          expect(answer).toMatchObject({ status: 409, json: { code: 'LEASE_LOST' } })
        }
      }
    }
    await lost()
    expect(await polled(group, { holder: 'new' })).toEqual(batch)
    expect((await commit(group, batch)).status).toBe(204)
    await lost()
  })

  test('has its lease for as long as it says, by every poll', async () => {
    const group = await made()
    await append(group, 1)
    await polled(group, { leaseMs: 1_000 })
    await polled(group, { leaseMs: 3_600_000 })
    const { rows } = await database.pool.query(
      `select holder, expires_at > clock_timestamp() + interval '50 minutes' as long
         from lockstep.lease where starts_with(name, $1)`,
      [`group\t${group}\t`],
    )
    expect(rows.length).toBe(2) // its place, and its partition
    for (const row of rows) expect(row).toEqual({ holder: 'me', long: true })
  })
})

describe('an event that fails', () => {
  test('is given again, by itself, while other streams go on; and what came before it counts as applied', async () => {
    const group = await made({ retryLimit: 2 })
    const [bad, good] = [`${group}bad`, `${group}good`]
    await append(bad, 'applied', 'poison', 'after')
    await append(good, 'fine')
    const batch = await polled(group)
    expect(dataOf(batch)).toEqual(['applied', 'poison', 'after', 'fine'])
    const failed = await fail(group, batch, batch.events[1], { message: 'No' })
    expect([failed.status, failed.json]).toEqual([200, { attempts: 1, parked: false, retryAt: instant }])
    expect((await commit(group, batch)).status).toBe(409) // it has failed

    const rest: unknown[] = []
    for (let left = 4; rest.length < 3 && left > 0; left--) {
      for (const batch of await poll(group)) {
        for (const { data, attempt, stream } of batch.events) {
          expect([data, attempt]).toEqual([data, data === 'poison' ? 2 : 1])
          expect([bad, good]).toContain(stream)
          rest.push(data)
        }
        expect((await commit(group, batch)).status).toBe(204)
      }
    }
    expect(rest.filter((data) => data !== 'fine')).toEqual(['poison', 'after'])
    expect(rest.toSorted()).toEqual(['after', 'fine', 'poison'])
    expect(await poll(group)).toEqual([])
    expect(await parked(group)).toEqual([])
  })

  test('too often parks its stream, which waits to be redelivered', async () => {
    const group = await made({ retryLimit: 2 })
    const [bad, good] = [`${group}bad`, `${group}good`]
    await append(bad, 'poison', 'after')
    for (let attempts = 1; attempts <= 3; attempts++) {
      const batch = await polled(group, { waitMs: 20_000 })
      expect(batch.events[0]).toMatchObject({ stream: bad, data: 'poison', attempt: attempts })
      const { json } = await fail(group, batch, batch.events[0], `No ${attempts}`)
      const over = attempts === 3
      expect(json).toEqual({ attempts, parked: over, retryAt: over ? null : instant })
    }
    expect(await poll(group)).toEqual([])
    await append(bad, 'later')
    await append(good, 'fine')
    const batch = await polled(group)
    expect(dataOf(batch)).toEqual(['fine'])
    await commit(group, batch)

    const { json } = await call('GET', at(group, 'parked'))
    expect(json).toEqual({
      parked: [{ stream: bad, position: '1', attempts: 3, reason: 'No 3', at: instant }],
      next: null,
    })
    const { partitions } = await lag(group)
    expect(partitions).toMatchObject([{ partition: 0, holder: 'me', behind: 0, retrying: 0, parked: 1 }])

    expect(await redeliver(group)).toBe(1)
    expect(await parked(group)).toEqual([])
    const again = await polled(group)
    expect(again.events.map(({ data, attempt }: Json) => [data, attempt])).toEqual([
      ['poison', 1],
      ['after', 1],
      ['later', 1],
    ])
    expect((await commit(group, again)).status).toBe(204)
    expect(await poll(group)).toEqual([])
    expect(await redeliver(group)).toBe(0)
  })

  test('is passed over by redeliver with skip; of one stream, or of all that are parked', async () => {
    const group = await made({ retryLimit: 0 })
    const streams = ['a', 'b', 'c'].map((each) => `${group}${each}`)
    for (const stream of streams) await append(stream, `poison of ${stream}`, `after in ${stream}`)
    for (const _ of streams) {
      const batch = await polled(group)
      await fail(group, batch, batch.events[0])
    }
    expect((await parked(group)).map(({ stream }: Json) => stream)).toEqual(streams)
    expect(await redeliver(group, { stream: `${group}x`, skip: true })).toBe(0)
    expect(await redeliver(group, { stream: streams[1], skip: true })).toBe(1)
    const batch = await polled(group)
    expect(dataOf(batch)).toEqual([`after in ${streams[1]}`])
    await commit(group, batch)
    expect(await redeliver(group, { skip: false, stream: streams[0] })).toBe(1)
    const other = await polled(group)
    expect(dataOf(other)).toEqual([`poison of ${streams[0]}`, `after in ${streams[0]}`])
    await commit(group, other)
    expect(await redeliver(group, { skip: true })).toBe(1)
    expect(dataOf(await polled(group))).toEqual([`after in ${streams[2]}`])
  })

  test('is listed with others page by page, by stream', async () => {
    const group = await made({ retryLimit: 0 })
    const streams = Array.from({ length: 5 }, (_, i) => `${group}${i}`)
    for (const stream of streams.toReversed()) await append(stream, 'poison')
    for (const _ of streams) {
      const batch = await polled(group)
      await fail(group, batch, batch.events[0])
    }
    const pages: string[][] = []
    for (let next: string | null = ''; next !== null; ) {
      const { json } = await call(
        'GET',
        `${at(group, 'parked')}?limit=2${next && `&after=${encodeURIComponent(next)}`}`,
      )
      pages.push(json.parked.map(({ stream }: Json) => stream))
      next = json.next
    }
    expect(pages).toEqual([streams.slice(0, 2), streams.slice(2, 4), streams.slice(4)])
  })

  test.each([['text'], [7], [null], [false], [['a', { b: 1 }]], [{ message: 'No', code: 7 }], [undefined]])(
    'may be said of why: %j',
    async (reason) => {
      const group = await made({ retryLimit: 0 })
      await append(group, 'poison')
      const batch = await polled(group)
      await fail(group, batch, batch.events[0], reason)
      expect((await parked(group))[0].reason).toEqual(reason ?? null)
    },
  )

  test('for a reason of more than 4 KiB is parked all the same', async () => {
    const group = await made({ retryLimit: 0 })
    await append(group, 'poison')
    const batch = await polled(group)
    expect((await fail(group, batch, batch.events[0], 'x'.repeat(60_000))).json.parked).toBe(true)
    expect(JSON.stringify((await parked(group))[0].reason).length).toBeLessThanOrEqual(4_096)
  })

  test('and is none of the group is 404', async () => {
    const group = await made()
    await append(group, 1)
    const batch = await polled(group)
    const answer = await fail(group, batch, { cursor: '9223372036854775807' })
    expect(answer).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
    expect(await polled(group)).toEqual(batch)
  })
})

describe('the lag of a group', () => {
  test('says how far behind each partition is, and when the oldest event was appended', async () => {
    const group = await made({ partitions: 2 })
    const nothing = await lag(group)
    expect(nothing).toEqual({
      group,
      behind: 0,
      oldestAt: null,
      partitions: [0, 1].map((partition) => ({
        partition,
        holder: null,
        cursor: expect.stringMatching(/^\d+$/),
        behind: 0,
        retrying: 0,
        parked: 0,
      })),
      horizon: { cursor: place, last: place, holdups: [] },
    })
    for (let i = 0; i < 12; i++) await append(`${group}${i}`, i)
    const behind = await lag(group)
    expect(behind).toMatchObject({ behind: 12, oldestAt: instant })
    expect(behind.partitions.reduce((sum: number, each: Json) => sum + each.behind, 0)).toBe(12)
    const [batch] = await poll(group)
    await commit(group, batch)
    const after = await lag(group)
    expect(after.behind).toBe(12 - batch.events.length)
    expect(after.partitions[batch.partition]).toMatchObject({ holder: 'me', behind: 0 })
    expect(BigInt(after.partitions[batch.partition].cursor)).toBeGreaterThanOrEqual(BigInt(batch.events.at(-1).cursor))
  })

  test('names the transaction that has appended and is open', async () => {
    const group = await made()
    const opened = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const open = lockstep.kysely.transaction().execute(async (trx) => {
      await events.append(`${group}late`, { type: 't', data: 'late' }, { trx })
      opened.resolve()
      await release.promise
    })
    await Promise.race([opened.promise, open])
    await append(`${group}early`, 'early')
    const { horizon } = await lag(group)
    expect(horizon.holdups).toMatchObject([{ pid: expect.any(Number), state: 'idle in transaction' }])
    expect(BigInt(horizon.cursor)).toBeLessThan(BigInt(horizon.last))
    expect(await poll(group)).toEqual([])
    release.resolve()
    await open
    expect(dataOf(await polled(group))).toEqual(['late', 'early'])
  })
})

describe('workers in a loop', () => {
  test('of which one dies and one fails at times apply every event of each stream, in its order, and lose none', async () => {
    const mine = createLockstep({ connectionString: database.url })
    const server = await serve({ lockstep: mine, events: createEvents(mine), port: 0 })
    leftovers.push(() => server.close())
    const group = await made({ partitions: 4, retryLimit: 1_000 })
    const chance = seeded(5)
    const post = async (word: string, body: object, signal?: AbortSignal) => {
      const response = await fetch(`${server.url}${at(group, word)}`, {
        method: 'POST',
        body: JSON.stringify(body),
        headers: { 'content-type': 'application/json' },
        ...(signal && { signal }),
      })
      const text = await response.text()
      return { status: response.status, json: (text === '' ? undefined : JSON.parse(text)) as Json }
    }
    const applied = new Map<string, number[]>()
    const failures = new Set<string>()
    let total = 0
    const worker = async (holder: string, dies: boolean, stop: AbortSignal) => {
      while (!stop.aborted) {
        const { status, json } = await post('poll', { holder, leaseMs: 1_000, limit: 5, waitMs: 100 })
        expect(status).toBe(200)
        for (const batch of json.batches) {
          if (dies && total > 50) return 'dead' // with what it holds
          // It applies where it commits: in this process, after the commit was taken.
          const bad = batch.events.find(({ cursor }: Json) => !failures.has(cursor) && chance() < 0.05)
          if (bad) failures.add(bad.cursor)
          const answer = bad
            ? await post('fail', { ...end(batch), event: bad.cursor, reason: 'No' })
            : await post('commit', end(batch))
          expect([200, 204, 409]).toContain(answer.status)
          if (answer.status === 409) continue
          for (const event of batch.events) {
            if (event === bad) break
            const list = applied.get(event.stream) ?? []
            list.push(event.data)
            applied.set(event.stream, list)
            total++
          }
        }
      }
      return 'stopped'
    }
    const stop = new AbortController()
    const workers = [
      worker('first', true, stop.signal),
      worker('second', false, stop.signal),
      worker('third', false, stop.signal),
    ]
    const streams = Array.from({ length: 20 }, (_, i) => `${group}${String.fromCharCode(97 + i)}`)
    for (let i = 0; i < 15; i++) await Promise.all(streams.map((stream) => append(stream, i)))
    await Promise.race([until('all are applied', () => total === 300), Promise.all(workers)])
    stop.abort()
    expect(await Promise.all(workers)).toEqual(['dead', 'stopped', 'stopped'])
    const whole = Array.from({ length: 15 }, (_, i) => i)
    expect([...applied.keys()].sort()).toEqual(streams)
    for (const list of applied.values()) expect(list).toEqual(whole)
    expect(failures.size).toBeGreaterThan(0)
    expect(await lag(group)).toMatchObject({ behind: 0 })
    expect(await parked(group)).toEqual([])
  })
})

describe('over a socket', () => {
  test('a consumer that hangs up while it waits is waited for no more, and a stop ends the others', async () => {
    const mine = createLockstep({ connectionString: database.url })
    const spied = createEvents(mine)
    const polls = vi.spyOn(spied, 'poll')
    const server = await serve({ lockstep: mine, events: spied, port: 0, drainMs: 3_600_000 })
    leftovers.push(() => server.close())
    const group = await made()
    const ask = (signal?: AbortSignal) =>
      fetch(`${server.url}${at(group, 'poll')}`, {
        method: 'POST',
        body: '{ "holder": "me", "waitMs": 20000 }',
        headers: { 'content-type': 'application/json' },
        ...(signal && { signal }),
      })
    const client = new AbortController()
    const gone = ask(client.signal).catch((error) => error.name)
    await until('it waits', () => polls.mock.results.length === 1)
    client.abort()
    expect(await gone).toBe('AbortError')
    await expect(polls.mock.results[0]?.value).rejects.toThrow()

    const wait = ask()
    await until('another waits', () => polls.mock.results.length === 2)
    const closed = server.close()
    expect([(await wait).status, await (await wait).json()]).toMatchObject([503, { code: 'UNAVAILABLE' }])
    await closed
  })
})

describe('names', () => {
  test.each([
    'a/b',
    'poll',
    'a/poll',
    '%',
    'a%2Fb',
    'ä',
    '🔒',
    '🔒🔒 a',
    '{name}',
    '__proto__',
    '..a',
    'x'.repeat(255),
  ])('%j arrives as it was sent, in every route', async (name) => {
    const stream = `of ${name}`.slice(0, 200)
    expect((await call('PUT', at(name), { body: { prefix: stream, partitions: 2, retryLimit: 0 } })).status).toBe(201)
    await append(stream, 1, 2)
    expect((await call('GET', at(name))).json).toMatchObject({ name, prefix: stream })
    const batch = await polled(name)
    expect(await polled(name)).toEqual(batch)
    expect((await fail(name, batch, batch.events[0])).json).toMatchObject({ parked: true })
    expect(await parked(name)).toMatchObject([{ stream, position: '1' }])
    expect(await redeliver(name)).toBe(1)
    expect((await commit(name, await polled(name))).status).toBe(204)
    expect((await lag(name)).partitions.map(({ holder }: Json) => holder)).toEqual(['me', 'me'])
    expect((await verb(name, 'leave', { holder: 'me' })).status).toBe(204)
    expect((await lag(name)).partitions.map(({ holder }: Json) => holder)).toEqual([null, null])
    const { json } = await call('GET', `/v1/groups?prefix=${encodeURIComponent(name)}`)
    expect(json.groups[0].name).toBe(name)
    expect((await call('DELETE', at(name))).status).toBe(204)
  })

  test.each(['🔒', 'ä', 'a b', '%', 'x'.repeat(255), '🔒'.repeat(255)])('a holder may be called %j', async (holder) => {
    const group = await made()
    await append(group, 1)
    const batch = await polled(group, { holder })
    expect(await polled(group, { holder })).toEqual(batch)
    expect((await lag(group)).partitions[0].holder).toBe(holder)
    expect((await verb(group, 'leave', { holder })).status).toBe(204)
    expect((await commit(group, batch)).status).toBe(409)
  })

  const routes: [string, string, object?][] = [
    ['PUT', ''],
    ['GET', ''],
    ['DELETE', ''],
    ['GET', '/lag'],
    ['GET', '/parked'],
    ['POST', '/redeliver'],
    ['POST', '/poll', { holder: 'me' }],
    ['POST', '/commit', { partition: 0, token: '1', next: '1.1' }],
    ['POST', '/fail', { partition: 0, token: '1', next: '1.1', event: '1' }],
    ['POST', '/leave', { holder: 'me' }],
  ]
  test.each(['%00', 'a%0a', '%7f', '%zz', '%', '%ff', '%ED%A0%80', 'x'.repeat(256)])(
    '%s is refused by every route, and the field is `name`',
    async (name) => {
      for (const [method, path, body] of routes) {
        const answer = await call(method, `/v1/groups/${name}${path}`, { body })
        expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'name' }] } })
      }
    },
  )

  test.each(['/v1/groups/', '/v1/groups/a/b', '/v1/groups/a/poll/', '/v1/groups/a/poll/b', '/v1/group'])(
    '%s is another path, where there is nothing',
    async (path) => {
      for (const method of ['GET', 'POST']) {
        expect(await call(method, path)).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
      }
    },
  )

  test.each([
    ['POST', '/v1/groups', 'GET, HEAD'],
    ['POST', at('a'), 'PUT, GET, HEAD, DELETE'],
    ['PATCH', '/v1/groups/a%2Fpoll', 'PUT, GET, HEAD, DELETE'],
    ['GET', at('a', 'poll'), 'POST'],
    ['PUT', at('a', 'commit'), 'POST'],
    ['DELETE', at('a', 'fail'), 'POST'],
    ['GET', at('a', 'leave'), 'POST'],
    ['GET', at('a', 'redeliver'), 'POST'],
    ['POST', at('a', 'lag'), 'GET, HEAD'],
    ['DELETE', at('a', 'parked'), 'GET, HEAD'],
  ])('%s %s is 405 and says what the path takes', async (method, path, allow) => {
    const answer = await call(method, path)
    expect(answer).toMatchObject({ status: 405, json: { code: 'METHOD_NOT_ALLOWED' } })
    expect(answer.headers.get('allow')).toBe(allow)
  })
})

describe('a body', () => {
  const json = (...values: unknown[]) => values.map((value) => JSON.stringify(value))
  const integers = (min: number, max: number) => [
    ...json(min - 1, max + 1, min + 0.5, String(min), null, true, [min], {}),
    '1e400',
  ]
  const text = json('', 'x'.repeat(256), '🔒'.repeat(256), 'a\0', 'a\n', '\ud800', 7, null, true, ['a'], {})
  const values = [...json('a\0', { 'a\0': 1 }, '\ud800', ['\udc00']), '['.repeat(30_000) + ']'.repeat(30_000)]
  const places = [...json('', '0', '-1', '01', '1.0', '1e3', ' 1', '9223372036854775808', 5, null, ['5'], {}), '5.0']
  const batch = { partition: 0, token: '1', next: '1.1' }
  const ends = { partition: integers(0, 255), token: places, next: [...text, ...json('x', '1', '1.', '.1', '1.1.1')] }
  const bodies: [method: string, path: string, valid: object, wrong: Record<string, string[]>][] = [
    [
      'PUT',
      at('body'),
      {},
      {
        prefix: text.filter((value) => value !== '""'),
        partitions: integers(1, 256),
        from: [...places, ...json('START', 'beginning', 'now')],
        retryLimit: integers(0, 1_000),
        retryDelayMs: integers(0, 3_600_000),
      },
    ],
    [
      'POST',
      at('body', 'poll'),
      { holder: 'me' },
      {
        holder: text,
        limit: integers(1, 1_000),
        leaseMs: integers(1_000, 3_600_000),
        waitMs: integers(0, 20_000),
      },
    ],
    ['POST', at('body', 'commit'), batch, ends],
    ['POST', at('body', 'fail'), { ...batch, event: '1' }, { ...ends, event: places, reason: values.slice(-1) }],
    ['POST', at('body', 'leave'), { holder: 'me' }, { holder: text }],
    ['POST', at('body', 'redeliver'), {}, { stream: text, skip: json('true', 1, null, [], {}) }],
  ]
  const written = (valid: object, field: string, value: string) => {
    const others = Object.entries(valid).filter(([key]) => key !== field)
    return `{ ${others.map(([key, other]) => `"${key}": ${JSON.stringify(other)}, `).join('')}"${field}": ${value} }`
  }
  const short = (value: string) => (value.length > 40 ? `${value.slice(0, 40)}… (${value.length})` : value)

  const cases = bodies.flatMap(([method, path, valid, wrong]) =>
    Object.entries(wrong).flatMap(([field, all]) =>
      all.map((value) => [method, path, field, short(value), written(valid, field, value)] as const),
    ),
  )
  test.each(cases)('of %s %s with a wrong %s is refused: %s', async (method, path, field, _, body) => {
    const { status, json } = await call(method, path, { body })
    expect(status).toBe(400)
    expect(json.errors.length).toBe(1)
    expect(json.errors[0].field).toBe(field)
    expect(json.errors[0].expected).not.toMatch(/^Invalid|expected/)
    expect(json.detail.length).toBeLessThan(200)
  })

  test.each([
    ['PUT', at('body'), { retrylimit: 1 }, 'retrylimit'],
    ['PUT', at('body'), { name: 'x' }, 'name'],
    ['PUT', at('body'), '{ "__proto__": 1 }', '__proto__'],
    ['PUT', at('body'), '[]', 'body'],
    ['PUT', at('body'), '{', 'body'],
    ['POST', at('body', 'poll'), undefined, 'holder'],
    ['POST', at('body', 'poll'), {}, 'holder'],
    ['POST', at('body', 'poll'), { holder: 'me', ttlMs: 1_000 }, 'ttlMs'],
    ['POST', at('body', 'poll'), { holder: 'me', signal: 1 }, 'signal'],
    ['POST', at('body', 'commit'), { token: '1', next: '1.1' }, 'partition'],
    ['POST', at('body', 'commit'), { partition: 0, next: '1.1' }, 'token'],
    ['POST', at('body', 'commit'), { partition: 0, token: '1' }, 'next'],
    ['POST', at('body', 'commit'), { ...batch, trx: 1 }, 'trx'],
    ['POST', at('body', 'commit'), { ...batch, events: [] }, 'events'],
    ['POST', at('body', 'fail'), batch, 'event'],
    ['POST', at('body', 'leave'), {}, 'holder'],
    ['POST', at('body', 'redeliver'), { streams: [] }, 'streams'],
  ])('of %s %s %j is refused, and the field is %s', async (method, path, body, field) => {
    expect(await call(method, path, { body })).toMatchObject({ status: 400, json: { errors: [{ field }] } })
  })

  test('that was refused has made nothing', async () => {
    expect((await call('GET', at('body'))).status).toBe(404)
  })

  test('over 64 KiB is 413 and names the limit', async () => {
    for (const [method, path] of bodies) {
      const answer = await call(method, path, { body: `"${'x'.repeat(65_536)}"` })
      expect([method, path, answer.status, answer.json.code]).toEqual([method, path, 413, 'TOO_LARGE'])
      expect(answer.json.detail).toContain('65536')
    }
  })

  test('that is just allowed is allowed', async () => {
    for (const options of [
      { prefix: '🔒'.repeat(255), from: '1' },
      { partitions: 256, from: '9223372036854775807' },
      { retryLimit: 1_000, retryDelayMs: 3_600_000 },
      { retryLimit: 0, retryDelayMs: 0, from: 'end' },
    ]) {
      await made(options)
    }
    const group = await made()
    await append(group, 1)
    await poll(group, { holder: '🔒'.repeat(255), limit: 1_000, leaseMs: 3_600_000, waitMs: 20_000 })
    await verb(group, 'leave', { holder: '🔒'.repeat(255) })
    const batch = await polled(group, { limit: 1, leaseMs: 1_000 })
    const deepest = JSON.parse('['.repeat(1_000) + ']'.repeat(1_000))
    expect((await fail(group, batch, batch.events[0], deepest)).status).toBe(200)
    expect((await commit(group, { partition: 255, token: '9223372036854775807', next: batch.next })).status).toBe(409)
  })
})

describe('a query', () => {
  const bad: [method: string, path: string, query: string, field: string][] = []
  const wrong = (method: string, path: string, field: string, values: string[]) => {
    for (const value of values) bad.push([method, path, `${field}=${value}`, field])
  }
  const texts = ['%00', '%zz', '%ff', 'x'.repeat(256)]
  for (const path of ['/v1/groups', at('q', 'parked')]) {
    wrong('GET', path, 'limit', ['0', '1001', '-1', '1e2', '', 'x'])
    wrong('GET', path, 'after', ['', ...texts])
    wrong('GET', path, 'page', ['2'])
  }
  wrong('GET', '/v1/groups', 'prefix', texts)
  wrong('GET', at('q', 'parked'), 'prefix', ['q'])
  wrong('GET', at('q'), 'x', ['1'])
  wrong('PUT', at('q'), 'prefix', ['q'])
  wrong('DELETE', at('q'), 'force', ['true'])
  wrong('GET', at('q', 'lag'), 'limit', ['1'])
  for (const word of ['poll', 'commit', 'fail', 'leave', 'redeliver']) wrong('POST', at('q', word), 'holder', ['me'])
  const short = (value: string) => (value.length > 40 ? `${value.slice(0, 40)}… (${value.length})` : value)

  test.each(bad.map(([method, path, query, field]) => [method, path, short(query), field, query] as const))(
    '%s %s?%s is refused, and the field is %s',
    async (method, path, _, field, query) => {
      expect(await call(method, `${path}?${query}`)).toMatchObject({ status: 400, json: { errors: [{ field }] } })
    },
  )
})

test('a database that is away is 503 with Retry-After on every route', async () => {
  await using server = await dedicatedServer()
  const lockstep = createLockstep({ connectionString: server.url })
  const on = createApp(lockstep, { events: createEvents(lockstep) })
  expect((await call('PUT', at('g'), { on })).status).toBe(201)
  await server.stop()
  const batch = { partition: 0, token: '1', next: '1.1' }
  for (const [method, path, body] of [
    ['PUT', at('g')],
    ['GET', at('g')],
    ['DELETE', at('g')],
    ['GET', '/v1/groups'],
    ['GET', at('g', 'lag')],
    ['GET', at('g', 'parked')],
    ['POST', at('g', 'redeliver')],
    ['POST', at('g', 'poll'), { holder: 'me' }],
    ['POST', at('g', 'poll'), { holder: 'me', waitMs: 20_000 }],
    ['POST', at('g', 'commit'), batch],
    ['POST', at('g', 'fail'), { ...batch, event: '1' }],
    ['POST', at('g', 'leave'), { holder: 'me' }],
  ] as const) {
    const answer = await call(method, path, { on, body })
    expect([method, path, answer.status, answer.json?.code]).toEqual([method, path, 503, 'UNAVAILABLE'])
    expect(answer.headers.get('retry-after')).toBe('1')
  }
  await server.start()
  await until('it is back', async () => (await verb('g', 'poll', { holder: 'me' }, { on })).status === 200)
  await lockstep.close()
})

test('a group that is ended in the moment it is made is 503: make it again', async () => {
  const get = (target: Events, key: keyof Events) =>
    key === 'group' ? async () => null : (target[key] as () => unknown).bind(target)
  const on = createApp(lockstep, {
    events: new Proxy(events, { get: get as ProxyHandler<Events>['get'] & object }),
    onError: () => {},
  })
  const name = fresh()
  expect(await call('PUT', at(name), { on })).toMatchObject({ status: 503, json: { code: 'UNAVAILABLE' } })
})

describe('keys', () => {
  const hash = (secret: string) => createHash('sha256').update(secret).digest('hex')
  const keyed = (on = events) =>
    createApp(lockstep, {
      events: on,
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
  const batch = { partition: 0, token: '1', next: '1.1' }
  const routes: Record<string, (name: string) => [string, string, Ask?]> = {
    change: (name) => ['PUT', at(name), { body: { retryLimit: 3 } }],
    look: (name) => ['GET', at(name)],
    list: (name) => ['GET', `/v1/groups?prefix=${encodeURIComponent(name)}`],
    lag: (name) => ['GET', at(name, 'lag')],
    parked: (name) => ['GET', at(name, 'parked')],
    redeliver: (name) => ['POST', at(name, 'redeliver')],
    poll: (name) => ['POST', at(name, 'poll'), { body: { holder: 'me' } }],
    commit: (name) => ['POST', at(name, 'commit'), { body: batch }],
    fail: (name) => ['POST', at(name, 'fail'), { body: { ...batch, event: '1' } }],
    leave: (name) => ['POST', at(name, 'leave'), { body: { holder: 'me' } }],
    end: (name) => ['DELETE', at(name)],
  }
  const all = Object.keys(routes)
  const read = ['look', 'list', 'lag', 'parked']

  const reads: Record<string, string> = { 'ours/g': 'ours/', 'ours/wide': '', 'ours/other': 'theirs/', 'theirs/g': '' }

  test.each([
    ['reader', 'ours/g', read],
    ['writer', 'ours/g', all],
    ['writer', 'theirs/g', all],
    ['admin', 'ours/g', all],
    ['other', 'ours/g', []],
    ['ours', 'ours/g', all],
    ['ours', 'ours/wide', ['look', 'list']],
    ['ours', 'ours/other', ['look', 'list']],
    ['ours', 'theirs/g', []],
    ['ours', 'ours', ['list']],
    ['chief', 'ours/g', all],
    ['chief', 'ours/wide', ['look', 'list']],
    ['chief', 'theirs/g', []],
  ])('let %s do to %s only %j', async (id, name, allowed) => {
    const prefix = reads[name] ?? 'ours/'
    expect([200, 201]).toContain((await call('PUT', at(name), { body: { prefix } })).status)
    for (const [verb, ask] of Object.entries(routes)) {
      const [method, path, more] = ask(name)
      expect((await call(method, path, { ...more, on: keyed() })).status).toBe(401)
      const { status, json } = await call(method, path, { ...more, on: keyed(), key: bearer(id) })
      expect([verb, status === 403]).toEqual([verb, !allowed.includes(verb)])
      if (status === 403) expect(json.code).toBe('FORBIDDEN')
      else
        expect([verb, status]).toEqual([verb, verb === 'commit' || verb === 'fail' ? 409 : status < 300 ? status : 200])
    }
    if (!allowed.includes('end')) expect((await call('GET', at(name))).json.retryLimit).toBe(5)
    await call('DELETE', at(name))
  })

  test.each(['ours', 'chief'])('that are bound to names make groups of such streams only: %s', async (id) => {
    const asked = { on: keyed(), key: bearer(id) }
    for (const body of [undefined, {}, { prefix: '' }, { prefix: 'ours' }, { prefix: 'theirs/' }]) {
      expect((await call('PUT', at('ours/new'), { ...asked, body })).status).toBe(403)
      expect((await call('GET', at('ours/new'))).status).toBe(404)
    }
    for (const prefix of ['ours/', 'ours/x']) {
      expect((await call('PUT', at('ours/new'), { ...asked, body: { prefix } })).json).toMatchObject({ prefix })
      expect((await call('PUT', at('ours/new'), { ...asked, body: { retryLimit: 1 } })).json).toMatchObject({ prefix })
      expect((await call('DELETE', at('ours/new'), asked)).status).toBe(204)
    }
  })

  test('that are bound to names learn nothing of other streams, though the group is made anew while they wait', async () => {
    const asked = { on: keyed(), key: bearer('ours') }
    const name = 'ours/anew'
    await call('PUT', at(name), { body: { prefix: 'ours/anew', partitions: 1 } })
    await append('theirs/secret', 'secret')
    const replaced = new Proxy(events, {
      get: (target, key: keyof Events) => {
        if (key !== 'poll') return (target[key] as () => unknown).bind(target)
        return async (...args: Parameters<Events['poll']>) => {
          await target.deleteGroup(name)
          await target.declareGroup(name, { prefix: 'theirs/', partitions: 1 })
          return target.poll(...args)
        }
      },
    })
    const answer = await call('POST', at(name, 'poll'), { ...asked, on: keyed(replaced), body: { holder: 'me' } })
    expect(answer).toMatchObject({ status: 403, json: { code: 'FORBIDDEN' } })
    expect(JSON.stringify(answer.json)).not.toContain('secret')
    expect(dataOf(await polled(name))).toEqual(['secret'])
  })

  test('show a list cut down to the prefix of the key', async () => {
    for (const name of ['ours/1', 'theirs/1']) await call('PUT', at(name))
    for (const query of ['', '?prefix=', '?prefix=o', '?prefix=ours%2F']) {
      const { json } = await call('GET', `/v1/groups${query}`, { on: keyed(), key: bearer('ours') })
      expect(json.groups.length).toBeGreaterThan(0)
      expect(json.groups.every(({ name }: Json) => name.startsWith('ours/'))).toBe(true)
    }
  })
})

describe('openapi.json', () => {
  const document = async (): Promise<Json> => (await app.request('/openapi.json')).json()
  const operations = async () =>
    Object.entries<object>((await document()).paths)
      .filter(([path]) => path.startsWith('/v1/groups'))
      .flatMap(([path, item]) =>
        Object.entries<Json>(item).map(
          ([method, operation]) => [`${method.toUpperCase()} ${path}`, operation] as const,
        ),
      )

  test('has every route and every status that was answered above, and none that never was', async () => {
    const all = await operations()
    expect(all.length).toBe(11)
    for (const [route, { responses }] of all) {
      // 405 belongs to no operation, 499 nobody reads, and no route was made to fail
      const answered = [...(seen.get(route) ?? [])].filter((status) => status !== 405 && status !== 499)
      expect([...answered, 500].sort(), route).toEqual(Object.keys(responses).map(Number).sort())
    }
  })

  test('describes every operation: summary, path parameters, key, answers; and every reference resolves', async () => {
    for (const [route, operation] of await operations()) {
      expect(operation.summary, route).toBeTruthy()
      expect(operation.security, route).toEqual([{ key: [] }])
      const inPath = (operation.parameters ?? []).filter((p: Json) => p.in === 'path').map((p: Json) => p.name)
      expect(inPath, route).toEqual([...route.matchAll(/\{(\w+)\}/g)].map(([, name]) => name))
      for (const [status, answer] of Object.entries<Json>(operation.responses)) {
        expect(answer.description, `${route} ${status}`).toBeTruthy()
        const type = Number(status) < 400 ? 'application/json' : 'application/problem+json'
        expect(Object.keys(answer.content ?? {})).toEqual(status === '204' ? [] : [type])
      }
    }
    const doc = await document()
    for (const [, ref = ''] of JSON.stringify(doc).matchAll(/"\$ref":"#\/([^"]+)"/g)) {
      const found = ref.split('/').reduce((node: Json, step) => node?.[step], doc)
      expect(found, ref).toBeTypeOf('object')
    }
  })

  test('states the limits that are enforced', async () => {
    const { components } = await document()
    expect(components.schemas.DeclareGroup).toMatchObject({
      additionalProperties: false,
      properties: {
        prefix: { type: 'string', minLength: 0, maxLength: 255, description: expect.stringContaining('Default: ""') },
        partitions: { type: 'integer', minimum: 1, maximum: 256, description: expect.stringContaining('Default: 8') },
        from: {
          type: 'string',
          pattern: '^(start|end|[1-9][0-9]{0,18})$',
          description: expect.stringContaining('Default: "start"'),
        },
        retryLimit: { type: 'integer', minimum: 0, maximum: 1_000, description: expect.stringContaining('Default: 5') },
        retryDelayMs: {
          type: 'integer',
          minimum: 0,
          maximum: 3_600_000,
          description: expect.stringContaining('Default: 1000'),
        },
      },
    })
    expect(components.schemas.DeclareGroup.required).toBeUndefined()
    expect(components.schemas.PollGroup).toMatchObject({
      required: ['holder'],
      properties: {
        limit: { minimum: 1, maximum: 1_000, description: expect.stringContaining('Default: 100') },
        leaseMs: { minimum: 1_000, maximum: 3_600_000, description: expect.stringContaining('Default: 30000') },
        waitMs: { minimum: 0, maximum: 20_000, description: expect.stringContaining('Default: 0') },
      },
    })
    expect(components.schemas.CommitBatch.required).toEqual(['partition', 'token', 'next'])
    expect(components.schemas.FailEvent.required).toEqual(['partition', 'token', 'next', 'event'])
  })
})
