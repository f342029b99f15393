/** No leaks: objects that are made for a call, a name or a client are gone when that is over. Counted in the heap. */
import * as v8 from 'node:v8'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { combineSignals } from '../../lib/base/abortable.ts'
import { BoundedMap } from '../../lib/base/bounded-map.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'

let db: FreshDatabase
let lockstep: Lockstep
let tasks: Tasks
let events: Events
/** A signal that lives as long as the process: a listener that is left on it is a leak. */
const { signal } = new AbortController()
const stopping = new AbortController()
let ask: (path: string, init?: RequestInit) => Promise<Response>
beforeAll(async () => {
  // The connections that are counted must not be ended by a timeout of the role in between.
  db = await freshDatabase({ standard: true })
  lockstep = createLockstep({ connectionString: db.url })
  tasks = createTasks(lockstep)
  events = createEvents(lockstep)
  const app = createApp(lockstep, { tasks, events, signal: stopping.signal })
  ask = async (path, init) => app.request(path, init)
  await tasks.declare('q')
  await events.declareGroup('g')
  await events.append('followed', { type: 'x' })
})
afterAll(async () => {
  await lockstep?.close()
  await db?.close()
})

/** Counts all objects: functions, promises, timers and others. It collects twice, because finalized objects go with the second. */
async function objects(): Promise<number> {
  let fewest = Infinity
  for (let i = 0; i < 3; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20))
    fewest = Math.min(fewest, v8.queryObjects(Object, { format: 'count' }))
  }
  return fewest
}

/** Does something so many times, 20 at a time. @returns how many objects each time has left behind. */
async function left(rounds: number, round: (i: number) => Promise<unknown>): Promise<number> {
  const run = async (from: number, upto: number) => {
    for (let i = from; i < upto; i += 20) {
      await Promise.all(Array.from({ length: Math.min(20, upto - i) }, (_, k) => round(i + k)))
    }
  }
  await run(0, 100) // objects that are made once
  const before = await objects()
  await run(100, 100 + rounds)
  return ((await objects()) - before) / rounds
}

const follow = { headers: { accept: 'text/event-stream' } }
const post = (body: object) => ({
  method: 'POST',
  body: JSON.stringify(body),
  headers: { 'content-type': 'application/json' },
})

describe('nothing is left of', () => {
  const calls: Record<string, (i: number) => Promise<unknown>> = {
    'a connection hold': async (i) => (await lockstep.locks.acquire(`c${i}`, { signal })).release(),
    'a lease': async (i) => (await lockstep.locks.acquire(`l${i}`, { ttlMs: 60_000, signal })).release(),
    'a transaction': (i) => lockstep.locks.transaction(`t${i}`, { signal }, async () => {}),
    'a term': async (i) => (await lockstep.leaders.campaign(`m${i}`, { signal })).resign(),
    'a campaign in vain': (i) => lockstep.leaders.campaign(`v${i % 2}`, { signal, waitMs: 1 }).catch(() => {}),
    async 'an observer'(i) {
      const observing = lockstep.leaders.observe(`o${i}`, { signal })
      await observing.next()
      await observing.return(undefined as never)
    },
    'a reading of time': () => lockstep.time.ready({ signal }),
    'a job': async (i) => tasks.cancel('q', (await tasks.send('q', i)) as string),
    'a wait for a job': (i) => tasks.run('q', i, { signal, waitMs: 1 }).catch(() => {}),
    'a claim': () => tasks.claim('q', { signal, waitMs: 1 }).then((jobs) => tasks.handBack('q', jobs)),
    'an append': (i) => events.append(`s${i}`, { type: 'x' }),
    'a wait for events': (i) => events.read(`none${i}`, { signal, waitMs: 1 }),
    async 'a subscription'() {
      const following = events.subscribe({ stream: 'followed', signal })
      await following.next()
      await following.return(undefined as never)
    },
    async 'a consumer elsewhere'(i) {
      await events.poll('g', { holder: `h${i}`, signal, waitMs: 1 })
      await events.leave('g', `h${i}`)
    },
    'a wait over HTTP': async (i) => (await ask(`/v1/streams/n${i}?waitMs=1`)).text(),
    'a lease over HTTP': async (i) => (await ask(`/v1/locks/h${i}`, post({ waitMs: 1, ttlMs: 1_000 }))).text(),
    async 'a stream over HTTP'(i) {
      const reader = (await ask(i % 2 ? `/v1/leaders/s${i}/observe` : '/v1/streams/followed', follow)).body?.getReader()
      await reader?.read()
      await reader?.cancel()
    },
  }
  test.each(Object.keys(calls))('%s, a thousand times', async (name) => {
    expect(await left(1_000, calls[name] as (i: number) => Promise<unknown>)).toBeLessThan(0.5)
  })

  test('a room that was closed', async () => {
    const round = async () => {
      const [more, others] = [createTasks(lockstep), createEvents(lockstep)]
      await more.send('q', 1)
      await others.read('followed')
      await Promise.all([more.close(), others.close()])
    }
    expect(await left(200, round)).toBeLessThan(200) // a run makes 700; those of the last run may still be there
  }, 60_000)

  test('listeners that a caller has left on a combined signal, ten thousand times', async () => {
    const round = async () => {
      const both = combineSignals(signal, new AbortController().signal)
      both.signal.addEventListener('abort', () => {})
      both.end()
    }
    expect(await left(10_000, round)).toBeLessThan(0.5)
  })
})

test('a cache keeps so many entries, and no more', async () => {
  const forgotten: number[] = []
  const map = new BoundedMap<number, string>(3, () => forgotten.push(map.size))
  for (let i = 0; i < 10; i++) map.set(i, String(i))
  map.set(9, 'again')
  expect([...map]).toEqual([
    [7, '7'],
    [8, '8'],
    [9, 'again'],
  ])
  expect(forgotten).toEqual([2, 2, 2, 2, 2, 2, 2])
})

test('queues that are forgotten are found again, by pg-boss too', async () => {
  const first = bossOf(tasks)
  await db.pool.query(`
    insert into lockstep_boss.queue select (jsonb_populate_record(q, jsonb_build_object('name', 'q' || i))).*
      from lockstep_boss.queue q, generate_series(1, 4100) i where q.name = 'q'`)
  for (let i = 1; i <= 4_100; i += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, k) => tasks.claim(`q${i + k}`)))
  }
  expect(bossOf(tasks)).not.toBe(first)
  expect(await tasks.send('q1', 1)).toBeTypeOf('string')
  expect(await tasks.claim('q1')).toMatchObject([{ data: 1 }])
})

test('a time zone has one entry, however its name is spelt', async () => {
  const spelt = (i: number) =>
    [...'europe/berlin'].map((letter, k) => ((i >> k) & 1 ? letter.toUpperCase() : letter)).join('')
  const preview = async (i: number) => tasks.preview('0 0 1 1 *', spelt(i), 1)
  expect(await preview(3)).toEqual(tasks.preview('0 0 1 1 *', 'Europe/Berlin', 1))
  for (let i = 0; i < 600; i++) await preview(i) // more than the cache keeps
  expect(await left(2_000, (i) => preview(600 + i))).toBeLessThan(0.5)
})
