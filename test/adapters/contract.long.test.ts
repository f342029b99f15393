/**
 * The same contract everywhere: Node, Lambda and Cloudflare's Worker, each directly and through PgBouncer in transaction mode,
 * as a role that has only the rights that it needs. The responses are equal, byte for byte, except for ids and times.
 */
import * as path from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { freshDatabase, pgbouncerAvailable } from '../support/database.ts'
import { until } from '../support/until.ts'
import { INSTALL_MS } from '../tools/packages.ts'
import { type Answered, AUTHORIZED, type Case, contract, KEYS, operations, transcript } from './runtime/contract.ts'
import { lambdaEnv, type Runtime, startLambda, startNode, startWorker } from './runtime/runtimes.ts'
import { installWrangler } from './runtime/wrangler.ts'

beforeAll(installWrangler, INSTALL_MS)

const START = {
  Node: (url: string) => startNode(url, KEYS),
  'Lambda, streamed': (url: string) => startLambda({ ...lambdaEnv(url), LOCKSTEP_API_KEYS: KEYS }),
  'Lambda, whole': (url: string) => startLambda({ ...lambdaEnv(url), LOCKSTEP_API_KEYS: KEYS }, 'index.handler'),
  'a Worker': (url: string) => startWorker(url, KEYS),
} satisfies Record<string, (url: string) => Promise<Runtime>>
type Name = keyof typeof START

/** Runs the table on a database of its own, so that all runs begin in the same state. */
async function ran(name: Name, pooled: boolean, cases: Case[]): Promise<Answered[]> {
  await using db = pooled
    ? await freshDatabase({ role: true, pooled: true })
    : { ...(await freshDatabase({ role: true })), pooledRoleUrl: undefined }
  await using runtime = await START[name](db.pooledRoleUrl ?? db.roleUrl)
  return await transcript(runtime, cases)
}

let cases: Case[]
let document: unknown
let onNode: Answered[]
beforeAll(async () => {
  const [answer] = await ran('Node', false, [{ method: 'GET', path: '/openapi.json', status: 200 }])
  document = JSON.parse(answer?.body ?? '')
  cases = contract(document)
  onNode = await ran('Node', false, cases)
})

const describeCase = ({ method, path, body }: Case) => `${method} ${path} ${JSON.stringify(body ?? '').slice(0, 100)}`

test('the table has every operation, accepted and refused', () => {
  const template = (path: string) => new RegExp(`^${path.replaceAll(/\{\w+\}/g, '[^/?]+')}(\\?|$)`)
  for (const { method, path } of operations(document)) {
    if (path.endsWith('/observe')) continue // its response does not end: see below
    const its = cases.filter((each) => each.method === method && template(path).test(each.path))
    expect(its.filter(({ status }) => status < 300).length, `${method} ${path}`).toBeGreaterThan(0)
    if (path.startsWith('/v1/')) {
      expect(its.filter(({ status }) => status >= 400).length, `${method} ${path}`).toBeGreaterThan(2)
    }
  }
})

test('Node answers as the table says', () => {
  const wrong = cases.flatMap((each, i) => {
    const answer = onNode[i] as Answered
    return answer.status === each.status ? [] : [{ asked: describeCase(each), expected: each.status, ...answer }]
  })
  expect(wrong).toEqual([])
  expect(cases.length).toBeGreaterThan(300)
})

describe.each(Object.keys(START) as Name[])('%s', (name) => {
  test('takes `.` and `..`, encoded or not, for no name', async () => {
    await using db = await freshDatabase({ role: true })
    await using runtime = await START[name](db.roleUrl)
    const headers = { ...AUTHORIZED, 'Content-Type': 'application/json' }
    for (const dots of ['.', '..', '%2e', '%2E.']) {
      const answer = await runtime.fetch(`/v1/locks/${dots}`, { method: 'POST', headers, body: '{}' })
      // Cloudflare resolves them before the Worker sees them.
      expect(answer.status).toBe(name === 'a Worker' ? 404 : 400)
      const { code, errors } = (await answer.json()) as { code: string; errors?: unknown }
      if (name !== 'a Worker') expect([code, errors]).toMatchObject(['INVALID_ARGUMENT', [{ field: 'path' }]])
    }
    expect((await db.pool.query('select from lockstep.lease')).rows).toEqual([])
  })
})

test('a Lambda that answers in one piece refuses event streams by a sentence, and observes nothing', async () => {
  await using db = await freshDatabase({ role: true })
  await using lambda = await START['Lambda, whole'](db.roleUrl)
  for (const at of ['/v1/leaders/e/observe', '/v1/streams/s', '/v1/events']) {
    const answer = await lambda.fetch(at, { headers: FOLLOWING })
    expect([answer.status, answer.headers.get('Content-Type')]).toEqual([406, 'application/problem+json'])
    expect(await answer.json()).toMatchObject({ code: 'NOT_ACCEPTABLE', title: 'Not Acceptable' })
    expect((await lambda.fetch(at, { headers: FOLLOWING, method: 'HEAD' })).status).toBe(406)
    expect((await lambda.fetch(at, { headers: { Accept: 'text/event-stream' } })).status).toBe(401)
  }
  const busy = `select from pg_stat_activity where usename = $1 and state <> 'idle'`
  await until('no connection is busy', async () => (await db.pool.query(busy, [db.role])).rows.length === 0)
  expect((await lambda.fetch('/v1/streams/s', { headers: AUTHORIZED })).status).toBe(200)
})

const FOLLOWING = { ...AUTHORIZED, Accept: 'text/event-stream' }

const QUICK_TO_CLOSE = path.join(import.meta.dirname, 'runtime/worker.ts')

describe.each(['Node', 'Lambda, streamed', 'a Worker'] as const)('%s streams', (name) => {
  test('the leader, and appended events, as they come, and leaves no connection open', async () => {
    await using db = await freshDatabase({ role: true })
    await using runtime =
      name === 'a Worker'
        ? await startWorker(db.roleUrl, KEYS, { entry: QUICK_TO_CLOSE })
        : await START[name](db.roleUrl)
    const post = (path: string, body: object) => {
      const headers = { ...AUTHORIZED, 'Content-Type': 'application/json' }
      return runtime.fetch(path, { method: 'POST', headers, body: JSON.stringify(body) })
    }
    await post('/v1/leaders/e', { holder: 'me', ttlMs: 60_000 })
    const leaders = await runtime.follow('/v1/leaders/e/observe', { headers: FOLLOWING }, (text) =>
      text.includes('"me"'),
    )
    expect(leaders.status).toBe(200)
    expect(leaders.headers.get('Content-Type')).toBe('text/event-stream')
    expect(await leaders.text()).toMatch(
      /^retry: 1000\n\nevent: leader\nid: .+\ndata: \{"name":"e","leader":\{"holder":"me".*\}\n\n/,
    )

    await using other = createLockstep({ connectionString: db.url })
    const events = createEvents(other)
    await events.append('s', [
      { type: 'one', data: {} },
      { type: 'two', data: {} },
    ])
    let third: Promise<unknown> | undefined
    const headers = { ...FOLLOWING, 'Last-Event-ID': '1' }
    const stream = await runtime.follow('/v1/streams/s', { headers }, (text) => {
      if (text.includes('"two"')) third ??= events.append('s', { type: 'three', data: {} })
      return text.includes('"three"')
    })
    await third
    const text = await stream.text()
    expect([...text.matchAll(/"type":"(\w+)"/g)].map(([, type]) => type)).toEqual(['two', 'three'])
    const open = `select from pg_stat_activity where usename = $1 and state <> 'idle'`
    const all = `select from pg_stat_activity where usename = $1`
    const left = name === 'a Worker' ? all : open // the others keep theirs for the next request
    await until('no connection is left', async () => (await db.pool.query(left, [db.role])).rows.length === 0)
  })
})

describe.each([
  ['directly', false],
  ['through PgBouncer', true],
] as const)('%s', (_how, pooled) => {
  // The others are compared with Node directly; a Lambda's two handlers differ only in how they send the response.
  const not = pooled ? 'Lambda, whole' : 'Node'
  for (const name of (Object.keys(START) as Name[]).filter((each) => each !== not)) {
    test.skipIf(pooled && !pgbouncerAvailable())(
      `${name} answers the same`,
      async () => {
        const answers = await ran(name, pooled, cases)
        const different = cases.flatMap((each, i) => {
          const [expected, got] = [onNode[i], answers[i]]
          return JSON.stringify(got) === JSON.stringify(expected) ? [] : [{ asked: describeCase(each), expected, got }]
        })
        expect(different).toEqual([])
      },
      90_000,
    )
  }
})
