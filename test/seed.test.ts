/**
 * What go-micro's `sync` promised, in its own order, each said in our words; and the ways in which its backends failed
 * (they are told at each test), shown not to happen.
 */
import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep, type Lockstep } from '../lib/index.ts'
import { type FreshDatabase, freshDatabase } from './database.ts'
import { until } from './until.ts'

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
const fresh = () => `group ${n++}`
const inLine = async (name: string) => (await b.leaders.members(name)).waiting.map(({ holder }) => holder)

describe('Leader', () => {
  test('Elect(id) in a Group: campaign(group, { holder: id })', async () => {
    const group = fresh()
    const elected = await a.leaders.campaign(group, { holder: 'node-1' })
    expect(elected).toMatchObject({ name: group, holder: 'node-1' }) // Id()
    await elected.resign()
  })

  test('two nodes of a group with ids of their own: one leads (etcd ignored the group, and both did)', async () => {
    const group = fresh()
    const one = await a.leaders.campaign(group, { holder: 'node-1' })
    expect(await b.leaders.tryCampaign(group, { holder: 'node-2' })).toBeNull()
    await one.resign()
  })

  test('Revoked(): term.signal, before anybody else is elected (etcd compared ids, and with one id for all never said so)', async () => {
    const group = fresh()
    const first = await a.leaders.campaign(group, { holder: 'node-1', ttlMs: 1_000 })
    const revoked = once(first.signal, 'abort')
    const waits = b.leaders.campaign(group, { holder: 'node-2' })
    await until('in line', async () => String(await inLine(group)) === 'node-2')
    await b.leaders.stepDown(group)
    await revoked
    await first[Symbol.asyncDispose]()
    const second = await waits
    expect(second.token).toBeGreaterThan(first.token)
    await second.resign()
  })

  test('Revoked(), when nobody campaigns after the leader was lost (etcd emitted nothing)', async () => {
    const group = fresh()
    const term = await a.leaders.campaign(group, { ttlMs: 1_000 })
    const revoked = once(term.signal, 'abort')
    await b.leaders.stepDown(group)
    await revoked
    await term[Symbol.asyncDispose]()
    expect(await b.leaders.leader(group)).toBeNull()
  })

  test('Reelect(): campaign again, on nothing that may be dead (etcd used the old session), with a signal of its own', async () => {
    const group = fresh()
    const first = await a.leaders.campaign(group, { holder: 'node-1', ttlMs: 1_000 })
    const revoked = once(first.signal, 'abort')
    await b.leaders.stepDown(group)
    await revoked
    await first[Symbol.asyncDispose]()
    const again = await a.leaders.campaign(group, { holder: 'node-1' })
    expect(again.token).toBeGreaterThan(first.token)
    expect(again.signal.aborted).toBe(false) // the README's loop read the old, closed channel for ever
    await again.resign()
  })

  test('Resign(): the next one leads at once, and a late one ends nobody', async () => {
    const group = fresh()
    const first = await a.leaders.campaign(group, { holder: 'node-1' })
    const waits = b.leaders.campaign(group, { holder: 'node-2' })
    await until('in line', async () => String(await inLine(group)) === 'node-2')
    await first.resign()
    const second = await waits
    await first.resign()
    expect((await a.leaders.leader(group))?.holder).toBe('node-2')
    await second.resign()
  })

  test('Follow(): observe(group), of this group alone (etcd mixed all), the present leader first', async () => {
    const [group, other] = [fresh(), fresh()]
    const first = await a.leaders.campaign(group, { holder: 'node-1' })
    const seen: (string | undefined)[] = []
    const controller = new AbortController()
    const following = (async () => {
      for await (const { leader } of b.leaders.observe(group, { signal: controller.signal })) seen.push(leader?.holder)
    })().catch((error) => error)
    await until('the present leader', () => seen.at(-1) === 'node-1')
    await (await a.leaders.campaign(other, { holder: 'stranger' })).resign()
    await first.resign()
    const second = await b.leaders.campaign(group, { holder: 'node-2' })
    await until('the next leader', () => seen.at(-1) === 'node-2')
    expect(seen).not.toContain('stranger')
    controller.abort(new Error('ends')) // its goroutine never did
    expect(await following).toMatchObject({ message: 'ends' })
    await second.resign()
  })

  test('a follower outlives the connection (its channel never yielded again after an error of the session)', async () => {
    const group = fresh()
    await using c = createLockstep({ connectionString: db.url, applicationName: 'follower' })
    const seen: (string | undefined)[] = []
    const controller = new AbortController()
    const following = (async () => {
      for await (const { leader } of c.leaders.observe(group, { signal: controller.signal })) seen.push(leader?.holder)
    })().catch((error) => error)
    await until('the first look', () => seen.length === 1)
    await db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'follower'`)
    const term = await a.leaders.campaign(group, { holder: 'node-1' })
    await until('the leader', () => seen.at(-1) === 'node-1')
    controller.abort(new Error('ends'))
    await following
    await term.resign()
  })

  test('Elect can be left (it blocked for ever): by a signal, by waitMs; nothing of it stays', async () => {
    const group = fresh()
    await using leader = await a.leaders.campaign(group)
    expect(leader.isTrusted()).toBe(true)
    await expect(b.leaders.campaign(group, { waitMs: 10 })).rejects.toMatchObject({ code: 'LEASE_HELD' })
    await expect(b.leaders.campaign(group, { signal: AbortSignal.timeout(10) })).rejects.toMatchObject({
      name: 'TimeoutError',
    })
    await until('nobody in line', async () => (await inLine(group)).length === 0)
  })

  test('a leader has a term number and a fence, others see who it is and who waits (there was none of these)', async () => {
    const group = fresh()
    const term = await a.leaders.campaign(group, { holder: 'node-1', meta: { address: '10.0.0.1' } })
    expect(term.token).toBeGreaterThan(0n)
    await term.transaction(async () => {})
    expect((await b.leaders.members(group)).leader).toMatchObject({ holder: 'node-1', meta: { address: '10.0.0.1' } })
    await term.resign()
    await expect(term.transaction(async () => {})).rejects.toMatchObject({ code: 'LEASE_LOST' })
  })
})

describe('Lock', () => {
  test('Acquire(id, TTL, Wait) and Release(id): acquire(name, { ttlMs, waitMs }), held.release()', async () => {
    const id = fresh()
    const held = await a.locks.acquire(id, { ttlMs: 5_000 })
    // Wait was ignored, or meant "once", or for ever.
    await expect(b.locks.acquire(id, { ttlMs: 5_000, waitMs: 10 })).rejects.toMatchObject({ code: 'LEASE_HELD' })
    const waits = b.locks.acquire(id, { ttlMs: 5_000, waitMs: 20_000 })
    await held.release()
    await (await waits).release()
  })

  test('the ids a/b and a-b are two (etcd took them for one)', async () => {
    const id = fresh()
    await using one = await a.locks.acquire(`${id}/b`, { ttlMs: 5_000 })
    await using two = await b.locks.acquire(`${id}-b`, { ttlMs: 5_000 })
    expect(one.name).not.toBe(two.name)
  })

  test('whose holder is late frees nobody else (in memory, anybody could release anything)', async () => {
    const id = fresh()
    const first = await a.locks.acquire(id, { ttlMs: 1_000 })
    await b.locks.forceRevoke(id)
    const second = await b.locks.acquire(id, { ttlMs: 5_000 })
    await expect(first.release()).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(first.signal.aborted).toBe(true) // and a loss was never told
    expect((await a.locks.query(id)).token).toBe(second.token)
    await second.release()
  })
})
