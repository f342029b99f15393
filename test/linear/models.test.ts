/**
 * What locks and streams may answer: legal histories, and beside each the violation that differs from it by one answer. And the
 * judgement of real histories, on a real PostgreSQL, of clients that are right and of clients with a planted fault.
 */
import { type Kysely, sql } from 'kysely'
import { describe, expect, test } from 'vitest'
import { LeaseLostError } from '../../lib/base/errors.ts'
import { type Appended, createEvents, type Events } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'
import {
  History,
  type Input,
  judge,
  lockModel,
  type Output,
  type Recorded,
  Recorder,
  streamModel,
  withSeen,
} from './index.ts'

/** A history of one process after the other: an operation a second, which lasts for half a second. */
const inOrder = (...those: [Input, Output | undefined][]): Recorded[] =>
  those.map(([input, output], i) => ({
    ...{ process: 'p', on: 'it', input, from: 1_000 * i },
    ...(output === undefined ? { to: Infinity } : { to: 1_000 * i + 500, output }),
  }))
const ofLock = (...those: [Input, Output | undefined][]) => judged(new Map([['it', inOrder(...those)]]), 'lock')
const ofStream = (...those: [Input, Output | undefined][]) => judged(new Map([['it', inOrder(...those)]]), 'stream')
const judged = (histories: Map<string, Recorded[]>, of: 'lock' | 'stream') =>
  (of === 'lock' ? judge(histories, () => lockModel, withSeen) : judge(histories, streamModel)).violations.length

const lease = (token: number, ttlMs = 60_000): [Input, Output] => [{ do: 'acquire', kind: 'lease', ttlMs }, { token }]
const connection = (token: number): [Input, Output] => [{ do: 'acquire', kind: 'connection' }, { token }]
const write = (token: number, n: number): [Input, Output] => [{ do: 'write', token }, { n }]
const release = (token: number, kind = 'lease'): [Input, Output] => [{ do: 'release', token, kind }, {}]
const get = (token: number | null): [Input, Output] => [{ do: 'get' }, { token, kind: token === null ? null : 'lease' }]

describe('of a lock', () => {
  test('holds after each other are legal; a second holder, a token that falls and a lost increment are not', () => {
    expect(ofLock(lease(1), write(1, 1), release(1), lease(2), write(2, 2), get(2))).toBe(0)
    expect(ofLock(lease(1), lease(2))).toBe(1)
    expect(ofLock(lease(2), release(2), lease(1))).toBe(1)
    expect(ofLock(lease(1), write(1, 1), release(1), lease(2), write(2, 1))).toBe(1)
    expect(ofLock(lease(1), write(1, 1), release(1), [{ do: 'read' }, { n: 0 }])).toBe(1)
  })

  test('a lease ends by itself, but not before its time, and nothing is written under it afterwards', () => {
    const short = 1_500
    expect(ofLock(lease(1, short), write(1, 1), lease(2, short), write(2, 2))).toBe(0)
    expect(ofLock(lease(1, 3_000), write(1, 1), lease(2, short))).toBe(1)
    expect(ofLock(lease(1, short), [{ do: 'renew', token: 1, ttlMs: 3_000 }, {}], lease(2, short))).toBe(1)
    expect(ofLock(lease(1, short), write(1, 1), lease(2, short), write(1, 2))).toBe(1)
    expect(ofLock(lease(1, short), get(1), get(null), [{ do: 'trusted', token: 1 }, {}])).toBe(1)
    expect(ofLock(lease(1), get(null))).toBe(1)
    expect(ofLock(lease(1), release(1), get(1))).toBe(1)
    expect(ofLock(lease(1, short), get(1), [{ do: 'renew', token: 1 }, { lost: true }])).toBe(0)
    expect(ofLock(lease(1), get(1), [{ do: 'renew', token: 1 }, { lost: true }])).toBe(1)
  })

  test('a connection hold may be lost at any time, and then nothing is written under it', () => {
    expect(ofLock(connection(1), write(1, 1), connection(2), write(2, 2), release(1, 'connection'))).toBe(0)
    expect(ofLock(connection(1), connection(2), write(1, 1))).toBe(1)
    expect(ofLock(connection(1), [{ do: 'transaction' }, { token: 2, n: 1 }], write(1, 2))).toBe(1)
  })

  test('an acquire without an answer may have been granted, and be what is seen', () => {
    const [input] = lease(0)
    expect(ofLock([input, undefined], get(5), lease(6))).toBe(0)
    expect(ofLock([input, undefined], get(5), lease(4))).toBe(1)
    expect(ofLock(get(5))).toBe(1)
    expect(ofLock(lease(1), [{ do: 'write', token: 1 }, undefined], release(1), [{ do: 'read' }, { n: 1 }])).toBe(0)
    expect(ofLock(lease(1), release(1), [{ do: 'write', token: 1 }, undefined], [{ do: 'read' }, { n: 1 }])).toBe(1)
  })

  test('only a crash forgets a token under which nothing was committed, and the release of a lease', () => {
    const crash: [Input, Output] = [{ do: 'crash' }, {}]
    expect(ofLock(connection(7), crash, connection(6))).toBe(0)
    expect(ofLock(connection(7), write(7, 1), crash, connection(6))).toBe(1)
    expect(ofLock(lease(7), release(7), crash, connection(6))).toBe(1)
    expect(ofLock(lease(7), release(7), crash, get(7))).toBe(0)
    expect(ofLock(lease(7), release(7), lease(8), release(8), crash, get(7))).toBe(1)
  })
})

const append = (tag: string, first: number, count = 1): [Input, Output] => [
  { do: 'append', tag, count },
  { first, last: first + count - 1 },
]
const read = (from: number, ...events: [number, string, number][]): [Input, Output] => [
  { do: 'read', from, limit: 10 },
  { events },
]

describe('of a stream', () => {
  test('appends in a row are legal; a lost append, a gap, a double and a stale read are not', () => {
    const ab = [append('a', 1, 2), append('b', 3)]
    expect(ofStream(...ab, read(2, [2, 'a', 1], [3, 'b', 0]))).toBe(0)
    expect(ofStream(...ab, read(2, [2, 'a', 1]))).toBe(1) // stale, or lost
    expect(ofStream(append('a', 1, 2), append('b', 4))).toBe(1)
    expect(ofStream(append('a', 1), append('b', 1))).toBe(1)
    expect(ofStream(...ab, read(1, [1, 'a', 0], [2, 'b', 0], [3, 'a', 1]))).toBe(1)
    expect(ofStream(...ab, read(3, [3, 'b', 0], [4, 'x', 0]))).toBe(1)
  })

  test('an append without an answer may be there, whole, at any later time; one that was refused is not', () => {
    const open: [Input, undefined] = [{ do: 'append', tag: 'a', count: 2 }, undefined]
    expect(ofStream(open, append('b', 1))).toBe(0)
    expect(ofStream(open, append('b', 3))).toBe(0)
    expect(ofStream(open, append('b', 2))).toBe(1)
    expect(ofStream(open, read(1), append('b', 1), read(1, [1, 'b', 0], [2, 'a', 0], [3, 'a', 1]))).toBe(0)
    const at = (expected: number | string): Input => ({ do: 'append', tag: 'c', count: 1, expected })
    expect(ofStream(append('a', 1), [at(1), { first: 2, last: 2 }])).toBe(0)
    expect(ofStream(append('a', 1), [at('none'), { first: 2, last: 2 }])).toBe(1)
    expect(ofStream(append('a', 1), [at(5), { actual: 1 }])).toBe(0)
    expect(ofStream(append('a', 1), [at(1), { actual: 1 }])).toBe(1)
  })
})

// ---- Real histories --------------------------------------------------------------------------------------------

const NAME = 'a name'
const STREAM = 'a stream'
const TTL_MS = 60_000

/** The verbs that a client uses; a planted fault replaces one. */
interface Client {
  grant(): Promise<bigint>
  write(token: bigint): Promise<number>
  writeUnfenced(): Promise<number>
  revoke(token: bigint): Promise<void>
  append(tag: string): Promise<Appended>
  read(): Promise<{ position: bigint; tag: string }[]>
}

// biome-ignore lint/suspicious/noExplicitAny: any tables
async function increment(within: Kysely<any>): Promise<number> {
  const { rows } = await sql<{ n: number }>`update counted set n = n + 1 returning n`.execute(within)
  return rows[0]?.n ?? 0
}

function clientOf({ locks, kysely }: Lockstep, events: Events): Client {
  return {
    grant: async () => (await locks.grant(NAME, { ttlMs: TTL_MS, waitMs: 20_000 })).token,
    async write(token) {
      return await kysely.transaction().execute(async (trx) => {
        await sql`select lockstep.assert_held(${NAME}, ${token})`.execute(trx)
        return increment(trx)
      })
    },
    writeUnfenced: () => increment(kysely),
    revoke: (token) => locks.revoke(NAME, token),
    append: (tag) => events.append(STREAM, { type: 'written', data: { tag } }),
    async read() {
      const page = await events.read(STREAM, { limit: 1_000 })
      return page.events.map(({ position, data }) => ({ position, tag: (data as { tag: string }).tag }))
    },
  }
}

/** Faults, each of which happens once, from the fifth call on. `held`: whether another client holds the name now. */
const FAULTS: Record<string, (client: Client, held: () => bigint | undefined) => Client> = {
  'two holders': (client, held) => {
    const grant = once(
      () => held() !== undefined,
      async () => (held() ?? 0n) + 1n,
      client.grant,
    )
    return { ...client, grant }
  },
  'a token that fell': (client) => {
    const fallen = async () => {
      const token = await client.grant()
      await client.revoke(token)
      return token - 7n
    }
    return { ...client, grant: once(always, fallen, client.grant) }
  },
  'a late writer without a fence': (client, held) => {
    const late = async (token: bigint) => {
      await client.revoke(token)
      await until('another client is granted the name', () => held() !== undefined)
      return client.writeUnfenced()
    }
    return { ...client, write: once(always, late, client.write) }
  },
  'a lost increment': (client) => {
    return { ...client, write: once(always, async (token) => (await client.write(token)) - 1, client.write) }
  },
  'a lost append': (client) => {
    const lost = async (_tag: string) => {
      const position = ((await client.read()).at(-1)?.position ?? 0n) + 1n
      return { first: position, last: position, repeated: false }
    }
    return { ...client, append: once(always, lost, client.append) }
  },
  'a stale read': (client) => {
    let first: ReturnType<Client['read']> | undefined
    const read = () => {
      first ??= client.read()
      return client.read()
    }
    return { ...client, read: once(always, async () => (await first) ?? [], read) }
  },
}
const always = () => true

/** The fault once, as soon as it may be; else what is right. */
function once<A extends unknown[], R>(
  may: () => boolean,
  fault: (...args: A) => Promise<R>,
  right: (...args: A) => Promise<R>,
): (...args: A) => Promise<R> {
  let [calls, done] = [0, false]
  return (...args) => {
    if (done || ++calls < 5 || !may()) return right(...args)
    done = true
    return fault(...args)
  }
}

/** Four clients, two in each Lockstep, take turns on one name and one stream; one of them may have a fault. */
async function record(url: string, fault?: keyof typeof FAULTS): Promise<History> {
  await using first = createLockstep({ connectionString: url })
  await using second = createLockstep({ connectionString: url })
  await sql`create table counted as select 0 as n`.execute(first.kysely)
  const history = new History()
  const holding = new Map<number, bigint>()

  async function run(number: number): Promise<void> {
    const lockstep = number % 2 === 0 ? first : second
    const right = clientOf(lockstep, createEvents(lockstep))
    const others = () => [...holding].find(([of]) => of !== number)?.[1]
    const client = number === 1 && fault !== undefined ? (FAULTS[fault]?.(right, others) ?? right) : right
    const recorder = new Recorder((line) => history.take(`client ${number}`, line))
    const lost = (error: unknown) => (error instanceof LeaseLostError ? ('none' as const) : undefined)
    for (let round = 0; round < 16; round++) {
      const acquire = { do: 'acquire', kind: 'lease', ttlMs: TTL_MS }
      const token = await recorder.do(NAME, acquire, client.grant, (token) => ({ token }))
      holding.set(number, token)
      const write = { do: 'write', token }
      await recorder
        .do(
          NAME,
          write,
          () => client.write(token),
          (n) => ({ n }),
          lost,
        )
        .catch(() => {})
      const release = { do: 'release', token, kind: 'lease' }
      await recorder
        .do(
          NAME,
          release,
          () => client.revoke(token),
          () => ({}),
          lost,
        )
        .catch(() => {})
      holding.delete(number)
      const tag = `${number}.${round}`
      await recorder.do(STREAM, { do: 'append', tag, count: 1 }, () => client.append(tag), asPlace)
      await recorder.do(STREAM, { do: 'read', from: 1, limit: 1_000 }, client.read, asEvents)
    }
  }
  await Promise.all(Array.from({ length: 4 }, (_, number) => run(number)))
  return history
}
const asPlace = ({ first, last }: Appended) => ({ first, last })
const asEvents = (events: { position: bigint; tag: string }[]) => ({
  events: events.map(({ position, tag }) => [Number(position), tag, 0]),
})

describe('clients on a real database', () => {
  const ofBoth = (history: History) => {
    const all = history.byObject()
    const of = (name: string) => new Map([[name, all.get(name) ?? []]])
    return [...judge(of(NAME), () => lockModel, withSeen).violations, ...judge(of(STREAM), streamModel).violations]
  }

  test('that do what they say have linearizable histories of locks and streams', async () => {
    await using database = await freshDatabase()
    const history = await record(database.url)
    expect(history.size).toBe(4 * 16 * 5)
    expect(ofBoth(history)).toEqual([])
  })

  test.each(Object.keys(FAULTS))('of which one answers wrongly once, with %s, are found out', async (fault) => {
    await using database = await freshDatabase()
    const [first = '', ...more] = ofBoth(await record(database.url, fault))
    expect(more).toEqual([])
    expect(first).toContain(`${/append|read/.test(fault) ? STREAM : NAME} is not linearizable`)
    expect(first.length).toBeLessThan(20_000) // it says what cannot be, and not the whole history
  })
})
