/** What followers cost: statements are counted on their way to the database, in this process; nothing is timed. */
import pg from 'pg'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { createApp } from '../../functions/app.ts'
import { createEvents, type Events } from '../../lib/event/index.ts'
import { ByteBudget } from '../../lib/event/stream/byte-budget.ts'
import type { TextPage } from '../../lib/event/stream/read.ts'
import { type Share, SharedReads } from '../../lib/event/stream/shared-reads.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

const FOLLOWERS = 1_000
let db: FreshDatabase
let writer: Lockstep
let reader: Lockstep
let events: Events

beforeAll(async () => {
  db = await freshDatabase()
  writer = createLockstep({ connectionString: db.url })
  reader = createLockstep({ connectionString: db.url })
  events = createEvents(writer)
})
afterAll(async () => {
  await Promise.all([writer?.close(), reader?.close()])
  await db?.close()
})
afterEach(() => vi.restoreAllMocks())

/** Counts the statements that read events for followers. */
function reads(): { count: number } {
  const counted = { count: 0 }
  const query = pg.Client.prototype.query as (...args: unknown[]) => unknown
  vi.spyOn(pg.Client.prototype, 'query').mockImplementation(function (this: pg.Client, ...args: unknown[]) {
    const [first] = args as [string | { text: string }]
    if (/try_read_/.test(typeof first === 'string' ? first : first.text)) counted.count += 1
    return query.apply(this, args)
  } as never)
  return counted
}

test.each([
  ['stream', 'one', '/v1/streams/one?from=1'],
  ['prefix', 'all', '/v1/events?prefix=all&from=1'],
])('1,000 followers of one %s by server-sent events cost at most 5 statements an append', async (_, stream, path) => {
  const counted = reads()
  const app = createApp(reader, { events: createEvents(reader), maxStreams: FOLLOWERS })
  const stop = new AbortController()
  const seen = new Array<number>(FOLLOWERS).fill(0)
  const following = seen.map(async (_, i) => {
    const request = new Request(`http://localhost${path}`, {
      headers: { accept: 'text/event-stream' },
      signal: stop.signal,
    })
    const response = await app.fetch(request)
    expect(response.status).toBe(200)
    for await (const piece of response.body as ReadableStream<Uint8Array>) {
      if (new TextDecoder().decode(piece).includes('data: ')) seen[i] = (seen[i] as number) + 1
    }
  })
  const ended = Promise.allSettled(following)
  const append = async (n: number) => {
    await events.append(stream, [{ type: 'counted', data: n }])
    await until(`all have ${n} events`, () => seen.every((each) => each === n))
  }
  await append(1)
  const first = counted.count
  const APPENDS = 10
  for (let n = 1; n <= APPENDS; n++) await append(n + 1)
  const cost = counted.count - first
  stop.abort()
  await ended
  expect(cost).toBeGreaterThanOrEqual(1)
  expect(cost).toBeLessThanOrEqual(5 * APPENDS)
})

describe('a shared read', () => {
  const page = (n: bigint): TextPage => {
    const events = [{ position: n, json: `{"n":${n}}`, bytes: 1_000 }]
    return { events, next: n + 1n, more: false, undecided: false, neededBytes: undefined }
  }
  const EMPTY: TextPage = { events: [], next: 1n, more: false, undecided: false, neededBytes: undefined }

  /** A source whose answers the test gives. */
  function controlled() {
    const sent: ((answer: TextPage) => void)[] = []
    const texts = () => new Promise<TextPage>((resolve) => sent.push(resolve))
    const budget = new ByteBudget(300_000)
    const reads = new SharedReads(budget)
    const ask = (signal = new AbortController().signal) => reads.read({ key: 'x', texts }, 1n, 262_144, signal)
    return { ask, budget, sent }
  }

  test('that was sent before a notification does not answer who asks after it', async () => {
    const { ask, budget, sent } = controlled()
    const early = ask()
    await until('it is sent', () => sent.length === 1)
    const late = [ask(), ask()]
    sent[0]?.(EMPTY)
    expect((await early).page.events).toEqual([])
    ;(await early).release()
    await until('the next is sent', () => sent.length === 2)
    sent[1]?.(page(1n))
    for (const share of await Promise.all(late)) {
      expect(share.page.events).toHaveLength(1)
      share.release()
    }
    expect([sent.length, budget.used]).toEqual([2, 0])
  })

  test('goes on when one of its followers leaves, and a read that all have left is not joined', async () => {
    const { ask, budget, sent } = controlled()
    const gone = new AbortController()
    const left = ask(gone.signal)
    const stayed = ask()
    gone.abort(new Error('gone'))
    await expect(left).rejects.toThrow('gone')
    await until('it is sent', () => sent.length === 1)
    sent[0]?.(page(1n))
    ;(await stayed).release()
    const again = new AbortController()
    const alone = ask(again.signal)
    again.abort(new Error('gone'))
    const next = ask()
    await expect(alone).rejects.toThrow('gone')
    await until('it is sent', () => sent.length === 2)
    sent[1]?.(page(1n))
    expect((await next).page.events).toHaveLength(1)
    ;(await next).release()
    expect(budget.used).toBe(0)
  })

  test('is in memory once, until the last has taken it', async () => {
    const { ask, budget, sent } = controlled()
    const both = [ask(), ask()]
    await until('it is sent', () => sent.length === 1)
    sent[0]?.(page(1n))
    const [one, other] = (await Promise.all(both)) as [Share, Share]
    one.shrink(0)
    expect(budget.used).toBe(1_000)
    const late = await ask() // who comes later gets it too: events do not change
    other.shrink(0)
    expect([budget.used, late.page.events.length, sent.length]).toEqual([1_000, 1, 1])
    late.idle(() => {})
    await (await budget.reserve(300_000, new AbortController().signal)).release() // an idle page makes room
    expect(budget.used).toBe(0)
  })
})
