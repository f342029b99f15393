/**
 * What is promised of locks, as a suite that runs on a direct connection (lock.test.ts) and through a transaction
 * pooler (database/pooler.long.test.ts). What needs a direct connection is `direct`: the database's own queue, and with it the
 * order between processes, and holds that live as long as a connection.
 */
import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLockstep, type Hold, LeaseHeldError, LeaseLostError, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase, type PooledDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

export function lockSuite({ pooled }: { pooled: boolean }) {
  const direct = test.skipIf(pooled)

  // Two of them stand for two processes: they share nothing but the database.
  let db: FreshDatabase
  let url: string
  let a: Lockstep
  let b: Lockstep
  beforeAll(async () => {
    db = pooled ? await freshDatabase({ pooled: true }) : await freshDatabase()
    url = pooled ? (db as PooledDatabase).pooledUrl : db.url
    a = createLockstep({ connectionString: url })
    b = createLockstep({ connectionString: url })
  })
  afterAll(async () => {
    await Promise.all([a?.close(), b?.close()])
    await db?.close()
  })

  let n = 0
  const fresh = () => `name ${n++}`
  const LEASE = { ttlMs: 10_000 }
  const waiting = (name: string, count: number) =>
    until(`${count} waiting for ${name}`, async () => (await b.locks.query(name)).waiting === count)

  /** The three ways to hold, as one: `end` ends the hold. */
  const ways = {
    connection: async (by: Lockstep, name: string) => {
      const held = await by.locks.acquire(name)
      expect(held.kind).toBe(pooled ? 'lease' : 'connection')
      return { end: () => held.release(), token: held.token }
    },
    lease: async (by: Lockstep, name: string) => {
      const held = await by.locks.acquire(name, LEASE)
      expect(held.kind).toBe('lease')
      return { end: () => held.release(), token: held.token }
    },
    transaction: async (by: Lockstep, name: string) => {
      const entered = Promise.withResolvers<bigint>()
      const end = Promise.withResolvers<void>()
      const whole = by.locks.transaction(name, async (_trx, { token }) => {
        entered.resolve(token)
        await end.promise
      })
      whole.catch(entered.reject)
      const token = await entered.promise
      return {
        token,
        end: () => {
          end.resolve()
          return whole
        },
      }
    },
  }
  const kinds = Object.keys(ways) as (keyof typeof ways)[]
  const pairs = kinds.flatMap((first) => kinds.map((second) => [first, second] as const))

  describe('one holder at a time', () => {
    test.each(pairs)('a %s hold keeps a %s hold out until it ends', async (first, second) => {
      const name = fresh()
      const one = await ways[first](a, name)
      for (const by of [a, b]) {
        expect(await by.locks.tryAcquire(name)).toBeNull()
        expect(await by.locks.tryAcquire(name, LEASE)).toBeNull()
        await expect(by.locks.transaction(name, { waitMs: 0 }, async () => {})).rejects.toThrow(LeaseHeldError)
      }
      let granted = false
      const next = ways[second](b, name).then((hold) => {
        granted = true
        return hold
      })
      if (first === 'lease' && second === 'transaction')
        await until('the wait', async () => (await a.locks.query(name)).waiting >= 1)
      else await waiting(name, 1)
      expect(granted).toBe(false)
      await one.end()
      const two = await next
      expect(two.token).toBeGreaterThan(one.token)
      await two.end()
      expect(await a.locks.query(name)).toMatchObject({ held: false, waiting: 0 })
    })

    test.each(pairs)('within one process too: %s, then %s', async (first, second) => {
      const name = fresh()
      const one = await ways[first](a, name)
      const next = ways[second](a, name)
      await until('the wait', async () => (await a.locks.query(name)).waiting >= 1)
      await one.end()
      const two = await next
      expect(two.token).toBeGreaterThan(one.token)
      await two.end()
    })

    test('different names do not exclude each other', async () => {
      const held = await Promise.all([
        a.locks.acquire(fresh()),
        a.locks.acquire(fresh(), LEASE),
        b.locks.acquire(fresh()),
      ])
      await Promise.all(held.map((h) => h.release()))
    })

    test('of many simultaneous attempts of all kinds one is granted', async () => {
      for (let round = 0; round < 20; round++) {
        const name = fresh()
        const tries = Array.from({ length: 24 }, (_, i) => (i % 2 ? a : b).locks.tryAcquire(name, i % 3 ? {} : LEASE))
        const held = (await Promise.all(tries)).filter((h) => h !== null)
        expect(held.length).toBeLessThanOrEqual(1) // none, when a try looked while another one looked: see below
        for (const h of held) await h.release()
      }
    })

    test('an attempt without a competitor is always granted', async () => {
      const name = fresh()
      for (let round = 0; round < 50; round++) {
        const held = await (round % 2 ? a : b).locks.tryAcquire(name, round % 3 ? {} : LEASE)
        expect(held).not.toBeNull()
        await held?.release()
      }
    })

    direct('an attempt does not overtake the callers that wait', async () => {
      const name = fresh()
      const one = await a.locks.acquire(name, LEASE)
      const two = b.locks.acquire(name)
      await waiting(name, 1)
      await db.pool.query(`update lockstep.lease set expires_at = clock_timestamp() where name = $1`, [name])
      expect(await a.locks.tryAcquire(name)).toBeNull()
      expect(await a.locks.tryAcquire(name, LEASE)).toBeNull()
      await (await two).release()
      await expect(one.release()).rejects.toThrow(LeaseLostError)
    })
  })

  describe('tokens', () => {
    test('rise with every grant of a name, whatever the kind', async () => {
      const name = fresh()
      let last = 0n
      for (let round = 0; round < 30; round++) {
        const hold = await ways[kinds[round % 3] as 'lease']((round & 1) === 0 ? a : b, name)
        expect(hold.token).toBeGreaterThan(last)
        last = hold.token
        await hold.end()
      }
    })

    test('rise through a cohort, of which each has its own', async () => {
      const name = fresh()
      const tokens: bigint[] = []
      const crowd = Array.from({ length: 200 }, async (_, i) => {
        const held = await (i % 2 ? a : b).locks.acquire(name)
        tokens.push(held.token)
        await held.release()
      })
      await Promise.all(crowd)
      expect(new Set(tokens).size).toBe(200)
      expect(tokens).toEqual([...tokens].sort((x, y) => (x < y ? -1 : 1)))
    })

    test('rise after the row was swept away', async () => {
      const name = fresh()
      const one = await a.locks.acquire(name, LEASE)
      await one.release()
      await db.pool.query(`update lockstep.lease set expires_at = now() - interval '2 days' where name = $1`, [name])
      await a.locks.sweep()
      expect((await db.pool.query('select from lockstep.lease where name = $1', [name])).rowCount).toBe(0)
      const two = await b.locks.acquire(name, LEASE)
      expect(two.token).toBeGreaterThan(one.token)
      await two.release()
    })

    test('the sweep leaves what is held', async () => {
      const name = fresh()
      const held = await a.locks.acquire(name)
      await held.transaction(async () => {}) // registers the row
      await db.pool.query(`update lockstep.lease set granted_at = now() - interval '2 days' where name = $1`, [name])
      await b.locks.sweep()
      await held.transaction(async () => {})
      await held.release()
    })
  })

  describe('waiting', () => {
    direct.each([
      ['connection', {}],
      ['lease', LEASE],
    ])('a %s hold is granted first come first served between processes', async (_kind, options) => {
      const name = fresh()
      const first = await a.locks.acquire(name)
      const order: number[] = []
      const processes = Array.from({ length: 4 }, () => createLockstep({ connectionString: url }))
      const crowd: Promise<void>[] = []
      for (const [i, process] of processes.entries()) {
        crowd.push(
          process.locks.acquire(name, options).then(async (held) => {
            order.push(i)
            await held.release()
          }),
        )
        await waiting(name, i + 1)
      }
      await first.release()
      await Promise.all(crowd)
      expect(order).toEqual([0, 1, 2, 3])
      await Promise.all(processes.map((process) => process.close()))
    })

    test('within a process too, whatever the kinds', async () => {
      const name = fresh()
      const first = await a.locks.acquire(name)
      const order: number[] = []
      const crowd = Array.from({ length: 9 }, async (_, i) => {
        const hold = await ways[kinds[i % 3] as 'lease'](a, name)
        order.push(i)
        await hold.end()
      })
      await until('nine wait', async () => (await a.locks.query(name)).waiting === 9)
      await first.release()
      await Promise.all(crowd)
      expect(order).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8])
    })

    direct('a cohort gives way to another process', async () => {
      const name = fresh()
      const held = await a.locks.acquire(name)
      const other = b.locks.acquire(name)
      await until('the other in the queue', async () => (await a.locks.query(name)).waiting === 1)
      let passes = 0
      let stop = false
      const crowd = Array.from({ length: 4 }, async () => {
        while (!stop) {
          const h = await a.locks.acquire(name)
          passes++
          await h.release()
        }
      })
      await held.release()
      const theirs = await other // would never come if the crowd kept the lock to itself
      expect(passes).toBeLessThanOrEqual(33)
      stop = true
      await theirs.release()
      await Promise.all(crowd)
    })

    test('throws LeaseHeldError when the wait runs out, and leaves no trace', async () => {
      const name = fresh()
      const one = await a.locks.acquire(name)
      for (const by of [a, b]) {
        await expect(by.locks.acquire(name, { waitMs: 30 })).rejects.toThrow(LeaseHeldError)
        await expect(by.locks.acquire(name, { waitMs: 30, ...LEASE })).rejects.toThrow(LeaseHeldError)
        await expect(by.locks.transaction(name, { waitMs: 30 }, async () => {})).rejects.toThrow(LeaseHeldError)
      }
      await waiting(name, 0)
      await one.release()
      await (await b.locks.acquire(name)).release()
    })

    test.each(kinds)(
      'an aborted wait for a %s hold rejects with the reason of its signal, and leaves no trace',
      async (kind) => {
        const name = fresh()
        const one = await a.locks.acquire(name, LEASE)
        for (const by of [a, b]) {
          const stop = new AbortController()
          const options = { signal: stop.signal, ...(kind === 'lease' && LEASE) }
          const wait =
            kind === 'transaction'
              ? by.locks.transaction(name, options, async () => {})
              : by.locks.acquire(name, options)
          const settled = wait.catch((error: unknown) => error)
          await until('the wait', async () => (await by.locks.query(name)).waiting >= 1)
          const reason = new Error('changed my mind')
          stop.abort(reason)
          expect(await settled).toBe(reason)
        }
        await until('an empty queue', async () => {
          const { rows } = await db.pool.query(
            `select from pg_locks where locktype = 'advisory' and objid = (lockstep.key($1) & 4294967295)::oid and database = (select oid from pg_database where datname = current_database())`,
            [name],
          )
          return rows.length === 0
        })
        await one.release()
        await expect(a.locks.acquire(name, { signal: AbortSignal.abort('no') })).rejects.toBe('no')
        await (await a.locks.acquire(name)).release()
      },
    )

    test('a caller that leaves does not take the others along', async () => {
      const name = fresh()
      const one = await a.locks.acquire(name)
      const stop = new AbortController()
      const gone = b.locks.acquire(name, { signal: stop.signal }).catch(() => 'gone')
      const stays = b.locks.acquire(name)
      await until('two wait', async () => (await b.locks.query(name)).waiting === 2)
      stop.abort()
      expect(await gone).toBe('gone')
      await one.release()
      await (await stays).release()
    })

    direct('a thousand callers that wait for one name need two connections', async () => {
      const name = fresh()
      const one = await a.locks.acquire(name)
      const process = createLockstep({ connectionString: url, applicationName: 'a thousand' })
      const crowd = Array.from({ length: 1_000 }, async () => (await process.locks.acquire(name)).release())
      await waiting(name, 1)
      const { rows } = await db.pool.query(`select from pg_stat_activity where application_name = 'a thousand'`)
      expect(rows.length).toBeLessThanOrEqual(2)
      await one.release()
      await Promise.all(crowd)
      await process.close()
    })

    test('a caller that finds no connection to wait on is served all the same', async () => {
      const names = Array.from({ length: 6 }, fresh)
      const held = await Promise.all(names.map((name) => a.locks.acquire(name)))
      const process = createLockstep({ connectionString: url, maxWaiting: 2 })
      const crowd = names.map((name, i) => process.locks.acquire(name, i % 2 ? LEASE : {}))
      await Promise.all(held.reverse().map((h) => h.release()))
      await Promise.all(crowd.map(async (h) => (await h).release()))
      await process.close()
    })

    test('a waiter never takes a connection that a release or a renewal needs', async () => {
      const process = createLockstep({ connectionString: url, max: 1, maxWaiting: 1 })
      const name = fresh()
      const mine = await process.locks.acquire(name, LEASE)
      const other = await a.locks.acquire(fresh())
      const stop = new AbortController()
      const waits = [
        process.locks.acquire(other.name, { signal: stop.signal }),
        process.locks.transaction(other.name, { signal: stop.signal }, async () => {}),
        process.locks.acquire(name, { signal: stop.signal, ...LEASE }),
      ].map((wait) => wait.catch(() => 'stopped'))
      await until('the wait', async () => (await process.locks.query(other.name)).waiting >= 1)
      const renewed = await process.locks.renew(name, mine.token)
      expect(renewed.token).toBe(mine.token)
      stop.abort()
      await Promise.all(waits)
      await mine.release()
      await other.release()
      await process.close()
    })
  })

  describe('release', () => {
    test('does not abort the signal', async () => {
      for (const options of [{}, LEASE]) {
        const held = await a.locks.acquire(fresh(), options)
        const { signal } = held
        await held.release()
        expect(signal.aborted).toBe(false)
        expect(held.isTrusted()).toBe(false)
      }
    })

    test('called again answers as the first did; disposal too', async () => {
      const name = fresh()
      {
        await using held = await a.locks.acquire(name)
        await held.release()
        await held.release()
      }
      await (await b.locks.acquire(name)).release()
    })

    test('that comes late cannot end a later hold of the name', async () => {
      const name = fresh()
      const one = await a.locks.acquire(name, LEASE)
      await db.pool.query(`update lockstep.lease set expires_at = clock_timestamp() where name = $1`, [name])
      const two = await b.locks.acquire(name, LEASE)
      await expect(one.release()).rejects.toThrow(LeaseLostError)
      expect(await a.locks.query(name)).toMatchObject({ held: true, token: two.token })
      await two.release()
    })

    test('using() releases when the work ends and when it throws', async () => {
      const name = fresh()
      expect(await a.locks.using(name, async (held) => held.token > 0n)).toBe(true)
      await expect(a.locks.using(name, LEASE, () => Promise.reject(new Error('at work')))).rejects.toThrow('at work')
      expect(await b.locks.tryAcquire(name).then((h) => h?.release())).toBeUndefined()
      expect((await b.locks.query(name)).held).toBe(false)
    })

    test('using() says when the hold was lost while the work went on', async () => {
      const name = fresh()
      const work = a.locks.using(name, LEASE, async (held) => {
        const lost = once(held.signal, 'abort')
        await b.locks.forceRevoke(name)
        await a.locks.renew(name, held.token).catch(() => {}) // what the next renewal would find, now
        await Promise.race([lost, Promise.resolve()])
      })
      await expect(work).rejects.toThrow(LeaseLostError)
    })

    test('close() releases what the process holds and rejects the callers that wait', async () => {
      const [mine, other] = [fresh(), fresh()]
      const process = createLockstep({ connectionString: url })
      await process.locks.acquire(mine, LEASE)
      await process.locks.acquire(`${mine} too`)
      const held = await a.locks.acquire(other)
      const waits = [{}, LEASE].map((options) => process.locks.acquire(other, options).catch((error) => error))
      await until('the wait', async () => (await process.locks.query(other)).waiting === 2)
      await process.close()
      for (const error of await Promise.all(waits)) expect(error).toMatchObject({ code: 'UNAVAILABLE' })
      await (await b.locks.acquire(mine, { waitMs: 0 })).release()
      await (await b.locks.acquire(`${mine} too`)).release()
      await held.release()
      await expect(process.locks.acquire(mine)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    })
  })

  describe('the same holder', () => {
    test('is granted again what it has: the same token, renewed', async () => {
      const name = fresh()
      const one = await a.locks.grant(name, { holder: 'me', ttlMs: 5_000 })
      const two = await b.locks.grant(name, { holder: 'me', ttlMs: 60_000 })
      expect(two).toMatchObject({ token: one.token, renewed: true, grantedAt: one.grantedAt })
      expect(two.expiresAt.getTime()).toBeGreaterThan(one.expiresAt.getTime())
      await expect(a.locks.grant(name, { holder: 'you' })).rejects.toThrow(LeaseHeldError)
    })

    // One rule, direct and pooled, and over HTTP: what it has by this process, or by a lease of any process, it is granted again.
    test.each([
      ['as it is first', {}, {}],
      ['by a lease first', LEASE, {}],
      ['then by a lease', {}, LEASE],
      ['by leases of other lengths', LEASE, { ttlMs: 60_000 }],
    ])('is granted again what it has by acquire, at once: %s', async (_, first, second) => {
      const name = fresh()
      const one = await a.locks.acquire(name, { holder: 'me', ...first })
      const two = await a.locks.acquire(name, { holder: 'me', ...second })
      const three = await a.locks.tryAcquire(name, { holder: 'me', ...second })
      for (const hold of [two, three]) {
        expect(hold).toMatchObject({ name, holder: 'me', token: one.token, kind: one.kind })
        expect(hold?.isTrusted()).toBe(true)
      }
      expect(await a.locks.tryAcquire(name, { holder: 'you' })).toBeNull()
      expect(await a.locks.transaction(name, { waitMs: 0 }, async () => {}).catch((error) => error.code)).toBe(
        'LEASE_HELD',
      )
      await one.transaction(async (trx) => two.assertHeld(trx)) // one hold in the database too
      const next = b.locks.acquire(name)
      await waiting(name, 1)
      await two.release()
      expect([one, two, three].map((hold) => hold?.isTrusted())).toEqual([false, false, false])
      expect([one, two, three].map((hold) => hold?.signal.aborted)).toEqual([true, false, true])
      await expect(one.release()).rejects.toMatchObject({ code: 'LEASE_LOST', token: one.token })
      const held = await next
      expect(held.token).toBeGreaterThan(one.token)
      await held.release()
      expect(await a.locks.query(name)).toMatchObject({ held: false, waiting: 0 })
    })

    test('is granted the same by all of its calls, also by those that wait', async () => {
      const name = fresh()
      const other = await b.locks.acquire(name)
      const asked = Array.from({ length: 3 }, () => a.locks.acquire(name, { holder: 'me' }))
      await until('the wait', async () => (await a.locks.query(name)).waiting >= 3)
      await other.release()
      const tokens = (await Promise.all(asked)).map(({ token }) => token)
      expect(new Set(tokens).size).toBe(1)
      const [one] = await Promise.all(asked)
      await one?.release()
      const both = [1, 2].map(() => a.locks.tryAcquire(name, { holder: 'me' }))
      const [left, right] = await Promise.all(both)
      expect(left?.token).toBe(right?.token)
      await left?.release()
      expect(await a.locks.query(name)).toMatchObject({ held: false, waiting: 0 })
    })

    test('has in another process what it has by a lease', async () => {
      const name = fresh()
      const one = await a.locks.grant(name, { holder: 'me' })
      const two = await b.locks.acquire(name, { holder: 'me' })
      expect(two).toMatchObject({ kind: 'lease', token: one.token })
      await two.release()
    })

    direct('waits for its connection hold of another process, which is that process’s', async () => {
      const name = fresh()
      const one = await a.locks.acquire(name, { holder: 'me' })
      expect(await b.locks.tryAcquire(name, { holder: 'me' })).toBeNull()
      await expect(b.locks.grant(name, { holder: 'me' })).rejects.toThrow(LeaseHeldError)
      await one.release()
    })

    direct('that loses its connection loses every one of its holds', async () => {
      const process = createLockstep({ connectionString: url })
      try {
        const name = fresh()
        const one = await process.locks.acquire(name, { holder: 'me' })
        const two = await process.locks.acquire(name, { holder: 'me' })
        await a.locks.forceRevoke(name)
        await until('both are lost', () => one.signal.aborted && two.signal.aborted)
        await (await a.locks.acquire(name)).release()
      } finally {
        await process.close()
      }
    })

    test('even when others wait in the queue', async () => {
      const name = fresh()
      const one = await a.locks.grant(name, { holder: 'me' })
      const others = [a, b].map((by) => by.locks.acquire(name))
      for (const by of [a, b]) await until('a wait', async () => (await by.locks.query(name)).waiting >= 1)
      expect(await a.locks.grant(name, { holder: 'me' })).toMatchObject({ token: one.token })
      await a.locks.revoke(name, one.token)
      for (const other of others) void other.then((held) => held.release())
      await Promise.all(others)
    })
  })

  describe('query', () => {
    direct('says the holder, the kind of hold, and how many wait', async () => {
      const name = fresh()
      expect(await a.locks.query(name)).toEqual({
        name,
        held: false,
        kind: null,
        holder: null,
        token: null,
        grantedAt: null,
        expiresAt: null,
        ttlMs: null,
        meta: null,
        holders: [],
        waiting: 0,
      })
      const held: Hold = await a.locks.acquire(name, { ttlMs: 20_000, holder: 'me', meta: { pod: 'web-1' } })
      const state = await b.locks.query(name)
      expect(state).toMatchObject({ held: true, kind: 'lease', holder: 'me', token: held.token, ttlMs: 20_000 })
      expect(state.meta).toEqual({ pod: 'web-1' })
      expect((state.expiresAt?.getTime() ?? 0) - (state.grantedAt?.getTime() ?? 0)).toBe(20_000)
      await held.release()
      const connection = await a.locks.acquire(name, { holder: 'me' })
      // Another process knows of a young hold that it is there, and not more.
      const young = await b.locks.query(name)
      if (young.token === null) expect(young).toMatchObject({ held: true, kind: 'connection', holder: 'lockstep' })
      await connection.transaction(async () => {})
      expect(await b.locks.query(name)).toMatchObject({
        kind: 'connection',
        holder: 'me',
        token: connection.token,
        expiresAt: null,
      })
      await connection.release()
    })

    test('list goes through leases by prefix, a page at a time', async () => {
      const names = ['list/ä', 'list/a%', 'list/b_', 'list/c', 'listx']
      for (const name of names) await a.locks.grant(name)
      const first = await b.locks.list({ prefix: 'list/', limit: 2 })
      expect(first.map((s) => s.name)).toEqual(['list/a%', 'list/b_'])
      const rest = await b.locks.list({ prefix: 'list/', after: 'list/b_' })
      expect(rest.map((s) => s.name)).toEqual(['list/c', 'list/ä'])
    })

    test('forceRevoke takes it from its holder, and says whether there was one', async () => {
      const name = fresh()
      expect(await a.locks.forceRevoke(name)).toBe(false)
      const leased = await a.locks.acquire(name, LEASE)
      expect(await b.locks.forceRevoke(name)).toBe(true)
      await expect(leased.release()).rejects.toThrow(LeaseLostError)
      const held = await a.locks.acquire(name)
      const lost = once(held.signal, 'abort')
      expect(await b.locks.forceRevoke(name)).toBe(true)
      await lost
      expect(held.signal.reason).toBeInstanceOf(LeaseLostError)
      await (await b.locks.acquire(name)).release()
    })
  })

  describe('bad arguments', () => {
    const long = 'é'.repeat(255)
    test.each(['a/b', '100%', '🔒'.repeat(255), long, ' ', "'; drop table lockstep.lease --", '../..', 'a\u200Db'])(
      'the name %j is good',
      async (name) => {
        await using held = await a.locks.acquire(name, LEASE)
        expect(await b.locks.query(name)).toMatchObject({ name, token: held.token })
        await using other = await b.locks.acquire(`${name.slice(2)}x`)
        expect(other.kind).toBe(pooled ? 'lease' : 'connection')
      },
    )

    test.each([
      ['', RangeError],
      [`${long}é`, RangeError],
      ['a\0b', RangeError],
      ['a\nb', RangeError],
      ['\x7f', RangeError],
      ['\ud83d', RangeError],
      [undefined, TypeError],
      [7, TypeError],
      [{}, TypeError],
    ])('the name %j is refused everywhere', async (name, kind) => {
      const bad = name as string
      for (const call of [
        () => a.locks.acquire(bad),
        () => a.locks.tryAcquire(bad, LEASE),
        () => a.locks.transaction(bad, async () => {}),
        () => a.locks.query(bad),
        () => a.locks.grant(bad),
        () => a.locks.renew(bad, 1n),
        () => a.locks.revoke(bad, 1n),
        () => a.locks.forceRevoke(bad),
      ]) {
        const error = await call().then(
          () => undefined,
          (e: unknown) => e,
        )
        expect(error).toBeInstanceOf(kind)
        expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', field: 'name' })
      }
    })

    test.each([
      [{ ttlMs: 999 }, 'ttlMs', /1000–3600000/],
      [{ ttlMs: 3_600_001 }, 'ttlMs', /1000–3600000/],
      [{ ttlMs: 1500.5 }, 'ttlMs', /integer/],
      [{ ttlMs: '15000' }, 'ttlMs', /integer/],
      [{ ttlMs: Number.NaN }, 'ttlMs', /integer/],
      [{ waitMs: -1 }, 'waitMs', /≥ 0/],
      [{ waitMs: '1' }, 'waitMs', /≥ 0/],
      [{ holder: '' }, 'holder', /1–255/],
      [{ holder: 5 }, 'holder', /1–255/],
      [{ meta: 'x'.repeat(5_000) }, 'meta', /4096/],
      [{ meta: 'a\0b' }, 'meta', /4096/],
      [{ meta: () => {} }, 'meta', /JSON/],
      [{ signal: 'stop' }, 'signal', /AbortSignal/],
      [{ signal: null }, 'signal', /AbortSignal/],
      [null, 'options', /an object/],
      ['15000', 'options', /an object/],
    ])('the option %j is refused, with the field and the range', async (options, field, range) => {
      const error: unknown = await a.locks.acquire(fresh(), options as object).catch((e: unknown) => e)
      expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', field })
      expect((error as Error).message).toMatch(range)
    })

    test.each([['1'], [1], [null], [{}], [-1n], [2n ** 63n]])('the token %o is refused', async (token) => {
      for (const call of [a.locks.renew('x', token as bigint), a.locks.revoke('x', token as bigint)]) {
        await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field: 'token' })
      }
    })

    test.each<[string, () => unknown]>([
      ['options', () => a.locks.list(null as never)],
      ['options', () => a.locks.grant(fresh(), 7 as never)],
      ['options', () => a.locks.renew('x', 1n, null as never)],
      ['options', () => a.locks.using(fresh(), null as never, () => {})],
      ['signal', () => a.locks.transaction(fresh(), { signal: {} as never }, async () => {})],
      ['signal', () => a.locks.grant(fresh(), { signal: 0 as never })],
    ])('%s of any verb must be what they should', async (field, call) => {
      await expect((async () => call())()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
    })

    test.each([[{}], [{ query: 7 }], ['begin']])('%o is no transaction', async (trx) => {
      await using held = await a.locks.acquire(fresh(), LEASE)
      const error = expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'trx' })
      await expect(held.assertHeld(trx as never)).rejects.toEqual(error)
      await expect(held.release({ trx: trx as never })).rejects.toEqual(error)
    })

    test.each([
      [{}, 'connectionString'],
      [{ connectionString: 'postgres://x', max: 0 }, 'max'],
      [{ connectionString: 'postgres://x', maxWaiting: -1 }, 'maxWaiting'],
      [{ connectionString: 'postgres://x', time: null }, 'time'],
      [null, 'options'],
    ])('createLockstep(%j) is refused', (options, field) => {
      expect(() => createLockstep(options as { connectionString: string })).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT', field }),
      )
    })
  })
}
