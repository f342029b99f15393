/**
 * The HTTP contract: one table of requests, in order, to which every runtime must respond in the same way. All routes, with valid
 * and invalid requests.
 *
 * A request may use a value of an earlier response: `keep` names the value, `$name` inserts it into a later path or body. Requests
 * that are invalid for every route are generated from the OpenAPI document, so that new routes are tested too.
 */
import { createHash } from 'node:crypto'
import type { Asked, Runtime } from './runtimes.ts'

export interface Case {
  method: string
  path: string
  /** The expected status, in every runtime. */
  status: number
  body?: object | string | undefined
  headers?: Record<string, string>
  /** The key that is sent; `none`: no key. @default 'all' */
  key?: keyof typeof SECRETS | 'none' | 'wrong'
  /** Names for values of the response, by their paths in it. */
  keep?: Record<string, string>
  /** Which of many it answers with is chosen by chance, so that only the status is the same everywhere. */
  unlike?: boolean
}

const SECRETS = { all: 'a'.repeat(64), poor: 'b'.repeat(64), bound: 'c'.repeat(64) }
const hash = (secret: string) => createHash('sha256').update(secret).digest('hex')

/** LOCKSTEP_API_KEYS: a key with all rights, one with hardly any, and one that is limited to some names. */
export const KEYS = [
  `all:${hash(SECRETS.all)}:admin`,
  `poor:${hash(SECRETS.poor)}:time:write`,
  `bound:${hash(SECRETS.bound)}:locks:write+leaders:write+tasks:write+streams:write:mine/`,
].join(',')

type Shorthand = [
  method: string,
  path: string,
  status: number,
  body?: object | string | undefined,
  more?: Partial<Case>,
]

const WRITTEN: Shorthand[] = [
  ['GET', '/', 200, undefined, { key: 'none' }],
  ['GET', '/healthz', 200, undefined, { key: 'none' }],
  ['GET', '/readyz', 200],
  ['GET', '/openapi.json', 200],
  ['HEAD', '/healthz', 200, undefined, { key: 'none' }],

  ['POST', '/v1/locks/a', 201, { holder: 'me', ttlMs: 60_000, meta: { at: 'Köln' } }, { keep: { lock: 'token' } }],
  ['POST', '/v1/locks/a', 200, { holder: 'me', ttlMs: 60_000 }],
  ['POST', '/v1/locks/a', 423, { holder: 'you', waitMs: 100 }],
  ['PATCH', '/v1/locks/a', 200, { token: '$lock', ttlMs: 90_000 }],
  ['PATCH', '/v1/locks/a', 409, { token: '1$lock' }],
  ['GET', '/v1/locks/a', 200],
  ['GET', '/v1/locks/never', 200],
  ['GET', '/v1/locks?prefix=&limit=1', 200],
  ['DELETE', '/v1/locks/a?token=1$lock', 409],
  ['DELETE', '/v1/locks/a?token=$lock', 204],
  ['DELETE', '/v1/locks/a?token=$lock', 409],
  ['POST', '/v1/locks/b', 201],
  ['DELETE', '/v1/locks/b?force=true', 204],
  ['POST', '/v1/locks/b', 201, '', { headers: { 'Content-Type': 'text/plain' } }],
  // a body that means nothing, and a cookie that is not ASCII
  ['GET', '/v1/locks/a', 200, { holder: 'me' }],
  ['HEAD', '/v1/locks/a', 200, 'no JSON'],
  ['GET', '/v1/locks/a', 200, undefined, { headers: { Cookie: 'city=K%C3%B6ln; \u00e9' } }],
  // names with special characters, encoded once
  ['POST', '/v1/locks/mine%2F1%20%25%3F%23%2B+%C3%BC', 201, {}, { key: 'bound', keep: { odd: 'token' } }],
  ['GET', '/v1/locks?prefix=mine%2F', 200, undefined, { key: 'bound' }],
  ['DELETE', '/v1/locks/mine%2F1%20%25%3F%23%2B+%C3%BC?token=$odd', 204],
  ['POST', '/v1/locks/yours', 403, {}, { key: 'bound' }],
  ['GET', '/v1/locks?prefix=yours', 403, undefined, { key: 'bound' }],

  [
    'POST',
    '/v1/leaders/e',
    201,
    { holder: 'me', ttlMs: 60_000, priority: 3, meta: { v: 1 } },
    { keep: { term: 'token' } },
  ],
  ['POST', '/v1/leaders/e', 200, { holder: 'me', ttlMs: 60_000 }],
  ['POST', '/v1/leaders/e', 423, { holder: 'you' }],
  ['PATCH', '/v1/leaders/e', 200, { token: '$term', ttlMs: 60_000, meta: { v: 2 } }],
  ['PATCH', '/v1/leaders/e', 409, { token: '1$term' }],
  ['GET', '/v1/leaders/e', 200],
  ['GET', '/v1/leaders?limit=5', 200],
  ['DELETE', '/v1/leaders/e?token=$term', 204],
  ['DELETE', '/v1/leaders/e?token=$term', 409],

  ['GET', '/v1/time', 200],

  ['POST', '/v1/tasks/q', 404, { data: 1 }],
  ['PUT', '/v1/tasks/q', 201, { retryLimit: 0, policy: 'standard' }],
  ['PUT', '/v1/tasks/q', 200, { retryLimit: 0, policy: 'standard' }],
  ['GET', '/v1/tasks', 200],
  ['POST', '/v1/tasks/q', 202, { data: { n: 1 } }, { keep: { job: 'id' } }],
  ['GET', '/v1/tasks/q/$job', 200],
  ['GET', '/v1/tasks/q', 200],
  ['POST', '/v1/tasks/q/claim', 200, { limit: 1, holder: 'w' }, { keep: { claim: 'jobs.0.token' } }],
  ['POST', '/v1/tasks/q/$job/extend', 200, { token: '$claim', leaseMs: 60_000 }],
  ['POST', '/v1/tasks/q/$job/progress', 204, { token: '$claim', fraction: 0.5, note: 'half' }],
  ['GET', '/v1/tasks/q/$job', 200],
  ['POST', '/v1/tasks/q/$job/complete', 409, { token: '1$claim' }],
  ['POST', '/v1/tasks/q/$job/complete', 204, { token: '$claim', output: { done: true } }],
  ['GET', '/v1/tasks/q/$job', 200],
  ['POST', '/v1/tasks/q', 504, { data: { n: 2 }, waitMs: 60 }, { keep: { second: 'id' } }],
  ['POST', '/v1/tasks/q/claim', 200, { limit: 5, holder: 'w' }, { keep: { claim2: 'jobs.0.token' } }],
  ['POST', '/v1/tasks/q/$second/fail', 204, { token: '$claim2', error: { message: 'no' } }],
  ['POST', '/v1/tasks/q', 202, { data: { n: 3 } }, { keep: { third: 'id' } }],
  ['DELETE', '/v1/tasks/q/$third', 204],
  ['DELETE', '/v1/tasks/q/$third', 409],
  ['GET', '/v1/tasks/q/00000000-0000-4000-8000-000000000000', 404],
  ['POST', '/v1/tasks/q/broadcast', 202, { data: 1 }],
  ['PUT', '/v1/schedules/s', 404, { queue: 'none', cron: '0 0 1 1 *' }],
  ['PUT', '/v1/schedules/s', 201, { queue: 'q', cron: '0 0 1 1 *', timezone: 'Europe/Berlin', data: { y: 1 } }],
  ['PUT', '/v1/schedules/s', 200, { queue: 'q', cron: '0 0 1 1 *', timezone: 'Europe/Berlin', data: { y: 2 } }],
  ['GET', '/v1/schedules/s', 200],
  ['GET', '/v1/schedules', 200],
  ['POST', '/v1/tick', 200, { budgetMs: 2_000 }],
  ['DELETE', '/v1/schedules/s', 204],
  ['DELETE', '/v1/schedules/s', 404],

  ['PUT', '/v1/groups/g', 201, { prefix: 'orders', partitions: 1, retryLimit: 1, retryDelayMs: 0 }],
  ['PUT', '/v1/groups/g', 200, { prefix: 'orders', partitions: 1, retryLimit: 1, retryDelayMs: 0 }],
  [
    'POST',
    '/v1/streams/orders%2F7',
    201,
    {
      events: [
        { type: 'made', data: { n: 1 } },
        { type: 'paid', meta: {} },
      ],
      expected: 'none',
    },
  ],
  ['POST', '/v1/streams/orders%2F7', 412, { events: [{ type: 'made' }], expected: 'none' }],
  [
    'POST',
    '/v1/streams/orders%2F7',
    201,
    { events: [{ type: 'sent', id: '11111111-1111-4111-8111-111111111111' }], expected: '2' },
  ],
  ['POST', '/v1/streams/orders%2F7', 200, { events: [{ type: 'sent', id: '11111111-1111-4111-8111-111111111111' }] }],
  ['GET', '/v1/streams/orders%2F7?from=1&limit=2', 200],
  ['GET', '/v1/streams/orders%2F7?backwards=true&limit=1', 200],
  ['GET', '/v1/streams/none?waitMs=60', 200],
  ['GET', '/v1/streams', 200],
  ['GET', '/v1/streams/orders%2F7/lag', 200],
  ['GET', '/v1/events?prefix=orders&limit=2', 200],
  ['GET', '/v1/groups/g', 200],
  ['GET', '/v1/groups', 200],
  [
    'POST',
    '/v1/groups/g/poll',
    200,
    { holder: 'c', limit: 2 },
    { keep: { turn: 'batches.0.next', part: 'batches.0.token' } },
  ],
  ['POST', '/v1/groups/g/commit', 409, { partition: 0, token: '1$part', next: '$turn' }],
  ['POST', '/v1/groups/g/commit', 204, { partition: 0, token: '$part', next: '$turn' }],
  [
    'POST',
    '/v1/groups/g/poll',
    200,
    { holder: 'c' },
    { keep: { turn: 'batches.0.next', poison: 'batches.0.events.0.cursor' } },
  ],
  ['POST', '/v1/groups/g/fail', 200, { partition: 0, token: '$part', next: '$turn', event: '$poison', reason: 'no' }],
  ['POST', '/v1/groups/g/poll', 200, { holder: 'c' }, { keep: { turn: 'batches.0.next' } }],
  ['POST', '/v1/groups/g/fail', 200, { partition: 0, token: '$part', next: '$turn', event: '$poison', reason: 'no' }],
  ['GET', '/v1/groups/g/parked', 200],
  ['POST', '/v1/groups/g/redeliver', 200, { skip: true }],
  ['GET', '/v1/groups/g/lag', 200],
  ['POST', '/v1/groups/g/leave', 204, { holder: 'c' }],
  ['DELETE', '/v1/streams/orders%2F7?before=2&force=true', 200],
  ['DELETE', '/v1/groups/g', 204],
  ['GET', '/v1/groups/g', 404],
]

// As large as a body may be, and twice that in the string of JSON that Lambda makes of an answer.
const quotes = (bytes: number) => '"'.repeat(bytes / 2)
const MANY = Array.from({ length: 60 }, (_, i) => i)
/** More than an answer carries: each has a part of it, and what is not in it can be had afterwards. */
const LARGE: Shorthand[] = [
  ['PUT', '/v1/tasks/large', 201, { retryLimit: 0 }],
  ...MANY.map((i): Shorthand => ['POST', '/v1/tasks/large', 202, { data: [i, quotes(60_000)] }]),
  ['POST', '/v1/tasks/large/claim', 200, { limit: 100 }, { keep: { id: 'jobs.38.id' } }],
  ['GET', '/v1/tasks/large/$id', 200],
  ['GET', '/v1/tasks/large', 200],
  ['POST', '/v1/tasks/large/claim', 200, { limit: 100 }, { keep: { last: 'jobs.9.id' } }],
  ['GET', '/v1/tasks/large/$last', 200],
  ['PUT', '/v1/groups/large', 201, { prefix: 'large/', partitions: 4 }],
  ...MANY.slice(0, 4).map(
    (i): Shorthand => [
      'POST',
      `/v1/streams/large%2F${i}`,
      201,
      { events: Array.from({ length: 2 }, () => ({ type: 'large', data: quotes(1_000_000) })) },
    ],
  ),
  ['GET', '/v1/streams/large%2F1', 200],
  ['GET', '/v1/streams/large%2F1?backwards=true', 200],
  ['GET', '/v1/events?prefix=large', 200, undefined, { keep: { onward: 'next' } }],
  ['GET', '/v1/events?prefix=large&from=$onward', 200],
  ['POST', '/v1/groups/large/poll', 200, { holder: 'c' }, { unlike: true }],
  ['DELETE', '/v1/groups/large', 204],
  ...MANY.map(
    (i): Shorthand => [
      'PUT',
      `/v1/schedules/large${i}`,
      201,
      { queue: 'large', cron: '0 0 1 1 *', data: quotes(60_000) },
    ],
  ),
  ['GET', '/v1/schedules?prefix=large', 200, undefined, { keep: { after: 'next' } }],
  ['GET', '/v1/schedules?prefix=large&after=$after', 200],
]

const BAD: Shorthand[] = [
  ['GET', '/nothing', 404, undefined, { key: 'none' }],
  ['GET', '/v1/nothing', 404],
  ['GET', '/v1/locks/', 404],
  ['GET', '/v1/locks/a/b', 404],
  ['POST', '/healthz', 405, undefined, { key: 'none' }],
  ['TRACE', '/v1/locks/a', 405],
  ['TRACE', '/healthz', 405, undefined, { key: 'none' }],
  ['OPTIONS', '/v1/locks/a', 405],
  ['GET', '//v1/time', 404],
  ['PUT', '/v1/tasks/q', 400, { deadLetter: '..' }],
  ['PUT', '/v1/schedules/s', 400, { queue: '.', cron: '0 0 1 1 *' }],
  ['POST', '/v1/groups/g/redeliver', 400, { stream: '..' }],
  ['GET', '/v1/time', 401, undefined, { key: 'wrong' }],
  ['GET', '/v1/time', 401, undefined, { key: 'none', headers: { Authorization: 'Basic eDp5' } }],
  ['POST', '/v1/locks/a', 400, { ttlMs: 999 }],
  ['POST', '/v1/locks/a', 400, { ttlMs: '1000', waitMs: -1, holder: '', nope: 1 }],
  ['POST', '/v1/locks/a', 400, 'null'],
  ['POST', '/v1/locks/a', 400, '[]'],
  ['POST', '/v1/locks/a', 400, '\ufeff{'],
  ['POST', '/v1/locks/a', 413, { meta: 'x'.repeat(70_000) }],
  ['POST', `/v1/locks/${'n'.repeat(256)}`, 400, {}],
  ['POST', '/v1/locks/%00', 400, {}],
  ['POST', '/v1/locks/%ff', 400, {}],
  ['POST', '/v1/locks/%', 400, {}],
  ['GET', '/v1/locks?limit=0', 400],
  ['GET', '/v1/locks?limit=1&limit=2', 400],
  ['GET', '/v1/locks?prefix=%zz', 400],
  ['DELETE', '/v1/locks/a', 400],
  ['DELETE', '/v1/locks/a?token=-1', 400],
  ['DELETE', '/v1/locks/a?force=true', 403, undefined, { key: 'bound' }],
  ['PATCH', '/v1/locks/a', 400, { token: 1 }],
  ['POST', '/v1/leaders/e', 400, { priority: 1.5 }],
  ['GET', '/v1/tasks/q/no-uuid', 400],
  ['GET', '/v1/tasks/none', 404],
  ['PUT', '/v1/schedules/s', 400, { queue: 'q', cron: 'every day' }],
  ['PUT', '/v1/schedules/s', 400, { queue: 'q', cron: '* * * * *', timezone: 'Mars/Olympus' }],
  ['POST', '/v1/tick', 400, { budgetMs: 99 }],
  ['POST', '/v1/streams/s', 400, { events: [] }],
  ['POST', '/v1/streams/s', 400, { events: [{ type: 't' }], expected: '-1' }],
  ['POST', '/v1/streams/s', 400, { events: Array.from({ length: 10_001 }, () => ({ type: 't' })) }],
  ['GET', '/v1/streams/s?from=x', 400],
  ['GET', '/v1/streams/none/lag', 404],
  ['GET', '/v1/events?from=-1', 400],
  ['POST', '/v1/groups/none/poll', 404, { holder: 'c' }],
  ['PUT', '/v1/groups/g', 400, { partitions: 257 }],
]

const caseOf = ([method, path, status, body, more]: Shorthand): Case => ({
  ...{ method, path, status },
  ...(body !== undefined && { body }),
  ...more,
})

/** Every route with valid requests, in order. */
export const GOOD: Case[] = WRITTEN.map(caseOf)

/** The table, and the generated invalid requests for each operation of the OpenAPI document. */
// biome-ignore lint/suspicious/noExplicitAny: a document
export function contract(document: any): Case[] {
  return [...GOOD, ...[...LARGE, ...BAD].map(caseOf), ...operations(document).flatMap(wrong)]
}

/** The operations of the document, such as `GET /v1/locks/{name}`. */
// biome-ignore lint/suspicious/noExplicitAny: as above
export function operations(document: any): { method: string; path: string; takesBody: boolean }[] {
  return Object.entries<object>(document.paths).flatMap(([path, methods]) =>
    Object.entries<{ requestBody?: object }>(methods as never).map(([method, { requestBody }]) => ({
      method: method.toUpperCase(),
      path,
      takesBody: requestBody !== undefined,
    })),
  )
}

function wrong({ method, path: template, takesBody }: ReturnType<typeof operations>[number]): Case[] {
  if (template === '/healthz' || template === '/') return []
  const path = template.replace('{name}', 'x').replace('{id}', '22222222-2222-4222-8222-222222222222')
  const body = takesBody ? { body: {} } : {}
  const keyed: Case[] = [{ method, path, ...body, key: 'none', status: 401 }]
  if (!template.startsWith('/v1/')) return keyed
  return [
    ...keyed,
    ...(template === '/v1/time' ? [] : [{ method, path, ...body, key: 'poor', status: 403 } as const]),
    { method, path: `${path}?nope=1`, ...body, status: 400 },
    { method: 'PROPFIND', path, status: 405 },
    ...(takesBody ? ['{', '{"nope":1}', '"text"'].map((text) => ({ method, path, body: text, status: 400 })) : []),
  ]
}

/** The header of the key with all rights. */
export const AUTHORIZED = { Authorization: `Bearer all.${SECRETS.all}` }

export interface Answered {
  status: number
  headers: Record<string, string>
  body: string
}

/** The request of a case, with the values that were kept of earlier responses. */
export function requestOf(each: Case, kept: ReadonlyMap<string, string>): { path: string; init: Asked } {
  const filled = (text: string) => text.replaceAll(/\$([a-z]+\d?)/g, (all, name) => kept.get(name) ?? all)
  const { method, path, body, headers, key = 'all' } = each
  const text = body === undefined ? undefined : filled(typeof body === 'string' ? body : JSON.stringify(body))
  const secret = key === 'wrong' ? 'all.wrong' : key === 'none' ? undefined : `${key}.${SECRETS[key]}`
  return {
    path: filled(path),
    init: {
      method,
      headers: {
        ...(text !== undefined && { 'Content-Type': 'application/json' }),
        ...(secret && { Authorization: `Bearer ${secret}` }),
        ...headers,
      },
      ...(text !== undefined && { body: text }),
    },
  }
}

/** Sends all requests, in order. Values that always differ are masked in the responses. */
export async function transcript(runtime: Runtime, cases: Case[]): Promise<Answered[]> {
  const kept = new Map<string, string>()
  const answers: Answered[] = []
  for (const each of cases) {
    const { path, init } = requestOf(each, kept)
    const response = await runtime.fetch(path, init)
    const answer = await response.text()
    for (const [name, at] of Object.entries(each.keep ?? {})) kept.set(name, String(valueAt(JSON.parse(answer), at)))
    const body = each.unlike ? '' : masked(answer)
    answers.push({ status: response.status, headers: comparable(response.headers), body })
  }
  return answers
}

export const valueAt = (json: unknown, at: string): unknown =>
  // biome-ignore lint/suspicious/noExplicitAny: a path into JSON
  at.split('.').reduce((value: any, step) => value?.[step], json)

// Headers that a server or a proxy adds, and those of the connection.
const THEIRS = /^(date|connection|keep-alive|transfer-encoding|content-length|content-encoding|server|cf-.*|mf-.*)$/

function comparable(headers: Headers): Record<string, string> {
  const ours = [...headers]
    .filter(([name]) => !THEIRS.test(name))
    .map(([name, value]) => [name, masked(value)] as const)
  return Object.fromEntries(ours.sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** The text without ids and times. */
function masked(text: string): string {
  return text
    .replaceAll(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.\d+)?/g, '<id>')
    .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g, '<instant>')
    .replaceAll(/"(ms|boundMs|spreadMs|processingMs|ageMs)":[\d.]+/g, '"$1":<time>')
    .replaceAll(/(?<="(token|cursor)":")\d+/g, '<number>')
}
