/**
 * Whatever event a Lambda gets, its handlers return an answer: the one that the Node server gives to the same request, or a problem.
 * The handlers run in this process.
 */
import * as fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { type Lambda, lambda } from '../../functions/adapters/lambda.ts'
import { type Server, serve } from '../../functions/adapters/node.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { oddString } from '../fuzz/odd.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import {
  AWSLAMBDA,
  balancerEvent,
  changedEvent,
  latticeEvent,
  overSocket,
  restEvent,
  streamed,
  whole,
} from './runtime/events.ts'
import { gatewayEvent, lambdaEnv, urlEvent } from './runtime/runtimes.ts'

let db: FreshDatabase
let server: Server
let its: Lambda
let own: ReturnType<typeof createLockstep>
beforeAll(async () => {
  db = await freshDatabase()
  vi.stubGlobal('awslambda', AWSLAMBDA)
  its = lambda({
    env: lambdaEnv(db.url),
    events: (lockstep) => {
      own = lockstep
      return createEvents(lockstep)
    },
  })
  const lockstep = createLockstep({ connectionString: db.url })
  server = await serve({ lockstep, events: createEvents(lockstep), port: 0 })
})
afterAll(async () => {
  vi.unstubAllGlobals()
  await own?.close()
  await server?.close()
  await db?.close()
})

const JSON_TYPE = { 'Content-Type': 'application/json' }
const LONE = '\ud800'
const withMethod = (method: unknown) => {
  const event = urlEvent('/v1/locks/a')
  return { ...event, requestContext: { ...event.requestContext, http: { ...event.requestContext.http, method } } }
}

test.each(['.', '..', '%2e', '%2E.'])(
  'a path whose last segment is %j is refused, and taken for no other',
  async (dots) => {
    const { status, body } = await whole(its, urlEvent(`/v1/locks/${dots}`, { method: 'POST', body: '{}' }))
    expect([status, JSON.parse(body)]).toMatchObject([400, { code: 'INVALID_ARGUMENT', errors: [{ field: 'path' }] }])
  },
)

describe('is answered as on Node', () => {
  test.each<[string, event: unknown, bytes: [head: string, body?: string]]>([
    ['a GET with a body', urlEvent('/v1/locks/a', { body: '{}' }), ['GET /v1/locks/a', '{}']],
    ['a HEAD with a body', urlEvent('/v1/locks/a', { method: 'HEAD', body: '{}' }), ['HEAD /v1/locks/a', '{}']],
    [
      'a DELETE with a body',
      urlEvent('/v1/locks/a?token=1', { method: 'DELETE', body: 'x' }),
      ['DELETE /v1/locks/a?token=1', 'x'],
    ],
    ['TRACE', withMethod('TRACE'), ['TRACE /v1/locks/a']],
    ['TRACE of nothing', changedEvent('/nothing', { method: 'TRACE' }, {}), ['TRACE /nothing']],
    ['CONNECT', withMethod('CONNECT'), ['CONNECT /v1/locks/a']],
    ['OPTIONS', withMethod('OPTIONS'), ['OPTIONS /v1/locks/a']],
    ['a method in small letters', withMethod('get'), ['get /v1/locks/a']],
    ['an unknown method', withMethod('FOO'), ['FOO /v1/locks/a']],
    [
      'a cookie that is not ASCII',
      changedEvent('/v1/locks/a', {}, { cookies: ['a=ü', 'b=1'] }),
      ['GET /v1/locks/a\nCookie: a=ü; b=1'],
    ],
    [
      'a request id that is not ASCII',
      urlEvent('/v1/locks/a', { headers: { 'X-Request-Id': 'ü' } }),
      ['GET /v1/locks/a\nX-Request-Id: ü'],
    ],
    [
      'an id of events that is not ASCII',
      urlEvent('/v1/streams/s', { headers: { 'Last-Event-ID': '１' } }),
      ['GET /v1/streams/s\nLast-Event-ID: １'],
    ],
    ['a header with a line break', urlEvent('/v1/locks/a', { headers: { X: 'a\nb' } }), ['GET /v1/locks/a\nX: a\0b']],
    ['a header whose name is none', urlEvent('/v1/locks/a', { headers: { 'a b': 'x' } }), ['GET /v1/locks/a\na b: x']],
    ['@x', urlEvent('@x'), ['GET @x']],
    ['//x', urlEvent('//x'), ['GET //x']],
    ['no path', urlEvent(''), ['GET ']],
    ['%zz', urlEvent('/v1/locks/%zz'), ['GET /v1/locks/%zz']],
    ['%ff', urlEvent('/v1/locks/%ff'), ['GET /v1/locks/%ff']],
    ['a query of %', urlEvent('/v1/locks?prefix=%'), ['GET /v1/locks?prefix=%']],
    ['a name of 256', urlEvent(`/v1/locks/${'n'.repeat(256)}`), [`GET /v1/locks/${'n'.repeat(256)}`]],
    ['a backslash', urlEvent('/v1/locks\\a'), ['GET /v1/locks\\a']],
    ['.', urlEvent('/v1/locks/.'), ['GET /v1/locks/.']],
    ['%2E%2e', urlEvent('/v1/streams/%2E%2e/lag'), ['GET /v1/streams/%2E%2e/lag']],
    ['dots in a query', urlEvent('/v1/locks?prefix=/../'), ['GET /v1/locks?prefix=/../']],
    ['another type of body', urlEvent('/v1/locks/b', { method: 'POST', body: 'x' }), ['POST /v1/locks/b', 'x']],
    [
      'an announced length that is wrong',
      urlEvent('/v1/locks/b', {
        method: 'POST',
        body: ' '.repeat(70_000),
        headers: { ...JSON_TYPE, 'Content-Length': '1' },
      }),
      ['POST /v1/locks/b\nContent-Type: application/json', ' '.repeat(70_000)],
    ],
  ])('%s', async (_, event, [head, body]) => {
    const onNode = await overSocket(server.url, head, body)
    expect(onNode.status).toBeGreaterThanOrEqual(200)
    const { status, type, code } = await whole(its, event)
    expect({ status, type }).toEqual({ status: onNode.status, type: onNode.type })
    if (code && onNode.code) expect(code).toBe(onNode.code)
    expect(await streamed(its, event)).toMatchObject({ status, type, code })
  })
})

describe('is a problem', () => {
  test.each<[string, unknown]>([
    ...[null, undefined, 0, 'text', [], {}, true].map((event): [string, unknown] => [
      `the event ${JSON.stringify(event)}`,
      event,
    ]),
    ['without a method', withMethod(undefined)],
    ['with a number as its method', withMethod(7)],
    ['without a context', changedEvent('/v1/locks/a', {}, { requestContext: undefined })],
    ['with a context of null', changedEvent('/v1/locks/a', {}, { requestContext: null })],
    ['with a path of null', changedEvent('/v1/locks/a', {}, { rawPath: null })],
    ['half of a character in its path', urlEvent(`/v1/locks/${LONE}`)],
    ['half of a character in a decoded path', { ...gatewayEvent('/v1/locks/a'), rawPath: `/v1/locks/${LONE}` }],
    ['half of a character in its query', urlEvent(`/v1/locks?prefix=${LONE}`)],
    ['half of a character in a decoded query', { ...restEvent('/v1/locks'), queryStringParameters: { prefix: LONE } }],
    [
      'half of a character in its body',
      changedEvent(
        '/v1/locks/a',
        { method: 'POST', headers: JSON_TYPE },
        { body: `{"holder":"${LONE}"}`, isBase64Encoded: false },
      ),
    ],
    ['a whole URL as its path', urlEvent('http://example.com/v1/time')],
    ['a line break in its path', urlEvent('/v1/locks/a\nb')],
    [
      'a body that is no base64',
      changedEvent(
        '/v1/locks/a',
        { method: 'POST', headers: JSON_TYPE },
        { body: '{"holder":"x"}', isBase64Encoded: true },
      ),
    ],
    [
      'a body that is half of base64',
      changedEvent('/v1/locks/a', { method: 'POST', headers: JSON_TYPE }, { body: 'e30=e', isBase64Encoded: true }),
    ],
    [
      'a body that is no text',
      changedEvent('/v1/locks/a', { method: 'POST', headers: JSON_TYPE }, { body: { holder: 'x' } }),
    ],
  ])('%s', async (_, event) => {
    for (const answer of [await whole(its, event), await streamed(its, event)]) {
      expect(answer).toMatchObject({ status: 400, type: 'application/problem+json', code: 'INVALID_ARGUMENT' })
    }
  })
})

test('half of a character in a cookie, or in a header, is of no importance', async () => {
  const event = changedEvent('/v1/locks/a', { headers: { 'X-Other': LONE } }, { cookies: [LONE, 7, null] })
  expect((await whole(its, event)).status).toBe(200)
  expect((await streamed(its, event)).status).toBe(200)
})

test('a `?` and a `#` in a path are part of the name', async () => {
  for (const event of [
    { ...urlEvent('/v1/locks/x'), rawPath: '/v1/locks/a?b#c' },
    { ...gatewayEvent('/v1/locks/x'), rawPath: '/v1/locks/a?b#c' },
  ]) {
    expect(JSON.parse((await whole(its, event)).body).name).toBe('a?b#c')
  }
})

const SENDERS = {
  'a function URL': urlEvent,
  'an HTTP API': gatewayEvent,
  'a REST API': restEvent,
  'a load balancer': balancerEvent,
  'a load balancer with several values': (...[at, asked]: Parameters<typeof urlEvent>) =>
    balancerEvent(at, asked, true),
  'VPC Lattice': latticeEvent,
}
describe.each(Object.entries(SENDERS))('%s', (sender, eventOf) => {
  test('sends names, queries, headers and bodies', async () => {
    const at = `/v1/locks/${encodeURIComponent(`Köln & 100% ${sender}`)}`
    const asked = { method: 'POST', headers: JSON_TYPE, body: '{"holder":"ü","ttlMs":60000}' }
    const made = await whole(its, eventOf(at, asked))
    expect([made.status, JSON.parse(made.body).holder]).toEqual([201, 'ü'])
    expect((await streamed(its, eventOf(at, asked))).status).toBe(200) // the same holder
    const query = `prefix=${encodeURIComponent(`Köln & 100% ${sender}`)}&limit=1`
    const list = await streamed(its, eventOf(`/v1/locks?${query}`))
    expect(JSON.parse(list.body).locks).toHaveLength(1)
    expect((await whole(its, eventOf('/v1/locks?limit=0'))).code).toBe('INVALID_ARGUMENT')
  })
})

test('a header that is there twice is both, as on Node', async () => {
  const twice = {
    ...balancerEvent('/v1/leaders/e/observe', {}, true),
    multiValueHeaders: { Accept: ['application/json', 'text/event-stream'] },
  }
  expect((await whole(its, twice)).status).toBe(406)
})

test('whatever the event, nothing is thrown, and every answer is one of ours', async () => {
  const odd = fc.oneof(
    fc.anything(),
    oddString,
    fc.constantFrom('/v1/locks/a', '@x', '//x', '?', '', '/%', 'http://x/v1/time', '/v1/locks/..', LONE, null),
    fc.dictionary(oddString, fc.oneof(oddString, fc.array(oddString), fc.anything())),
    fc.array(oddString),
  )
  const shapes = [urlEvent, gatewayEvent, restEvent, balancerEvent, latticeEvent]
  const shape = fc.integer({ min: 0, max: shapes.length - 1 })
  const changes = fc.dictionary(
    fc.constantFrom(
      'rawPath',
      'path',
      'rawQueryString',
      'headers',
      'multiValueHeaders',
      'cookies',
      'body',
      'isBase64Encoded',
      'httpMethod',
      'method',
      'requestContext',
      'queryStringParameters',
      'multiValueQueryStringParameters',
      'version',
    ),
    odd,
    { maxKeys: 4 },
  )
  const methods = fc.constantFrom('GET', 'HEAD', 'POST', 'DELETE', 'TRACE', 'CONNECT', 'get', '', 'PUT')
  const all = fc.asyncProperty(shape, methods, changes, fc.option(odd), async (i, method, change, other) => {
    const made = shapes[i]?.('/v1/locks/a?limit=1', { method, headers: JSON_TYPE, body: '{}' })
    const event = other ?? { ...made, ...change }
    for (const { status, type, code } of [await whole(its, event), await streamed(its, event)]) {
      expect([200, 201, 204, 400, 404, 405, 409, 413, 423]).toContain(status)
      if (status >= 400) expect(type).toBe('application/problem+json')
      if (status >= 400 && method !== 'HEAD') expect(code ?? 'none').toMatch(/^[A-Z_]+$|^none$/)
    }
  })
  await fc.assert(all, { numRuns: 1_000, interruptAfterTimeLimit: 20_000 })
}, 60_000)
