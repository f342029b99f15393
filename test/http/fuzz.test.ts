/**
 * Fuzz: every request and every call of the library is answered as documented, whatever it contains.
 *
 * Never a 500, nothing of the database's in an answer, no hang, no connection left behind; from the library never an error
 * without a code. Requests and calls are made from a seed, so that a failure can be repeated: FUZZ_SEED chooses another seed,
 * FUZZ_RUNS more of them. A failure is shrunk, and printed as a line for the terminal. `npm run fuzz` is the long form.
 */
import * as net from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import * as fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { serve } from '../../functions/adapters/node.ts'
import { createApp } from '../../functions/app.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { type Answered, wrong } from '../fuzz/answer.ts'
import { VERBS } from '../fuzz/call.ts'
import { outcome } from '../fuzz/outcome.ts'
import { rawRequest } from '../fuzz/raw.ts'
import { type Ask, curl, type Document, KEYS, Memory, requests } from '../fuzz/request.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { leftOnServer } from '../support/resources.ts'
import { until } from '../support/until.ts'

const SEED = Number(process.env.FUZZ_SEED ?? 20_261_127)
const RUNS = Number(process.env.FUZZ_RUNS ?? 1)
/** An answer that takes longer is a hang; this is not a target. */
const HANG_MS = 10_000
/** A slow machine tries less. */
const BUDGET_MS = 7_000 * RUNS

let database: FreshDatabase
let lockstep: Lockstep
let rooms: { tasks: Tasks; events: Events }
let document: Document
const stray: unknown[] = []
const onStray = (error: unknown) => stray.push(error)
const reported: unknown[] = []
const onError = (error: unknown) => reported.push(error)

beforeAll(async () => {
  console.log(`FUZZ_SEED=${SEED}`)
  process.on('unhandledRejection', onStray)
  database = await freshDatabase()
  lockstep = createLockstep({ connectionString: database.url, applicationName: 'fuzzed' })
  rooms = { tasks: createTasks(lockstep, { onError }), events: createEvents(lockstep, { onError }) }
  document = await (await createApp(lockstep, rooms).request('/openapi.json')).json()
})
afterAll(async () => {
  process.off('unhandledRejection', onStray)
  await lockstep?.close()
  expect(await leftOnServer(database.url, 'fuzzed')).toEqual([])
  await database?.close()
})

const settings = (runs: number) => ({ seed: SEED, numRuns: runs * RUNS, interruptAfterTimeLimit: BUDGET_MS })

async function inTime<T>(what: string, work: Promise<T>): Promise<T> {
  const guard = new AbortController()
  const hang = delay(HANG_MS, undefined, { signal: guard.signal }).then(() => {
    throw new Error(`No end in ${HANG_MS} ms: ${what}`)
  })
  try {
    return await Promise.race([work, hang])
  } finally {
    guard.abort()
    hang.catch(() => {})
  }
}

/** A stream is not read: that it began shows that the request was right. */
async function answered(response: Response): Promise<Answered> {
  const type = response.headers.get('content-type') ?? ''
  const stream = type.startsWith('text/event-stream')
  if (stream) await response.body?.cancel()
  return { status: response.status, type, text: stream ? '' : await response.text() }
}

describe('whatever is asked over HTTP', () => {
  test('is answered as the document says, without a word of the database’s', async () => {
    const app = createApp(lockstep, { ...rooms, keys: KEYS, onError })
    const memory = new Memory()
    const statuses = new Map<number, number>()

    async function tried(made: Ask): Promise<void> {
      const ask = { ...made, path: memory.recall(made.path), body: made.body && recalled(memory, made.body) }
      const { method, path, headers, body } = ask
      const withBody = body && !['GET', 'HEAD'].includes(method) ? { body: new Uint8Array(body) } : {}
      const request = new Request(`http://localhost${path}`, { method, headers, ...withBody })
      const answer = await inTime(curl(ask), Promise.resolve(app.fetch(request)).then(answered))
      statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1)
      const fault = wrong(document, method, path, answer)
      const because = reported.splice(0).map((error) => (error as Error)?.stack ?? error)
      if (fault) throw new Error([fault, curl(ask), ...because].join('\n'))
      if (answer.type === 'application/json' && method !== 'HEAD') memory.learn(JSON.parse(answer.text))
    }

    const several = fc.array(requests(document), { minLength: 1, maxLength: 6 })
    const all = fc.asyncProperty(several, (asks) => together(asks.map(tried)))
    await fc.assert(all, settings(700))
    console.log(`answers by status: ${counted(statuses)}`)
    // Otherwise no request got past the checks, and the test has tried nothing.
    for (const status of [200, 201, 204, 400, 403, 404, 409]) expect([...statuses.keys()]).toContain(status)
  }, 60_000)

  test('in whatever bytes, leaves the Node door standing', async () => {
    const own = createLockstep({ connectionString: database.url, applicationName: 'fuzzed-door' })
    const server = await serve({ lockstep: own, ...rooms, tasks: createTasks(own), events: createEvents(own), port: 0 })
    try {
      const all = fc.asyncProperty(fc.array(rawRequest(), { minLength: 1, maxLength: 24 }), async (raws) => {
        await together(raws.map((raw) => inTime(JSON.stringify(raw.toString('latin1')), sendBytes(server.url, raw))))
        expect((await fetch(`${server.url}/healthz`)).status).toBe(200)
      })
      await fc.assert(all, settings(20))
    } finally {
      await server.close()
    }
  }, 60_000)
})

test('whatever the library is called with, it returns, or throws an error with a code', async () => {
  const ends = new Map<string, number>()
  const all = fc.asyncProperty(fc.array(fc.oneof(...VERBS), { minLength: 1, maxLength: 6 }), async (calls) => {
    for (const call of calls) {
      const { fault, end } = await inTime(call.text, outcome(call, { lockstep, ...rooms }))
      ends.set(end, (ends.get(end) ?? 0) + 1)
      if (fault) throw new Error(`${fault}\n${call.text}`)
      if (stray.length > 0) throw new Error(`An error that nobody heard: ${stray.splice(0)[0]}\n${call.text}`)
    }
  })
  await fc.assert(all, settings(500))
  console.log(`ends of calls: ${counted(ends)}`)
  for (const end of ['returned', 'INVALID_ARGUMENT', 'LEASE_LOST', 'NOT_FOUND']) expect([...ends.keys()]).toContain(end)
}, 60_000)

test('after all that no connection is left behind, and a lock can be had', async () => {
  expect(stray).toEqual([])
  const backends = async () =>
    (
      await database.pool.query(
        `select state, count(*)::int n from pg_stat_activity
          where datname = current_database() and application_name like 'fuzzed%' group by 1`,
      )
    ).rows as { state: string; n: number }[]
  await until('no transaction is open', async () => (await backends()).every(({ state }) => state === 'idle'))
  // `max`, two for leases, one for connection holds and one for news; those of tasks and of events; waits.
  expect((await backends()).reduce((sum, { n }) => sum + n, 0)).toBeLessThanOrEqual(10 + 2 + 2 + 4 + 8 + 8)
  await using held = await lockstep.locks.acquire('after the fuzz', { ttlMs: 5_000, waitMs: 5_000 })
  expect(held.isTrusted()).toBe(true)
})

const counted = (all: Map<unknown, number>) =>
  [...all]
    .map((each) => each.join(' × '))
    .sort()
    .join(', ')

const together = (all: Promise<void>[]) =>
  Promise.allSettled(all).then((ends) => {
    for (const end of ends) if (end.status === 'rejected') throw end.reason
  })

const recalled = (memory: Memory, body: Buffer) =>
  body.includes('@') ? Buffer.from(memory.recall(body.toString('latin1')), 'latin1') : body

/** Sends bytes. All that comes back must be HTTP, and a refusal a problem. The server may wait for the rest of a request. */
async function sendBytes(url: string, bytes: Buffer): Promise<void> {
  const { hostname, port } = new URL(url)
  const socket = net.connect(Number(port), hostname).on('error', () => {})
  socket.write(bytes)
  let text = ''
  socket.setEncoding('latin1').on('data', (chunk) => (text += chunk))
  await Promise.race([new Promise((over) => socket.once('close', over)), quiet(socket)])
  socket.destroy()
  const fault = wrongAnswer(text)
  if (fault) throw new Error(`${fault}\n${JSON.stringify(bytes.toString('latin1'))}\n${text.slice(0, 2_000)}`)
}

async function quiet(socket: net.Socket): Promise<void> {
  for (let before = -1; before < socket.bytesRead; await delay(250)) before = socket.bytesRead
}

function wrongAnswer(text: string): string | undefined {
  if (text === '') return undefined
  const [head = '', body = ''] = text.split('\r\n\r\n')
  const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(head)?.[1])
  if (Number.isNaN(status)) return 'it is no HTTP'
  if (status >= 500) return `it answered ${status}`
  if (/^x-injected:/im.test(head)) return 'a header came from the request'
  if (status >= 400 && body !== '' && !/content-type: application\/problem\+json/i.test(head)) return 'it is no problem'
  return undefined
}
