/** The loop of `lead`: one work at a time, again after every end except the caller's. And the arguments that campaigns refuse. */
import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep, type Lockstep, type Term } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let a: Lockstep
let b: Lockstep
beforeAll(async () => {
  db = await freshDatabase()
  a = createLockstep({ connectionString: db.url })
  b = createLockstep({ connectionString: db.url })
})
afterAll(async () => {
  await Promise.all([a?.close(), b?.close()])
  await db?.close()
})

let n = 0
const fresh = () => `lead ${n++}`
const SOON = { backoff: { firstMs: 1, mostMs: 5 } }
const aborted = (signal: AbortSignal) => (signal.aborted ? undefined : once(signal, 'abort'))

describe('lead', () => {
  test('works while it leads, and ends with the signal: when the work has ended and the term is resigned', async () => {
    const name = fresh()
    const controller = new AbortController()
    const ends: string[] = []
    const leading = a.leaders
      .lead(name, { signal: controller.signal, meta: 'here' }, async (term, signal) => {
        expect(await b.leaders.leader(name)).toMatchObject({ token: term.token, meta: 'here' })
        controller.abort()
        await aborted(signal)
        expect(term.signal.aborted).toBe(false) // it was not lost
        ends.push('work')
      })
      .then(() => ends.push('lead'))
    await leading
    expect(ends).toEqual(['work', 'lead'])
    expect(await b.leaders.leader(name)).toBeNull()
  })

  test('campaigns again when the work throws, when it returns, and when the term is lost; each time a new term', async () => {
    const name = fresh()
    const controller = new AbortController()
    const terms: Term[] = []
    const errors: unknown[] = []
    const failure = new Error('of work')
    let busy = 0
    const onError = (error: unknown) => errors.push(error)
    await a.leaders.lead(name, { ...SOON, onError, signal: controller.signal }, async (term, signal) => {
      expect(++busy).toBe(1)
      terms.push(term)
      if (terms.length === 1) {
        busy--
        throw failure
      }
      if (terms.length === 3) {
        await b.leaders.stepDown(name)
        await aborted(signal)
        expect(term.signal.aborted).toBe(true)
        await b.leaders.leader(name) // takes its time to stop
      }
      if (terms.length === 4) controller.abort()
      busy--
    })
    expect(errors).toEqual([failure])
    const tokens = terms.map(({ token }) => token)
    expect(tokens).toHaveLength(4)
    expect(tokens).toEqual([...new Set(tokens)].sort((x, y) => (x < y ? -1 : 1)))
  })

  test('lets another lead while its work throws again and again', async () => {
    const name = fresh()
    const stop = new AbortController()
    const leading = a.leaders.lead(name, { ...SOON, signal: stop.signal, onError: () => {} }, () => {
      throw new Error('always')
    })
    const other = await b.leaders.campaign(name)
    stop.abort()
    await leading
    await other.resign()
  })

  test('without onError warns of errors, and goes on', async () => {
    const name = fresh()
    const controller = new AbortController()
    const warning = once(process, 'warning')
    let times = 0
    await a.leaders.lead(name, { ...SOON, signal: controller.signal }, () => {
      if (++times === 2) controller.abort()
      else throw new Error('unheard')
    })
    const [{ name: kind, message }] = await warning
    expect(kind).toBe('LockstepWarning')
    expect(message).toContain('unheard')
  })

  test('ends with the error that onError throws', async () => {
    const name = fresh()
    const leading = a.leaders.lead(
      name,
      {
        ...SOON,
        onError: (error) => {
          throw error
        },
      },
      () => {
        throw new Error('fatal')
      },
    )
    await expect(leading).rejects.toThrow('fatal')
    expect(await b.leaders.leader(name)).toBeNull()
  })

  test('whose signal aborts while it waits leaves the queue and ends', async () => {
    const name = fresh()
    await using leader = await b.leaders.campaign(name)
    expect(leader.isTrusted()).toBe(true)
    const controller = new AbortController()
    let worked = false
    const leading = a.leaders.lead(name, { signal: controller.signal }, () => {
      worked = true
    })
    await until('in the queue', async () => (await b.leaders.members(name)).waiting.length === 1)
    controller.abort()
    await leading
    expect(worked).toBe(false)
    await until('an empty queue', async () => (await b.leaders.members(name)).waiting.length === 0)
    await a.leaders.lead(name, { signal: controller.signal }, () => {}) // an aborted one does nothing
  })
})

describe('bad input', () => {
  const bad: [field: string, values: unknown[], call: (value: never) => unknown][] = [
    ['name', ['', 'x'.repeat(256), 'a\tb', 'a\0b', '\ud800', 7, null, undefined], (name) => a.leaders.campaign(name)],
    ['name', ['', 7], (name) => a.leaders.tryCampaign(name)],
    ['name', ['', 7], (name) => a.leaders.lead(name, () => {})],
    ['name', ['', 7], (name) => a.leaders.leader(name)],
    ['name', ['', 7], (name) => a.leaders.members(name)],
    ['name', ['', 7], (name) => a.leaders.observe(name)],
    ['name', ['', 7], (name) => a.leaders.stepDown(name)],
    ['name', ['', 7], (name) => a.leaders.grant(name)],
    ['name', ['', 7], (name) => a.leaders.renew(name, 1n)],
    ['name', ['', 7], (name) => a.leaders.revoke(name, 1n)],
    ['holder', ['', 'x'.repeat(256), 'a\nb', 7, null], (holder) => a.leaders.campaign('x', { holder })],
    ['ttlMs', [999, 3_600_001, 1_500.5, Number.NaN, '5000'], (ttlMs) => a.leaders.campaign('x', { ttlMs })],
    ['ttlMs', [999, '5000'], (ttlMs) => a.leaders.renew('x', 1n, { ttlMs })],
    ['priority', [-1_001, 1_001, 0.5, Number.NaN, '1', null], (priority) => a.leaders.campaign('x', { priority })],
    ['failover', ['', 'ttl', true, null], (failover) => a.leaders.campaign('x', { failover })],
    ['waitMs', [-1, Number.NaN, '1'], (waitMs) => a.leaders.campaign('x', { waitMs })],
    ['meta', [() => {}, 'x'.repeat(5_000), 'a\0', 1n], (meta) => a.leaders.campaign('x', { meta })],
    ['meta', [() => {}, 'x'.repeat(5_000)], (meta) => a.leaders.renew('x', 1n, { meta })],
    ['work', [undefined, 'work', {}], (work) => a.leaders.lead('x', work)],
    ['backoff.firstMs', [-1, '1'], (firstMs) => a.leaders.lead('x', { backoff: { firstMs } }, () => {})],
    ['backoff.mostMs', [-1, Number.NaN], (mostMs) => a.leaders.lead('x', { backoff: { mostMs } }, () => {})],
    ['limit', [0, 1_001, 1.5], (limit) => a.leaders.list({ limit })],
    ['options', [null, 'x', 7], (options) => a.leaders.campaign('x', options)],
    ['options', [null, 'x', 7], (options) => a.leaders.tryCampaign('x', options)],
    ['options', [null, 'x', 7], (options) => a.leaders.lead('x', options, () => {})],
    ['options', [null, 'x', 7], (options) => a.leaders.grant('x', options)],
    ['options', [null, 'x', 7], (options) => a.leaders.renew('x', 1n, options)],
    ['options', [null, 'x', 7], (options) => a.leaders.observe('x', options)],
    ['options', [null, 'x', 7], (options) => a.leaders.list(options)],
    ['signal', [null, 'x', {}], (signal) => a.leaders.campaign('x', { signal })],
    ['signal', [null, 'x', {}], (signal) => a.leaders.observe('x', { signal })],
    ['backoff', [null, 'x', 7], (backoff) => a.leaders.lead('x', { backoff }, () => {})],
    ['onError', [null, 'x', 7], (onError) => a.leaders.lead('x', { onError }, () => {})],
    ['token', ['1', 1, null, {}, -1n, 2n ** 63n], (token) => a.leaders.renew('x', token)],
    ['token', ['1', 1, null, {}, -1n, 2n ** 63n], (token) => a.leaders.revoke('x', token)],
  ]
  test.each(bad)('of %s is refused, by field and range', async (field, values, call) => {
    for (const value of values) {
      const refused = (async () => call(value as never))()
      await expect(refused, String(value)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
      await expect(refused).rejects.toThrow(/^Expected `[\w.]+` to be .+, got /)
    }
    expect(await a.leaders.leader('x')).toBeNull()
  })
})
