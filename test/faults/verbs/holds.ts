/** The verbs of locks, leaders and time. */
import { expect } from 'vitest'
import { createLockstep } from '../../../lib/index.ts'
import { Truth } from '../../time/fake-true-time.ts'
import type { Stage, Verb } from './verb.ts'

const LEASE = { ttlMs: 60_000, holder: 'h' }
/** Of leases that nobody may know of: they end by themselves. */
const SHORT = { ttlMs: 1_000 }
const LONGEST_MS = 20_000

/** A name that can be had again by another process. */
const free = async ({ b, name }: Stage) =>
  (await b.lockstep.locks.acquire(name, { ...SHORT, waitMs: LONGEST_MS })).release()
const vacant = async ({ b, name }: Stage) =>
  (await b.lockstep.leaders.campaign(name, { ...SHORT, waitMs: LONGEST_MS })).resign()

export const LOCKS: Record<string, Verb> = {
  acquire: (s) => ({
    act: async () => (await s.a.lockstep.locks.acquire(s.name, { waitMs: 5_000 })).release(),
    or: ['LEASE_LOST'],
    afterwards: () => free(s),
  }),
  tryAcquire: (s) => ({
    act: async () => (await s.a.lockstep.locks.tryAcquire(s.name, SHORT))?.release(),
    or: ['LEASE_LOST'],
    afterwards: () => free(s),
  }),
  using: (s) => ({
    act: () => s.a.lockstep.locks.using(s.name, { waitMs: 5_000 }, () => 'done'),
    is: (answer) => expect(answer).toBe('done'),
    or: ['LEASE_LOST'],
    afterwards: () => free(s),
  }),
  transaction: (s) => ({
    act: () => s.a.lockstep.locks.transaction(s.name, { waitMs: 5_000 }, async () => 'done'),
    is: (answer) => expect(answer).toBe('done'),
    afterwards: () => free(s),
  }),
  get: async (s) => {
    const { token } = await s.b.lockstep.locks.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.locks.get(s.name),
      is: (answer) => expect(answer).toMatchObject({ held: true, holder: 'h', token }),
    }
  },
  query: async (s) => {
    const { token } = await s.b.lockstep.locks.grant(s.name, LEASE)
    return { act: () => s.a.lockstep.locks.query(s.name), is: (answer) => expect(answer).toMatchObject({ token }) }
  },
  list: async (s) => {
    await s.b.lockstep.locks.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.locks.list({ prefix: s.name }),
      is: (answer) => expect(answer).toMatchObject([{ name: s.name, holder: 'h' }]),
    }
  },
  grant: (s) => ({
    act: () => s.a.lockstep.locks.grant(s.name, LEASE),
    is: (answer) => expect(answer).toMatchObject({ name: s.name, holder: 'h' }),
    afterwards: async () => expect(await s.b.lockstep.locks.get(s.name)).toMatchObject({ held: true, holder: 'h' }),
  }),
  renew: async (s) => {
    const { token } = await s.b.lockstep.locks.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.locks.renew(s.name, token, { ttlMs: 90_000 }),
      is: (answer) => expect(answer).toMatchObject({ token }),
      afterwards: async () => expect(await s.b.lockstep.locks.get(s.name)).toMatchObject({ token, ttlMs: 90_000 }),
    }
  },
  revoke: async (s) => {
    const { token } = await s.b.lockstep.locks.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.locks.revoke(s.name, token),
      or: ['LEASE_LOST'],
      afterwards: async () => expect(await s.b.lockstep.locks.get(s.name)).toMatchObject({ held: false }),
    }
  },
  forceRevoke: async (s) => {
    await s.b.lockstep.locks.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.locks.forceRevoke(s.name),
      is: (answer) => expect(answer).toBeTypeOf('boolean'), // it may have been forced before the fault
      afterwards: async () => expect(await s.b.lockstep.locks.get(s.name)).toMatchObject({ held: false }),
    }
  },
  sweep: (s) => ({
    act: () => s.a.lockstep.locks.sweep(),
    is: (answer) => expect(answer).toBeTypeOf('number'),
  }),
}

export const LEADERS: Record<string, Verb> = {
  campaign: (s) => ({
    act: async () => (await s.a.lockstep.leaders.campaign(s.name, { ...SHORT, waitMs: 5_000 })).resign(),
    or: ['LEASE_LOST'],
    afterwards: () => vacant(s),
  }),
  tryCampaign: (s) => ({
    act: async () => (await s.a.lockstep.leaders.tryCampaign(s.name, SHORT))?.resign(),
    or: ['LEASE_LOST'],
    afterwards: () => vacant(s),
  }),
  lead: (s) => {
    const options = (signal: AbortSignal) => ({ ...SHORT, signal, backoff: { firstMs: 1, mostMs: 10 }, onError() {} })
    return {
      async act() {
        const stop = new AbortController()
        let led = 0
        await s.a.lockstep.leaders.lead(s.name, options(stop.signal), () => {
          led++
          stop.abort(new Error('enough'))
        })
        return led
      },
      is: (answer) => expect(answer).toBe(1),
      afterwards: () => vacant(s),
    }
  },
  ...Object.fromEntries(
    (['get', 'state'] as const).map((verb): [string, Verb] => [
      verb,
      async (s) => {
        const { token } = await s.b.lockstep.leaders.grant(s.name, LEASE)
        return {
          act: () => s.a.lockstep.leaders[verb](s.name),
          is: (answer) => expect(answer).toMatchObject({ leader: { holder: 'h', token } }),
        }
      },
    ]),
  ),
  leader: async (s) => {
    const { token } = await s.b.lockstep.leaders.grant(s.name, LEASE)
    return { act: () => s.a.lockstep.leaders.leader(s.name), is: (answer) => expect(answer).toMatchObject({ token }) }
  },
  members: async (s) => {
    const { token } = await s.b.lockstep.leaders.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.leaders.members(s.name),
      is: (answer) => expect(answer).toMatchObject({ leader: { token }, waiting: [] }),
    }
  },
  observe: async (s) => {
    const { token } = await s.b.lockstep.leaders.grant(s.name, LEASE)
    return {
      async act() {
        const observing = s.a.lockstep.leaders.observe(s.name)
        try {
          return (await observing.next()).value
        } finally {
          await observing.return(undefined as never)
        }
      },
      is: (answer) => expect(answer).toMatchObject({ leader: { token } }),
    }
  },
  list: async (s) => {
    await s.b.lockstep.leaders.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.leaders.list({ prefix: s.name }),
      is: (answer) => expect(answer).toMatchObject([{ name: s.name, holder: 'h' }]),
    }
  },
  stepDown: async (s) => {
    const { token } = await s.b.lockstep.leaders.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.leaders.stepDown(s.name),
      is: (answer) => expect(answer).toBe(true),
      afterwards: () =>
        expect(s.b.lockstep.leaders.renew(s.name, token, SHORT)).rejects.toMatchObject({ code: 'LEASE_LOST' }),
    }
  },
  grant: (s) => ({
    act: () => s.a.lockstep.leaders.grant(s.name, LEASE),
    is: (answer) => expect(answer).toMatchObject({ holder: 'h' }),
    afterwards: async () => expect(await s.b.lockstep.leaders.leader(s.name)).toMatchObject({ holder: 'h' }),
  }),
  renew: async (s) => {
    const { token } = await s.b.lockstep.leaders.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.leaders.renew(s.name, token, { ttlMs: 90_000, meta: 'new' }),
      is: (answer) => expect(answer).toMatchObject({ token }),
      afterwards: async () =>
        expect(await s.b.lockstep.leaders.leader(s.name)).toMatchObject({ token, ttlMs: 90_000, meta: 'new' }),
    }
  },
  revoke: async (s) => {
    const { token } = await s.b.lockstep.leaders.grant(s.name, LEASE)
    return {
      act: () => s.a.lockstep.leaders.revoke(s.name, token),
      or: ['LEASE_LOST'],
      afterwards: async () => expect(await s.b.lockstep.leaders.leader(s.name)).toBeNull(),
    }
  },
}

/** A Lockstep that measures. Its servers are those of a test; what it tells the database meets the fault. */
const measuring = ({ url, name, also }: Stage) =>
  also(createLockstep({ connectionString: url, applicationName: name, time: { ntp: new Truth().ntp() } }))

export const TIME: Record<string, Verb> = {
  ready: (s) => ({
    act: () => s.a.lockstep.time.ready(),
    is: (answer) => expect(answer).toMatchObject({ timeMs: expect.any(Number) }),
  }),
  waitUntilAfter: async (s) => {
    const lockstep = measuring(s)
    await lockstep.time.synchronize() // of two processes that begin at once, one measures
    return {
      act: () => lockstep.time.waitUntilAfter(Date.now() - 60_000),
      is: (answer) => expect(answer).toMatchObject({ earliestMs: expect.any(Number) }),
    }
  },
  tick: (s) => {
    let last = 0n
    return {
      act: () => s.a.lockstep.time.tick(),
      is(answer) {
        expect(answer).toBeGreaterThan(last)
        last = answer as bigint
      },
    }
  },
  synchronize: (s) => {
    const lockstep = measuring(s)
    return { act: () => lockstep.time.synchronize(), is: (answer) => expect(answer).toBeTypeOf('boolean') }
  },
}

export const LOCKSTEP: Record<string, Verb> = {
  ready: (s) => ({ act: () => s.a.lockstep.ready() }),
  close: (s) => ({
    act: async () => {
      const lockstep = s.also(createLockstep({ connectionString: s.url, applicationName: s.name }))
      await lockstep.locks.acquire(s.name, { ...SHORT, waitMs: 5_000 })
      await lockstep.close()
      await lockstep.close()
    },
    afterwards: () => free(s),
  }),
}
