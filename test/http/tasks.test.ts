/**
 * Tasks over HTTP: what the routes of queues, jobs, workers, schedules and ticks take, refuse and answer, and what keys may do.
 *
 * Every answer passes through `call`, which remembers its status; the last tests compare that with openapi.json. Tests that
 * run a handler or need a socket have their own library and server.
 */
import { createHash } from 'node:crypto'
import * as net from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { serve } from '../../functions/adapters/node.ts'
import { createApp } from '../../functions/app.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { dedicatedServer, type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

type App = ReturnType<typeof createApp>
// biome-ignore lint/suspicious/noExplicitAny: JSON of any route, looked into at many depths
type Json = any

let database: FreshDatabase
let lockstep: Lockstep
let tasks: Tasks
let app: App
const seen = new Map<string, Set<number>>()

beforeAll(async () => {
  database = await freshDatabase()
  lockstep = createLockstep({ connectionString: database.url })
  tasks = createTasks(lockstep)
  app = createApp(lockstep, { tasks })
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
  expect(text).not.toMatch(/postgres:|select |insert |"stack"|\bat .*\.[tj]s:\d/i)
  const json: Json = text === '' ? undefined : JSON.parse(text)
  if (!response.ok) {
    expect(response.headers.get('content-type')).toBe('application/problem+json')
    expect(json).toMatchObject({ status: response.status, code: expect.stringMatching(/^[A-Z_]+$/) })
    expect(json.title).toBeTruthy()
  }
  return { status: response.status, headers: response.headers, json }
}

function note(method: string, path: string, status: number): void {
  const [, , area, name, id, ...verb] = new URL(path, 'http://x').pathname.split('/')
  const word = id === 'claim' || id === 'broadcast' ? id : '{id}'
  const route = ['/v1', area, name && '{name}', id && word, ...verb].filter((part) => part !== undefined).join('/')
  seen.set(`${method} ${route}`, (seen.get(`${method} ${route}`) ?? new Set()).add(status))
}

let count = 0
const fresh = () => `queue-${++count}`
const at = (queue: string, ...more: string[]) => ['/v1/tasks', encodeURIComponent(queue), ...more].join('/')
const schedule = (name: string) => `/v1/schedules/${encodeURIComponent(name)}`
const NOBODY = '00000000-0000-4000-8000-000000000000'
const instant = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
const uuid = expect.stringMatching(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/)
const token = expect.stringMatching(/^[1-9]\d*$/)

/** A queue of its own for a test. */
async function made(options: object = {}, queue = fresh()): Promise<string> {
  expect((await call('PUT', at(queue), { body: options })).status).toBe(201)
  return queue
}
async function send(queue: string, body: object = {}): Promise<string> {
  const { status, json } = await call('POST', at(queue), { body })
  expect([status, json]).toEqual([202, { id: uuid }])
  return json.id
}
async function claim(queue: string, body: object = {}): Promise<Json[]> {
  const { status, json } = await call('POST', at(queue, 'claim'), { body })
  expect(status).toBe(200)
  return json.jobs
}
/** The only job that can be claimed. */
async function claimed(queue: string, body: object = {}): Promise<Json> {
  const jobs = await claim(queue, body)
  expect(jobs.length).toBe(1)
  return jobs[0]
}
/** A job that was sent and claimed. */
async function started(queue: string): Promise<Json> {
  await send(queue)
  return claimed(queue)
}
const look = async (queue: string, id: string) => (await call('GET', at(queue, id))).json
const counts = async (queue: string) => (await call('GET', at(queue))).json
const settle = (verb: string, queue: string, job: Json, body: object = {}) =>
  call('POST', at(queue, job.id, verb), { body: { token: job.token, ...body } })
const complete = (queue: string, job: Json, body?: object) => settle('complete', queue, job, body)
const fail = (queue: string, job: Json, body?: object) => settle('fail', queue, job, body)

/** Holds every statement on a table up while `during` runs; `queued` waits until one stands there. */
async function locked<T>(table: string, during: (queued: () => Promise<void>) => Promise<T>): Promise<T> {
  const other = await database.pool.connect()
  try {
    await other.query(`begin; lock table ${table} in access exclusive mode`)
    return await during(() =>
      until(`a statement waits for ${table}`, async () => {
        const { rows } = await other.query(
          `select from pg_locks l join pg_class c on c.oid = l.relation
             where not l.granted and c.relnamespace = 'lockstep_boss'::regnamespace
               and l.database = (select oid from pg_database where datname = current_database())`,
        )
        return rows.length
      }),
    )
  } finally {
    await other.query('commit')
    other.release()
  }
}

/** A claim that has asked the database, got nothing, and waits. In an object: awaited, it would be the answer. */
async function waitingClaim(queue: string, more: Ask = {}) {
  const waiting = await locked('lockstep_boss.job', async (queued) => {
    const answer = call('POST', at(queue, 'claim'), { body: { waitMs: 20_000 }, ...more })
    await queued()
    return { answer }
  })
  await counts(queue)
  return waiting
}

describe('a queue', () => {
  test('is made, changed, counted and listed', async () => {
    const queue = fresh()
    const empty = { queue, ready: 0, deferred: 0, blocked: 0, active: 0, failed: 0 }
    expect(await call('PUT', at(queue), { body: { retryLimit: 7 } })).toMatchObject({ status: 201, json: empty })
    expect((await call('GET', at(queue))).json).toEqual(empty)
    const id = await send(queue)
    expect(await look(queue, id)).toMatchObject({ retryLimit: 7 })
    const changed = await call('PUT', at(queue), { body: { retryLimit: 3 } })
    expect(changed).toMatchObject({ status: 200, json: { ...empty, ready: 1 } })
    expect(await look(queue, await send(queue))).toMatchObject({ retryLimit: 3 })
    await claim(queue)
    await send(queue, { options: { startAfterMs: 60_000 } })
    expect(await counts(queue)).toEqual({ ...empty, ready: 1, active: 1, deferred: 1 })
  })

  test('needs no body to be made, and takes all that is allowed', async () => {
    expect((await call('PUT', at(fresh()))).status).toBe(201)
    const dead = await made()
    const all = {
      retryLimit: 1000,
      retryDelayMs: 31_536_000_000,
      backoff: { maxMs: 60_000 },
      expireInMs: 86_400_000,
      heartbeatMs: 10_000,
      deadLetter: dead,
      policy: 'exclusive',
      retentionSeconds: 1,
      deleteAfterSeconds: 0,
    }
    const queue = await made(all)
    expect((await call('PUT', at(queue), { body: all })).status).toBe(200)
    const other = await call('PUT', at(queue), { body: { policy: 'short' } })
    expect(other).toMatchObject({ status: 400, json: { errors: [{ field: 'policy' }] } })
    for (const backoff of [true, false]) await made({ backoff })
  })

  test('pages through by name, each once', async () => {
    const names = Array.from({ length: 5 }, (_, i) => `page/${i}`)
    for (const name of names) await made({}, name)
    const pages: string[][] = []
    for (let next: string | null = ''; next !== null; ) {
      const query: string = `prefix=page%2F&limit=2${next && `&after=${encodeURIComponent(next)}`}`
      const { json } = await call('GET', `/v1/tasks?${query}`)
      pages.push(json.queues)
      next = json.next
    }
    expect(pages).toEqual([names.slice(0, 2), names.slice(2, 4), names.slice(4)])
  })

  test('that does not exist is 404 for every request that names it', async () => {
    const queue = fresh()
    for (const [method, path, body] of [
      ['GET', at(queue)],
      ['POST', at(queue), {}],
      ['POST', at(queue), { waitMs: 20_000 }],
      ['POST', at(await made()), { options: { deadLetter: queue } }],
      ['POST', at(queue, 'claim'), { waitMs: 20_000 }],
      ['POST', at(queue, 'broadcast')],
      ['GET', at(queue, NOBODY)],
      ['DELETE', at(queue, NOBODY)],
      ['POST', at(queue, NOBODY, 'fail'), { token: '1' }],
      ['PUT', schedule('nowhere'), { queue, cron: '* * * * *' }],
    ] as const) {
      const answer = await call(method, path, { body })
      expect([method, path, answer.status, answer.json.code]).toEqual([method, path, 404, 'NOT_FOUND'])
    }
  })
})

describe('a job', () => {
  test('is sent, and looked at', async () => {
    const queue = await made()
    const id = await send(queue, { data: { to: ['you', 1, null] } })
    expect(await look(queue, id)).toEqual({
      id,
      queue,
      state: 'created',
      data: { to: ['you', 1, null] },
      output: null,
      attempts: 0,
      retryLimit: 2,
      priority: 0,
      createdAt: instant,
      startAfter: instant,
      startedAt: null,
      completedAt: null,
      progress: null,
      holder: null,
    })
  })

  test.each([[null], [0], [''], ['text'], [false], [[]], [{}], [{ __proto__: 1, a: { b: [] } }]])(
    'carries %j as it was sent',
    async (data) => {
      const queue = await made()
      const id = await send(queue, { data })
      expect((await look(queue, id)).data).toEqual(data)
      expect((await claimed(queue)).data).toEqual(data)
    },
  )

  test('needs no body: its data is null', async () => {
    const queue = await made()
    for (const ask of [{}, { body: '' }, { body: {} }, { body: { waitMs: 0, options: {} } }]) {
      const { status, json } = await call('POST', at(queue), ask)
      expect(status).toBe(202)
      expect((await look(queue, json.id)).data).toBe(null)
    }
  })

  test('has the options that it was sent with', async () => {
    const queue = await made()
    const id = crypto.randomUUID()
    const sent = await send(queue, { options: { id: id.toUpperCase(), priority: 5, retryLimit: 9, singletonKey: 'k' } })
    expect(sent).toBe(id)
    expect(await look(queue, id.toUpperCase())).toMatchObject({ id, priority: 5, retryLimit: 9 })
    const low = await send(queue, { options: { priority: -1_000_000, group: { id: 'g', tier: 't' } } })
    expect([(await claimed(queue)).id, (await claimed(queue)).id]).toEqual([id, low])

    const slot = await send(queue, { options: { startAfter: '2099-01-01T01:00:00.5+01:00' } })
    expect((await look(queue, slot)).startAfter).toBe('2099-01-01T00:00:00.500Z')
    const later = await look(queue, await send(queue, { options: { startAfterMs: 60_000 } }))
    const delay = Date.parse(later.startAfter) - Date.parse(later.createdAt)
    expect(Math.abs(delay - 60_000)).toBeLessThan(1_000)
    expect(await claim(queue)).toEqual([])
  })

  test('is cancelled once, and then it is over', async () => {
    const queue = await made()
    for (const id of [(await started(queue)).id, await send(queue)]) {
      expect((await call('DELETE', at(queue, id))).status).toBe(204)
      expect(await look(queue, id)).toMatchObject({ state: 'cancelled' })
      expect(await call('DELETE', at(queue, id))).toMatchObject({ status: 409, json: { code: 'JOB_OVER' } })
    }
    const done = await started(queue)
    await complete(queue, done)
    const late = await call('DELETE', at(queue, done.id))
    expect(late).toMatchObject({
      status: 409,
      json: { code: 'JOB_OVER', detail: expect.stringContaining('completed') },
    })
  })

  test('that was never sent is 404', async () => {
    const queue = await made()
    for (const method of ['GET', 'DELETE']) {
      expect(await call(method, at(queue, NOBODY))).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
    }
  })

  test('that is refused is 409: by its id, by the policy of the queue, by a slot of time; waited for or not', async () => {
    const queue = await made()
    const id = await send(queue)
    const only = await made({ policy: 'exclusive' })
    await send(only)
    const seldom = await made()
    const options = { singletonKey: 'k', singletonSeconds: 31_536_000 }
    await send(seldom, { options })
    for (const [name, body] of [
      [queue, { options: { id } }],
      [only, {}],
      [seldom, { options }],
    ] as const) {
      for (const waitMs of [0, 20_000]) {
        const answer = await call('POST', at(name), { body: { ...body, waitMs } })
        expect(answer).toMatchObject({ status: 409, json: { code: 'JOB_REFUSED' } })
      }
    }
    expect(await counts(only)).toMatchObject({ ready: 1 })
  })
})

describe('a caller that waits for a job', () => {
  const wait = (queue: string, body: object = {}, more: Ask = {}) =>
    call('POST', at(queue), { body: { waitMs: 20_000, ...body }, ...more })

  test('gets its output', async () => {
    const queue = await made()
    for (const output of [{ sum: 3 }, null, 'text', 0, [1, [2]]]) {
      const over = wait(queue, { data: [1, 2] })
      const job = await claimed(queue, { waitMs: 20_000 })
      expect(job.data).toEqual([1, 2])
      expect((await complete(queue, job, { output })).status).toBe(204)
      expect((await over).json).toEqual({ id: job.id, state: 'completed', output })
      expect((await over).status).toBe(200)
    }
  })

  test('gets its failure, without the stack, and so does every reader', async () => {
    const queue = await made({ retryLimit: 0 })
    const over = wait(queue)
    const job = await claimed(queue, { waitMs: 20_000 })
    const error = {
      name: 'E',
      message: 'No',
      code: 7,
      stack: 'x',
      cause: { message: 'Why', stack: 'y' },
      errors: [{ stack: 'z' }],
    }
    expect((await fail(queue, job, { error })).status).toBe(204)
    const output = { name: 'E', message: 'No', code: 7, cause: { message: 'Why' }, errors: [{}] }
    expect(await over).toMatchObject({ status: 200, json: { id: job.id, state: 'failed' } })
    expect((await over).json.output).toEqual(output)
    expect(await look(queue, job.id)).toMatchObject({ state: 'failed', output })
  })

  test('gets that it was cancelled', async () => {
    const queue = await made()
    const over = wait(queue)
    const job = await claimed(queue, { waitMs: 20_000 })
    expect((await call('DELETE', at(queue, job.id))).status).toBe(204)
    expect(await over).toMatchObject({ status: 200, json: { id: job.id, state: 'cancelled' } })
  })

  test('and waits in vain is 504 with the id, and the job goes on', async () => {
    const queue = await made()
    const late = await wait(queue, { waitMs: 50 })
    expect(late).toMatchObject({ status: 504, json: { code: 'RUN_TIMEOUT', id: uuid } })
    expect(await look(queue, late.json.id)).toMatchObject({ state: 'created' })
    expect((await claimed(queue)).id).toBe(late.json.id)
    const id = crypto.randomUUID()
    const other = await wait(queue, { waitMs: 50, options: { id: id.toUpperCase() } })
    expect(other).toMatchObject({ status: 504, json: { id } })
  })

  test('and hangs up only stops waiting: the job goes on', async () => {
    const queue = await made()
    const client = new AbortController()
    const over = wait(queue, {}, { signal: client.signal })
    const job = await claimed(queue, { waitMs: 20_000 })
    client.abort()
    expect((await over).status).toBe(499)
    expect((await complete(queue, job)).status).toBe(204)
    expect(await look(queue, job.id)).toMatchObject({ state: 'completed' })
  })

  test('gets 503 when the server stops; the job is sent, and a later request sends none', async () => {
    const stopping = new AbortController()
    const on = createApp(lockstep, { tasks, signal: stopping.signal })
    const queue = await made()
    const over = wait(queue, {}, { on })
    const job = await claimed(queue, { waitMs: 20_000 })
    stopping.abort()
    expect(await over).toMatchObject({ status: 503, json: { code: 'UNAVAILABLE' } })
    expect((await over).headers.get('retry-after')).toBe('1')
    expect((await wait(queue, {}, { on })).status).toBe(503)
    expect(await counts(queue)).toMatchObject({ ready: 0, active: 1 })
    expect((await call('POST', at(queue), { on })).status).toBe(202)
    expect((await complete(queue, job)).status).toBe(204)
  })

  test('hears from a handler in a process as well, and never of its stack', async () => {
    const mine = createLockstep({ connectionString: database.url })
    const worker = createTasks(mine, { onError: () => {} })
    leftovers.push(() => mine.close())
    const queue = fresh()
    const add = async ({ a, b }: { a: number; b?: number }) => {
      if (b === undefined) throw Object.assign(new TypeError('No b', { cause: new Error('why') }), { code: 'NO_B' })
      return { sum: a + b }
    }
    worker.define(queue, add, { retryLimit: 0 })
    worker.work(queue)
    await until('the queue is there', async () => (await call('GET', at(queue))).status === 200)
    expect((await wait(queue, { data: { a: 1, b: 2 } })).json).toMatchObject({ state: 'completed', output: { sum: 3 } })
    const failed = await wait(queue, { data: { a: 1 } })
    const output = { name: 'TypeError', message: 'No b', code: 'NO_B', cause: { name: 'Error', message: 'why' } }
    expect(failed).toMatchObject({ status: 200, json: { state: 'failed', output } })
    expect((await look(queue, failed.json.id)).output).toMatchObject(output)
  })
})

describe('a worker', () => {
  test('claims a job for a lease, says how far it is, keeps it and ends it', async () => {
    const queue = await made()
    const id = await send(queue, { data: 'work' })
    const before = Date.now()
    const job = await claimed(queue, { holder: 'me', leaseMs: 60_000 })
    expect(job).toEqual({ id, token, attempt: 1, data: 'work', expiresAt: instant })
    expect(Math.abs(Date.parse(job.expiresAt) - before - 60_000)).toBeLessThan(5_000)
    expect(await look(queue, id)).toMatchObject({ state: 'active', attempts: 1, holder: 'me', startedAt: instant })

    expect((await settle('progress', queue, job, { fraction: 0.5, note: 'half' })).status).toBe(204)
    expect((await look(queue, id)).progress).toEqual({ fraction: 0.5, note: 'half', at: instant })
    expect((await settle('progress', queue, job, { fraction: 1 })).status).toBe(204)
    expect(await look(queue, id)).toMatchObject({ holder: 'me', progress: { fraction: 1, note: null } })

    const kept = await settle('extend', queue, job, { leaseMs: 3_600_000 })
    expect([kept.status, kept.json]).toEqual([200, { expiresAt: instant }])
    expect(Date.parse(kept.json.expiresAt) - Date.parse(job.expiresAt)).toBeGreaterThan(3_000_000)

    expect((await complete(queue, job, { output: { done: true } })).status).toBe(204)
    expect(await look(queue, id)).toMatchObject({ state: 'completed', output: { done: true }, completedAt: instant })
  })

  test('gets one job for half a minute unless it says otherwise, and none where none is', async () => {
    const queue = await made()
    for (let i = 0; i < 5; i++) await send(queue, { data: i })
    const before = Date.now()
    const first = await claimed(queue)
    expect(Math.abs(Date.parse(first.expiresAt) - before - 30_000)).toBeLessThan(5_000)
    expect((await claim(queue, { limit: 3 })).map((job) => job.data).sort()).toEqual([1, 2, 3]) // in no order
    expect((await claim(queue, { limit: 100 })).map((job) => job.data)).toEqual([4])
    expect((await call('POST', at(queue, 'claim'))).json).toEqual({ jobs: [] })
    expect(await claim(queue, { waitMs: 50 })).toEqual([])
  })

  test('that waits gets the job that is sent meanwhile', async () => {
    const queue = await made()
    const { answer } = await waitingClaim(queue)
    const id = await send(queue)
    expect(await answer).toMatchObject({ status: 200, json: { jobs: [{ id }] } })
  })

  test('may complete or fail a job again, as the answer may have got lost; the one after the other is 409 and changes nothing', async () => {
    const queue = await made()
    const one = await started(queue)
    for (let i = 0; i < 3; i++) expect((await complete(queue, one, { output: 1 })).status).toBe(204)
    expect((await look(queue, one.id)).output).toBe(1)
    expect((await fail(queue, one)).status).toBe(409)
    expect(await look(queue, one.id)).toMatchObject({ state: 'completed', output: 1 })
    const other = await started(queue)
    expect((await fail(queue, other, { error: 'No' })).status).toBe(204)
    expect((await fail(queue, other, { error: 'Again' })).status).toBe(204)
    expect((await complete(queue, other)).status).toBe(409)
    expect(await look(queue, other.id)).toMatchObject({ state: 'retry', attempts: 1, output: { message: 'No' } })
  })

  test('that fails a job lets it be tried again, under a larger token, and then for good', async () => {
    const dead = await made()
    const queue = await made({ retryLimit: 2, deadLetter: dead })
    const id = await send(queue, { data: 'poison' })
    let before = 0n
    for (const [attempt, error] of [
      [1, 'No'],
      [2, { message: 'Not' }],
      [3, undefined],
    ] as const) {
      const job = await claimed(queue)
      expect(job).toMatchObject({ id, attempt })
      expect(BigInt(job.token)).toBeGreaterThan(before)
      before = BigInt(job.token)
      expect((await fail(queue, job, error === undefined ? {} : { error })).status).toBe(204)
      const { output, state } = await look(queue, id)
      expect(state).toBe(attempt < 3 ? 'retry' : 'failed')
      expect(output.message).toMatch(attempt === 1 ? /^No$/ : attempt === 2 ? /^Not$/ : /./)
    }
    expect(await counts(queue)).toMatchObject({ failed: 1, ready: 0 })
    expect(await claimed(dead)).toMatchObject({ data: 'poison' })
  })

  test.each([['text'], [7], [null], [false], [['a', 1]], [{ reason: 'x' }], [{ message: 7 }]])(
    'may say %j of why it failed',
    async (error) => {
      const queue = await made({ retryLimit: 0 })
      const job = await started(queue)
      expect((await fail(queue, job, { error })).status).toBe(204)
      expect(await look(queue, job.id)).toMatchObject({ state: 'failed', output: expect.anything() })
    },
  )

  test('that has lost its job to another gets 409, and changes nothing', async () => {
    const queue = await made()
    const id = await send(queue)
    const stale = await claimed(queue, { holder: 'stale' })
    await tasks.handBack(queue, [{ id, token: BigInt(stale.token) }])
    const job = await claimed(queue, { holder: 'new' })
    expect(job).toMatchObject({ id, attempt: 2 })
    expect(BigInt(job.token)).toBeGreaterThan(BigInt(stale.token))
    const lost = async (late: Json) => {
      for (const [verb, body] of [
        ['extend', {}],
        ['progress', { fraction: 0.1 }],
        ['complete', { output: 'late' }],
        ['fail', { error: 'late' }],
      ] as const) {
        const answer = await settle(verb, queue, late, body)
        expect([verb, answer.status, answer.json.code]).toEqual([verb, 409, 'LEASE_LOST'])
      }
    }
    await lost(stale)
    await lost({ id, token: '9223372036854775807' })
    await lost({ id: NOBODY, token: job.token })
    expect(await look(queue, id)).toMatchObject({ state: 'active', holder: 'new', progress: null, output: null })
    expect((await complete(queue, job)).status).toBe(204)
    await lost(stale)
  })

  test('whose lease ran out has lost the job, when a tick finds out', async () => {
    const queue = await made()
    const id = await send(queue)
    const stale = await claimed(queue)
    await database.pool.query(
      `update lockstep_boss.job set heartbeat_on = heartbeat_on - interval '1 hour' where name = $1`,
      [queue],
    )
    await until('the job is free', async () => {
      expect((await call('POST', '/v1/tick', { body: { budgetMs: 1_000 } })).status).toBe(200)
      return (await look(queue, id)).state === 'retry'
    })
    expect((await complete(queue, stale)).status).toBe(409)
    expect(await claimed(queue)).toMatchObject({ id, attempt: 2 })
  })

  test('whose job was cancelled gets 409', async () => {
    const queue = await made()
    const job = await started(queue)
    await call('DELETE', at(queue, job.id))
    expect((await settle('extend', queue, job)).status).toBe(409)
    expect((await complete(queue, job)).status).toBe(409)
    expect(await look(queue, job.id)).toMatchObject({ state: 'cancelled' })
  })

  test('that hangs up while it waits is given nothing', async () => {
    const queue = await made()
    const client = new AbortController()
    const { answer } = await waitingClaim(queue, { signal: client.signal })
    client.abort()
    expect((await answer).status).toBe(499)
    const id = await send(queue)
    expect(await claimed(queue)).toMatchObject({ id, attempt: 1 })
  })

  test.each([0, 20_000])(
    'that hangs up while its job is on the way leaves it to others (waitMs %i)',
    async (waitMs) => {
      const queue = await made()
      const id = await send(queue, { options: { retryLimit: 0 } })
      const client = new AbortController()
      const answer = await locked('lockstep_boss.job', async (queued) => {
        const answer = call('POST', at(queue, 'claim'), { body: { waitMs, limit: 2 }, signal: client.signal })
        await queued()
        client.abort()
        return { answer }
      })
      expect((await answer.answer).status).toBe(499)
      await until('the job is free', async () => (await counts(queue)).ready === 1)
      const job = await claimed(queue)
      expect(job.id).toBe(id)
      expect((await complete(queue, job)).status).toBe(204)
    },
  )

  test('gets 503 when the server stops; requests that do not wait still get an answer', async () => {
    const stopping = new AbortController()
    const on = createApp(lockstep, { tasks, signal: stopping.signal })
    const queue = await made()
    const { answer } = await waitingClaim(queue, { on })
    stopping.abort()
    expect(await answer).toMatchObject({ status: 503, json: { code: 'UNAVAILABLE' } })
    expect((await answer).headers.get('retry-after')).toBe('1')
    const id = await send(queue)
    expect((await call('POST', at(queue, 'claim'), { body: { waitMs: 20_000 }, on })).status).toBe(503)
    const { json } = await call('POST', at(queue, 'claim'), { on })
    expect(json.jobs).toMatchObject([{ id, attempt: 1 }])
  })
})

describe('a broadcast', () => {
  test('sends a job to each process that works on the queue', async () => {
    const queue = fresh()
    const got: unknown[] = []
    for (const name of ['one', 'two']) {
      const mine = createLockstep({ connectionString: database.url })
      leftovers.push(() => mine.close())
      const worker = createTasks(mine)
      worker.define(queue, async (data) => void got.push([name, data]))
      worker.work(queue)
    }
    let jobs: Json[] = []
    await until('both work', async () => {
      const answer = await call('POST', at(queue, 'broadcast'), { body: { data: 'reload' } })
      jobs = answer.json.jobs ?? []
      return jobs.length === 2
    })
    expect(jobs).toEqual([1, 2].map(() => ({ worker: expect.any(String), id: uuid })))
    await until('both heard', () =>
      ['one', 'two'].every((name) => got.some((each) => String(each) === `${name},reload`)),
    )
  })

  test('without workers sends nothing', async () => {
    const queue = await made()
    expect(await call('POST', at(queue, 'broadcast'))).toMatchObject({ status: 202, json: { jobs: [] } })
  })
})

describe('a schedule', () => {
  test('is made, looked at with the slots to come, changed and removed', async () => {
    const [queue, other] = [await made(), await made()]
    const path = schedule(`nightly ${fresh()}`)
    const body = { queue, cron: '30 2 * * *', timezone: 'Europe/Berlin', data: { full: true }, missed: 'all' }
    const put = await call('PUT', path, { body })
    expect(put.status).toBe(201)
    const { json } = await call('GET', path)
    expect(json).toEqual({
      name: decodeURIComponent(path.replace('/v1/schedules/', '')),
      ...body,
      nextAt: instant,
      lastSlot: null,
      lastJob: null,
      missedSlots: 0,
      lastMissed: null,
      error: null,
      createdAt: instant,
      updatedAt: instant,
      upcoming: [instant, instant, instant, instant, instant],
    })
    expect(put.json).toEqual(json)
    expect(json.upcoming[0]).toBe(json.nextAt)
    expect(json.upcoming).toEqual(json.upcoming.toSorted())

    const changed = await call('PUT', path, { body: { queue: other, cron: '0 * * * *' } })
    expect(changed.status).toBe(200)
    expect(changed.json).toMatchObject({ queue: other, cron: '0 * * * *', timezone: 'UTC', data: null, missed: 'once' })

    expect((await call('DELETE', path)).status).toBe(204)
    expect(await call('DELETE', path)).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
    expect(await call('GET', path)).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
  })

  test.each([
    ['cron', { cron: 'nonsense' }],
    ['cron', { cron: '61 * * * *' }],
    ['cron', { cron: '* * * *' }],
    ['timezone', { cron: '* * * * *', timezone: 'Mars/Olympus' }],
  ])('with a %s that nobody understands is 400 and names it: %j', async (field, body) => {
    const answer = await call('PUT', schedule('bad'), { body: { queue: await made(), ...body } })
    expect(answer.status).toBe(400)
    expect(answer.json.errors[0].field).toBe(field)
    expect((await call('GET', schedule('bad'))).status).toBe(404)
  })

  test('whose time zone is unknown here is shown all the same, with the reason once it was due', async () => {
    const path = schedule(fresh())
    await call('PUT', path, { body: { queue: await made(), cron: '@daily' } })
    await database.pool.query(
      `update lockstep.schedule set timezone = 'Mars/Olympus', next_at = now() where name = $1`,
      [path.split('/').at(-1)],
    )
    expect(await call('GET', path)).toMatchObject({ status: 200, json: { timezone: 'Mars/Olympus', upcoming: [] } })
    await call('POST', '/v1/tick')
    const { json } = await call('GET', path)
    expect(json).toMatchObject({ nextAt: null, missedSlots: 1, error: expect.any(String), upcoming: [] })
    await call('DELETE', path)
  })

  test('pages through by name, each once', async () => {
    const queue = await made()
    const names = Array.from({ length: 5 }, (_, i) => `page/${i}`)
    for (const name of names) await call('PUT', schedule(name), { body: { queue, cron: '@daily' } })
    const pages: string[][] = []
    for (let next: string | null = ''; next !== null; ) {
      const query: string = `prefix=page%2F&limit=2${next && `&after=${encodeURIComponent(next)}`}`
      const { json } = await call('GET', `/v1/schedules?${query}`)
      pages.push(json.schedules.map(({ name }: { name: string }) => name))
      const { upcoming: _, ...one } = (await call('GET', schedule(json.schedules[0].name))).json
      expect(json.schedules[0]).toEqual(one)
      next = json.next
    }
    expect(pages).toEqual([names.slice(0, 2), names.slice(2, 4), names.slice(4)])
  })
})

describe('a tick', () => {
  const tick = (body: object = {}, more: Ask = {}) => call('POST', '/v1/tick', { body, ...more })

  test('sends what is due, once, and says what it did', async () => {
    const queue = await made()
    const name = fresh()
    await call('PUT', schedule(name), { body: { queue, cron: '@daily', data: 'slot' } })
    await database.pool.query(
      `update lockstep.schedule set next_at = date_trunc('day', next_at) - interval '1 day' where name = $1`,
      [name],
    )
    const answers = await Promise.all([tick(), tick(), call('POST', '/v1/tick')])
    const done = {
      slots: expect.any(Number),
      jobs: 0,
      failed: 0,
      handedBack: 0,
      ms: expect.any(Number),
      nextAt: instant,
    }
    for (const { status, json } of answers) expect([status, json]).toEqual([200, done])
    expect(answers.reduce((sum, { json }) => sum + json.slots, 0)).toBe(1)
    const job = await claimed(queue)
    expect(job.data).toBe('slot')
    const { json } = await call('GET', schedule(name))
    expect(json).toMatchObject({ lastJob: job.id, lastSlot: (await look(queue, job.id)).startAfter })
    await call('DELETE', schedule(name))
  })

  test('works on the queues that have a handler here', async () => {
    const mine = createLockstep({ connectionString: database.url })
    leftovers.push(() => mine.close())
    const worker = createTasks(mine)
    const queue = await made({ retryLimit: 0 })
    worker.define(queue, async (data) => {
      if (data === 'bad') throw new Error('No')
    })
    const ids = [await send(queue, { data: 1 }), await send(queue, { data: 'bad' }), await send(queue, { data: 2 })]
    const { json } = await tick({ budgetMs: 20_000 }, { on: createApp(mine, { tasks: worker }) })
    expect(json).toMatchObject({ jobs: 2, failed: 1, handedBack: 0 })
    const states = await Promise.all(ids.map(async (id) => (await look(queue, id)).state))
    expect(states).toEqual(['completed', 'failed', 'completed'])
  })

  test('ends with its budget, its caller or the server, and hands back what runs', async () => {
    const mine = createLockstep({ connectionString: database.url })
    leftovers.push(() => mine.close())
    const worker = createTasks(mine)
    const queue = await made()
    let running = 0
    worker.define(queue, async (_, { signal }) => {
      running++
      await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
    })
    const id = await send(queue, { options: { retryLimit: 0 } })
    const stopping = new AbortController()
    const on = createApp(mine, { tasks: worker, signal: stopping.signal })
    expect((await tick({ budgetMs: 1_000 }, { on })).json).toMatchObject({ jobs: 0, handedBack: 1 })
    expect(running).toBe(1)

    const client = new AbortController()
    const gone = tick({ budgetMs: 900_000 }, { on, signal: client.signal })
    await until('it runs again', () => running === 2)
    client.abort()
    await gone
    const stopped = tick({ budgetMs: 900_000 }, { on })
    await until('it runs once more', () => running === 3)
    stopping.abort()
    await stopped
    expect(await claimed(queue)).toMatchObject({ id })
  })
})

describe('names', () => {
  test.each([
    'a/b',
    'claim',
    'a/claim',
    'broadcast',
    `x/${NOBODY}`,
    `x/${NOBODY}/complete`,
    '..a',
    '-',
    'x'.repeat(255),
  ])('%s arrives as it was sent, in every route', async (queue) => {
    await made({}, queue)
    const id = await send(queue)
    expect(await look(queue, id)).toMatchObject({ id, queue })
    const job = await claimed(queue)
    expect(job.id).toBe(id)
    expect((await settle('extend', queue, job)).status).toBe(200)
    expect((await settle('progress', queue, job, { fraction: 0 })).status).toBe(204)
    expect((await fail(queue, job)).status).toBe(204)
    expect((await complete(queue, await claimed(queue))).status).toBe(204)
    expect((await call('POST', at(queue, 'broadcast'))).json).toEqual({ jobs: [] })
    expect((await call('DELETE', at(queue, await send(queue)))).status).toBe(204)
    expect((await counts(queue)).queue).toBe(queue)
    expect((await call('GET', `/v1/tasks?prefix=${encodeURIComponent(queue)}`)).json.queues[0]).toBe(queue)
    const { json } = await call('PUT', schedule(queue), { body: { queue, cron: '@daily' } })
    expect(json).toMatchObject({ name: queue, queue })
    expect((await call('DELETE', schedule(queue))).status).toBe(204)
  })

  const routes: [string, string, object?][] = [
    ['PUT', ''],
    ['GET', ''],
    ['POST', ''],
    ['POST', '/claim'],
    ['POST', '/broadcast'],
    ['GET', `/${NOBODY}`],
    ['DELETE', `/${NOBODY}`],
    ['POST', `/${NOBODY}/complete`, { token: '1' }],
    ['POST', `/${NOBODY}/fail`, { token: '1' }],
    ['POST', `/${NOBODY}/extend`, { token: '1' }],
    ['POST', `/${NOBODY}/progress`, { token: '1', fraction: 0 }],
  ]
  test.each([
    '%00',
    'constructor',
    '__proto__',
    'a%0a',
    '%zz',
    '%',
    '%ff',
    '%C3%A4',
    'a%20b',
    'a:b',
    'a%25',
    '*',
    'x'.repeat(256),
  ])('%s is no queue for any route, and the field is `name`', async (name) => {
    for (const [method, path, body] of routes) {
      const answer = await call(method, `/v1/tasks/${name}${path}`, { body })
      expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'name' }] } })
    }
  })

  test.each(['x', '1', NOBODY.slice(1), `${NOBODY}0`, NOBODY.replace('4', 'g'), '%zz', '%00', `{${NOBODY}}`])(
    '%s is no job for any route, and the field is `id`',
    async (id) => {
      for (const [method, path, body] of routes.filter(([, path]) => path.includes(NOBODY))) {
        const answer = await call(method, `/v1/tasks/q${path.replace(NOBODY, id)}`, { body })
        expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'id' }] } })
      }
    },
  )

  test.each(['%00', 'a%0a', '%zz', '%ff', 'x'.repeat(256)])('%s is no schedule', async (name) => {
    for (const [method, body] of [['PUT', { queue: 'q', cron: '@daily' }], ['GET'], ['DELETE']] as const) {
      const answer = await call(method, `/v1/schedules/${name}`, { body })
      expect(answer).toMatchObject({ status: 400, json: { errors: [{ field: 'name' }] } })
    }
  })

  test.each([
    '/v1/tasks/',
    `/v1/tasks/q/${NOBODY}/`,
    `/v1/tasks/q/${NOBODY}/claim`,
    `/v1/tasks/q/${NOBODY}/complete/x`,
    '/v1/schedules/',
    '/v1/schedules/a/b',
    '/v1/tick/',
    '/v1/tick/x',
    '/v1/task',
  ])('%s is another path, where there is nothing', async (path) => {
    for (const method of ['GET', 'POST']) {
      expect(await call(method, path)).toMatchObject({ status: 404, json: { code: 'NOT_FOUND' } })
    }
  })

  test.each([
    ['POST', '/v1/tasks', 'GET, HEAD'],
    ['PATCH', '/v1/tasks/q', 'PUT, GET, HEAD, POST'],
    ['DELETE', '/v1/tasks/q', 'PUT, GET, HEAD, POST'],
    ['PUT', '/v1/tasks/q/claim', 'POST'],
    ['PUT', '/v1/tasks/q/broadcast', 'POST'],
    ['POST', `/v1/tasks/q/${NOBODY}`, 'GET, HEAD, DELETE'],
    ['GET', `/v1/tasks/q/${NOBODY}/complete`, 'POST'],
    ['DELETE', `/v1/tasks/q/${NOBODY}/extend`, 'POST'],
    ['POST', '/v1/schedules/x', 'PUT, GET, HEAD, DELETE'],
    ['DELETE', '/v1/schedules', 'GET, HEAD'],
    ['GET', '/v1/tick', 'POST'],
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
  const text = json('', 'x'.repeat(256), 'a\0', 'a\n', '\ud800', 7, null, true, ['a'], {})
  const values = [...json('a\0', { 'a\0': 1 }, '\ud800', ['\udc00']), '['.repeat(30_000) + ']'.repeat(30_000)]
  const deep = '['.repeat(1_001) + ']'.repeat(1_001)
  const tokens = [...json('', '0', '-1', '01', '1.0', '1e3', ' 1', '9223372036854775808', 5, null, ['5'], {}), '5.0']
  const queue = json('', 'constructor', 'x'.repeat(256), 'a b', 'ä', 'a:b', 'a\0', 7, null, true, ['a'], {})
  const backoff = json('true', 1, null, [], {}, { maxMs: -1 }, { maxMs: 31_536_000_001 }, { maxMs: '1' })
  const days = integers(1_000, 86_400_000)
  const retries = {
    retryLimit: integers(0, 1_000),
    retryDelayMs: integers(0, 31_536_000_000),
    backoff,
    expireInMs: days,
    deadLetter: queue,
  }
  const options = {
    ...retries,
    id: json('', 'x', `${NOBODY}0`, NOBODY.slice(1), 7, null, [], {}),
    priority: integers(-1_000_000, 1_000_000),
    startAfterMs: integers(0, 315_360_000_000),
    startAfter: json(
      ...['', 'tomorrow', '2030-01-01', '2030-01-01T00:00:00', '2030-13-01T00:00:00Z', '2030-01-01T25:00:00Z'],
      ...['1969-12-31T23:59:59Z', '10000-01-01T00:00:00Z', '2030-01-01 00:00:00Z', '2030-01-01T00:00Z'],
      ...['2030-02-30T00:00:00Z', '2029-02-29T00:00:00Z', '2030-06-30T23:59:60Z', '2030-01-01T00:00:00+25:00'],
      ...['1970-01-01T00:00:00+00:01', '9999-12-31T23:59:59-00:01'],
      ...[0, null, [], {}],
    ),
    singletonKey: text,
    singletonSeconds: integers(1, 31_536_000),
    replace: json('yes', 1, null, true),
    group: json('g', 7, null, [], {}, { tier: 't' }, { id: '' }, { id: 'g', tier: '' }, { id: 'g', name: 'x' }),
  }
  const bodies: [method: string, path: string, valid: object, wrong: Record<string, string[]>][] = [
    [
      'PUT',
      at('q'),
      {},
      {
        ...retries,
        heartbeatMs: integers(10_000, 86_400_000),
        policy: json('', 'STANDARD', 'other', 7, null, [], {}),
        retentionSeconds: integers(1, 2_147_483_647),
        deleteAfterSeconds: integers(0, 2_147_483_647),
      },
    ],
    [
      'POST',
      at('q'),
      {},
      { data: [...values, deep], waitMs: integers(0, 20_000), options: json('', 7, null, [], true) },
    ],
    ['POST', at('q', 'broadcast'), {}, { data: values }],
    [
      'POST',
      at('q', 'claim'),
      {},
      { limit: integers(1, 100), holder: text, leaseMs: integers(1_000, 3_600_000), waitMs: integers(0, 20_000) },
    ],
    ['POST', at('q', NOBODY, 'complete'), { token: '1' }, { token: tokens, output: values }],
    ['POST', at('q', NOBODY, 'fail'), { token: '1' }, { token: tokens, error: values.slice(-1) }],
    ['POST', at('q', NOBODY, 'extend'), { token: '1' }, { token: tokens, leaseMs: integers(1_000, 3_600_000) }],
    [
      'POST',
      at('q', NOBODY, 'progress'),
      { token: '1', fraction: 0 },
      {
        token: tokens,
        fraction: [...json(-0.1, 1.1, '0', null, true, [], {}), '1e400'],
        note: json('x'.repeat(1_001), 'a\0', '\ud800', 7, null, [], {}),
      },
    ],
    [
      'PUT',
      schedule('s'),
      { queue: 'q', cron: '@daily' },
      { queue, cron: text, timezone: text, data: values, missed: json('', 'none', 7, null, [], {}) },
    ],
    ['POST', '/v1/tick', {}, { budgetMs: integers(100, 900_000) }],
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
    expect(json.errors[0].field.split('.')[0]).toBe(field)
    expect(json.errors[0].expected).not.toMatch(/^Invalid|expected/)
    expect(json.detail.length).toBeLessThan(200)
  })

  const inOptions = Object.entries(options).flatMap(([field, all]) => all.map((value) => [field, value] as const))
  test.each(inOptions)('of a job with a wrong option %s is refused: %s', async (field, value) => {
    const { status, json } = await call('POST', at('q'), { body: `{ "options": { "${field}": ${value} } }` })
    expect(status).toBe(400)
    expect(json.errors.length).toBe(1)
    expect(json.errors[0].field).toMatch(new RegExp(`^options\\.${field}\\b`))
    expect(json.errors[0].expected).not.toMatch(/^Invalid|expected/)
  })

  test.each([
    ['PUT', at('q'), { retrylimit: 1 }, 'retrylimit'],
    ['PUT', at('q'), { partition: true }, 'partition'],
    ['POST', at('q'), { trx: 1 }, 'trx'],
    ['POST', at('q'), { options: { trx: 1 } }, 'options.trx'],
    ['POST', at('q'), '{ "options": { "__proto__": 1 } }', 'options.__proto__'],
    ['POST', at('q'), { options: { startAfterMs: 1, startAfter: '2030-01-01T00:00:00Z' } }, 'options.startAfter'],
    ['POST', at('q', 'claim'), { ttlMs: 1_000 }, 'ttlMs'],
    ['POST', at('q', NOBODY, 'complete'), {}, 'token'],
    ['POST', at('q', NOBODY, 'fail'), undefined, 'token'],
    ['POST', at('q', NOBODY, 'extend'), { leaseMs: 1_000 }, 'token'],
    ['POST', at('q', NOBODY, 'progress'), { token: '1' }, 'fraction'],
    ['PUT', schedule('s'), { queue: 'q' }, 'cron'],
    ['PUT', schedule('s'), { cron: '@daily' }, 'queue'],
    ['PUT', schedule('s'), { queue: 'q', cron: '@daily', tz: 'UTC' }, 'tz'],
    ['POST', '/v1/tick', { budget: 1 }, 'budget'],
    ['POST', '/v1/tick', '[]', 'body'],
    ['POST', at('q'), '{', 'body'],
  ])('of %s %s %j is refused, and the field is %s', async (method, path, body, field) => {
    expect(await call(method, path, { body })).toMatchObject({ status: 400, json: { errors: [{ field }] } })
  })

  test.each([
    [
      { startAfter: 'soon' },
      '`options.startAfter` must be an instant of 1970–9999 as RFC 3339 says it, with its offset or Z',
    ],
    [{ backoff: 'yes' }, '`options.backoff` must be true, false or { maxMs: an integer, 0–31536000000 }'],
    [{ backoff: { maxMs: -1 } }, '`options.backoff.maxMs` must be an integer, 0–31536000000'],
    [
      { id: 'x', deadLetter: 'a b' },
      '`options.id` must be a UUID; `options.deadLetter` must be a string of 1–255 letters, digits, `_`, `-`, `.` and `/`, and not `.` or `..`',
    ],
  ])('with the options %j is refused in words', async (options, detail) => {
    expect((await call('POST', at('q'), { body: { options } })).json.detail).toBe(detail)
  })

  test('over 64 KiB is 413', async () => {
    for (const [method, path] of bodies) {
      const answer = await call(method, path, { body: `"${'x'.repeat(65_536)}"` })
      expect([method, path, answer.status, answer.json.code]).toEqual([method, path, 413, 'TOO_LARGE'])
    }
    const queue = await made()
    const data = 'x'.repeat(65_000)
    expect((await look(queue, await send(queue, { data }))).data).toBe(data)
  })

  test('that is just allowed is allowed', async () => {
    const queue = await made()
    const deepest = JSON.parse('['.repeat(1_000) + ']'.repeat(1_000))
    for (const body of [
      { data: deepest },
      { options: { priority: -1_000_000 } },
      { options: { priority: 1_000_000, retryLimit: 1_000, retryDelayMs: 31_536_000_000, backoff: true } },
      { options: { retryLimit: 0, retryDelayMs: 0, backoff: { maxMs: 31_536_000_000 }, expireInMs: 86_400_000 } },
      { options: { startAfterMs: 315_360_000_000, expireInMs: 1_000, backoff: false } },
      { options: { startAfter: '1970-01-01T00:00:00Z' } },
      { options: { startAfter: '2028-02-29T23:59:59.9+14:00' } },
      { options: { startAfter: '9999-12-31T23:59:59.999999Z' } },
      { options: { singletonKey: '🔒'.repeat(255), group: { id: 'ä b' } } },
      { options: { singletonKey: 'a', singletonSeconds: 31_536_000 } },
      { options: { singletonKey: 'b', singletonSeconds: 1 } },
      { options: { singletonKey: 'c', singletonSeconds: 31_536_000, replace: true } },
    ]) {
      await send(queue, body)
    }
    const job = await claimed(queue, { limit: 1, holder: '🔒'.repeat(255), leaseMs: 1_000 })
    expect((await settle('extend', queue, job, { leaseMs: 3_600_000 })).status).toBe(200)
    for (const note of ['', '🔒'.repeat(1_000)]) {
      expect((await settle('progress', queue, job, { fraction: 1, note })).status).toBe(204)
    }
    expect((await complete(queue, job, { output: deepest })).status).toBe(204)
    expect((await look(queue, job.id)).output).toEqual(deepest)
    const bad = await made()
    expect((await fail(bad, await started(bad), { error: deepest })).status).toBe(204)
    expect((await call('POST', '/v1/tick', { body: { budgetMs: 100 } })).status).toBe(200)
  })
})

describe('a query', () => {
  const bad: [method: string, path: string, query: string, field: string][] = [
    ...['/v1/tasks', '/v1/schedules'].flatMap((path) => [
      ...['0', '1001', '-1', '1e2', '', 'x'].map((v): [string, string, string, string] => [
        'GET',
        path,
        `limit=${v}`,
        'limit',
      ]),
      ['GET', path, 'prefix=%00', 'prefix'] as [string, string, string, string],
      ['GET', path, 'after=', 'after'] as [string, string, string, string],
      ['GET', path, 'page=2', 'page'] as [string, string, string, string],
    ]),
    ['PUT', at('q'), 'policy=short', 'policy'],
    ['GET', at('q'), 'id=1', 'id'],
    ['POST', at('q'), 'waitMs=1', 'waitMs'],
    ['POST', at('q', 'claim'), 'limit=1', 'limit'],
    ['POST', at('q', 'broadcast'), 'data=1', 'data'],
    ['GET', at('q', NOBODY), 'x=1', 'x'],
    ['DELETE', at('q', NOBODY), 'token=1', 'token'],
    ['POST', at('q', NOBODY, 'complete'), 'token=1', 'token'],
    ['POST', at('q', NOBODY, 'fail'), 'token=1', 'token'],
    ['POST', at('q', NOBODY, 'extend'), 'token=1', 'token'],
    ['POST', at('q', NOBODY, 'progress'), 'token=1', 'token'],
    ['PUT', schedule('s'), 'queue=q', 'queue'],
    ['GET', schedule('s'), 'n=5', 'n'],
    ['DELETE', schedule('s'), 'force=true', 'force'],
    ['POST', '/v1/tick', 'budgetMs=100', 'budgetMs'],
  ]
  test.each(bad)('%s %s?%s is refused, and the field is %s', async (method, path, query, field) => {
    expect(await call(method, `${path}?${query}`)).toMatchObject({ status: 400, json: { errors: [{ field }] } })
  })
})

describe('without tasks', () => {
  test('there are no such routes, and they are not in the document', async () => {
    const on = createApp(lockstep)
    for (const [method, path] of [
      ['GET', '/v1/tasks'],
      ['POST', at('q')],
      ['POST', at('q', 'claim')],
      ['GET', '/v1/schedules'],
      ['POST', '/v1/tick'],
    ] as const) {
      const response = await on.request(path, { method }) // not by `call`: this is another document
      expect([response.status, await response.json()]).toMatchObject([404, { code: 'NOT_FOUND' }])
    }
    const document = await (await on.request('/openapi.json')).text()
    expect(document).not.toMatch(/\/v1\/(tasks|schedules|tick)/)
  })
})

describe('the door', () => {
  test('works on the queues that are defined, ticks by itself, and hands back what runs when it stops', async () => {
    const mine = createLockstep({ connectionString: database.url })
    const worker = createTasks(mine)
    const queue = await made()
    const each = schedule(fresh())
    await call('PUT', each, { body: { queue, cron: '* * * * * *', data: 'slot' } })
    const ran: unknown[] = []
    worker.define(queue, async (data, { signal }) => {
      ran.push(data)
      if (data === 'long')
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
      return data
    })
    const server = await serve({ lockstep: mine, tasks: worker, port: 0, drainMs: 3_600_000 }) // longer than this test may last
    leftovers.push(() => server.close())
    const ask = (method: string, path: string, body: object) =>
      fetch(`${server.url}${path}`, {
        method,
        body: JSON.stringify(body),
        headers: { 'content-type': 'application/json' },
      })
    const run = await ask('POST', at(queue), { data: 'short', waitMs: 20_000 })
    expect([run.status, await run.json()]).toEqual([200, { id: uuid, state: 'completed', output: 'short' }])
    await until('a slot came by itself', () => ran.includes('slot'))
    await call('DELETE', each)

    const id = await send(queue, { data: 'long' })
    await until('the long one runs', () => ran.includes('long'))
    const { hostname, port } = new URL(server.url)
    const slow = net.connect(Number(port), hostname).on('error', () => {})
    slow.write(`POST ${at(queue)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{`)
    const claims = vi.spyOn(worker, 'claim')
    const waits = [
      ask('POST', at(queue), { data: 'long', waitMs: 20_000 }),
      ask('POST', at(await made(), 'claim'), { waitMs: 20_000 }),
    ]
    await until(
      'all run, or wait',
      () => ran.filter((data) => data === 'long').length === 2 && claims.mock.calls.length,
    )
    const closed = server.close()
    for (const wait of waits) {
      expect([(await wait).status, (await (await wait).json()) as Json]).toMatchObject([503, { code: 'UNAVAILABLE' }])
    }
    await until('the job is free, though a request is under way', async () => (await look(queue, id)).state === 'retry')
    slow.destroy()
    await closed
    await expect(fetch(server.url)).rejects.toThrow()
  })
})

test('a database that is away is 503 with Retry-After on every route', async () => {
  await using server = await dedicatedServer()
  const lockstep = createLockstep({ connectionString: server.url })
  const tasks = createTasks(lockstep, { onError: () => {} })
  const on = createApp(lockstep, { tasks })
  expect((await call('PUT', at('q'), { on })).status).toBe(201)
  await server.stop()
  for (const [method, path, body] of [
    ['GET', '/v1/tasks'],
    ['PUT', at('q'), {}],
    ['GET', at('q')],
    ['POST', at('q'), {}],
    ['POST', at('q'), { waitMs: 20_000 }],
    ['POST', at('q', 'claim'), {}],
    ['POST', at('q', 'broadcast'), {}],
    ['GET', at('q', NOBODY)],
    ['DELETE', at('q', NOBODY)],
    ['POST', at('q', NOBODY, 'complete'), { token: '1' }],
    ['POST', at('q', NOBODY, 'fail'), { token: '1' }],
    ['POST', at('q', NOBODY, 'extend'), { token: '1' }],
    ['POST', at('q', NOBODY, 'progress'), { token: '1', fraction: 0 }],
    ['GET', '/v1/schedules'],
    ['PUT', schedule('s'), { queue: 'q', cron: '@daily' }],
    ['GET', schedule('s')],
    ['DELETE', schedule('s')],
    ['POST', '/v1/tick', { budgetMs: 1_000 }],
  ] as const) {
    const answer = await call(method, path, { on, body })
    expect([method, path, answer.status, answer.json.code]).toEqual([method, path, 503, 'UNAVAILABLE'])
    expect(answer.headers.get('retry-after')).toBe('1')
  }
  await server.start()
  await until('it is back', async () => (await call('POST', at('q'), { on })).status === 202)
  await lockstep.close()
})

describe('keys', () => {
  const hash = (secret: string) => createHash('sha256').update(secret).digest('hex')
  const keyed = () =>
    createApp(lockstep, {
      tasks,
      keys: [
        ['reader', 'tasks:read'],
        ['writer', 'tasks:write'],
        ['admin', 'admin'],
        ['other', 'locks:write+leaders:write+streams:write+time:write'],
        ['ours', 'tasks:write:ours/'],
        ['chief', 'admin:ours/'],
      ]
        .map(([id = '', scopes]) => `${id}:${hash(`secret-of-${id}`)}:${scopes}`)
        .join(', '),
    })
  const bearer = (id: string) => `Bearer ${id}.secret-of-${id}`
  const routes: Record<string, (name: string) => [string, string, Ask?]> = {
    declare: (name) => ['PUT', at(name)],
    counts: (name) => ['GET', at(name)],
    queues: (name) => ['GET', `/v1/tasks?prefix=${encodeURIComponent(name)}`],
    send: (name) => ['POST', at(name)],
    broadcast: (name) => ['POST', at(name, 'broadcast')],
    look: (name) => ['GET', at(name, NOBODY)],
    cancel: (name) => ['DELETE', at(name, NOBODY)],
    claim: (name) => ['POST', at(name, 'claim')],
    complete: (name) => ['POST', at(name, NOBODY, 'complete'), { body: { token: '1' } }],
    fail: (name) => ['POST', at(name, NOBODY, 'fail'), { body: { token: '1' } }],
    extend: (name) => ['POST', at(name, NOBODY, 'extend'), { body: { token: '1' } }],
    progress: (name) => ['POST', at(name, NOBODY, 'progress'), { body: { token: '1', fraction: 0 } }],
    schedule: (name) => ['PUT', schedule(name), { body: { queue: 'ours/x', cron: '@yearly' } }],
    scheduled: (name) => ['GET', schedule(name)],
    schedules: (name) => ['GET', `/v1/schedules?prefix=${encodeURIComponent(name)}`],
    unschedule: (name) => ['DELETE', schedule(name)],
    tick: () => ['POST', '/v1/tick', { body: { budgetMs: 1_000 } }],
  }
  const all = Object.keys(routes)
  const bound = all.filter((route) => route !== 'tick')
  const read = ['counts', 'queues', 'look', 'scheduled', 'schedules']

  test.each([
    ['reader', 'ours/x', read],
    ['writer', 'ours/x', all],
    ['admin', 'ours/x', all],
    ['other', 'ours/x', []],
    ['ours', 'ours/x', bound],
    ['ours', 'ours', ['queues', 'schedules']],
    ['ours', 'theirs/x', []],
    ['chief', 'ours/x', bound],
    ['chief', 'theirs/x', []],
  ])('let %s do to %s only %j', async (id, name, allowed) => {
    for (const [verb, ask] of Object.entries(routes)) {
      const [method, path, more] = ask(name)
      expect((await call(method, path, { ...more, on: keyed() })).status).toBe(401)
      const { status, json } = await call(method, path, { ...more, on: keyed(), key: bearer(id) })
      expect([verb, status === 403]).toEqual([verb, !allowed.includes(verb)])
      if (status === 403) expect(json.code).toBe('FORBIDDEN')
      else expect([200, 201, 202, 204, 404, 409]).toContain(status)
    }
  })

  test('that are bound to names cannot write elsewhere by way of a schedule or a dead letter', async () => {
    await call('PUT', at('ours/y'))
    await call('PUT', at('theirs/y'))
    for (const [method, path, body] of [
      ['PUT', schedule('ours/y'), { queue: 'theirs/y', cron: '@yearly' }],
      ['PUT', at('ours/y'), { deadLetter: 'theirs/y' }],
      ['POST', at('ours/y'), { options: { deadLetter: 'theirs/y' } }],
    ] as const) {
      const asked = { body, on: keyed() }
      expect((await call(method, path, { ...asked, key: bearer('ours') })).status).toBe(403)
      expect((await call(method, path, { ...asked, key: bearer('chief') })).status).toBe(403)
      expect([200, 201, 202]).toContain((await call(method, path, { ...asked, key: bearer('writer') })).status)
    }
  })

  test('show lists cut down to the prefix of the key', async () => {
    for (const name of ['ours/1', 'theirs/1']) {
      await call('PUT', at(name))
      await call('PUT', schedule(name), { body: { queue: name, cron: '@yearly' } })
    }
    for (const query of ['', '?prefix=', '?prefix=o', '?prefix=ours%2F']) {
      const queues = await call('GET', `/v1/tasks${query}`, { on: keyed(), key: bearer('ours') })
      const schedules = await call('GET', `/v1/schedules${query}`, { on: keyed(), key: bearer('ours') })
      const names: string[] = [...queues.json.queues, ...schedules.json.schedules.map(({ name }: Json) => name)]
      expect(names.length).toBeGreaterThan(1)
      expect(names.every((name) => name.startsWith('ours/'))).toBe(true)
    }
  })
})

describe('openapi.json', () => {
  const document = async (): Promise<Json> => (await app.request('/openapi.json')).json()
  const operations = async () =>
    Object.entries<object>((await document()).paths)
      .filter(([path]) => /^\/v1\/(tasks|schedules|tick)/.test(path))
      .flatMap(([path, item]) =>
        Object.entries<Json>(item).map(
          ([method, operation]) => [`${method.toUpperCase()} ${path}`, operation] as const,
        ),
      )

  test('has every route and every status that was answered above, and none that never was', async () => {
    const all = await operations()
    expect(all.length).toBe(17)
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

  test('states the limits that are enforced, and what each 409 means', async () => {
    const { components, paths } = await document()
    expect(components.schemas.ClaimJobs).toMatchObject({
      additionalProperties: false,
      properties: {
        limit: { type: 'integer', minimum: 1, maximum: 100, description: expect.stringContaining('Default: 1') },
        leaseMs: {
          type: 'integer',
          minimum: 1_000,
          maximum: 3_600_000,
          description: expect.stringContaining('Default: 30000'),
        },
        waitMs: { type: 'integer', minimum: 0, maximum: 20_000, description: expect.stringContaining('Default: 0') },
      },
    })
    expect(components.schemas.JobOptions.properties.startAfterMs).toMatchObject({ maximum: 315_360_000_000 })
    expect(components.schemas.SendJob.required).toBeUndefined()
    expect(components.schemas.PutSchedule.required).toEqual(['queue', 'cron'])
    const refusals = [
      paths['/v1/tasks/{name}'].post,
      paths['/v1/tasks/{name}/{id}'].delete,
      paths['/v1/tasks/{name}/{id}/complete'].post,
    ].map(({ responses }) => /^\w+/.exec(responses[409].description)?.[0])
    expect(refusals).toEqual(['JOB_REFUSED', 'JOB_OVER', 'LEASE_LOST'])
  })
})
