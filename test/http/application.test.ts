/**
 * The HTTP application, without a server: what it takes, what it refuses, what keys may do, and that
 * openapi.json says so.
 *
 * Every answer of this file passes through `call`, which checks the rules of all answers (problem+json,
 * a request id, nothing of the database's) and remembers its status; the last tests compare that with the document.
 */
import { createHash } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { parseKeys } from '../../functions/http/auth.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase } from '../support/database.ts'

let database: FreshDatabase
let lockstep: Lockstep
let app: ReturnType<typeof createApp>
const reported: unknown[] = []
const seen = new Map<string, Set<number>>()

beforeAll(async () => {
  database = await freshDatabase()
  lockstep = createLockstep({ connectionString: database.url })
  app = createApp(lockstep, { version: '1.2.3', onError: (error) => reported.push(error) })
})
afterAll(async () => {
  await lockstep?.close()
  await database?.close()
})

interface Ask {
  /** A string is sent as it is, anything else as JSON. */
  body?: unknown
  type?: string | null
  key?: string
  signal?: AbortSignal
  headers?: Record<string, string>
  on?: ReturnType<typeof createApp>
}

async function call(
  method: string,
  path: string,
  { body, type = 'application/json', key, signal, headers = {}, on = app }: Ask = {},
) {
  const raw = body === undefined || typeof body === 'string' || body instanceof Uint8Array
  const response = await on.request(path, {
    method,
    body: (raw ? (body as string | undefined) : JSON.stringify(body)) ?? null,
    headers: {
      ...(body !== undefined && type && { 'content-type': type }),
      ...(key && { authorization: key }),
      ...headers,
    },
    ...(signal && { signal }),
  })
  const text = await response.text()
  const route = `${method} ${new URL(path, 'http://x').pathname.replace(/^\/v1\/locks\/[^/]+$/, '/v1/locks/{name}')}`
  seen.set(route, (seen.get(route) ?? new Set()).add(response.status))

  expect(response.headers.get('x-request-id')).toMatch(/^[\w-]+$/)
  expect(response.headers.get('cache-control')).toBe('no-store')
  expect(text).not.toMatch(/postgres:|select |insert |\bat .*\.ts:\d/i)
  const json = text === '' ? undefined : JSON.parse(text)
  if (!response.ok) {
    expect(response.headers.get('content-type')).toBe('application/problem+json')
    expect(json).toMatchObject({
      type: 'about:blank',
      status: response.status,
      code: expect.stringMatching(/^[A-Z_]+$/),
    })
    expect(json.title).toBeTruthy()
    expect(json.detail).toBeTruthy()
  }
  return { status: response.status, headers: response.headers, json }
}

let count = 0
const fresh = () => `lock ${++count}`
const at = (name: string) => `/v1/locks/${encodeURIComponent(name)}`
const acquire = async (name: string, body: object = {}) => (await call('POST', at(name), { body })).json
const until = async (what: () => Promise<boolean>) => {
  for (const deadline = Date.now() + 10_000; !(await what()); await delay(10)) {
    if (Date.now() > deadline) throw new Error('It did not come to pass in 10 s')
  }
}
const waiting = (name: string, n: number) => until(async () => (await call('GET', at(name))).json.waiting === n)

/** A label for a case: the name of a test shows all of it. */
const short = (value: string) => (value.length > 40 ? `${value.slice(0, 40)}… (${value.length})` : value)
const labelled = (values: string[]) => values.map((value) => [short(value), value] as const)

describe('a lock', () => {
  test('is granted, renewed by its token, looked at and released', async () => {
    const name = fresh()
    const granted = await call('POST', at(name), {
      body: { holder: 'me', ttlMs: 60_000, meta: { on: ['host', 1] } },
    })
    const instant = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/
    expect(granted).toMatchObject({
      status: 201,
      json: { name, holder: 'me', token: expect.stringMatching(/^\d+$/) },
    })
    expect(granted.json.grantedAt).toMatch(instant)
    expect(granted.json.expiresAt).toMatch(instant)
    const { token } = granted.json

    const renewed = await call('PATCH', at(name), { body: { token, ttlMs: 120_000 } })
    expect(renewed).toMatchObject({
      status: 200,
      json: { name, holder: 'me', token, grantedAt: granted.json.grantedAt },
    })
    expect(Date.parse(renewed.json.expiresAt)).toBeGreaterThan(Date.parse(granted.json.expiresAt))
    const { grantedAt: since, ...rest } = renewed.json
    const hold = { kind: 'lease', meta: { on: ['host', 1] } }
    expect((await call('GET', at(name))).json).toEqual({
      ...{ ...renewed.json, ...hold, held: true, ttlMs: 120_000, waiting: 0 },
      holders: [{ holder: rest.holder, token: rest.token, expiresAt: rest.expiresAt, since, ...hold }],
    })
    expect((await call('DELETE', `${at(name)}?token=${token}`)).status).toBe(204)
    expect((await call('GET', at(name))).json).toMatchObject({
      name,
      held: false,
      holder: null,
      token: null,
      expiresAt: null,
    })
  })

  test('needs no body: the defaults are a fresh holder and 15 s', async () => {
    for (const ask of [{}, { body: '' }, { body: {} }]) {
      const { status, json } = await call('POST', at(fresh()), ask)
      expect(status).toBe(201)
      expect(json.holder).toBeTruthy()
      expect(Date.parse(json.expiresAt) - Date.parse(json.grantedAt)).toBe(15_000)
    }
  })

  test('held by another is 423 with Retry-After, in whole seconds, at least one', async () => {
    const name = fresh()
    await acquire(name, { ttlMs: 60_000 })
    const refused = await call('POST', at(name))
    expect(refused).toMatchObject({ status: 423, json: { code: 'LEASE_HELD' } })
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThanOrEqual(58)
    expect(Number(refused.headers.get('retry-after'))).toBeLessThanOrEqual(60)
  })

  test('asked for again by the same holder is the same grant, 200', async () => {
    const name = fresh()
    const first = await acquire(name, { holder: 'me' })
    const again = await call('POST', at(name), { body: { holder: 'me' } })
    expect(again).toMatchObject({ status: 200, json: { token: first.token, grantedAt: first.grantedAt } })
  })

  test('given up or taken away is 409 for its late holder, and the next token is larger', async () => {
    const name = fresh()
    const { token } = await acquire(name)
    expect((await call('DELETE', `${at(name)}?force=true`)).status).toBe(204)
    for (const late of [
      await call('PATCH', at(name), { body: { token } }),
      await call('DELETE', `${at(name)}?token=${token}`),
      await call('DELETE', `${at(name)}?token=9223372036854775807`),
    ]) {
      expect(late).toMatchObject({ status: 409, json: { code: 'LEASE_LOST' } })
    }
    expect(BigInt((await acquire(name)).token)).toBeGreaterThan(BigInt(token))
    expect((await call('DELETE', `${at(fresh())}?force=true`)).status).toBe(204)
  })

  test('waited for is granted when it is released', async () => {
    const name = fresh()
    const { token } = await acquire(name)
    const next = call('POST', at(name), { body: { waitMs: 20_000 } })
    await waiting(name, 1)
    await call('DELETE', `${at(name)}?token=${token}`)
    expect((await next).status).toBe(201)
  })

  test('waited for in vain is 423 when the wait has run out', async () => {
    const name = fresh()
    await acquire(name)
    expect((await call('POST', at(name), { body: { waitMs: 50 } })).status).toBe(423)
  })
})

describe('a client that hangs up', () => {
  test('leaves the queue, and is never granted the lock', async () => {
    const name = fresh()
    const { token } = await acquire(name)
    const client = new AbortController()
    const wait = call('POST', at(name), { body: { waitMs: 20_000 }, signal: client.signal })
    await waiting(name, 1)
    client.abort()
    expect((await wait).status).toBe(499)
    await waiting(name, 0)
    await call('DELETE', `${at(name)}?token=${token}`)
    // A try that is being taken back can be seen for an instant; a grant to nobody would stay.
    await until(async () => !(await call('GET', at(name))).json.held)
  })

  test('while its grant is on the way does not keep the lock', async () => {
    const name = fresh()
    await acquire(name, { holder: 'before' }).then(({ token }) => call('DELETE', `${at(name)}?token=${token}`))
    const client = new AbortController()
    const answer = await withLeasesLocked(async (queued) => {
      const answer = call('POST', at(name), { signal: client.signal })
      await queued()
      client.abort()
      return { answer }
    })
    expect((await answer.answer).status).toBe(499)
    expect((await call('GET', at(name))).json.held).toBe(false)
  })

  test('while it asks again for what it holds keeps it', async () => {
    const name = fresh()
    const { token } = await acquire(name, { holder: 'me' })
    const client = new AbortController()
    const { answer } = await withLeasesLocked(async (queued) => {
      const answer = call('POST', at(name), { body: { holder: 'me' }, signal: client.signal })
      await queued()
      client.abort()
      return { answer }
    })
    await answer
    expect((await call('GET', at(name))).json).toMatchObject({ held: true, token })
  })

  /** Holds every statement on leases up while `during` runs; `queued` waits until one stands there. */
  async function withLeasesLocked<T>(during: (queued: () => Promise<void>) => Promise<T>): Promise<T> {
    const other = await database.pool.connect()
    try {
      await other.query('begin; lock table lockstep.lease in access exclusive mode')
      return await during(() =>
        until(async () => {
          const { rows } = await other.query(
            `select from pg_locks where not granted and relation = 'lockstep.lease'::regclass and database = (select oid from pg_database where datname = current_database())`,
          )
          return rows.length > 0
        }),
      )
    } finally {
      await other.query('commit')
      other.release()
    }
  }
})

describe('a server that stops', () => {
  test('ends waits with 503 and Retry-After, and still answers requests that do not wait', async () => {
    const stopping = new AbortController()
    const on = createApp(lockstep, { signal: stopping.signal, onError: (error) => reported.push(error) })
    const name = fresh()
    await acquire(name)
    const before = reported.length
    const wait = call('POST', at(name), { body: { waitMs: 20_000 }, on })
    await waiting(name, 1)
    stopping.abort()
    const ended = await wait
    expect(ended).toMatchObject({ status: 503, json: { code: 'UNAVAILABLE' } })
    expect(ended.headers.get('retry-after')).toBe('1')
    expect((await call('POST', at(name), { body: { waitMs: 20_000 }, on })).status).toBe(503)
    expect((await call('POST', at(fresh()), { on })).status).toBe(201)
    expect(reported.length).toBe(before)
    await waiting(name, 0)
  })
})

describe('names', () => {
  const names = [
    'a/b',
    'a%2Fb',
    '%',
    '100%',
    'a b',
    'a+b',
    'a?b#c',
    'ä',
    'a\u0308',
    '🔒',
    '..a',
    'a/../b',
    '\u202e',
    '{name}',
    '*',
    ':x',
    '__proto__',
  ]
  test.each(names)('%j arrives as it was sent', async (name) => {
    const { token } = await acquire(name)
    expect((await call('GET', at(name))).json).toMatchObject({ name, token })
    expect((await call('GET', `/v1/locks?prefix=${encodeURIComponent(name)}`)).json.locks[0]).toMatchObject({
      name,
    })
  })

  test.each(labelled(['x'.repeat(255), '🔒'.repeat(255), '%41', '🔒']))('%s may stand in a path', async (_, name) => {
    expect((await call('GET', `/v1/locks/${name}`)).status).toBe(200)
  })

  const control = ['%00', 'a%00', '%0a', '%0D', '%1b', '%7f', '%C2%85']
  const malformed = ['%zz', '%', 'a%2', '%ff', '%C3', '%ED%A0%80']
  test.each(labelled([...control, ...malformed, 'x'.repeat(256), '🔒'.repeat(256), 'x'.repeat(9000)]))(
    '%s is refused, and the field is `name`',
    async (_, name) => {
      for (const [method, body] of [['POST'], ['PATCH', { token: '1' }], ['DELETE'], ['GET']] as const) {
        const answer = await call(method, `/v1/locks/${name}${method === 'DELETE' ? '?token=1' : ''}`, { body })
        expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'name' }] } })
      }
    },
  )

  test.each(['.', '..', '%2e', '%2E%2e', 'a/b', ''])('%j is another path, where there is nothing', async (segment) => {
    expect((await call('POST', `/v1/locks/${segment}`)).status).toBe(404)
  })
})

/** Raw JSON by field, all of it wrong. */
const json = (...values: unknown[]) => values.map((value) => JSON.stringify(value))
const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)
const TEXT = json(
  '',
  'x'.repeat(256),
  '🔒'.repeat(256),
  'x'.repeat(60_000),
  'a\0',
  'a\n',
  '\x7f',
  '\ud800',
  7,
  null,
  true,
  ['a'],
  {},
)
const WRONG = {
  holder: TEXT,
  ttlMs: [...json(999, 3_600_001, 0, -15_000, 1500.5, '15000', null, true, [15_000], {}), '1e400', '9'.repeat(9000)],
  waitMs: [...json(-1, 20_001, 0.5, '0', null, false, [], {}), '1e400'],
  meta: [
    ...json('x'.repeat(4095), 'ä'.repeat(2048), 'a\0', { 'a\0': 1 }, '\ud800', ['\udc00'], '\\\0'),
    nested(2049),
    nested(30_000),
  ],
  token: [
    ...json(
      '',
      '0',
      '-1',
      '01',
      '1.0',
      '1e3',
      ' 1',
      '0x1',
      '9223372036854775808',
      '9'.repeat(9000),
      5,
      null,
      ['5'],
      {},
    ),
    '5.0',
  ],
}
const fields = (request: string) =>
  (request === 'POST' ? ['holder', 'ttlMs', 'waitMs', 'meta'] : ['token', 'ttlMs']) as (keyof typeof WRONG)[]

describe.each(['POST', 'PATCH'])('the body of %s', (method) => {
  const put = (body: unknown, type?: string | null) =>
    call(method, at('body'), { body, ...(type !== undefined && { type }) })
  const cases = fields(method).flatMap((field) =>
    labelled(WRONG[field]).map(([label, value]) => [field, label, value] as const),
  )

  test.each(cases)('refuses %s: %s', async (field, _, value) => {
    const others = method === 'PATCH' && field !== 'token' ? '"token": "1", ' : ''
    const { status, json } = await put(`{ ${others}"${field}": ${value} }`)
    expect(status).toBe(400)
    expect(json.errors).toEqual([{ field, expected: expect.stringMatching(/\d|JSON/) }])
    expect(json.detail.length).toBeLessThan(200)
  })

  test('names every wrong field, and fields that do not exist', async () => {
    const { status, json } = await put('{ "ttlMs": 1, "ttlMS": 1, "__proto__": 1, "constructor": 1, "token": 0 }')
    expect(status).toBe(400)
    const named = json.errors.map(({ field }: { field: string }) => field)
    expect(named).toEqual(expect.arrayContaining(['ttlMs', 'ttlMS', '__proto__', 'constructor', 'token']))
    const many = await put(Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [`field ${i}`, 0])))
    expect(many.json.errors.length).toBe(10)
  })

  test.each(labelled(['{', 'nope', "{'a':1}", '{"a":1}{}', '\u0000', '[', nested(30_000).slice(1), '{"ttlMs":NaN}']))(
    'refuses what is not JSON: %s',
    async (_, text) =>
      expect(await put(text)).toMatchObject({
        status: 400,
        json: { errors: [{ field: 'body', expected: 'JSON in UTF-8' }] },
      }),
  )

  test.each(labelled(['[]', 'null', '"{}"', '7', 'true', nested(30_000)]))(
    'refuses JSON that is no object: %s',
    async (_, text) => expect(await put(text)).toMatchObject({ status: 400, json: { errors: [{ field: 'body' }] } }),
  )

  test('refuses bytes that are not UTF-8 instead of replacing them', async () => {
    const bytes = new TextEncoder().encode('{ "token": "1", "holder": "?" }').with(-4, 0xff)
    expect(await put(bytes)).toMatchObject({ status: 400, json: { errors: [{ field: 'body' }] } })
  })

  test.each([
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'application/jsonp',
    'application/problem+json',
    'x',
    '',
  ])('refuses content type %j', async (type) =>
    expect(await put('{}', type || null)).toMatchObject({
      status: 400,
      json: { errors: [{ field: 'content-type' }] },
    }),
  )

  test('takes any spelling of application/json', async () => {
    const { token } = await acquire('body', { holder: 'body' })
    for (const type of [
      'application/json',
      'Application/JSON',
      'application/json; charset=utf-8',
      'application/json;x=y',
    ]) {
      expect((await put(method === 'POST' ? { holder: 'body' } : { token }, type)).status).toBe(200)
    }
  })

  test('over 64 KiB is 413', async () => {
    const body = (bytes: number) => `{ "holder": "${'x'.repeat(bytes - 15)}"}`
    expect((await put(body(65_536))).status).toBe(400)
    expect(await put(body(65_537))).toMatchObject({ status: 413, json: { code: 'TOO_LARGE' } })
    expect((await put('x'.repeat(5_000_000))).status).toBe(413)
  })
})

test('what is just allowed is allowed', async () => {
  const edges = [
    { holder: 'x' },
    { holder: '🔒'.repeat(255) },
    { ttlMs: 1000 },
    { ttlMs: 3_600_000 },
    { waitMs: 0 },
    { waitMs: 20_000 },
    ...[
      null,
      0,
      false,
      '',
      [],
      {},
      '\\u0000',
      '\\ud800',
      'x'.repeat(4094),
      'ä'.repeat(2047),
      JSON.parse(nested(2048)),
    ].map((meta) => ({ meta })),
  ]
  for (const body of edges) {
    const name = fresh()
    expect((await call('POST', at(name), { body })).status, short(JSON.stringify(body))).toBe(201)
    if ('meta' in body) expect((await call('GET', at(name))).json.meta).toEqual(body.meta)
  }
})

describe('the query', () => {
  const bad: [method: string, query: string, field: string][] = [
    ...['0', '1001', '-1', '1e2', '1.0', '', '+5', '%205', 'x', '9'.repeat(5000)].map(
      (v) => ['GET', `limit=${v}`, 'limit'] as [string, string, string],
    ),
    ['GET', 'limit=1&limit=1', 'limit'],
    ...['%00', '%zz', '%ff', 'x'.repeat(256)].map((v) => ['GET', `prefix=${v}`, 'prefix'] as [string, string, string]),
    ['GET', 'prefix=a&prefix=b', 'prefix'],
    ...['', '%00', '%zz', 'x'.repeat(256)].map((v) => ['GET', `after=${v}`, 'after'] as [string, string, string]),
    ['GET', 'page=2', 'page'],
    ['GET', '__proto__=2', '__proto__'],
    ['GET', '%zz=2', '%zz'],
    ['GET /name', 'token=1', 'token'],
    ['POST', 'ttlMs=1000', 'ttlMs'],
    ['PATCH', 'token=1', 'token'],
    ['DELETE', '', 'token'],
    ...WRONG.token
      .filter((v) => /^"[^[\]{}]*"$/.test(v))
      .map((v) => ['DELETE', `token=${encodeURIComponent(JSON.parse(v))}`, 'token'] as [string, string, string]),
    ['DELETE', 'token=1&token=2', 'token'],
    ['DELETE', 'token=1&force=true', 'token'],
    ...['false', '1', '', 'TRUE'].map((v) => ['DELETE', `force=${v}`, 'force'] as [string, string, string]),
    ['DELETE', 'token=1&ttlMs=5', 'ttlMs'],
  ]
  test.each(bad.map(([method, query, field]) => [method, short(query), field, query] as const))(
    '%s ?%s is refused, and the field is %s',
    async (method, _, field, query) => {
      const path = method === 'GET' ? '/v1/locks' : at('query')
      const { status, json } = await call(method.replace(' /name', ''), `${path}?${query}`)
      expect(status).toBe(400)
      expect(json.errors[0].field).toBe(field)
    },
  )

  test('pages through the leases by name, each once', async () => {
    const names = Array.from({ length: 5 }, (_, i) => `page/${i}`)
    for (const name of names) await acquire(name)
    const pages: string[][] = []
    for (let next: string | null = ''; next !== null; ) {
      const page = await call('GET', `/v1/locks?prefix=page%2F&limit=2${next && `&after=${encodeURIComponent(next)}`}`)
      pages.push(page.json.locks.map((lock: { name: string }) => lock.name))
      next = page.json.next
    }
    expect(pages).toEqual([names.slice(0, 2), names.slice(2, 4), names.slice(4)])
  })

  test('takes % and _ of a prefix as themselves', async () => {
    for (const name of ['p%1', 'p_1', 'px1']) await acquire(name)
    const listed = async (prefix: string) =>
      (await call('GET', `/v1/locks?prefix=${encodeURIComponent(prefix)}`)).json.locks
    expect((await listed('p%')).map((lock: { name: string }) => lock.name)).toEqual(['p%1'])
    expect((await listed('p_')).map((lock: { name: string }) => lock.name)).toEqual(['p_1'])
    expect(await listed('p\\')).toEqual([])
  })
})

describe('other paths and methods', () => {
  test.each(['/x', '/v1', '/v1/', '/v1/lock', '/v1/locks/a/b', '/V1/locks', '/v1//locks', '/%76%31/locks'])(
    '%s is 404',
    async (path) => {
      expect(await call('GET', path)).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
    },
  )

  test.each([
    ['PUT', '/v1/locks/a', 'POST, PATCH, DELETE, GET, HEAD'],
    ['OPTIONS', '/v1/locks/a', 'POST, PATCH, DELETE, GET, HEAD'],
    ['POST', '/v1/locks', 'GET, HEAD'],
    ['DELETE', '/v1/locks', 'GET, HEAD'],
    ['POST', '/healthz', 'GET, HEAD'],
    ['PROPFIND', '/openapi.json', 'GET, HEAD'],
  ])('%s %s is 405 and says what the path takes', async (method, path, allow) => {
    const answer = await call(method, path)
    expect(answer).toMatchObject({ status: 405, json: { code: 'METHOD_NOT_ALLOWED' } })
    expect(answer.headers.get('allow')).toBe(allow)
  })

  test('HEAD is GET without a body', async () => {
    const response = await app.request(at('head'), { method: 'HEAD' })
    expect([response.status, await response.text()]).toEqual([200, ''])
  })
})

describe('LOCKSTEP_API_KEYS', () => {
  const hash = (secret: string) => createHash('sha256').update(secret).digest('hex')
  const H = hash('secret')

  test.each([
    [`a:${H}:locks:write`, ['locks:write'], ''],
    [`a:${H}:locks:read+leaders:write+admin`, ['locks:read', 'leaders:write', 'admin'], ''],
    [`a:${H.toUpperCase()}:admin:x`, ['admin'], 'x'],
    [`a:${H}:locks:read:write`, ['locks:read'], 'write'],
    [`a:${H}:locks:read:locks:write+admin`, ['locks:read'], 'locks:write+admin'],
    [`a:${H}:time:read::`, ['time:read'], ':'],
    [` a:${H}:tasks:read:a%2Cb%25%20\n`, ['tasks:read'], 'a,b% '],
    [`a:${H}:streams:write:größe/🔒`, ['streams:write'], 'größe/🔒'],
  ])('reads %s', (text, scopes, prefix) => {
    expect(parseKeys(text)).toEqual([{ id: 'a', hash: H, scopes: new Set(scopes), prefix }])
  })

  test('may be absent or blank: no keys', () => {
    for (const text of [undefined, '', ' \n']) expect(parseKeys(text)).toEqual([])
  })

  test.each([
    ['a', 'sha256-of-secret'],
    [',', 'id'],
    [`:${H}:admin`, 'id'],
    [`a.b:${H}:admin`, 'id'],
    [`${'x'.repeat(65)}:${H}:admin`, 'id'],
    [`a:${H.slice(1)}:admin`, 'sha256-of-secret'],
    [`a:${H}0:admin`, 'sha256-of-secret'],
    ['a:hunter2:admin', 'sha256-of-secret'],
    [`a:${H}`, 'scope'],
    [`a:${H}:`, 'scope'],
    [`a:${H}:locks`, 'scope'],
    [`a:${H}:locks:`, 'scope'],
    [`a:${H}:locks:readx`, 'scope'],
    [`a:${H}:locks:write+`, 'scope'],
    [`a:${H}:locks:write+x:y`, 'scope'],
    [`a:${H}:locks:write +admin`, 'scope'],
    [`a:${H}:Admin`, 'scope'],
    [`a:${H}:admin:`, 'name-prefix'],
    [`a:${H}:admin:%`, 'name-prefix'],
    [`a:${H}:admin:%00`, 'name-prefix'],
    [`a:${H}:admin:${'x'.repeat(256)}`, 'name-prefix'],
    [`first:${H}:admin`, 'id'],
  ])('refuses %s, naming the entry and the field but not the content', (text, field) => {
    const read = () => parseKeys(`first:${hash('first')}:admin,${text}`)
    expect(read).toThrow(`LOCKSTEP_API_KEYS, entry 2: \`${field}\``)
    expect(read).not.toThrow(/[0-9a-f]{60}|hunter2/)
    expect(() => createApp(lockstep, { keys: text === `first:${H}:admin` ? 'x' : text })).toThrow(
      /^LOCKSTEP_API_KEYS, entry 1/,
    )
  })

  const bearer = (id: string) => `Bearer ${id}.secret-of-${id}`
  const keyed = () =>
    createApp(lockstep, {
      keys: [
        ['reader', 'locks:read'],
        ['writer', 'locks:write'],
        ['admin', 'admin'],
        ['other', 'leaders:write+tasks:write+streams:write+time:write'],
        ['ours', 'locks:write:ours/'],
        ['chief', 'admin:ours/'],
      ]
        .map(([id = '', scopes]) => `${id}:${hash(`secret-of-${id}`)}:${scopes}`)
        .join(', '),
    })

  test.each([
    [undefined, 401],
    ['Basic YTpi', 401],
    ['Bearer', 401],
    ['Bearer ', 401],
    ['Bearer writer', 401],
    ['Bearer writer.', 401],
    ['Bearer .secret-of-writer', 401],
    ['Bearer writer.secret-of-reader', 401],
    ['Bearer nobody.secret-of-writer', 401],
    ['Bearer writer.secret-of-writer.', 401],
    [`Bearer writer.${'x'.repeat(500)}`, 401],
    [`Bearer writer.${hash('secret-of-writer')}`, 401],
    ['Bearer writer.secret-of-writer', 200],
    ['bearer  writer.secret-of-writer', 200],
  ])('%s is %i', async (key, status) => {
    for (const path of ['/v1/locks', '/v1/locks/x', '/readyz', '/openapi.json']) {
      const answer = await call('GET', path, { on: keyed(), ...(key && { key }) })
      expect(answer.status).toBe(status)
      if (status === 401) {
        expect(answer.json.code).toBe('UNAUTHENTICATED')
        expect(answer.headers.get('www-authenticate')).toMatch(/^Bearer /)
      }
    }
  })

  test('are not needed for /healthz, and come before 404, 405, 413 and 400 below /v1', async () => {
    expect(await call('GET', '/healthz', { on: keyed() })).toMatchObject({ status: 200, json: { status: 'ok' } })
    expect((await call('GET', '/v1/nothing', { on: keyed() })).status).toBe(401)
    expect((await call('PUT', '/v1/locks/x', { on: keyed() })).status).toBe(401)
    expect((await call('POST', '/v1/locks/%zz', { on: keyed(), body: 'x'.repeat(70_000) })).status).toBe(401)
  })

  const routes = (name: string): Record<string, () => [string, string, Ask?]> => ({
    acquire: () => ['POST', at(name), { body: { holder: 'me' } }],
    renew: () => ['PATCH', at(name), { body: { token: '1' } }],
    release: () => ['DELETE', `${at(name)}?token=1`],
    force: () => ['DELETE', `${at(name)}?force=true`],
    look: () => ['GET', at(name)],
    list: () => ['GET', `/v1/locks?prefix=${encodeURIComponent(name)}`],
  })
  const all = Object.keys(routes(''))
  test.each([
    ['reader', 'ours/x', ['look', 'list']],
    ['writer', 'ours/x', ['acquire', 'renew', 'release', 'look', 'list']],
    ['admin', 'ours/x', all],
    ['other', 'ours/x', []],
    ['ours', 'ours/x', ['acquire', 'renew', 'release', 'look', 'list']],
    ['ours', 'ours', ['list']],
    ['ours', 'theirs/x', []],
    ['ours', 'Ours/x', []],
    ['chief', 'ours/x', all],
    ['chief', 'theirs/x', []],
  ])('let %s do to %s only %j', async (id, name, allowed) => {
    for (const [verb, ask] of Object.entries(routes(name))) {
      const [method, path, more] = ask()
      expect((await call(method, path, { ...more, on: keyed() })).status).toBe(401)
      const { status, json } = await call(method, path, { ...more, on: keyed(), key: bearer(id) })
      expect([verb, status === 403]).toEqual([verb, !allowed.includes(verb)])
      if (status === 403) expect(json.code).toBe('FORBIDDEN')
      else expect([200, 201, 204, 409]).toContain(status)
    }
  })

  test('show a list cut down to the prefix of the key', async () => {
    for (const name of ['ours/1', 'theirs/1']) await acquire(name)
    for (const query of ['', '?prefix=', '?prefix=o', '?prefix=ours%2F']) {
      const { json } = await call('GET', `/v1/locks${query}`, { on: keyed(), key: bearer('ours') })
      expect(json.locks.length).toBeGreaterThan(0)
      expect(json.locks.every(({ name }: { name: string }) => name.startsWith('ours/'))).toBe(true)
    }
  })
})

describe('what goes into a log', () => {
  test.each(['a b', 'x; rm', '\u001b[31m', 'a"b', 'é', 'x'.repeat(256)])(
    'the request id %j of a caller is not taken',
    async (id) => {
      const response = await app.request('/healthz', { headers: { 'x-request-id': id } })
      expect(response.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
    },
  )

  test('a request id that is a word is taken, so that a call can be followed', async () => {
    const response = await app.request('/healthz', { headers: { 'x-request-id': 'call-7_a' } })
    expect(response.headers.get('x-request-id')).toBe('call-7_a')
  })
})

describe('SQL in what is sent', () => {
  test.each(["'); drop table lockstep.lease; --", "x' or '1'='1", '$1', '"; delete from lockstep.lease', '\\', '%_'])(
    '%j is a name, a holder and a meta like any other',
    async (text) => {
      const body = { holder: text, meta: { [text]: text } }
      const granted = (await call('POST', at(text), { body })).json
      expect((await call('GET', at(text))).json).toMatchObject({ name: text, held: true, ...body })
      const { json } = await call('GET', `/v1/locks?prefix=${encodeURIComponent(text)}`)
      expect(json.locks.map(({ name }: { name: string }) => name)).toEqual([text])
      expect((await call('DELETE', `${at(text)}?token=${granted.token}`)).status).toBe(204)
      const refused = await call('PATCH', at(text), { body: { token: "1'; drop table x" } })
      expect(refused).toMatchObject({ status: 400, json: { errors: [{ field: 'token' }] } })
    },
  )
})

describe('what is not the caller’s doing', () => {
  test('an error of ours is 500, says only the request id, and is reported', async () => {
    await using broken = await freshDatabase()
    await broken.pool.query(`
      create function fail() returns trigger language plpgsql as $$ begin raise exception 'select secrets'; end $$;
      create trigger fail before insert or update on lockstep.lease execute function fail()`)
    const lockstep = createLockstep({ connectionString: broken.url })
    const errors: [unknown, string][] = []
    const on = createApp(lockstep, { onError: (...told) => errors.push(told) })
    const { status, json, headers } = await call('POST', at('x'), { on })
    expect(status).toBe(500)
    expect(json.detail).toContain(headers.get('x-request-id'))
    expect(errors).toMatchObject([
      [{ message: expect.stringContaining('select secrets') }, headers.get('x-request-id')],
    ])
    await lockstep.close()
  })

  test('a database that is away is 503 with Retry-After on every route, until it is back', async () => {
    await using server = await dedicatedServer()
    const lockstep = createLockstep({ connectionString: server.url })
    const on = createApp(lockstep)
    expect(await call('GET', '/readyz', { on })).toMatchObject({ status: 200, json: { status: 'ready' } })
    await server.stop()
    for (const [method, path, body] of [
      ['GET', '/readyz'],
      ['POST', at('x'), {}],
      ['PATCH', at('x'), { token: '1' }],
      ['DELETE', `${at('x')}?token=1`],
      ['DELETE', `${at('x')}?force=true`],
      ['GET', at('x')],
      ['GET', '/v1/locks'],
    ] as const) {
      const answer = await call(method, path, { on, body })
      expect([method, path, answer.status, answer.json.code]).toEqual([method, path, 503, 'UNAVAILABLE'])
      expect(answer.headers.get('retry-after')).toBe('1')
    }
    expect((await call('GET', '/healthz', { on })).status).toBe(200)
    await server.start()
    await until(async () => (await call('GET', '/readyz', { on })).status === 200)
    expect((await call('POST', at('x'), { on })).status).toBe(201)
    await lockstep.close()
  })

  test('a database that was never migrated is 503, and not ready', async () => {
    await using empty = await freshDatabase({ empty: true })
    const lockstep = createLockstep({ connectionString: empty.url })
    const on = createApp(lockstep)
    expect((await call('GET', '/readyz', { on })).status).toBe(503)
    expect((await call('POST', at('x'), { on })).status).toBe(503)
    await lockstep.close()
  })
})

// biome-ignore lint/suspicious/noExplicitAny: a JSON document, looked into at many depths
type Document = any

describe('web pages', () => {
  const ROOT = ['/', '/healthz', '/readyz', '/openapi.json', '/v1/locks', '/v1/locks/x', '/nothing']
  const listed = () => createApp(lockstep, { origins: ['https://app.example.com'], keys: ADMIN })
  const ADMIN = `k:${createHash('sha256').update('s').digest('hex')}:admin`
  const key = 'Bearer k.s'

  test('of other origins are refused, with keys and without, whatever they ask for', async () => {
    for (const origin of [
      'https://evil.example',
      'null',
      'http://localhost:3000',
      'http://localhost.evil.example',
      'x',
    ]) {
      for (const path of ROOT) {
        const { status, json, headers } = await call('GET', path, { headers: { origin } })
        expect([path, status, json.code]).toEqual([path, 403, 'FORBIDDEN'])
        expect(headers.get('access-control-allow-origin')).toBeNull()
        expect((await call('GET', path, { headers: { origin }, key, on: listed() })).status).toBe(403)
      }
      expect((await call('POST', at(fresh()), { body: {}, headers: { origin } })).status).toBe(403)
      const asks = { origin, 'access-control-request-method': 'POST' }
      expect((await call('OPTIONS', '/v1/locks/x', { headers: asks, on: listed() })).status).toBe(403)
    }
  })

  test('of its own origin may ask, also where TLS ends in front of it', async () => {
    for (const origin of ['http://localhost', 'https://localhost']) {
      expect((await call('POST', at(fresh()), { body: {}, headers: { origin } })).status).toBe(201)
    }
  })

  test('of an origin that is listed may ask, and its browser is told so; a key is needed as anywhere', async () => {
    const origin = 'https://app.example.com'
    const asks = { origin, 'access-control-request-method': 'PATCH', 'access-control-request-headers': 'authorization' }
    const preflight = await call('OPTIONS', '/v1/locks/x', { headers: asks, on: listed() })
    expect(preflight.status).toBe(204)
    expect(preflight.headers.get('access-control-allow-methods')).toContain('PATCH')
    expect(preflight.headers.get('access-control-allow-headers')).toContain('Authorization')
    for (const [path, with_, status] of [
      ['/v1/locks/x', key, 200],
      ['/v1/locks/x', undefined, 401],
      ['/v1/locks/x?y=z', key, 400],
      ['/nothing', key, 404],
      ['/healthz', undefined, 200],
    ] as const) {
      const answer = await call('GET', path, { headers: { origin }, on: listed(), ...(with_ && { key: with_ }) })
      expect([path, answer.status]).toEqual([path, status])
      expect(answer.headers.get('access-control-allow-origin')).toBe(origin)
      expect(answer.headers.get('vary')).toBe('Origin')
    }
    // Without the list no answer says anything of origins.
    const { headers } = await call('GET', '/healthz')
    expect([headers.get('access-control-allow-origin'), headers.get('vary')]).toEqual([null, null])
  })

  test.each(['*', 'null', 'app.example.com', 'https://app.example.com/', 'https://app.example.com/a', 'ftp://a', ''])(
    '%j is no origin',
    (origin) => {
      expect(() => createApp(lockstep, { origins: [origin] })).toThrow('origins must be origins like https://')
    },
  )
})

test('GET / says where to go on, without a key', async () => {
  const on = createApp(lockstep, { keys: `k:${'0'.repeat(64)}:admin` })
  const { status, json } = await call('GET', '/', { on })
  expect(status).toBe(200)
  expect(json).toEqual({
    name: 'lockstep',
    links: { document: '/openapi.json', health: '/healthz', readiness: '/readyz' },
  })
  for (const path of Object.values<string>(json.links)) expect((await call('GET', path)).status).toBe(200)
  expect((await call('POST', '/')).status).toBe(405)
})

describe('openapi.json', () => {
  const operations = ({ paths }: Document): [string, Document][] =>
    Object.entries<Document>(paths).flatMap(([path, item]) =>
      Object.entries<Document>(item).map(([method, operation]): [string, Document] => [
        `${method.toUpperCase()} ${path}`,
        operation,
      ]),
    )
  const document = async (): Promise<Document> => (await call('GET', '/openapi.json')).json

  test('is OpenAPI 3.1 of this version, and every reference in it resolves', async () => {
    const doc = await document()
    expect(doc).toMatchObject({ openapi: '3.1.0', info: { title: 'Lockstep', version: '1.2.3' } })
    const refs = [...JSON.stringify(doc).matchAll(/"\$ref":"#\/([^"]+)"/g)].map(([, ref = '']) => ref)
    expect(refs.length).toBeGreaterThan(10)
    for (const ref of refs) {
      expect(
        ref.split('/').reduce((node: Document, step) => node?.[step], doc),
        ref,
      ).toBeTypeOf('object')
    }
  })

  test('describes every operation: summary, path parameters, key, answers', async () => {
    const doc = await document()
    for (const [route, operation] of operations(doc)) {
      expect(operation.summary, route).toBeTruthy()
      expect(operation.description, route).toContain(operation.summary)
      expect(operation.operationId, route).toMatch(/^[a-z]+([A-Z][a-z]+)*$/)
      const inPath = (operation.parameters ?? [])
        .filter((p: Document) => p.in === 'path' && p.required)
        .map((p: Document) => p.name)
      expect(inPath, route).toEqual([...route.matchAll(/\{(\w+)\}/g)].map(([, name]) => name))
      expect(operation.security, route).toEqual(/^GET \/(healthz)?$/.test(route) ? [] : [{ key: [] }])
      for (const [status, answer] of Object.entries<Document>(operation.responses)) {
        expect(answer.description, `${route} ${status}`).toBeTruthy()
        const types = Object.keys(answer.content ?? {})
        const success = route.endsWith('/observe') ? 'text/event-stream' : 'application/json'
        expect(types).toEqual(status === '204' ? [] : [Number(status) < 400 ? success : 'application/problem+json'])
      }
    }
  })

  test('states the limits that are enforced', async () => {
    const { components } = await document()
    expect(components.schemas.Acquire).toMatchObject({
      additionalProperties: false,
      properties: {
        holder: { type: 'string', minLength: 1, maxLength: 255 },
        ttlMs: { type: 'integer', minimum: 1000, maximum: 3_600_000, description: 'Default: 15000' },
        waitMs: { type: 'integer', minimum: 0, maximum: 20_000, description: 'Default: 0' },
      },
    })
    expect(components.schemas.Acquire.required).toBeUndefined()
    expect(components.schemas.Renew.required).toEqual(['token'])
  })

  test('has every route and every status that was answered above, and none that never was', async () => {
    const documented = new Map(
      operations(await document()).map(([route, { responses }]) => [route, Object.keys(responses).map(Number)]),
    )
    for (const [route, statuses] of seen) {
      const known = documented.get(route) ?? []
      // 405 belongs to no operation, and 499 nobody reads
      for (const status of statuses) {
        if (known.length === 0) expect([204, 401, 403, 404, 405], `${route} ${status}`).toContain(status)
        else if (status !== 405 && status !== 499) expect(known, route).toContain(status)
      }
    }
    for (const [route, statuses] of documented) {
      if (/\/v1\/(leaders|time)/.test(route)) continue // leaders.test.ts, time.test.ts
      const answered = [...(seen.get(route) ?? []), 500] // any route can fail, one was made to
      expect(answered, route).toEqual(expect.arrayContaining(statuses))
    }
  })
})
