/** The verbs of events. */
import { expect } from 'vitest'
import { createEvents } from '../../../lib/event/index.ts'
import { until } from '../../support/until.ts'
import type { Stage, Verb } from './verb.ts'

const one = (s: Stage) => s.b.events.append(s.name, { type: 'x' })
/** A group of one partition that reads the stream of this run from its beginning. */
const grouped = async (s: Stage, retryLimit = 5) => {
  await one(s)
  await s.b.events.declareGroup(s.name, { prefix: s.name, partitions: 1, from: 1n, retryLimit, retryDelayMs: 10 })
}
/** A batch that another process has for `h`. */
const polled = async (s: Stage, retryLimit = 5) => {
  await grouped(s, retryLimit)
  const [batch] = await s.b.events.poll(s.name, { holder: 'h', leaseMs: 60_000, waitMs: 10_000 })
  if (!batch) throw new Error('nothing to poll')
  return { ...batch, event: batch.events[0]?.cursor as bigint }
}
const parked = async (s: Stage) => s.b.events.fail(s.name, await polled(s, 0))
const behind = async (s: Stage) => (await s.b.events.lag(s.name)).behind

/** A verb that reads what is prepared. */
const reads =
  (
    prepare: (s: Stage) => Promise<unknown>,
    call: (s: Stage) => Promise<unknown>,
    expected: (s: Stage) => unknown,
  ): Verb =>
  async (s) => {
    await prepare(s)
    return { act: () => call(s), is: (answer) => expect(answer).toMatchObject(expected(s) as object) }
  }
const PAGE = () => ({ events: [{ type: 'x', position: 1n }] })

export const EVENTS: Record<string, Verb> = {
  append: (s) => ({
    act: () => s.a.events.append(s.name, { type: 'x', id: 'once' }),
    is: (answer) => expect(answer).toMatchObject({ first: 1n, last: 1n }),
    afterwards: async () => expect((await s.b.events.read(s.name)).events).toHaveLength(1),
  }),
  read: reads(one, (s) => s.a.events.read(s.name), PAGE),
  readAll: reads(one, (s) => s.a.events.readAll({ prefix: s.name }), PAGE),
  subscribe: async (s) => {
    await one(s)
    return {
      async act() {
        const following = s.a.events.subscribe({ stream: s.name, from: 1n })
        try {
          return (await following.next()).value
        } finally {
          await following.return(undefined as never)
        }
      },
      is: (answer) => expect(answer).toMatchObject({ position: 1n }),
    }
  },
  getStream: reads(
    one,
    (s) => s.a.events.getStream(s.name),
    (s) => ({ name: s.name, position: 1n }),
  ),
  stream: reads(
    one,
    (s) => s.a.events.stream(s.name),
    (s) => ({ name: s.name, position: 1n }),
  ),
  streams: reads(
    one,
    (s) => s.a.events.streams({ prefix: s.name }),
    (s) => [{ name: s.name }],
  ),
  declareGroup: (s) => ({
    act: () => s.a.events.declareGroup(s.name, { prefix: s.name, partitions: 2 }),
    is: (answer) => expect(answer).toBeTypeOf('boolean'),
    afterwards: async () => expect(await s.b.events.getGroup(s.name)).toMatchObject({ partitions: 2 }),
  }),
  consume: async (s) => {
    await grouped(s)
    return {
      async act() {
        const consumer = s.a.events.consume(s.name, { prefix: s.name, partitions: 1, ttlMs: 1_000 }, () => {})
        await until('it is applied', async () => (await behind(s)) === 0)
        await consumer.stop()
      },
      afterwards: async () => expect(await behind(s)).toBe(0),
    }
  },
  getGroup: reads(
    grouped,
    (s) => s.a.events.getGroup(s.name),
    (s) => ({ name: s.name }),
  ),
  group: reads(
    grouped,
    (s) => s.a.events.group(s.name),
    (s) => ({ name: s.name }),
  ),
  groups: reads(
    grouped,
    (s) => s.a.events.groups({ prefix: s.name }),
    (s) => [{ name: s.name }],
  ),
  deleteGroup: async (s) => {
    await grouped(s)
    return {
      act: () => s.a.events.deleteGroup(s.name),
      is: (answer) => expect(answer).toBeTypeOf('boolean'),
      afterwards: async () => expect(await s.b.events.getGroup(s.name)).toBeNull(),
    }
  },
  parked: reads(
    parked,
    (s) => s.a.events.parked(s.name),
    (s) => [{ stream: s.name }],
  ),
  redeliver: async (s) => {
    await parked(s)
    return {
      act: () => s.a.events.redeliver(s.name),
      is: (answer) => expect(answer).toBeLessThanOrEqual(1), // 0: it was redelivered before the fault
      afterwards: async () => expect(await s.b.events.parked(s.name)).toEqual([]),
    }
  },
  lag: reads(
    grouped,
    (s) => s.a.events.lag(s.name),
    (s) => ({ group: s.name, behind: 1 }),
  ),
  streamLag: reads(
    grouped,
    (s) => s.a.events.streamLag(s.name),
    (s) => ({ stream: s.name, position: 1n }),
  ),
  poll: async (s) => {
    await grouped(s)
    return {
      act: () => s.a.events.poll(s.name, { holder: 'h', leaseMs: 60_000, waitMs: 5_000 }),
      is: (answer) => expect(answer).toMatchObject([{ events: [{ position: 1n }] }]),
    }
  },
  commit: async (s) => {
    const { partition, token, next } = await polled(s)
    return {
      act: () => s.a.events.commit(s.name, { partition, token, next }), // it may be repeated
      afterwards: async () => expect(await behind(s)).toBe(0),
    }
  },
  fail: async (s) => {
    const batch = await polled(s, 0)
    return {
      act: () => s.a.events.fail(s.name, batch),
      is: (answer) => expect(answer).toMatchObject({ attempts: 1, parked: true }),
      or: ['LEASE_LOST'], // it has failed before the fault, and its batch is over
      afterwards: async () => expect(await s.b.events.parked(s.name)).toHaveLength(1),
    }
  },
  leave: async (s) => {
    await polled(s)
    return {
      act: () => s.a.events.leave(s.name, 'h'),
      afterwards: async () => expect((await s.b.events.lag(s.name)).partitions).toMatchObject([{ holder: null }]),
    }
  },
  retain: (s) => ({
    act: () => s.a.events.retain(s.name, { maxCount: 5 }),
    afterwards: async () =>
      expect((await s.b.events.retention()).filter(({ prefix }) => prefix === s.name)).toMatchObject([{ maxCount: 5 }]),
  }),
  retention: (s) => ({ act: () => s.a.events.retention(), is: (answer) => expect(answer).toBeInstanceOf(Array) }),
  sweep: (s) => ({
    act: () => s.a.events.sweep(),
    is: (answer) => expect(answer).toMatchObject({ removed: expect.any(Number) }),
  }),
  truncate: async (s) => {
    await one(s)
    await one(s)
    return {
      act: () => s.a.events.truncate(s.name, 2n),
      is: (answer) => expect(answer).toMatchObject({ first: 2n }),
      afterwards: async () => expect(await s.b.events.getStream(s.name)).toMatchObject({ first: 2n, position: 2n }),
    }
  },
  archive: async (s) => {
    await one(s)
    return {
      async act() {
        const lines: string[] = []
        for await (const line of s.a.events.archive({ stream: s.name })) lines.push(line)
        return lines
      },
      is: (answer) => expect(answer).toHaveLength(1),
    }
  },
  close: async (s) => {
    await grouped(s)
    return {
      act: async () => {
        const events = createEvents(s.a.lockstep, { onError: () => {} })
        events.consume(s.name, { prefix: s.name, partitions: 1, ttlMs: 1_000 }, () => {})
        await events.close()
      },
    }
  },
}
