/** `GET /v1/time`, and the client's half of it: the answers, the keys that may ask, and what a client can compute from them. */
import { createHash } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { type AppOptions, createApp } from '../../functions/app.ts'
import { createLockstep, cristian, type Lockstep, type TimeAnswer, type TimeOptions } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase, tcpProxy } from '../support/database.ts'
import { Truth } from '../time/fake-true-time.ts'

let db: FreshDatabase
const opened: Lockstep[] = []
beforeAll(async () => {
  db = await freshDatabase()
})
afterAll(() => db?.close())
beforeEach(() => db.pool.query('delete from lockstep.time_anchor'))
beforeEach(() => db.pool.query('insert into lockstep.time_anchor (id) values (1)'))
afterEach(() => Promise.all(opened.splice(0).map((each) => each.close())))

/** The application of a process. */
function open(time: TimeOptions = {}, options: AppOptions = {}, connectionString = db.url) {
  const lockstep = createLockstep({ connectionString, time })
  opened.push(lockstep)
  const app = createApp(lockstep, options)
  // biome-ignore lint/suspicious/noExplicitAny: JSON
  const ask = async (path = '/v1/time'): Promise<any> => (await app.request(path)).json()
  return { lockstep, app, ask }
}

const hashOf = (secret: string) => createHash('sha256').update(secret).digest('hex')
const keys = [
  `clock:${hashOf('a')}:time:read`,
  `bound:${hashOf('b')}:time:read:ci/`,
  `locks:${hashOf('c')}:locks:write`,
].join(',')

describe('GET /v1/time', () => {
  test('answers an interval that contains true time, in a process that lives on and in one that does not', async () => {
    const truth = new Truth(3_000)
    const lives = open({ ntp: truth.ntp({ falsetickers: ['liar.example:123'] }) })
    await lives.lockstep.time.ready()
    const frozen = open({ background: false })
    for (const { app } of [lives, frozen]) {
      for (let i = 0; i < 100; i++) {
        const before = truth.ms()
        const response = await app.request('/v1/time')
        const after = truth.ms()
        expect(response.status).toBe(200)
        expect(response.headers.get('cache-control')).toBe('no-store')
        const answer = JSON.parse(await response.text())
        expect(Date.parse(answer.earliest)).toBeLessThanOrEqual(after)
        expect(Date.parse(answer.latest)).toBeGreaterThanOrEqual(before)
        expect(answer).toMatchObject({ status: 'synchronized', source: 'database+ntp' })
        expect(answer.falsetickers).toEqual(['liar.example:123'])
        expect(answer.boundMs).toBeLessThan(100)
        expect(answer.spreadMs).toBeLessThan(100)
        expect(answer.processingMs).toBeGreaterThanOrEqual(0)
        for (const each of [answer.time, answer.earliest, answer.latest]) expect(each).toMatch(/\.\d{3}Z$/)
      }
    }
  })

  test('names the one server that is trusted, and null after a vote', async () => {
    const truth = new Truth()
    const { ask, lockstep } = open({ ntp: truth.ntp({ trusted: 'own.example' }), background: false })
    await db.pool.query('update lockstep.time_anchor set server = 0, claimed_until = null')
    await lockstep.time.synchronize()
    expect(await ask()).toMatchObject({ status: 'trusted', trusted: 'own.example' })
    await db.pool.query('update lockstep.time_anchor set server = 0')
    await open({ ntp: truth.ntp(), background: false }).lockstep.time.synchronize()
    expect(await ask()).toMatchObject({ status: 'synchronized', trusted: null })
  })

  test('asks the database each time in a process that may have been frozen, and not in one that lives on', async () => {
    await open({ ntp: new Truth().ntp(), background: false }).lockstep.time.synchronize()
    for (const background of [true, false]) {
      await db.pool.query(`update lockstep.time_anchor set falsetickers = '{before}'`)
      const { ask, lockstep } = open({ background })
      await lockstep.time.ready()
      await db.pool.query(`update lockstep.time_anchor set falsetickers = '{after}'`)
      expect((await ask()).falsetickers).toEqual([background ? 'before' : 'after'])
    }
  })

  test('says null where no process has measured', async () => {
    const answer = await open().ask()
    expect(answer).toMatchObject({ earliest: null, latest: null, boundMs: null, falsetickers: [] })
    expect(answer).toMatchObject({ status: 'unsynchronized', source: 'database', spreadMs: expect.any(Number) })
  })

  test('is 503 while the database was never asked, and answers from what is known when it is away later', async () => {
    await using proxy = await tcpProxy(db.url)
    const truth = new Truth()
    const { app, ask, lockstep } = open({ ntp: truth.ntp(), background: false }, {}, proxy.url)
    proxy.refuse()
    const refused = await app.request('/v1/time')
    expect(refused.status).toBe(503)
    expect(refused.headers.get('retry-after')).toMatch(/^\d+$/)
    expect(await refused.json()).toMatchObject({ code: 'UNAVAILABLE' })
    proxy.resume()
    await lockstep.time.synchronize()
    proxy.refuse()
    const answer = await ask()
    expect(answer.status).toBe('synchronized')
  })

  test.each([
    ['no key', undefined, 401],
    ['the scope', 'clock.a', 200],
    ['the scope, for some names only', 'bound.b', 200],
    ['another scope', 'locks.c', 403],
  ])('with %s', async (_, key, status) => {
    const { app } = open({}, { keys })
    const answer = await app.request('/v1/time', key ? { headers: { authorization: `Bearer ${key}` } } : {})
    expect(answer.status).toBe(status)
  })

  test.each([
    ['GET', '/v1/time?zone=UTC', 400],
    ['GET', '/v1/time/', 404],
    ['POST', '/v1/time', 405],
    ['DELETE', '/v1/time', 405],
  ])('%s %s is %i', async (method, path, status) => {
    const answer = await open().app.request(path, { method })
    expect(answer.status).toBe(status)
    expect(answer.headers.get('content-type')).toBe('application/problem+json')
    if (status === 405) expect(answer.headers.get('allow')).toBe('GET, HEAD')
  })

  test('is in the OpenAPI document, with every field of its answer', async () => {
    const { ask } = open()
    const document = await ask('/openapi.json')
    const schema = document.components.schemas.Time
    const answer = await ask()
    expect(Object.keys(schema.properties).sort()).toEqual(Object.keys(answer).sort())
    expect(Object.keys(document.paths['/v1/time'])).toEqual(['get'])
  })
})

describe('the client’s step', () => {
  test('contains true time at the receipt, whatever the way there and back, and however long the server took', async () => {
    const truth = new Truth(3_000)
    const { ask, lockstep } = open({ ntp: truth.ntp() })
    await lockstep.time.ready()
    let seed = 2026
    const random = () => {
      seed = (seed * 48_271) % 2_147_483_647
      return seed / 2_147_483_647
    }
    for (let i = 0; i < 300; i++) {
      const sent = performance.now()
      if (random() < 0.3) await delay(random() * 8) // there
      const answer = await ask()
      if (random() < 0.3) await delay(random() * 8) // and back
      const received = performance.now()
      const at = truth.ms(received)
      const { timeMs, earliestMs, latestMs, boundMs } = cristian(answer, sent, received)
      expect(earliestMs).toBeLessThanOrEqual(at)
      expect(latestMs).toBeGreaterThanOrEqual(at)
      expect(Math.abs(timeMs - at)).toBeLessThanOrEqual(Number(boundMs))
    }
  })

  test('takes off what the server spent before it looked at its clock', () => {
    const answer = { time: iso(1_000), earliest: iso(990), latest: iso(1_010), processingMs: 80 }
    const within = cristian(answer, 0, 100)
    expect(within.earliestMs).toBe(990)
    expect(within.latestMs).toBeCloseTo(1_030, 1)
    expect(within.timeMs).toBeCloseTo(1_010, 1)
    expect(within.boundMs).toBeCloseTo(20, 1)
    // more than the whole round trip it cannot have spent
    expect(cristian({ ...answer, processingMs: 500 }, 0, 100).latestMs).toBeCloseTo(1_010, 1)
  })

  test('promises nothing where the server does not', () => {
    const answer = { time: iso(1_000), earliest: null, latest: null, processingMs: 0 }
    expect(cristian(answer, 0, 10)).toMatchObject({ earliestMs: null, latestMs: null, boundMs: null })
  })

  test.each([
    ['answer', {}, 0, 10],
    ['answer', null, 0, 10],
    ['answer', { time: [], earliest: null, latest: null, processingMs: 0 }, 0, 10],
    ['answer', { time: iso(0), earliest: 'soon', latest: {}, processingMs: 0 }, 0, 10],
    ['sentMs', { time: iso(0), earliest: null, latest: null, processingMs: 0 }, 0n, 10],
    ['receivedMs', { time: iso(0), earliest: null, latest: null, processingMs: 0 }, 0, 10n],
    ['receivedMs', { time: iso(0), earliest: null, latest: null, processingMs: 0 }, 10, 0],
    ['receivedMs', { time: iso(0), earliest: null, latest: null, processingMs: 0 }, 10, Number.NaN],
  ])('refuses a bad %s', (field, answer, sent, received) => {
    expect(() => cristian(answer as unknown as TimeAnswer, sent as number, received as number)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', field }),
    )
  })
})

function iso(ms: number): string {
  return new Date(ms).toISOString()
}
