/** Schedules that are made with pg-boss's own schedule(): ticks send them, each slot once, by the same rule; and nobody else does. */
import { PgBoss } from 'pg-boss'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { Database } from '../../lib/database/database.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { bossOf } from '../../lib/task/pgboss/boss-of.ts'
import { Schedules } from '../../lib/task/schedule/schedules.ts'
import { slotAfter } from '../../lib/task/schedule/slots.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { standardIfOdd } from '../support/odd.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let lockstep: Lockstep
let tasks: Tasks
let boss: PgBoss
let schedules: Schedules
const open: { close(): Promise<void> }[] = []

beforeAll(async () => {
  db = await freshDatabase()
  lockstep = createLockstep({ connectionString: db.url })
  tasks = createTasks(lockstep)
  boss = bossOf(tasks)
  const database = new Database({ connectionString: db.url })
  const pool = database.pool(2)
  open.push(database, pool)
  schedules = new Schedules({ pool, boss: () => boss, ensure: async () => {} })
  for (const queue of ['report', 'other/one', 'short'])
    await boss.createQueue(queue, queue === 'short' ? { policy: 'short' } : {})
})
afterEach(async () => {
  await db.pool.query('delete from lockstep_boss.schedule')
  await db.pool.query('delete from lockstep_boss.job')
  expect((await db.pool.query('select from lockstep.schedule')).rowCount).toBe(0)
})
afterAll(async () => {
  for (const each of open.reverse()) await each.close()
  await lockstep?.close()
  await db?.close()
})

const at = (text: string) => new Date(text)
const jobs = async (queue: string) =>
  (await db.pool.query('select * from lockstep_boss.job where name = $1 order by start_after', [queue])).rows
/** As if the schedule had been made at that instant. */
const since = (name: string, then: Date) =>
  db.pool.query('update lockstep.schedule set next_at = $2, found = false where name = $1', [name, then])

describe('a schedule of pg-boss', () => {
  test('is listed, with its next slot, and its slots are sent, each once, by whichever process ticks', async () => {
    await boss.schedule('report', '30  2 * * *', { of: 'yesterday' }, { tz: 'Europe/Berlin' })
    const [listed] = await tasks.schedules()
    expect(listed).toEqual({
      ...{ name: 'pg-boss:report', queue: 'report', cron: '30  2 * * *', timezone: 'Europe/Berlin' },
      ...{ data: { of: 'yesterday' }, missed: 'skip', lastSlot: null, lastJob: null, missedSlots: 0, lastMissed: null },
      nextAt: slotAfter({ cron: '30 2 * * *', timezone: 'Europe/Berlin' }, new Date()),
      ...{ error: null, createdAt: expect.any(Date), updatedAt: expect.any(Date) },
    })
    expect(await tasks.getSchedule('pg-boss:report')).toEqual(listed)
    await since('pg-boss:report', at('2026-03-28T12:00:00Z'))
    for (const hour of ['00:59:59', '01:00:00', '01:00:01', '02:00:00']) {
      const now = at(`2026-03-29T${hour}Z`)
      await Promise.all([schedules.sendDue(now), schedules.sendDue(now)])
    }
    // 2:30 is skipped: it comes at 3:00
    expect(await jobs('report')).toMatchObject([{ start_after: at('2026-03-29T01:00:00Z'), data: { of: 'yesterday' } }])
    expect(await tasks.getSchedule('pg-boss:report')).toMatchObject({
      ...{ lastSlot: at('2026-03-29T01:00:00Z'), nextAt: at('2026-03-30T00:30:00Z'), missedSlots: 0 },
    })
  })

  test('is sent by a worker’s ticks, soon after it was made', async () => {
    const seen: unknown[] = []
    tasks.define('report', (data) => {
      seen.push(data)
    })
    await using _worker = tasks.work()
    await boss.schedule('report', '* * * * * *', { n: 1 })
    await until('the handler has run', () => seen.length > 0)
    expect(seen[0]).toEqual({ n: 1 })
  })

  test('has its key, and its options are those of the jobs', async () => {
    await boss.schedule('other/one', '@hourly', null, { key: 'a', priority: 7, retryLimit: 3, expireInSeconds: 60 })
    await boss.schedule('other/one', '@hourly', null, { key: 'b', startAfter: '2030-01-01T00:00:00Z', missed: 'once' })
    expect((await tasks.schedules()).map(({ name, missed }) => [name, missed])).toEqual([
      ['pg-boss:other/one:a', 'skip'],
      ['pg-boss:other/one:b', 'once'],
    ])
    for (const key of ['a', 'b']) await since(`pg-boss:other/one:${key}`, at('2029-12-31T22:30:00Z'))
    expect(await schedules.sendDue(at('2029-12-31T23:00:00Z'))).toEqual({ slots: 2 })
    expect(await jobs('other/one')).toMatchObject([
      { priority: 7, retry_limit: 3, expire_seconds: 60, start_after: at('2029-12-31T23:00:00Z') },
      { priority: 0, retry_limit: 2, start_after: at('2030-01-01T00:00:00Z') },
    ])
  })

  test('made again, keeps its next slot; changed, begins anew', async () => {
    await boss.schedule('report', '0 5 1 1 *', { n: 1 })
    await since('pg-boss:report', at('2020-06-01T00:00:00Z'))
    await schedules.sendDue(at('2020-06-01T00:00:01Z'))
    const before = await tasks.getSchedule('pg-boss:report')
    expect(before).toMatchObject({ nextAt: at('2021-01-01T05:00:00Z') })
    await boss.schedule('report', '0 5 1 1 *', { n: 2 })
    expect(await tasks.getSchedule('pg-boss:report')).toMatchObject({ nextAt: before?.nextAt, data: { n: 2 } })
    await boss.schedule('report', '0 6 1 1 *', { n: 2 })
    const { nextAt } = (await tasks.getSchedule('pg-boss:report')) ?? {}
    expect(nextAt).toEqual(slotAfter({ cron: '0 6 1 1 *', timezone: 'UTC' }, new Date()))
  })

  test('is gone after pg-boss’s unschedule, after ours, and with its queue', async () => {
    await boss.schedule('report', '@hourly')
    await boss.schedule('report', '@hourly', null, { key: 'x' })
    await boss.unschedule('report', 'x')
    expect((await tasks.schedules()).map(({ name }) => name)).toEqual(['pg-boss:report'])
    expect([await tasks.unschedule('pg-boss:report'), await tasks.unschedule('pg-boss:report')]).toEqual([true, false])
    expect(await boss.getSchedules()).toEqual([])
    await boss.createQueue('short-lived')
    await boss.schedule('short-lived', '@hourly')
    await boss.deleteQueue('short-lived')
    expect(await tasks.schedules()).toEqual([])
  })

  test('may be a recurrence rule, which ends', async () => {
    await boss.schedule('report', 'FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0')
    const ends = 'DTSTART:20300101T090000Z\nRRULE:FREQ=DAILY;COUNT=2'
    await boss.schedule('report', ends, null, { key: 'ends' })
    expect((await tasks.schedules()).map(({ nextAt }) => nextAt?.toISOString().slice(11, 16))).toEqual([
      '09:00',
      '09:00',
    ])
    await db.pool.query(`delete from lockstep_boss.schedule where key = ''`)
    await since('pg-boss:report:ends', at('2030-01-01T00:00:00Z'))
    for (const day of [1, 2, 3]) await schedules.sendDue(at(`2030-01-0${day}T09:00:30Z`))
    expect((await jobs('report')).map(({ start_after }) => start_after)).toEqual([
      at('2030-01-01T09:00:00Z'),
      at('2030-01-02T09:00:00Z'),
    ])
    expect(await tasks.getSchedule('pg-boss:report:ends')).toMatchObject({ nextAt: null, error: null, missedSlots: 0 })
  })

  test('that our rule refuses, or a queue, says so; the others are sent', async () => {
    await boss.schedule('report', 'H * * * *')
    await boss.schedule('report', '*/90 * * * *', null, { key: 'wide' })
    await boss.schedule('short', '@hourly', null, { missed: 'once' })
    expect(await tasks.getSchedule('pg-boss:report')).toMatchObject({
      nextAt: null,
      error: expect.stringContaining('without H'),
    })
    await since('pg-boss:short', at('2030-01-01T00:30:00Z'))
    expect(await schedules.sendDue(at('2030-01-01T01:00:00Z'))).toEqual({ slots: 1 })
    expect(await schedules.sendDue(at('2030-01-01T02:00:00Z'))).toEqual({ slots: 0 })
    expect((await tasks.schedules()).map(({ name, error, missedSlots }) => [name, error, missedSlots])).toEqual([
      ['pg-boss:report', expect.stringContaining('without H'), 0],
      ['pg-boss:report:wide', expect.stringContaining('must be 1-60'), 0],
      ['pg-boss:short', expect.stringContaining('The queue refused it'), 1],
    ])
  })

  test('keeps its names to itself', async () => {
    await expect(tasks.schedule('pg-boss:report', '@daily', { queue: 'report' })).rejects.toMatchObject({
      field: 'name',
    })
    await tasks.schedule('report', '@daily', { queue: 'report' })
    await boss.schedule('report', '@daily')
    expect((await tasks.schedules()).map(({ name }) => name)).toEqual(['pg-boss:report', 'report'])
    await tasks.unschedule('report')
  })
})

test('pg-boss’s own timekeeper on this schema gets an error instead of sending slots a second time', async () => {
  const theirs = new PgBoss({
    ...standardIfOdd(db.url),
    ...{ schema: 'lockstep_boss', migrate: false, supervise: false },
  })
  const errors: Error[] = []
  theirs.on('error', (error) => errors.push(error))
  await boss.schedule('report', '* * * * *')
  await theirs.start()
  await until('it wants to send', () => errors.length > 0)
  expect(errors[0]?.message).toContain('ticks of Lockstep')
  await theirs.stop({ graceful: false })
  expect(await jobs('__pgboss__send-it')).toEqual([])
  expect((await tasks.schedules()).map(({ name }) => name)).toEqual(['pg-boss:report'])
})

test('schedules that pg-boss had stored before the migration are sent too', async () => {
  // As 0.6 leaves the table: rows, and no trigger. The last statements of the migration's first part are run again.
  await db.pool.query('alter table lockstep_boss.schedule disable trigger lockstep_schedule')
  await boss.schedule('report', '@hourly')
  await db.pool.query('alter table lockstep_boss.schedule enable trigger lockstep_schedule')
  expect(await tasks.schedules()).toEqual([])
  await db.pool.query('update lockstep_boss.schedule set cron = cron')
  expect(await tasks.schedules()).toMatchObject([{ name: 'pg-boss:report', nextAt: expect.any(Date) }])
})
