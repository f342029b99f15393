/**
 * The promises of time, as a suite that runs on a direct connection (time.test.ts) and through a transaction pooler
 * (database/pooler.long.test.ts). The test sets true time (fake-true-time.ts), seconds away from the database's clock.
 *
 * Two Locksteps stand for two processes: they share nothing but the database. Real NTP servers are in ntp.test.ts, clocks
 * that are really wrong in skew.test.ts, and simulated clocks in estimate.test.ts.
 */
import { sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createLockstep, type Lockstep, type TimeOptions, UnavailableError } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase, type PooledDatabase, tcpProxy } from '../support/database.ts'
import { until } from '../support/until.ts'
import { Truth } from './fake-true-time.ts'

export function timeSuite({ pooled }: { pooled: boolean }) {
  let db: FreshDatabase
  let url: string
  let pool: pg.Pool
  const opened: Lockstep[] = []
  beforeAll(async () => {
    db = pooled ? await freshDatabase({ pooled: true }) : await freshDatabase()
    url = pooled ? (db as PooledDatabase).pooledUrl : db.url
    pool = db.pool
  })
  afterAll(() => db?.close())
  // No measurement, as after the migration.
  beforeEach(() => pool.query('delete from lockstep.time_anchor'))
  beforeEach(() => pool.query('insert into lockstep.time_anchor (id) values (1)'))
  afterEach(() => Promise.all(opened.splice(0).map((each) => each.close())))

  const open = (time: TimeOptions = {}, connectionString = url) => {
    const lockstep = createLockstep({ connectionString, time })
    opened.push(lockstep)
    return lockstep
  }
  const row = async () => (await pool.query('select * from lockstep.time_anchor')).rows[0]
  const set = (assignments: string) => pool.query(`update lockstep.time_anchor set ${assignments}`)

  describe('now', () => {
    test('is the machine’s clock before the first sample, without bounds', () => {
      const { time } = open()
      const reading = time.now()
      expect(reading).toMatchObject({ status: 'unsynchronized', source: 'local', boundMs: null, spreadMs: null })
      expect([reading.earliest, reading.latest]).toEqual([null, null])
      expect(Math.abs(reading.timeMs - Date.now())).toBeLessThan(60_000)
      expect(time.after(0)).toBe(false)
      expect(time.before(Number.MAX_SAFE_INTEGER)).toBe(false)
    })

    test('is the database’s clock while there is no measurement, with a spread but without bounds', async () => {
      const { time } = open()
      const reading = await time.ready()
      expect(reading).toMatchObject({ status: 'unsynchronized', source: 'database', boundMs: null, earliest: null })
      expect(reading.spreadMs).toBeGreaterThan(0)
      expect(time.after(0)).toBe(false)
      expect(time.before(Number.MAX_SAFE_INTEGER)).toBe(false)
      await expect(time.waitUntilAfter(0)).rejects.toThrow(UnavailableError)
      await expect(time.ready({ maxBoundMs: 1_000, waitMs: 0 })).rejects.toThrow(/no process has measured it by NTP/)
    })

    test('contains true time once one process has measured it, in every process, and names the falseticker', async () => {
      const truth = new Truth(3_000)
      const { time: measuring } = open({ ntp: truth.ntp({ falsetickers: ['wrong.example'] }) })
      const { time: reads } = open()
      await measuring.ready()
      await reads.ready()
      for (const time of [measuring, reads]) {
        const reading = truth.expectWithin(() => time.now())
        expect(reading).toMatchObject({
          status: 'synchronized',
          source: 'database+ntp',
          falsetickers: ['wrong.example'],
        })
        expect(reading.boundMs).toBeLessThan(100)
        expect(time.after(truth.ms() - 1_000)).toBe(true)
        expect(time.before(truth.ms() + 1_000)).toBe(true)
        expect([time.after(truth.ms() + 60_000), time.before(truth.ms() - 60_000)]).toEqual([false, false])
      }
    })

    test('rounds its dates away from true time', async () => {
      const { time } = open({ ntp: new Truth(0).ntp() })
      await time.ready()
      for (let i = 0; i < 1_000; i++) {
        const reading = time.now()
        expect(reading.earliest?.getTime()).toBeLessThanOrEqual(Number(reading.earliestMs))
        expect(reading.latest?.getTime()).toBeGreaterThanOrEqual(Number(reading.latestMs))
      }
      const json = JSON.parse(JSON.stringify(time.now()))
      expect(json).toMatchObject({ status: 'synchronized', source: 'database+ntp', falsetickers: [] })
      expect(json.earliest).toMatch(/^\d{4}-.*\.\d{3}Z$/)
    })

    test('needs no round trip: it continues while the database is unreachable', async () => {
      await using proxy = await tcpProxy(url)
      const truth = new Truth(-5_000)
      const { time } = open({ ntp: truth.ntp() }, proxy.url)
      await time.ready()
      proxy.refuse()
      let last = 0
      for (let i = 0; i < 10_000; i++) {
        const { timeMs } = truth.expectWithin(() => time.now())
        expect(timeMs).toBeGreaterThanOrEqual(last)
        last = timeMs
      }
      await expect(time.ready()).rejects.toThrow(UnavailableError)
      truth.expectWithin(() => time.now())
      proxy.resume()
      truth.expectWithin(() => time.now())
      await until('the database is asked again', () =>
        time.ready().then(
          () => true,
          () => false,
        ),
      )
      truth.expectWithin(() => time.now())
    })

    test('never goes back: when it is found to be ahead, it stands still until true time has caught up', async () => {
      const truth = new Truth(-1_000) // the database's clock, with which it begins, is ahead by more than the duration of a measurement
      const { time } = open({ ntp: truth.ntp(), background: false })
      const before = time.now().timeMs
      await time.ready()
      const held = time.now()
      expect(held.timeMs).toBeGreaterThanOrEqual(before)
      expect(held.timeMs - truth.ms()).toBeLessThanOrEqual(Number(held.boundMs))
      expect(held.latestMs).toBeLessThan(held.timeMs) // the interval does not wait for it
      const caughtUp = await time.waitUntilAfter(held.timeMs)
      expect(truth.ms()).toBeGreaterThan(held.timeMs)
      expect(caughtUp.timeMs).toBeGreaterThan(held.timeMs)
    })

    test.each([
      ['renews a lease', (on: Lockstep) => on.locks.acquire('kept', { ttlMs: 1_000 })],
      ['campaigns', (on: Lockstep) => on.leaders.campaign('campaign', { ttlMs: 10_000 })],
      ['ticks', (on: Lockstep) => createTasks(on).tick({ budgetMs: 1_000 })],
    ])('knows the database’s clock without a statement of its own in a process that %s', async (_, does) => {
      const lockstep = open({ background: false })
      await does(lockstep)
      await until('the clock is known', () => lockstep.time.now().spreadMs !== null)
      expect(lockstep.time.now().source).toBe('database')
    })

    test('samples in the background in a process that runs all the time, and only there', async () => {
      const running = open().time
      running.now()
      await until('it has sampled', () => running.now().spreadMs !== null)
      const frozen = open({ background: false }).time
      frozen.now()
      await running.ready()
      expect(frozen.now().spreadMs).toBeNull()
    })
  })

  describe('source', () => {
    test('database: time is the database’s clock', async () => {
      const { time } = open({ source: 'database', ntp: new Truth(7_000).ntp() })
      await time.ready()
      for (let i = 0; i < 50; i++) {
        const { earliestMs } = time.now()
        const { rows } = await pool.query('select extract(epoch from clock_timestamp()) * 1000 as ms')
        const { latestMs, status, source } = time.now()
        expect(Number(rows[0].ms)).toBeGreaterThanOrEqual(Number(earliestMs))
        expect(Number(rows[0].ms)).toBeLessThanOrEqual(Number(latestMs))
        expect([status, source]).toEqual(['synchronized', 'database'])
      }
      expect(await time.synchronize()).toBe(false) // it asks no NTP server
    })

    test('ntp: time is measured by this process, and the database is not used', async () => {
      const truth = new Truth(3_600_000)
      const { time } = open({ source: 'ntp', ntp: truth.ntp() }, 'postgres://127.0.0.1:1/nowhere')
      expect(await time.ready()).toMatchObject({ status: 'synchronized', source: 'ntp', spreadMs: null })
      truth.expectWithin(() => time.now())
    })

    test('ntp: two measurements that contradict each other, until a third', async () => {
      const truth = new Truth()
      const ntp = truth.ntp()
      const { time } = open({ source: 'ntp', ntp })
      await time.ready()
      truth.offset += 60_000_000 // this machine slept, and no clock of it shows it
      expect((await time.ready()).status).toBe('disrupted')
      truth.expectWithin(() => time.now())
      expect((await time.ready()).status).toBe('synchronized')
      expect(truth.expectWithin(() => time.now()).boundMs).toBeLessThan(100)
    })

    test('local: this machine’s clock, without bounds', async () => {
      const { time } = open({ source: 'local' }, 'postgres://127.0.0.1:1/nowhere')
      expect(await time.ready()).toMatchObject({ status: 'unsynchronized', source: 'local', boundMs: null })
    })

    test.each([
      ['time.source', { source: 'gps' }, /'database\+ntp' or 'database' or 'ntp' or 'local', got "gps"/],
      ['time.ntp', { source: 'ntp' }, /the result of ntp\(\) of lockstep\/ntp, got undefined/],
      ['time.ntp', { ntp: ['time.example'] }, /the result of ntp\(\) of lockstep\/ntp, got an array/],
    ])('%s is checked: %j', (field, time, message) => {
      const made = () => createLockstep({ connectionString: url, time: time as never })
      expect(made).toThrow(message)
      expect(made).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', field }))
    })
  })

  describe('the anchor', () => {
    test('is measured by one process at a time', async () => {
      const truth = new Truth()
      const gate = Promise.withResolvers<void>()
      const all = Array.from({ length: 6 }, () => {
        const ntp = truth.ntp({ asked: () => gate.promise })
        return { ntp, time: open({ ntp, background: false }).time }
      })
      const asked = all.map(({ time }) => time.synchronize())
      const results = new Set<boolean>()
      for (const each of asked) each.then((measured) => results.add(measured))
      await until('the others have found the claim', () => results.has(false))
      for (const { time } of all) expect((await time.ready({ waitMs: 0 })).status).toBe('unsynchronized')
      gate.resolve()
      expect((await Promise.all(asked)).filter(Boolean)).toHaveLength(1)
      expect(all.reduce((sum, { ntp }) => sum + ntp.measured, 0)).toBe(1)
      expect((await row()).revision).toBe('1')
    })

    test('is measured again when it is 64 s old, and not before', async () => {
      const ntp = new Truth().ntp()
      const { time } = open({ ntp, background: false })
      expect(await time.synchronize()).toBe(true)
      expect(await time.synchronize()).toBe(false)
      await set('at_us = at_us - 63000000')
      expect(await time.synchronize()).toBe(false)
      await set('at_us = at_us - 2000000')
      expect(await time.synchronize()).toBe(true)
      await set('at_us = at_us + 3600000000') // the clock was set back since
      expect(await time.synchronize()).toBe(true)
      expect(await row()).toMatchObject({ claimed_until: null, epoch: expect.any(Number) })
    })

    test('waits 20 s for a claim whose process died, and not for a claim that lies in the future since a clock was set back', async () => {
      const ntp = new Truth().ntp()
      const { time } = open({ ntp, background: false })
      await set("claimed_until = clock_timestamp() + interval '19 s'")
      expect(await time.synchronize()).toBe(false)
      await set("claimed_until = clock_timestamp() - interval '1 ms'")
      expect(await time.synchronize()).toBe(true)
      await set("at_us = 0, claimed_until = clock_timestamp() + interval '1 hour'")
      expect(await time.synchronize()).toBe(true)
    })

    test('is not waited for: no process waits for a locked row', async () => {
      const { time } = open({ ntp: new Truth().ntp(), background: false })
      const client = await pool.connect()
      try {
        await client.query('begin; select from lockstep.time_anchor for update')
        expect(await time.synchronize()).toBe(false)
        expect((await time.ready()).source).toBe('database')
      } finally {
        await client.query('rollback')
        client.release()
      }
    })

    test('a measurement that fails names the silent servers, and another may follow', async () => {
      const truth = new Truth()
      let silent = true
      const asked = () => {
        if (silent) throw new UnavailableError('Only 1 of 3 NTP servers gave a time: b.example: timeout')
      }
      const { time } = open({ ntp: truth.ntp({ asked }), background: false })
      await expect(time.synchronize()).rejects.toThrow(/b\.example: timeout/)
      expect(time.now().status).toBe('unsynchronized')
      silent = false
      await until('it has given its claim back', async () => (await row()).claimed_until === null)
      // In the background it does not measure again for 20 s. Another process may at once, and so may synchronize().
      await time.ready()
      expect((await row()).claimed_until).toBeNull()
      expect(await open({ ntp: truth.ntp(), background: false }).time.synchronize()).toBe(true)
      await set('at_us = at_us - 65000000')
      expect(await time.synchronize()).toBe(true)
      truth.expectWithin(() => time.now())
    })

    test('measurements that agree are intersected, from any process, in any order', async () => {
      const truth = new Truth()
      const wide = open({ ntp: truth.ntp({ boundMs: 50 }), background: false }).time
      const narrow = open({ ntp: truth.ntp({ boundMs: 2 }), background: false }).time
      await wide.synchronize()
      const first = await row()
      await set('at_us = at_us - 65000000')
      await narrow.synchronize()
      const second = await row()
      expect(second.hi_us - second.lo_us).toBeLessThan((first.hi_us - first.lo_us) / 2)
      await set('at_us = at_us - 65000000')
      await wide.synchronize()
      const third = await row()
      // only by the drift of the clocks, and the time of the statement
      expect(third.hi_us - third.lo_us).toBeLessThan((first.hi_us - first.lo_us) / 2)
      expect(third.epoch).toBe(1)
      truth.expectWithin(() => wide.now())
    })

    test('a measurement that contradicts is stored with it until the next one decides; in the meantime all get the hull', async () => {
      const truth = new Truth()
      const { time } = open({ ntp: truth.ntp(), background: false })
      const { time: deceived } = open({ ntp: truth.ntp({ wrongMs: 900 }), background: false })
      const { time: reads } = open({ background: false })
      await time.synchronize()
      const { revision } = await row()
      await set('at_us = at_us - 65000000')
      expect(await deceived.synchronize()).toBe(true)
      expect(await row()).toMatchObject({ epoch: 1, revision: String(Number(revision) + 1) })
      expect((await row()).rival_at_us).not.toBeNull()

      expect((await reads.ready()).status).toBe('disrupted')
      expect(truth.expectWithin(() => reads.now()).boundMs).toBeGreaterThan(400)
      const { rows } = await pool.query('select * from lockstep.now_interval()')
      expect(rows[0].status).toBe('disrupted')

      await time.synchronize() // at once, since the row is in doubt
      expect((await row()).rival_at_us).toBeNull()
      await reads.ready()
      expect(truth.expectWithin(() => reads.now())).toMatchObject({ status: 'synchronized' })
      expect(reads.now().boundMs).toBeLessThan(100)
    })

    test('by one trusted server is known as such to every process, and in SQL', async () => {
      const truth = new Truth(3_000)
      const { time } = open({ ntp: truth.ntp({ trusted: 'own.example' }), background: false })
      const { time: reads } = open({ background: false })
      await time.synchronize()
      await reads.ready()
      for (const each of [time, reads]) {
        expect(truth.expectWithin(() => each.now())).toMatchObject({ status: 'trusted', trusted: 'own.example' })
      }
      expect(JSON.parse(JSON.stringify(reads.now()))).toMatchObject({ status: 'trusted', trusted: 'own.example' })
      const { rows } = await pool.query('select status from lockstep.now_interval()')
      expect(rows[0].status).toBe('trusted')
      expect((await row()).servers).toMatchObject({ trusted: 'own.example' })
      await set('at_us = at_us - 513000000')
      expect(await open({ background: false }).time.ready()).toMatchObject({
        status: 'free-running',
        trusted: 'own.example',
      })
    })

    test('by a trusted server that steps is disrupted, until a second one agrees with the new time', async () => {
      const truth = new Truth()
      const servers = truth.ntp({ trusted: 'own.example' })
      const { time } = open({ ntp: servers, background: false })
      const { time: reads } = open({ background: false })
      await time.synchronize()
      servers.wrongMs = 900
      await set('at_us = at_us - 65000000')
      await time.synchronize()
      for (const each of [time, reads]) {
        expect(await each.ready()).toMatchObject({ status: 'disrupted', trusted: 'own.example' })
        expect(truth.expectWithin(() => each.now()).boundMs).toBeGreaterThan(400)
      }
      await set('rival_at_us = rival_at_us - 600000')
      await time.synchronize()
      for (const each of [time, reads]) {
        expect(await each.ready()).toMatchObject({ status: 'trusted', trusted: 'own.example' })
        expect(each.now().timeMs - truth.ms()).toBeGreaterThan(800) // its word is all there is
      }
    })

    test('by a vote replaces the word of one server, in every process, and neither makes the other narrower', async () => {
      const truth = new Truth()
      const narrow = { boundMs: 0.001 }
      const { time: trusts } = open({ ntp: truth.ntp({ trusted: 'own.example', ...narrow }), background: false })
      const { time: votes } = open({ ntp: truth.ntp({ boundMs: 200 }), background: false })
      const { time: reads } = open({ background: false })
      await trusts.synchronize()
      await reads.ready()
      await votes.ready()
      await set('at_us = at_us - 65000000')
      await trusts.synchronize() // now the voter has watched the clock since before the row was written
      await set('at_us = at_us - 65000000')
      await votes.synchronize()
      expect(await row()).toMatchObject({ trusted: null })
      for (const each of [votes, reads, trusts]) {
        await each.ready()
        const reading = truth.expectWithin(() => each.now())
        expect(reading).toMatchObject({ status: 'synchronized', trusted: null })
        expect(reading.boundMs).toBeGreaterThan(200)
      }
    })

    test('by one trusted server does not replace a vote of the last 128 s, and does afterwards', async () => {
      const truth = new Truth()
      const { time: votes } = open({ ntp: truth.ntp(), background: false })
      const { time: trusts } = open({ ntp: truth.ntp({ trusted: 'own.example', wrongMs: 900 }), background: false })
      const { time: reads } = open({ background: false })
      await votes.synchronize()
      await trusts.ready()
      await set('at_us = at_us - 65000000')
      await votes.synchronize()
      await set('at_us = at_us - 65000000')
      expect(await trusts.synchronize()).toBe(true)
      expect(await row()).toMatchObject({ trusted: null, rival_at_us: null, claimed_until: null })
      await reads.ready()
      expect(truth.expectWithin(() => reads.now())).toMatchObject({ status: 'synchronized', trusted: null })

      await set('at_us = at_us - 65000000')
      for (let i = 0; i < 2; i++) {
        await trusts.synchronize()
        await set('rival_at_us = rival_at_us - 600000')
      }
      expect(await row()).toMatchObject({ trusted: 'own.example', rival_at_us: null })
      expect(await reads.ready()).toMatchObject({ status: 'trusted', trusted: 'own.example' }) // and wrong, as it says
    })

    test('is replaced when the next measurement agrees with the one that contradicted', async () => {
      const truth = new Truth()
      const { time } = open({ ntp: truth.ntp(), background: false })
      const { time: reads } = open({ background: false })
      await time.synchronize()
      await reads.ready()
      await set('lo_us = lo_us + 2000000, hi_us = hi_us + 2000000, guess_us = guess_us + 2000000') // the clock was set since
      await set('at_us = at_us - 65000000')
      await time.synchronize()
      expect((await row()).rival_at_us).not.toBeNull()
      expect((await reads.ready()).status).toBe('disrupted')
      truth.expectWithin(() => reads.now())
      await time.synchronize() // too soon: two measurements by one process within half a second count as one
      expect((await row()).rival_at_us).not.toBeNull()
      await set('rival_at_us = rival_at_us - 600000')
      await time.synchronize()
      expect(await row()).toMatchObject({ epoch: 2, rival_at_us: null })
      for (const each of [reads, time]) {
        expect((await each.ready()).status).toBe('synchronized')
        expect(truth.expectWithin(() => each.now()).boundMs).toBeLessThan(100)
      }
    })

    test('refuses an offer that took too long, was sent before the clock was set back, or is about another clock', async () => {
      const offer = async (server: string, from: string, to = from) => {
        const text = `select lockstep.offer_time(${server}, ${from}, ${to}, -1000, 1000, 0, false, 'w', '{}', '[]') as verdict`
        return (await pool.query(text)).rows[0].verdict
      }
      const now = 'lockstep.microseconds(clock_timestamp())'
      const mine = 'lockstep.clock_identity()'
      expect(await offer(mine, `${now} - 2100000`)).toBe('late')
      expect(await offer(mine, `${now} + 500000`)).toBe('late')
      expect(await offer('4711', now)).toBe('another clock')
      expect((await row()).revision).toBe('0')
      expect(await offer(mine, now)).toBe('begun')
      const { lo_us, hi_us } = await row()
      expect(Number(hi_us) - Number(lo_us)).toBeLessThan(20_000)
      // It took 300 ms, or the clock was set by as much: then only the offer counts, and is widened by that
      expect(await offer(mine, `${now} - 300000`)).toBe('agreed')
      expect(Number((await row()).lo_us)).toBeLessThan(-300_000)
    })

    test('is replaced, not intersected, by a process that saw the clock set, and while it is in doubt', async () => {
      const offer = async (lo: number, hi: number, { inDoubt = false, writer = 'one' } = {}) => {
        const now = 'lockstep.microseconds(clock_timestamp())'
        const text = `select lockstep.offer_time(lockstep.clock_identity(), ${now}, ${now}, ${lo}, ${hi}, ${lo}, ${inDoubt},
                                                 '${writer}', '{}', '[]') as verdict`
        const { verdict } = (await pool.query(text)).rows[0]
        const { lo_us, hi_us, rival_lo_us } = await row()
        return { verdict, lo: Number(lo_us), hi: Number(hi_us), rival: rival_lo_us && Number(rival_lo_us) }
      }
      const ms = (x: number) => x * 1_000
      expect(await offer(ms(-100), ms(100))).toMatchObject({ verdict: 'begun', hi: ms(100) + 1 })
      expect((await offer(ms(50), ms(500))).hi).toBeLessThan(ms(101))
      expect(await offer(ms(90), ms(500), { inDoubt: true })).toMatchObject({ verdict: 'agreed', hi: ms(500) + 1 })
      expect(await offer(ms(900), ms(999))).toMatchObject({ verdict: 'disputed', hi: ms(500) + 1 })
      const kept = (await row()).rival_at_us
      expect((await offer(ms(901), ms(998))).verdict).toBe('disputed') // the same writer, too soon
      expect((await row()).rival_at_us).toBe(kept)
      expect(await offer(ms(400), ms(990))).toMatchObject({ verdict: 'agreed', hi: ms(990) + 1, rival: null })
      expect(await offer(ms(2_000), ms(2_100))).toMatchObject({ verdict: 'disputed' })
      const begun = await offer(ms(2_050), ms(2_900), { writer: 'another' })
      expect(begun).toMatchObject({ verdict: 'begun', hi: ms(2_900) + 1, rival: null })
      expect(begun.lo).toBeLessThan(ms(2_050))
    })

    test('belongs to another clock after a restart, and is not used then', async () => {
      await using frozen = open({ background: false })
      const truth = new Truth()
      await open({ ntp: truth.ntp(), background: false }).time.synchronize()
      await set('server = server - 1')
      expect(await frozen.time.ready()).toMatchObject({ status: 'unsynchronized', boundMs: null })
      expect((await pool.query('select * from lockstep.now_interval()')).rows[0]).toMatchObject({
        earliest: null,
        latest: null,
        bound_ms: null,
        status: 'unsynchronized',
      })
    })

    test('a machine that sleeps while NTP servers are asked does not write the old measurement', async () => {
      const truth = new Truth()
      const { now } = performance
      let slept = 0
      performance.now = () => now.call(performance) - slept // stands still while `slept` grows
      try {
        const servers = truth.ntp()
        let times = 0
        const measure = async () => {
          const measured = await servers.measure()
          if (times++ > 0) return measured
          const since = now.call(performance)
          while (now.call(performance) - since < 60) slept = now.call(performance) - since
          truth.offset += slept * 1_000
          return measured // from before the sleep
        }
        const { time } = open({ ntp: { ...servers, measure }, background: false })
        expect(await time.synchronize()).toBe(true)
        expect(times).toBe(2)
        const { time: reads } = open({ background: false })
        for (const each of [time, reads]) {
          await each.ready()
          truth.expectWithin(() => each.now())
        }
      } finally {
        performance.now = now
      }
    })

    test('an answer from a cache is refused', async () => {
      // A caching proxy answers with the earlier answer again.
      const lockstep = open({ background: false })
      const sampled: unknown[] = []
      const first = (answer: unknown) => {
        sampled.push(answer)
        return sampled[0]
      }
      const client = pg.Client.prototype as unknown as { query(...args: unknown[]): Promise<unknown> }
      const { query } = client
      client.query = async function (this: unknown, ...args: unknown[]) {
        const [sent] = args as [{ text?: string; callback?: (error: unknown, answer: unknown) => void }]
        const sampling = sent.text?.includes('sample_time')
        const { callback } = sent
        if (sampling && callback) sent.callback = (error, answer) => callback(error, error ? answer : first(answer))
        const answer = await query.apply(this, args)
        return sampling && !callback ? first(answer) : answer
      }
      try {
        await lockstep.time.ready()
        await expect(lockstep.time.ready()).rejects.toThrow(/out of a cache/)
      } finally {
        client.query = query
      }
    })
  })

  describe('waitUntilAfter', () => {
    test('waits until the instant has certainly passed: then true time is later', async () => {
      const truth = new Truth(1_000)
      const { time } = open({ ntp: truth.ntp({ boundMs: 5 }) })
      await time.ready()
      for (let i = 0; i < 20; i++) {
        const { latestMs } = time.now()
        const { earliestMs } = await time.waitUntilAfter(Number(latestMs))
        expect(truth.ms()).toBeGreaterThan(Number(latestMs))
        expect(earliestMs).toBeGreaterThan(Number(latestMs))
      }
      const past = await time.waitUntilAfter(new Date(0))
      expect(past.status).toBe('synchronized')
    })

    test('ends with its signal, and with Lockstep', async () => {
      const lockstep = open({ ntp: new Truth().ntp() })
      await lockstep.time.ready()
      const far = Date.now() + 3_600_000
      const stop = new AbortController()
      const waits = lockstep.time.waitUntilAfter(far, { signal: stop.signal })
      stop.abort(new Error('enough'))
      await expect(waits).rejects.toThrow('enough')
      await expect(lockstep.time.waitUntilAfter(far, { signal: stop.signal })).rejects.toThrow('enough')
      const left = lockstep.time.waitUntilAfter(far)
      left.catch(() => {})
      await lockstep.close()
      await expect(left).rejects.toThrow('Lockstep was closed')
    })
  })

  describe('tick', () => {
    test('is unique and strictly increasing over all processes, and never before the corrected time', async () => {
      const truth = new Truth(60_000)
      const [a, b] = [open({ ntp: truth.ntp() }), open()]
      await a.time.ready()
      const seen = new Set<bigint>()
      let greatest = 0n // of the ticks that were answered
      const sequence = async (time: Lockstep['time']) => {
        for (let i = 0; i < 200; i++) {
          const floor = greatest
          const tick = await time.tick()
          expect(tick).toBeGreaterThan(floor)
          expect(seen.has(tick)).toBe(false)
          seen.add(tick)
          if (tick > greatest) greatest = tick
        }
      }
      await Promise.all(Array.from({ length: 16 }, (_, i) => sequence((i % 2 ? a : b).time)))
      expect(seen.size).toBe(3_200)
      const asked = truth.ms()
      const { rows } = await pool.query('select lockstep.microseconds(lockstep.now()) as now, lockstep.tick() as tick')
      expect(BigInt(rows[0].tick)).toBeGreaterThanOrEqual(BigInt(rows[0].now))
      expect(Number(rows[0].tick) / 1_000).toBeGreaterThan(asked - 1_000)
    })

    test('in your transaction blocks no other caller, and is not reused after a rollback', async () => {
      const { time } = open()
      const client = await pool.connect()
      try {
        await client.query('begin')
        const { rows } = await client.query('select lockstep.tick() as tick')
        const other = await time.tick() // answered, though the transaction is open
        expect(other).toBeGreaterThan(BigInt(rows[0].tick))
        const locks = await client.query(
          "select from pg_locks where pid = pg_backend_pid() and locktype in ('advisory', 'relation') and mode = 'ExclusiveLock'",
        )
        expect(locks.rows).toHaveLength(0)
        await client.query('rollback')
        expect(await time.tick()).toBeGreaterThan(other)
      } finally {
        client.release()
      }
    })

    test('continues from the last tick when the clock was set back', async () => {
      const { time } = open()
      const before = await time.tick()
      await pool.query("select setval('lockstep.tick_sequence', $1)", [String(before + 3_600_000_000n)])
      const [one, two] = await Promise.all([time.tick(), time.tick()])
      expect(one).toBeGreaterThan(before + 3_600_000_000n)
      expect(two).not.toBe(one)
      await pool.query("select setval('lockstep.tick_sequence', $1)", [String(before)])
    })

    test.each(['0', '-1', '1000001', 'null'])('takes 1–1,000,000 at a time, not %s', async (n) => {
      await expect(pool.query(`select lockstep.tick(${n})`)).rejects.toThrow('`n` to be an integer, 1–1000000')
    })
  })

  describe('in SQL', () => {
    // Not in the odd run (TEST_ODD): these are statements of the user, with the user's parsers.
    test.skipIf(process.env.TEST_ODD)(
      'now() and now_interval() give corrected time inside your transaction',
      async () => {
        const truth = new Truth(3_000)
        const lockstep = open({ ntp: truth.ntp() })
        await lockstep.time.ready()
        await lockstep.kysely.transaction().execute(async (trx) => {
          for (let i = 0; i < 20; i++) {
            const before = truth.ms()
            const { rows } = await sql<Record<string, number>>`
            select extract(epoch from lockstep.now())::float8 * 1000 as now, extract(epoch from i.now)::float8 * 1000 as guess,
                   extract(epoch from i.earliest)::float8 * 1000 as earliest,
                   extract(epoch from i.latest)::float8 * 1000 as latest, i.bound_ms
              from lockstep.now_interval() i`.execute(trx)
            const after = truth.ms()
            const { now, guess, earliest, latest, bound_ms } = rows[0] as Record<string, number>
            expect(earliest).toBeLessThanOrEqual(after)
            expect(latest).toBeGreaterThanOrEqual(before)
            expect(bound_ms).toBeLessThan(100)
            for (const each of [now, guess] as number[]) {
              expect(each).toBeGreaterThan(before - Number(bound_ms))
              expect(each).toBeLessThan(after + Number(bound_ms))
            }
          }
        })
        await set('at_us = at_us - 513000000')
        const { rows } = await pool.query('select * from lockstep.now_interval()')
        expect(rows[0].status).toBe('free-running')
        expect(rows[0].bound_ms).toBeGreaterThan(25) // 50 millionths of 513 s
        const { time } = open({ background: false })
        expect((await time.ready()).status).toBe('free-running')
        expect(truth.expectWithin(() => time.now()).boundMs).toBeGreaterThan(25)
      },
    )

    test('leases use the database’s own clock, independent of any measurement', async () => {
      const truth = new Truth(3_600_000)
      const lockstep = open({ ntp: truth.ntp() })
      const held = await lockstep.locks.acquire('kept', { ttlMs: 5_000 })
      await lockstep.time.ready()
      const { rows } = await pool.query('select extract(epoch from lockstep.now() - clock_timestamp())::int as ahead')
      expect(Math.abs(rows[0].ahead - 3_600)).toBeLessThan(60)
      const other = open()
      expect(await other.locks.tryAcquire('kept', { ttlMs: 5_000 })).toBeNull()
      expect(held.isTrusted()).toBe(true)
      const { expiresAt } = await other.locks.query('kept')
      expect(Math.abs(Number(expiresAt) - Date.now())).toBeLessThan(60_000)
      await held.release()
    })
  })

  test.each([
    ['maxBoundMs', { maxBoundMs: 0 }, /above 0/],
    ['maxBoundMs', { maxBoundMs: Number.NaN }, /milliseconds/],
    ['maxAgeMs', { maxAgeMs: -1 }, /≥ 0/],
    ['waitMs', { waitMs: '5' }, /milliseconds/],
    ['signal', { signal: '5' }, /AbortSignal/],
    ['options', null, /an object/],
  ])('ready refuses a bad %s', async (field, options, message) => {
    const { time } = open()
    const refused = time.ready(options as never)
    await expect(refused).rejects.toThrow(message)
    await expect(refused).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
  })

  test('ready accepts a fraction of a millisecond', async () => {
    await open().time.ready({ waitMs: 1.5 })
  })

  test.each([[new Date('nonsense')], [Number.NaN], ['2026-01-01'], [null]])('%s is no instant', async (instant) => {
    const { time } = open()
    const error = expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'instant' })
    expect(() => time.after(instant as never)).toThrow(error)
    expect(() => time.before(instant as never)).toThrow(error)
    await expect(time.waitUntilAfter(instant as never)).rejects.toEqual(error)
  })

  test('ready names the bound that it has, when that is above maxBoundMs', async () => {
    const { time } = open({ ntp: new Truth().ntp({ boundMs: 40 }) })
    const refused = time.ready({ maxBoundMs: 10, waitMs: 1 })
    await expect(refused).rejects.toThrow(/known to within 4\d\.\d+ ms \(synchronized\), but maxBoundMs is 10/)
    await expect(time.ready({ maxBoundMs: 60 })).resolves.toMatchObject({ status: 'synchronized' })
  })

  test('a tick of the tasks measures true time too', async () => {
    const truth = new Truth()
    const ntp = truth.ntp()
    const lockstep = open({ ntp, background: false })
    await createTasks(lockstep).tick({ budgetMs: 1_000 })
    expect(ntp.measured).toBe(1)
    expect((await row()).revision).toBe('1')
  })

  test('a tick of the tasks does not wait for NTP servers longer than its budget', async () => {
    const never = Promise.withResolvers<void>()
    const lockstep = open({ ntp: new Truth().ntp({ asked: () => never.promise }), background: false })
    await expect(createTasks(lockstep).tick({ budgetMs: 1_000 })).resolves.toMatchObject({ jobs: 0 })
    never.resolve()
  })

  test('after close there are no statements, and now() continues', async () => {
    const lockstep = open({ ntp: new Truth().ntp() })
    await lockstep.time.ready()
    await lockstep.close()
    expect(lockstep.time.now().status).toBe('synchronized') // the interval still holds
    await expect(lockstep.time.ready()).rejects.toThrow('Lockstep was closed')
    await expect(lockstep.time.tick()).rejects.toThrow(UnavailableError)
  })
}
