/**
 * The promises of leaders, as a suite that runs on a direct connection (leader.test.ts) and through a transaction pooler
 * (database/pooler.long.test.ts). Tests that need notifications or a connection of their own are `direct`.
 */
import { once } from 'node:events'
import { sql } from 'kysely'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import {
  createLockstep,
  type ElectionState,
  LeaseHeldError,
  LeaseLostError,
  type Lockstep,
  type Term,
} from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase, type PooledDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

export function leaderSuite({ pooled }: { pooled: boolean }) {
  const direct = test.skipIf(pooled)

  // Two instances stand for two processes: they share nothing but the database.
  let db: FreshDatabase
  let url: string
  let a: Lockstep
  let b: Lockstep
  beforeAll(async () => {
    db = pooled ? await freshDatabase({ pooled: true }) : await freshDatabase()
    url = pooled ? (db as PooledDatabase).pooledUrl : db.url
    a = createLockstep({ connectionString: url })
    b = createLockstep({ connectionString: url })
    await db.pool.query('create table orders (id int primary key, state text)')
    await db.pool.query(`insert into orders values (7, 'new')`)
    await db.pool.query(`select lockstep.fence_table('orders')`)
  })
  afterAll(async () => {
    await Promise.all([a?.close(), b?.close()])
    await db?.close()
  })

  let n = 0
  const fresh = () => `election ${n++}`
  const queueOf = async (name: string) => (await b.leaders.members(name)).waiting.map(({ holder }) => holder)
  const waiting = (name: string, holders: string[]) =>
    until(`${holders} in the queue`, async () => String(await queueOf(name)) === String(holders))
  /** A candidate that entered the queue and then did nothing more. */
  const frozen = (name: string, holder: string, priority = 0) =>
    db.pool.query(
      `insert into lockstep.candidate (name, holder, priority, place, since, expires_at)
       values (lockstep.election($1), $2, $3, 0, clock_timestamp(), clock_timestamp() + interval '1 h')`,
      [name, holder, priority],
    )
  const lost = async (term: Term) => {
    if (!term.signal.aborted) await once(term.signal, 'abort')
    expect(term.signal.reason).toBeInstanceOf(LeaseLostError)
    expect(term.isTrusted()).toBe(false)
  }

  describe('a campaign', () => {
    test('elects one at a time, and each term has a larger token', async () => {
      const name = fresh()
      const first = await a.leaders.campaign(name)
      expect(first).toMatchObject({ name, failover: 'lease' })
      expect(first.isTrusted()).toBe(true)
      for (const by of [a, b]) expect(await by.leaders.tryCampaign(name)).toBeNull()
      const second = b.leaders.campaign(name)
      await until('a candidate', async () => (await queueOf(name)).length === 1)
      await first.resign()
      expect(first.signal.aborted).toBe(false)
      expect(first.isTrusted()).toBe(false)
      const { token } = await second
      expect(token).toBeGreaterThan(first.token)
      await (await second).resign()
      const third = await a.leaders.tryCampaign(name)
      expect(third?.token).toBeGreaterThan(token)
      await third?.resign()
    })

    test('serves candidates by priority, and within a priority in the order of arrival, whatever the process', async () => {
      const name = fresh()
      const leader = await a.leaders.campaign(name)
      const order: string[] = []
      const entered: string[] = []
      const running: Promise<void>[] = []
      for (const [by, holder, priority] of [
        [a, 'low 1', -1],
        [b, 'plain 1', 0],
        [a, 'plain 2', 0],
        [b, 'high 1', 5],
        [a, 'high 2', 5],
        [b, 'plain 3', 0],
      ] as const) {
        entered.push(holder)
        running.push(
          by.leaders.campaign(name, { holder, priority }).then(async (term) => {
            order.push(holder)
            await term.resign()
          }),
        )
        await until(`${holder} in the queue`, async () => (await queueOf(name)).includes(holder))
      }
      const expected = ['high 1', 'high 2', 'plain 1', 'plain 2', 'plain 3', 'low 1']
      expect(await queueOf(name)).toEqual(expected)
      expect(leader.isTrusted()).toBe(true) // nobody is deposed by a priority
      await leader.resign()
      await Promise.all(running)
      expect(order).toEqual(expected)
    })

    test('is not kept out by a candidate that is in the queue and does nothing', async () => {
      const name = fresh()
      const leader = await a.leaders.campaign(name)
      await frozen(name, 'frozen', 9)
      const next = b.leaders.campaign(name, { holder: 'next' })
      await waiting(name, ['frozen', 'next'])
      await leader.resign()
      expect(await b.leaders.tryCampaign(name)).toBeNull() // it still has the first right
      await (await next).resign()
    })

    test('that only tries comes after candidates of its priority, and before candidates of a lower one', async () => {
      const name = fresh()
      const leader = await a.leaders.campaign(name)
      await frozen(name, 'frozen')
      await leader.resign()
      expect(await b.leaders.tryCampaign(name)).toBeNull()
      const before = await b.leaders.tryCampaign(name, { priority: 1 })
      expect(before).not.toBeNull()
      await before?.resign()
    })

    test('throws LeaseHeldError when its wait is over, and leaves no trace', async () => {
      const name = fresh()
      await using leader = await a.leaders.campaign(name)
      await expect(b.leaders.campaign(name, { waitMs: 30 })).rejects.toThrow(LeaseHeldError)
      expect(await b.leaders.members(name)).toMatchObject({ leader: { token: leader.token }, waiting: [] })
      await expect(b.leaders.campaign(name, { waitMs: 0 })).rejects.toThrow(LeaseHeldError)
    })

    test('that is aborted rejects with the reason, and leaves the queue', async () => {
      const name = fresh()
      await using _leader = await a.leaders.campaign(name)
      const controller = new AbortController()
      const campaign = b.leaders.campaign(name, { signal: controller.signal, holder: 'impatient' })
      await waiting(name, ['impatient'])
      const reason = new Error('enough')
      controller.abort(reason)
      await expect(campaign).rejects.toBe(reason)
      await waiting(name, [])
      await expect(b.leaders.campaign(name, { signal: controller.signal })).rejects.toBe(reason)
      expect(await queueOf(name)).toEqual([])
    })

    test('that is aborted while it is elected gives the term up', async () => {
      const name = fresh()
      const client = await db.pool.connect()
      await client.query('begin; lock table lockstep.lease in access exclusive mode') // the election is under way
      const controller = new AbortController()
      const campaign = a.leaders.campaign(name, { signal: controller.signal })
      await until('the request is sent', async () => {
        const { rows } = await client.query(
          `select from pg_locks where relation = 'lockstep.lease'::regclass and not granted
             and database = (select oid from pg_database where datname = current_database())`,
        )
        return rows.length > 0
      })
      controller.abort(new Error('enough'))
      await expect(campaign).rejects.toThrow('enough') // at once
      await client.query('commit')
      client.release()
      await using next = await b.leaders.campaign(name)
      // a candidate that overtakes the first statement is elected before it; the first is then in the queue until it is withdrawn
      await until('an empty queue', async () => (await queueOf(name)).length === 0)
      expect(next.isTrusted()).toBe(true)
    })

    test('of a holder that leads is granted the same term', async () => {
      const name = fresh()
      const first = await a.leaders.campaign(name, { holder: 'me', meta: 1 })
      const again = await b.leaders.campaign(name, { holder: 'me', meta: 2 })
      expect(again.token).toBe(first.token)
      expect(await queueOf(name)).toEqual([])
      await again.resign()
      await expect(first.resign()).rejects.toThrow(LeaseLostError)
    })

    test('of one holder twice is one position and one term', async () => {
      const name = fresh()
      const leader = await a.leaders.campaign(name)
      const both = [a.leaders.campaign(name, { holder: 'same' }), b.leaders.campaign(name, { holder: 'same' })]
      await waiting(name, ['same'])
      const controller = new AbortController()
      const third = a.leaders.campaign(name, { holder: 'same', signal: controller.signal })
      controller.abort(new Error('one of them leaves'))
      await expect(third).rejects.toThrow('one of them leaves')
      await leader.resign()
      const [one, two] = await Promise.all(both)
      expect(one?.token).toBe(two?.token)
      await one?.resign()
    })

    test('has nothing to do with a lock of the same name', async () => {
      const name = fresh()
      await using term = await a.leaders.campaign(name, { ttlMs: 20_000 })
      await using held = await b.locks.acquire(name, { ttlMs: 20_000 })
      expect(held.token).toBeGreaterThan(term.token) // one sequence of tokens
      expect((await a.locks.list({ prefix: name })).map((lock) => [lock.name, lock.token])).toEqual([
        [name, held.token],
      ])
      expect(await a.leaders.list({ prefix: name })).toMatchObject([{ name, token: term.token, ttlMs: 20_000 }])
      expect((await a.locks.list()).every((lock) => !lock.name.includes('\t'))).toBe(true)
    })
  })

  describe('reading', () => {
    test('shows the leader and the candidates, with their meta', async () => {
      const name = fresh()
      expect(await a.leaders.leader(name)).toBeNull()
      expect(await a.leaders.members(name)).toEqual({ leader: null, waiting: [] })
      const term = await a.leaders.campaign(name, { holder: 'one', meta: { at: '10.0.0.1' }, ttlMs: 30_000 })
      const controller = new AbortController()
      const { signal } = controller
      const next = b.leaders.campaign(name, { holder: 'two', meta: { at: '10.0.0.2' }, priority: 3, signal })
      await waiting(name, ['two'])
      const { leader, waiting: candidates } = await a.leaders.members(name)
      expect(leader).toMatchObject({ holder: 'one', token: term.token, ttlMs: 30_000, meta: { at: '10.0.0.1' } })
      expect(leader?.expiresAt.getTime()).toBe((leader?.grantedAt.getTime() ?? 0) + 30_000)
      expect(candidates).toEqual([{ holder: 'two', priority: 3, since: expect.any(Date), meta: { at: '10.0.0.2' } }])
      expect(await a.leaders.leader(name)).toEqual(leader)
      controller.abort()
      await next.catch(() => {})
      await term.resign()
    })

    test('lists leaders in pages', async () => {
      const prefix = fresh()
      const terms = await Promise.all(['a', 'b', 'ü'].map((each) => a.leaders.campaign(`${prefix}/${each}`)))
      const page = await b.leaders.list({ prefix, limit: 2 })
      expect(page.map(({ name }) => name)).toEqual([`${prefix}/a`, `${prefix}/b`])
      const more = await b.leaders.list({ prefix, limit: 2, after: `${prefix}/b` })
      expect(more.map(({ name, token }) => [name, token])).toEqual([[`${prefix}/ü`, terms[2]?.token]])
      await Promise.all(terms.map((term) => term.resign()))
    })
  })

  describe('an observer', () => {
    /** Collects the states that are observed; `stop` ends it. */
    const observing = (by: Lockstep, name: string) => {
      const controller = new AbortController()
      const seen: ElectionState[] = []
      const ended = (async () => {
        for await (const state of by.leaders.observe(name, { signal: controller.signal })) seen.push(state)
      })().catch((error) => error)
      const latest = () => seen.at(-1)
      const stop = async () => {
        controller.abort(new Error('seen enough'))
        return ended
      }
      return { seen, latest, stop }
    }

    test('gets the latest state first, and in the end always the latest', async () => {
      const name = fresh()
      const term = await a.leaders.campaign(name, { holder: 'one', meta: 'here' })
      const observer = observing(b, name)
      await until('the first', () => observer.latest()?.leader?.meta === 'here')
      expect(observer.seen).toHaveLength(1)
      await term.proclaim('there')
      await until('the proclamation', () => observer.latest()?.leader?.meta === 'there')
      await term.resign()
      await until('the resignation', () => observer.latest()?.leader === null)
      const next = await b.leaders.campaign(name, { holder: 'two' })
      await until('the successor', () => observer.latest()?.leader?.token === next.token)
      const revisions = observer.seen.map(({ revision }) => revision)
      expect(revisions).toEqual([...revisions].sort((x, y) => Number(x - y)))
      await next.resign()
      expect(await observer.stop()).toMatchObject({ message: 'seen enough' })
    })

    direct('gets every change, in order', async () => {
      const name = fresh()
      const observer = observing(b, name)
      await until('the first', () => observer.seen.length === 1)
      const probe = JSON.stringify({ name, revision: '1', leader: null, next: null })
      await until('the notification', async () => {
        await db.pool.query(`select pg_notify(lockstep.secret_channel('leader'), $1)`, [probe])
        return observer.seen.length === 2
      })
      const expected: unknown[] = [null, null]
      for (const holder of ['one', 'two', 'three']) {
        const term = await a.leaders.campaign(name, { holder, meta: 0 })
        for (let i = 1; i <= 3; i++) await term.proclaim(i)
        await term.resign()
        expected.push(...[0, 1, 2, 3].map((meta) => [holder, meta]), null)
      }
      await until('all', () => observer.seen.length >= expected.length)
      expect(observer.seen.map(({ leader }) => leader && [leader.holder, leader.meta])).toEqual(expected)
      await observer.stop()
    })

    direct('survives malformed messages', async () => {
      const name = fresh()
      const term = await a.leaders.campaign(name)
      const observer = observing(b, name)
      await until('the first', () => observer.latest()?.leader)
      const notification = (message: unknown) => ({ name, revision: '1', leader: null, ...(message as object) })
      for (const message of [
        'x',
        'null',
        '7',
        '[]',
        JSON.stringify(notification({ revision: 'x' })),
        JSON.stringify(notification({ revision: {} })),
      ]) {
        await db.pool.query(`select pg_notify(lockstep.secret_channel('leader'), $1)`, [message])
      }
      await term.proclaim('still here')
      await until('the proclamation', () => observer.latest()?.leader?.meta === 'still here')
      await observer.stop()
      await term.resign()
    })

    test('that is slow blocks nobody, and misses the oldest changes, never the latest', async () => {
      const name = fresh()
      const slow = b.leaders.observe(name)
      const quick = observing(b, name)
      expect((await slow.next()).value).toMatchObject({ leader: null, revision: 0n })
      const term = await a.leaders.campaign(name)
      for (let i = 0; i < 100; i++) await term.proclaim(i)
      await until('the quick one', () => quick.latest()?.leader?.meta === 99)
      const seen: unknown[] = []
      while (seen.at(-1) !== 99) seen.push((await slow.next()).value.leader?.meta)
      expect(seen.length).toBeLessThanOrEqual(64)
      await slow.return?.(undefined as never)
      await term.resign()
      await quick.stop()
    })

    test('sees the end of a leader whose lease expired', async () => {
      const name = fresh()
      await a.leaders.grant(name, { ttlMs: 1_000 })
      const observer = observing(b, name)
      await until('the leader', () => observer.latest()?.leader)
      await until('its end', () => observer.latest()?.leader === null)
      await observer.stop()
    })

    test('sees a meta that is larger than a notification', async () => {
      const name = `${fresh()}${'"'.repeat(200)}`
      const meta = Array.from({ length: 2_000 }, () => 1) // in the database there is a space behind every comma
      const term = await a.leaders.campaign(name, { holder: '"'.repeat(255), meta })
      const observer = observing(b, name)
      await until('the meta', () => observer.latest()?.leader)
      expect(observer.latest()?.leader?.meta).toEqual(meta)
      await term.proclaim([2, ...meta])
      await until('the proclamation', () => (observer.latest()?.leader?.meta as number[] | undefined)?.[0] === 2)
      await observer.stop()
      await term.resign()
    })
  })

  describe('a term', () => {
    test('outlives its ttl by renewals', async () => {
      const name = fresh()
      const term = await a.leaders.campaign(name, { ttlMs: 1_000 })
      const first = (await b.leaders.leader(name))?.expiresAt.getTime() ?? 0
      await until(
        'a later expiry',
        async () => ((await b.leaders.leader(name))?.expiresAt.getTime() ?? 0) > first + 1_000,
      )
      expect(term.signal.aborted).toBe(false)
      expect(term.isTrusted()).toBe(true)
      await term.resign()
      await term.resign() // the same result
    })

    test('that is resigned too late does not end its successor, and throws', async () => {
      const name = fresh()
      const first = await a.leaders.campaign(name)
      await a.leaders.revoke(name, first.token)
      const second = await b.leaders.campaign(name)
      await expect(first.resign()).rejects.toThrow(LeaseLostError)
      await first[Symbol.asyncDispose]() // this does not throw
      await expect(a.leaders.revoke(name, first.token)).rejects.toThrow(LeaseLostError)
      await expect(first.proclaim('me')).rejects.toThrow(LeaseLostError)
      expect((await a.leaders.leader(name))?.token).toBe(second.token)
      await second.resign()
    })

    test('keeps a successor out while its fenced transaction is open', async () => {
      const name = fresh()
      const term = await a.leaders.campaign(name)
      const next = b.leaders.campaign(name)
      await until('a candidate', async () => (await queueOf(name)).length === 1)
      let resigning: Promise<void> | undefined
      await term.transaction(async (trx) => {
        await sql`update orders set state = 'billed' where id = 7`.execute(trx)
        resigning = term.resign()
        await a.leaders.state(name) // time for the resignation to arrive
        expect((await b.leaders.leader(name))?.token).toBe(term.token)
      })
      await resigning
      await (await next).resign()
    })

    test('that passed on cannot write: its transaction fails at commit', async () => {
      const name = fresh()
      const term = await a.leaders.campaign(name)
      await db.pool.query(
        'update lockstep.lease set expires_at = clock_timestamp() where name = lockstep.election($1)',
        [name],
      )
      const write = a.kysely.transaction().execute(async (trx) => {
        await sql`select set_config('lockstep.fence', lockstep.election(${name}) || ':' || ${String(term.token)}, true)`.execute(
          trx,
        )
        await sql`update orders set state = 'by the last one' where id = 7`.execute(trx)
      })
      await expect(write).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
      await expect(term.transaction(async () => {})).rejects.toThrow(LeaseLostError)
      await lost(term)
    })

    test('can be asserted from SQL by name and token', async () => {
      const name = fresh()
      const term = await a.leaders.campaign(name)
      await a.kysely.transaction().execute(async (trx) => {
        await sql`select lockstep.assert_leader(${name}, ${term.token})`.execute(trx)
        await sql`update orders set state = 'by sql' where id = 7`.execute(trx)
      })
      await term.resign()
      const late = a.kysely
        .transaction()
        .execute((trx) => sql`select lockstep.assert_leader(${name}, ${term.token})`.execute(trx))
      await expect(late).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
    })

    test('resigned in a transaction is resigned when that commits, and not when it rolls back', async () => {
      const name = fresh()
      const term = await a.leaders.campaign(name)
      const rolledBack = a.kysely.transaction().execute(async (trx) => {
        await term.resign({ trx })
        throw new Error('no')
      })
      await expect(rolledBack).rejects.toThrow('no')
      expect((await b.leaders.leader(name))?.token).toBe(term.token)
      const next = b.leaders.campaign(name)
      await until('a candidate', async () => (await queueOf(name)).length === 1)
      await a.kysely.transaction().execute(async (trx) => {
        await term.assertHeld(trx)
        await sql`update orders set state = 'last act' where id = 7`.execute(trx)
        await term.resign({ trx })
      })
      const { token } = await next
      expect(token).toBeGreaterThan(term.token)
      expect(term.signal.aborted).toBe(false)
      await (await next).resign()
    })

    test('whose leader is asked to step down: its signal aborts before a successor leads, which is when it has resigned', async () => {
      const name = fresh()
      expect(await b.leaders.stepDown(name)).toBe(false)
      const term = await a.leaders.campaign(name, { ttlMs: 3_000 })
      let elected = false
      const next = b.leaders.campaign(name).then((successor) => {
        elected = true
        return successor
      })
      await until('a candidate', async () => (await queueOf(name)).length === 1)
      expect(await b.leaders.stepDown(name)).toBe(true)
      await lost(term)
      expect(elected).toBe(false)
      await expect(term.transaction(async () => {})).rejects.toThrow(LeaseLostError)
      await expect(term.resign()).rejects.toThrow(LeaseLostError)
      expect((await next).token).toBeGreaterThan(term.token)
      await (await next).resign()
    })

    test('asked to step down can no longer be renewed, proclaimed or asserted', async () => {
      const name = fresh()
      const { token } = await a.leaders.grant(name)
      await a.leaders.stepDown(name)
      await expect(a.leaders.renew(name, token)).rejects.toThrow(LeaseLostError)
      await expect(a.leaders.renew(name, token, { meta: 1 })).rejects.toThrow(LeaseLostError)
      const asserted = db.pool.query('select lockstep.assert_leader($1, $2)', [name, token])
      await expect(asserted).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
      expect(await b.leaders.tryCampaign(name)).toBeNull() // it still has until it resigns, or its lease runs out
      await expect(a.leaders.revoke(name, token)).rejects.toThrow(LeaseLostError)
      await (await b.leaders.campaign(name)).resign()
    })
  })

  describe('for a leader in another process', () => {
    test('a grant is not renewed automatically, and the same holder again gets the same term', async () => {
      const name = fresh()
      const first = await a.leaders.grant(name, { holder: 'far', ttlMs: 1_000, meta: 'x' })
      expect(first.renewed).toBe(false)
      const again = await b.leaders.grant(name, { holder: 'far', ttlMs: 1_000 })
      expect(again).toMatchObject({ token: first.token, renewed: true })
      await expect(b.leaders.grant(name)).rejects.toMatchObject({ code: 'LEASE_HELD' })
      const renewed = await a.leaders.renew(name, first.token, { ttlMs: 2_000, meta: 'y' })
      expect(renewed.expiresAt.getTime()).toBeGreaterThan(again.expiresAt.getTime())
      expect(await b.leaders.leader(name)).toMatchObject({ meta: 'y', ttlMs: 2_000 })
      const next = await b.leaders.grant(name, { waitMs: 20_000 }) // until it expires
      expect(next.token).toBeGreaterThan(first.token)
      await expect(a.leaders.renew(name, first.token)).rejects.toThrow(LeaseLostError)
    })
  })

  describe('closing', () => {
    test('resigns its terms, and rejects campaigns and observers', async () => {
      const name = fresh()
      const c = createLockstep({ connectionString: url })
      const term = await c.leaders.campaign(name)
      await using other = await a.leaders.campaign(`${name} other`)
      const campaign = c.leaders.campaign(other.name, { holder: 'closing' })
      campaign.catch(() => {})
      const observed = c.leaders.observe(name)
      await observed.next()
      const observing = observed.next()
      observing.catch(() => {})
      const leading = c.leaders.lead(other.name, async () => {})
      leading.catch(() => {})
      await until('in the queue', async () => (await queueOf(other.name)).length === 2)
      await c.close()
      for (const call of [campaign, observing, leading, c.leaders.campaign(name)]) {
        await expect(call).rejects.toMatchObject({ code: 'UNAVAILABLE' })
      }
      expect(term.signal.aborted).toBe(false)
      expect(await b.leaders.leader(name)).toBeNull()
      expect(await queueOf(other.name)).toEqual([])
    })
  })
}
