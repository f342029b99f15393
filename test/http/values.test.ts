/** Values at the edges, over HTTP: numbers that JSON cannot hold, errors that the database cannot, and where a stream begins. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { SQLSTATE } from '../../lib/base/errors.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'

let database: FreshDatabase
let lockstep: Lockstep
let tasks: Tasks
let events: Events
let app: ReturnType<typeof createApp>
beforeAll(async () => {
  database = await freshDatabase()
  lockstep = createLockstep({ connectionString: database.url })
  tasks = createTasks(lockstep)
  events = createEvents(lockstep)
  app = createApp(lockstep, { tasks, events })
})
afterAll(async () => {
  await lockstep?.close()
  await database?.close()
})
const leftovers: (() => unknown)[] = []
afterEach(async () => {
  for (const remove of leftovers.splice(0).reverse()) await remove()
})

async function send(method: string, path: string, body: string) {
  const response = await app.request(path, { method, body, headers: { 'content-type': 'application/json' } })
  return { status: response.status, json: await response.json().catch(() => undefined) }
}

// biome-ignore lint/suspicious/noExplicitAny: JSON of any route
const get = async (path: string): Promise<any> => (await app.request(path)).json()

describe('a number that JSON cannot hold', () => {
  const uuid = crypto.randomUUID()
  test.each([
    ['POST', '/v1/locks/a', '{"meta":{"a":[1e400]}}', 'meta'],
    ['POST', '/v1/leaders/a', '{"meta":-1e999}', 'meta'],
    ['PATCH', '/v1/leaders/a', '{"token":"1","meta":1e400}', 'meta'],
    ['POST', '/v1/tasks/a', '{"data":{"a":null,"b":1e400}}', 'data'],
    ['POST', '/v1/tasks/a/broadcast', '{"data":1e400}', 'data'],
    ['POST', `/v1/tasks/a/${uuid}/complete`, '{"token":"1","output":[1e400]}', 'output'],
    ['PUT', '/v1/schedules/a', '{"cron":"* * * * *","queue":"a","data":1e400}', 'data'],
    ['POST', '/v1/streams/a', '{"events":[{"type":"t","data":{"n":1e400}}]}', 'events.0.data'],
    ['POST', '/v1/streams/a', '{"events":[{"type":"t","meta":[1e400]}]}', 'events.0.meta'],
    ['POST', '/v1/locks/a', '{"ttlMs":1e400}', 'ttlMs'],
    ['POST', '/v1/locks/a', `{"meta":1${'0'.repeat(309)}}`, 'meta'],
  ])('is refused, and never stored as null: %s %s %s', async (method, path, body, field) => {
    expect(await send(method, path, body)).toMatchObject({ status: 400, json: { errors: [{ field }] } })
  })

  test('is the only one: the largest number is kept, and so is null', async () => {
    const data = [Number.MAX_VALUE, -Number.MAX_VALUE, Number.MIN_VALUE, 2 ** 53, null, '1e400']
    await send('POST', '/v1/streams/numbers', JSON.stringify({ events: [{ type: 't', data }] }))
    expect((await events.read('numbers')).events[0]?.data).toEqual(data)
  })

  test('is named in openapi.json, and so are integers beyond 2^53', async () => {
    const document = await get('/openapi.json')
    const { SendJob, NewEvent, Acquire, CompleteJob } = document.components.schemas
    for (const { description } of [
      ...[SendJob.properties.data, NewEvent.properties.data, NewEvent.properties.meta],
      ...[Acquire.properties.meta, CompleteJob.properties.output],
    ]) {
      expect(description).toContain('2^53')
    }
  })
})

describe('a failure that the database cannot store as it is', () => {
  const broken = {
    name: 'Odd\0',
    message: 'half \ud800',
    code: 'E_1',
    stack: 'at x\0',
    cause: { message: '\udc00', code: 2 },
  }
  const kept = { name: 'Odd\\0', message: 'half \ufffd', code: 'E_1', cause: { message: '\ufffd', code: 2 } }

  test('of a job is kept, but for those characters', async () => {
    await tasks.declare('broken', { retryLimit: 0 })
    const id = (await tasks.send('broken', 1)) as string
    const [job] = await tasks.claim('broken')
    const body = JSON.stringify({ token: String(job?.token), error: { ...broken, n: 0 } }).replace('"n":0', '"n":1e400')
    expect((await send('POST', `/v1/tasks/broken/${id}/fail`, body)).status).toBe(204)
    expect(await tasks.get('broken', id)).toMatchObject({
      state: 'failed',
      output: { ...kept, stack: 'at x\\0', n: 'Infinity' },
    })
  })

  test('that a handler throws is kept, but for those characters', async () => {
    const cause = Object.assign(new TypeError('\udc00'), { code: 2 })
    const queue = tasks.define(
      'thrower',
      () => {
        throw Object.assign(new Error('half \ud800', { cause }), { name: 'Odd\0', code: 'E_1' })
      },
      { retryLimit: 0 },
    )
    const worker = tasks.work(queue)
    leftovers.push(() => worker.stop())
    await expect(tasks.run(queue, null)).rejects.toMatchObject({
      message: 'half \ufffd',
      output: { ...kept, stack: expect.stringContaining('values.test') },
      cause: { name: 'TypeError', message: '\ufffd', code: 2, stack: expect.stringContaining('values.test') },
    })
  })

  test.each([
    ['as it is', broken, { ...kept, stack: 'at x\\0' }],
    ['and is too long', { ...broken, stack: 'x'.repeat(10_000) }, kept],
  ])('of an event is kept, but for those characters: %s', async (how, reason, stored) => {
    const group = `broken ${how}`
    await events.append(group, { type: 't' })
    await events.declareGroup(group, { prefix: group, partitions: 1, retryLimit: 0 })
    const [batch] = await events.poll(group, { holder: 'a' })
    const { partition, token, next } = batch as NonNullable<typeof batch>
    const body = { partition, token: String(token), next, event: String(batch?.events[0]?.cursor), reason }
    expect(await send('POST', `/v1/groups/${encodeURIComponent(group)}/fail`, JSON.stringify(body))).toMatchObject({
      json: { parked: true },
    })
    const [parked] = await events.parked(group)
    expect(parked?.reason).toMatchObject(stored)
    expect(JSON.stringify(parked?.reason).length).toBeLessThanOrEqual(4_096)
  })
})

describe('a follower', () => {
  /** Opens a stream; reads the data of its events. */
  async function follow(path: string, headers: Record<string, string> = {}) {
    const response = await app.request(path, { headers: { accept: 'text/event-stream', ...headers } })
    expect(response.status).toBe(200)
    const reader = (response.body as ReadableStream<Uint8Array>).getReader()
    leftovers.push(() => reader.cancel())
    let text = ''
    return async () => {
      for (;;) {
        const found = /^data: (.*)\n\n/m.exec(text)
        if (found) {
          text = text.slice(found.index + found[0].length)
          return JSON.parse(found[1] as string).data
        }
        text += new TextDecoder().decode((await reader.read()).value)
      }
    }
  }

  test.each(['/v1/streams/seen', '/v1/events?prefix=seen'])(
    'whose Last-Event-ID is empty has seen nothing: %s',
    async (path) => {
      if (path.includes('streams')) await events.append('seen', { type: 't', data: 1 })
      expect(await (await follow(path, { 'Last-Event-ID': '' }))()).toBe(1)
    },
  )

  test('of a leader whose Last-Event-ID is empty has seen nothing', async () => {
    await lockstep.leaders.grant('led', { holder: 'me' })
    const headers = { accept: 'text/event-stream', 'Last-Event-ID': '' }
    const response = await app.request('/v1/leaders/led/observe', { headers })
    const reader = (response.body as ReadableStream<Uint8Array>).getReader()
    leftovers.push(() => reader.cancel())
    expect(new TextDecoder().decode((await reader.read()).value)).toContain('"holder":"me"')
  })

  test.each([
    ['/v1/streams/ends', '?'],
    ['/v1/events', '?prefix=ends&'],
  ])('from the end gets what is appended after its headers came, and nothing before: %s', async (path, query) => {
    await events.append('ends', { type: 't', data: 'before' })
    const next = await follow(`${path}${query}from=end`)
    await events.append('ends', { type: 't', data: path }) // before the first byte of the body is read
    expect(await next()).toBe(path)
    const last = (await events.read('ends', { backwards: true, limit: 2 })).events[1]
    const seen = { 'Last-Event-ID': String(path === '/v1/events' ? last?.cursor : last?.position) }
    expect(await (await follow(`${path}${query}from=end`, seen))()).toBe(path) // what it has seen says more
  })

  test('a page from the end is empty, and says where to go on; with a wait it has what comes', async () => {
    await events.append('paged', { type: 't', data: 1 })
    const page = (query: string) => get(`/v1/streams/paged?from=end${query}`)
    expect(await page('')).toEqual({ events: [], next: '2' })
    const waiting = page('&waitMs=20000')
    await expect
      .poll(async () => {
        await events.append('paged', { type: 't', data: 2 })
        return Promise.race([waiting, new Promise((resolve) => setTimeout(resolve, 50))])
      })
      .toMatchObject({ events: [{ data: 2 }] })
    expect((await page('&backwards=true')).events.at(-1).data).toBe(1)
    const { next } = await get('/v1/events?from=end')
    expect((await events.readAll({ from: BigInt(next) })).events).toEqual([])
    const wrong = await get('/v1/events?from=start')
    expect(wrong.errors).toEqual([{ field: 'from', expected: 'a decimal string, 1–9223372036854775807 or end' }])
  })
})

test.each(['locks', 'leaders', 'tasks', 'schedules', 'streams', 'groups'])(
  'a 404 of a path below /v1/%s with too many parts says that a slash is written %2F',
  async (area) => {
    for (const path of ['a/b/c/d/e', 'a/b/']) {
      if (area === 'tasks' && path === 'a/b/') continue
      const { status, detail } = await get(`/v1/${area}/${path}`)
      expect(status).toBe(404)
      expect(detail).toContain('`%2F`')
    }
    expect((await get(`/v2/${area}/a/b`)).detail).toBe('There is nothing at this path')
  },
)

test('a job with an id that was used says so: run names `id`, and over HTTP it is 409 with the state of the job', async () => {
  await tasks.declare('used')
  const id = crypto.randomUUID()
  await tasks.send('used', 1, { id })
  const [job] = await tasks.claim('used')
  await tasks.complete('used', id, job?.token as bigint)
  const refused = { code: 'INVALID_ARGUMENT', field: 'id', expected: expect.stringContaining('this one is completed') }
  await expect(tasks.run('used', 1, { id, waitMs: 10 })).rejects.toMatchObject(refused)
  for (const waitMs of [0, 100]) {
    const answer = await send('POST', '/v1/tasks/used', JSON.stringify({ data: 1, waitMs, options: { id } }))
    expect(answer).toMatchObject({ status: 409, json: { code: 'JOB_REFUSED' } })
    expect(answer.json).toMatchObject({
      detail: expect.stringContaining('a job of this id already, which is completed'),
    })
  }
  await tasks.declare('one', { policy: 'singleton' })
  await tasks.send('one', 1, { singletonKey: 'k', singletonSeconds: 100 })
  await expect(tasks.run('one', 1, { singletonKey: 'k', singletonSeconds: 100 })).rejects.toMatchObject({
    field: 'queue',
  })
})

describe('what a database role or its settings lack', () => {
  test('of rights is a 503 that names `migrate --grant`', async () => {
    const role = `${database.name}_none`
    await database.pool.query(`create role ${role} login password 'secret'`)
    const url = Object.assign(new URL(database.url), { username: role, password: 'secret' })
    const poor = createLockstep({ connectionString: url.href })
    try {
      const doors = createApp(poor, { tasks: createTasks(poor), events: createEvents(poor) })
      for (const path of [
        '/readyz',
        '/v1/locks',
        '/v1/locks/a',
        '/v1/leaders/a',
        '/v1/tasks',
        '/v1/streams',
        '/v1/groups',
      ]) {
        const response = await doors.request(path)
        expect([path, response.status]).toEqual([path, 503])
        const { code, detail } = (await response.json()) as { code: string; detail: string }
        expect(code).toBe('UNAVAILABLE')
        expect(detail).toMatch(/permission denied for schema lockstep(_boss)?: .*`lockstep migrate --grant <role>`/)
      }
      await expect(poor.locks.acquire('a')).rejects.toThrow('migrate --grant')
    } finally {
      await poor.close()
      await database.pool.query(`drop role ${role}`)
    }
  })

  test.each([SQLSTATE.wrongIsolation, SQLSTATE.wrongBackend, SQLSTATE.sequenceBehind])(
    'that a function of ours refuses with %s is a 503 that says what to do',
    async (code) => {
      await using broken = await freshDatabase()
      await broken.pool.query(`drop function lockstep.look(text);
        create function lockstep.look(name text) returns void language plpgsql as $$
        begin raise exception 'refused' using errcode = '${code}'; end $$`)
      await using ours = createLockstep({ connectionString: broken.url })
      const response = await createApp(ours).request('/v1/locks/a')
      expect(response.status).toBe(503)
      expect(await response.json()).toMatchObject({
        code: 'UNAVAILABLE',
        detail: expect.stringMatching(/: (alter|connect|run)/),
      })
      await expect(ours.locks.get('a')).rejects.toMatchObject({ code: 'UNAVAILABLE', cause: { code } })
    },
  )
})
