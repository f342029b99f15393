/**
 * No answer is larger than what carries it. A buffered Lambda is the smallest carrier: it puts the body into a string of JSON, where
 * each quote and each backslash is escaped once more, and AWS takes 6,291,556 bytes of that. So values here are made of quotes, which
 * grow fourfold. What does not fit can be had afterwards, and was not claimed meanwhile.
 */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { freshDatabase, type PooledDatabase, pgbouncerAvailable } from '../support/database.ts'

export const CARRIER = 6_291_556
// Each is a string of 500,000 quotes: a MB of JSON, and two as a string in JSON.
const QUOTES = '"'.repeat(500_000)
/** Stored in twelve bytes each, shown by the database with 324 digits each, and sent as they are here. */
const SMALLEST = Array.from({ length: 100_000 }, () => 5e-324)
const META = '"'.repeat(2_000)
// biome-ignore lint/suspicious/noExplicitAny: JSON of any route
type Json = any

/** Defines the tests. @param pooled  through PgBouncer; skipped without it. */
export function boundsOf(pooled: boolean): void {
  let db: PooledDatabase
  let lockstep: Lockstep
  let tasks: Tasks
  let events: Events
  let app: ReturnType<typeof createApp>
  beforeAll(async () => {
    if (pooled && !pgbouncerAvailable()) return
    db = await freshDatabase({ pooled: true })
    lockstep = createLockstep({
      ...(pooled ? { connectionString: db.pooledUrl, directConnectionString: null } : { connectionString: db.url }),
    })
    tasks = createTasks(lockstep)
    events = createEvents(lockstep)
    app = createApp(lockstep, { tasks, events })
  })
  afterAll(async () => {
    await lockstep?.close()
    await db?.close()
  })

  const check = test.skipIf(pooled && !pgbouncerAvailable())

  async function ask(method: string, at: string, body?: object): Promise<Json> {
    const sent = body && { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } }
    const response = await app.request(at, { method, ...sent })
    const text = await response.text()
    expect(response.status, text.slice(0, 500)).toBeLessThan(300)
    expect(Buffer.byteLength(JSON.stringify({ body: text }))).toBeLessThan(CARRIER)
    return text === '' ? undefined : JSON.parse(text)
  }

  /** All pages, each within the bounds, and none of them empty but for the last. */
  async function pages(at: string, of: string, by: string): Promise<Json[][]> {
    const all: Json[][] = []
    for (let next = ''; ; ) {
      const answer = await ask('GET', next === '' ? at : `${at}&${by}=${encodeURIComponent(next)}`)
      if (answer[of].length > 0) all.push(answer[of])
      if (by === 'from' ? answer[of].length === 0 || answer.next === null : answer.next === null) return all
      expect(answer[of].length).toBeGreaterThan(0)
      next = answer.next
    }
  }

  check(
    'a page of events is bounded by what is sent, and says where the next begins',
    async () => {
      const names = ['quotes/a', 'quotes/b']
      for (const name of names) {
        for (let i = 0; i < 4; i++) await events.append(name, { type: String(i), data: QUOTES })
      }
      await events.append('quotes/b', { type: '4', data: SMALLEST })
      await events.append('quotes/b', { type: '5' })
      const place = (each: Json) => `${each.stream} ${each.type}`
      const wanted = names.flatMap((name, i) =>
        (i ? [0, 1, 2, 3, 4, 5] : [0, 1, 2, 3]).map((type) => `${name} ${type}`),
      )
      const b = wanted.slice(4)
      expect((await pages('/v1/streams/quotes%2Fb?limit=100', 'events', 'from')).flat().map(place)).toEqual(b)
      const backwards = await pages('/v1/streams/quotes%2Fb?limit=100&backwards=true', 'events', 'from')
      expect(backwards.flat().map(place)).toEqual(b.toReversed())
      const all = await pages('/v1/events?prefix=quotes&limit=100', 'events', 'from')
      expect(all.flat().map(place)).toEqual(wanted)
      expect(Math.max(...all.map(({ length }) => length))).toBeGreaterThan(1)
    },
    60_000,
  )

  check(
    'a page of many small events with large meta, types and ids is bounded too',
    async () => {
      const meta = { quotes: '"'.repeat(2_000) }
      const type = '"'.repeat(255)
      for (let i = 0; i < 1_000; i += 200) {
        await events.append(
          'metas',
          Array.from({ length: 200 }, (_, j) => ({ type, meta, id: `${i + j}${'\\'.repeat(250)}` })),
        )
      }
      const all = await pages('/v1/streams/metas?limit=1000', 'events', 'from')
      expect(all.flat().length).toBe(1_000)
      expect(all[0]?.length).toBeGreaterThan(100)
    },
    60_000,
  )

  check(
    'a poll has one bound for all its partitions, and each of them has its turn',
    async () => {
      await events.declareGroup('polls', { prefix: 'polled/', partitions: 64, retryLimit: 9, retryDelayMs: 0 })
      const streams = Array.from({ length: 24 }, (_, i) => `polled/${i}`)
      for (const stream of streams) {
        await events.append(
          stream,
          [1, 2].map((n) => ({ type: `${stream} ${n}`, data: `${n}${QUOTES}` })),
        )
      }
      const [first] = (await ask('POST', '/v1/groups/polls/poll', { holder: 'c', limit: 1_000 })).batches
      const { partition, token, next } = first
      // a stream whose events are given again has the same bound
      await ask('POST', '/v1/groups/polls/fail', { partition, token, next, event: first.events[0].cursor })
      const seen = new Set<string>()
      for (let polls = 0; seen.size < 48; polls++) {
        expect(polls).toBeLessThan(200)
        const { batches } = await ask('POST', '/v1/groups/polls/poll', { holder: 'c', limit: 1_000 })
        expect(batches.length).toBeGreaterThan(0)
        for (const { partition, token, next, events: given } of batches) {
          for (const each of given) seen.add(each.type)
          await ask('POST', '/v1/groups/polls/commit', { partition, token, next })
        }
      }
    },
    120_000,
  )

  check(
    'a claim is never larger than its answer, and what is not in it is not claimed',
    async () => {
      await tasks.declare('claims', { retryLimit: 0 })
      const priorities = [...Array(10).keys()]
      const ids = []
      for (const i of priorities) ids.push(await tasks.send('claims', [i, QUOTES], { priority: 10 - i }))
      const seen: number[] = []
      while (seen.length < 10) {
        const { jobs } = await ask('POST', '/v1/tasks/claims/claim', { limit: 10, holder: 'w' })
        expect(jobs.length).toBeGreaterThan(0)
        expect(jobs.length).toBeLessThan(4)
        expect(jobs.map(({ attempt }: Json) => attempt)).toEqual(jobs.map(() => 1))
        seen.push(...jobs.map(({ data }: Json) => data[0]))
        for (const id of ids.slice(seen.length)) {
          expect(await tasks.get('claims', id as string)).toMatchObject({
            state: 'created',
            attempts: 0,
            retryLimit: 0,
          })
        }
      }
      expect(seen).toEqual(priorities)
      expect((await ask('POST', '/v1/tasks/claims/claim', { limit: 10 })).jobs).toEqual([])
    },
    60_000,
  )

  check('a claim of one job that is larger than an answer has it alone, in its turn', async () => {
    await tasks.declare('alone')
    for (let i = 0; i < 3; i++) await tasks.send('alone', i)
    // pg-boss itself has no limit for data
    await db.pool.query(
      `update lockstep_boss.job set data = to_jsonb(repeat('x', 7000000)) where name = 'alone' and data = '1'`,
    )
    const claim = async () => (await tasks.claim('alone', { limit: 10 })).map(({ data }) => String(data).length)
    expect(await claim()).toEqual([1])
    expect(await claim()).toEqual([7_000_000])
    expect(await claim()).toEqual([1])
  })

  check(
    'jobs that others take while fewer are claimed leave the rest to this claim',
    async () => {
      await tasks.declare('crowded')
      await tasks.sendAll(
        'crowded',
        Array.from({ length: 24 }, (_, i) => ({ data: [i, QUOTES] })),
      )
      const seen = new Set<string>()
      const claimer = async () => {
        for (;;) {
          const jobs = await tasks.claim('crowded', { limit: 100 })
          if (jobs.length === 0) return
          for (const { id, attempt } of jobs) seen.add(`${id} ${attempt}`)
        }
      }
      while (seen.size < 24) await Promise.all([claimer(), claimer(), claimer(), claimer()])
      expect([...seen].every((each) => each.endsWith(' 1'))).toBe(true)
      expect(seen.size).toBe(24)
    },
    60_000,
  )

  check(
    'lists of what has meta, data or reasons are bounded, and go on',
    async () => {
      const names = Array.from({ length: 1_000 }, (_, i) => `many${String(i).padStart(4, '0')}`)
      await db.pool.query(
        `insert into lockstep.lease (name, holder, token, granted_at, expires_at, ttl_ms, meta)
       select p || n, 'me', nextval('lockstep.token'), clock_timestamp(), clock_timestamp() + interval '1 h', 3600000, to_jsonb($2::text)
         from unnest($1::text[]) n, unnest(array['', E'leader\\t']) p`,
        [names, META],
      )
      for (const [at, of] of [
        ['locks', 'locks'],
        ['leaders', 'leaders'],
      ] as const) {
        const all = await pages(`/v1/${at}?prefix=many&limit=1000`, of, 'after')
        expect(all.flat().map(({ name }) => name)).toEqual(names)
        expect(all.length).toBeGreaterThan(1)
      }

      await tasks.declare('scheduled')
      for (let i = 0; i < 7; i++) await tasks.schedule(`many${i}`, '0 0 1 1 *', { queue: 'scheduled', data: QUOTES })
      const schedules = await pages('/v1/schedules?prefix=many', 'schedules', 'after')
      expect(schedules.flat().map(({ name }) => name)).toEqual([...Array(7).keys()].map((i) => `many${i}`))
      expect((await tasks.schedules({ prefix: 'many', maxBytes: 1 })).length).toBe(1)
      expect((await tasks.schedules({ prefix: 'many' })).length).toBe(7)

      await events.declareGroup('parked', { prefix: 'parked/', partitions: 1 })
      await db.pool.query(
        `with s as (insert into lockstep.stream (name, bucket, position) select 'parked/' || n, 0, 1 from unnest($1::text[]) n returning id)
       insert into lockstep.stuck (group_name, stream, partition, position, attempts, due_at, reason, at)
       select 'parked', s.id, 0, 1, 1, 'infinity', to_jsonb($2::text), clock_timestamp() from s`,
        [names, META],
      )
      const parked = await pages('/v1/groups/parked/parked?limit=1000', 'parked', 'after')
      expect(parked.flat().map(({ stream }) => stream)).toEqual(names.map((name) => `parked/${name}`))
      expect(parked.length).toBeGreaterThan(1)
    },
    60_000,
  )

  check(
    'a wait ends within the time that its adapter has left, and a budget too',
    async () => {
      await tasks.declare('waits')
      await events.declareGroup('waits', { prefix: 'waits/', partitions: 1 })
      await lockstep.locks.grant('waits', { holder: 'other', ttlMs: 600_000 })
      await lockstep.leaders.grant('waits', { holder: 'other', ttlMs: 600_000 })
      const waits: [method: string, at: string, body?: object][] = [
        ['POST', '/v1/locks/waits', { waitMs: 20_000 }],
        ['POST', '/v1/leaders/waits', { waitMs: 20_000 }],
        ['POST', '/v1/tasks/waits/claim', { waitMs: 20_000 }],
        ['POST', '/v1/tasks/waits', { waitMs: 20_000 }],
        ['GET', '/v1/streams/waits?waitMs=20000'],
        ['GET', '/v1/events?prefix=waits&waitMs=20000'],
        ['POST', '/v1/groups/waits/poll', { holder: 'c', waitMs: 20_000 }],
      ]
      // The test has no time for a single wait of twenty seconds. There may be some time left, or none, or less.
      for (const leftMs of [50, -1_000]) {
        for (const [method, at, body] of waits) {
          const headers = { 'Content-Type': 'application/json' }
          const sent = { method, ...(body && { headers, body: JSON.stringify(body) }) }
          const response = await app.request(at, sent, { leftMs: () => leftMs })
          expect([200, 423, 504], at).toContain(response.status)
          await response.text()
        }
      }
      expect((await app.request('/v1/tick', { method: 'POST' }, { leftMs: () => -1_000 })).status).toBe(200)
    },
    15_000,
  )

  check(
    'candidates beyond the bound are left out, and the answer says so',
    async () => {
      const holders = Array.from({ length: 1_000 }, (_, i) => `c${i}`)
      const gone = new AbortController()
      await lockstep.leaders.grant('crowd', { holder: 'first', ttlMs: 60_000 })
      const waits = holders.map((holder) =>
        lockstep.leaders.grant('crowd', { holder, waitMs: 600_000, meta: META, signal: gone.signal }).catch(() => {}),
      )
      for (let more = false; !more; ) {
        const answer = await ask('GET', '/v1/leaders/crowd')
        more = answer.more
        if (more) expect(answer.waiting.length).toBeGreaterThan(500)
      }
      gone.abort()
      await Promise.all(waits)
    },
    60_000,
  )
}
