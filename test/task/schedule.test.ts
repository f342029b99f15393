/** What a schedule promises: each slot once, whichever process ticks, and whenever; when the clocks change, and when a ticker dies. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { Database } from '../../lib/database/database.ts'
import type { Pool } from '../../lib/database/pool.ts'
import { makeBoss, noQueue } from '../../lib/task/pgboss/adapter.ts'
import { type Schedule, type ScheduleOptions, Schedules } from '../../lib/task/schedule/schedules.ts'
import { slotAfter } from '../../lib/task/schedule/slots.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

let db: FreshDatabase
let boss: ReturnType<typeof makeBoss>
let schedules: Schedules
const open: { close(): Promise<void> }[] = []

/** A ticker with its own connections, as another process has. */
function ticker(connections = 2): { schedules: Schedules; boss: ReturnType<typeof makeBoss>; pool: Pool } {
  const database = new Database({ connectionString: db.url })
  const pool = database.pool(connections)
  open.push(database, pool)
  const boss = makeBoss(pool, (error) => {
    throw error
  })
  const ensure = async (queue: string) => {
    if (!(await boss.getQueue(queue))) throw noQueue(queue)
  }
  return { schedules: new Schedules({ pool, boss: () => boss, ensure }), boss, pool }
}

beforeAll(async () => {
  db = await freshDatabase()
  const one = ticker(4)
  schedules = one.schedules
  boss = one.boss
})
afterEach(() => db.pool.query('delete from lockstep.schedule')) // the next test simulates another time
afterAll(async () => {
  for (const each of open.reverse()) await each.close()
  await db?.close()
})

const SECOND = 1_000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR
const at = (text: string, plusMs = 0) => new Date(Date.parse(text) + plusMs)
const iso = (date: Date | null) => date?.toISOString().replace('.000Z', 'Z')

let n = 0
async function queue(options: Parameters<typeof boss.createQueue>[1] = {}): Promise<string> {
  const name = `queue-${n++}`
  await boss.createQueue(name, options)
  return name
}

/** A schedule whose next slot is the first after `begin`. */
async function scheduled(expression: string, begin: Date, options: Partial<ScheduleOptions> = {}): Promise<string> {
  const { queue: to = await queue(), timezone = 'UTC' } = options
  const name = `schedule-${n++}`
  await schedules.schedule(name, expression, { ...options, queue: to, timezone })
  await rewind(name, slotAfter({ cron: expression, timezone }, begin))
  return name
}
const rewind = (name: string, next: Date) =>
  db.pool.query('update lockstep.schedule set next_at = $2 where name = $1', [name, next])

const state = async (name: string) => (await schedules.get(name)) as Schedule

interface Sent {
  id: string
  slot: Date
  data: unknown
}
async function sent(name: string): Promise<Sent[]> {
  const { rows } = await db.pool.query(
    `select j.id, j.start_after as slot, j.data from lockstep_boss.job j join lockstep.schedule s on s.queue = j.name
      where s.name = $1 order by j.start_after, j.id`,
    [name],
  )
  return rows
}
const slots = async (name: string) => (await sent(name)).map(({ slot }) => iso(slot))

/** Locks a queue's row until `release`: a ticker that sends to the queue waits, with its schedules locked. */
async function hold(name: string, statement = 'select from lockstep_boss.queue where name = $1 for update') {
  const client = await db.pool.connect()
  await client.query('begin')
  await client.query(statement, [name])
  return async () => {
    await client.query('commit')
    client.release()
  }
}
const blocked = async () => {
  const { rows } = await db.pool.query(
    `select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
  )
  return rows.map(({ pid }) => pid as number)
}
const isBlocked = (count = 1) => until('a transaction waits', async () => (await blocked()).length === count)

describe('each slot once', () => {
  test('24 hours of minutes, 4 ticks at a time, each 2 s early or late, some lost: 1,440 jobs', async () => {
    const name = await scheduled('* * * * *', at('2029-12-31T23:59:30Z'))
    const tickers = [ticker().schedules, ticker().schedules, ticker().schedules, schedules]
    const begin = at('2030-01-01T00:00:00Z')
    let seed = 1
    const random = () => {
      seed = (seed * 48_271) % 2_147_483_647
      return seed / 2_147_483_647
    }
    let total = 0
    let lost = false
    for (let minute = 0; minute <= 24 * 60; minute++) {
      lost = !lost && random() < 0.1 && minute < 24 * 60
      if (lost) continue
      const last = minute === 24 * 60 // the day is over
      const sends = tickers.map((each) => {
        const jitter = last ? -1 : Math.round((random() - 0.5) * 4 * SECOND)
        return each.sendDue(new Date(+begin + minute * MINUTE + jitter))
      })
      for (const { slots } of await Promise.all(sends)) total += slots
    }
    const expected = Array.from({ length: 1_440 }, (_, i) => iso(new Date(+begin + i * MINUTE)))
    expect(await slots(name)).toEqual(expected)
    expect(total).toBe(1_440)
    expect(await state(name)).toMatchObject({ missedSlots: 0, error: null, nextAt: at('2030-01-02T00:00:00Z') })
  }, 120_000)

  test('by the clock of the database, unless an instant is passed', async () => {
    const name = await scheduled('* * * * * *', new Date())
    let some = 0
    await until('a slot is sent', async () => {
      some = (await schedules.sendDue()).slots
      return some > 0
    })
    const { lastSlot, lastJob } = await state(name)
    const jobs = await sent(name)
    expect(jobs).toHaveLength(some)
    expect(jobs.at(-1)).toMatchObject({ id: lastJob, slot: lastSlot })
  })

  test('several hundred at once, from many tickers, to several queues: each job has the data of its schedule', async () => {
    const queues = [await queue(), await queue({ partition: true }), await queue()]
    await db.pool.query(
      `insert into lockstep.schedule (name, queue, cron, timezone, data, missed, next_at)
       select 'many ' || i, ($1::text[])[i % 3 + 1], '0 9 * * *', 'Europe/Berlin', to_jsonb(i), 'once', '2030-01-01T08:00Z'
         from generate_series(1, 450) i`,
      [queues],
    )
    const sends = [schedules, ticker().schedules, ticker().schedules].map((each) =>
      each.sendDue(at('2030-01-01T08:00:01Z')),
    )
    const ticks = await Promise.all(sends)
    expect(ticks.reduce((sum, { slots }) => sum + slots, 0)).toBe(450)
    const { rows } = await db.pool.query('select data, name from lockstep_boss.job where name = any ($1)', [queues])
    const byNumber = rows.toSorted((a, b) => a.data - b.data)
    expect(byNumber.map(({ data }) => data)).toEqual(Array.from({ length: 450 }, (_, i) => i + 1))
    for (const { data, name } of byNumber) expect(name).toBe(queues[data % 3])
    expect(await schedules.sendDue(at('2030-01-01T08:00:02Z'))).toEqual({ slots: 0 })
    const [some] = await schedules.list({ limit: 1 })
    expect(some?.nextAt).toEqual(at('2030-01-02T08:00:00Z'))
  })

  test('with one connection', async () => {
    const one = ticker(1).schedules
    const names = await Promise.all([1, 2, 3].map(() => scheduled('@hourly', at('2030-01-01T00:30:00Z'))))
    expect(await one.sendDue(at('2030-01-01T01:00:00Z'))).toEqual({ slots: 3 })
    for (const name of names) expect(await slots(name)).toEqual(['2030-01-01T01:00:00Z'])
  })

  test('though the clock is set back, or a backup is restored', async () => {
    const name = await scheduled('@hourly', at('2030-01-01T00:30:00Z'))
    await schedules.sendDue(at('2030-01-01T01:00:00Z'))
    const { lastJob } = await state(name)
    await rewind(name, at('2030-01-01T01:00:00Z'))
    await schedules.sendDue(at('2030-01-01T01:00:30Z'))
    expect(await sent(name)).toMatchObject([{ id: lastJob }])
    expect(await state(name)).toMatchObject({ lastJob, missedSlots: 0, error: null })
  })

  test('and its job has the slot as its start, a fixed id, and the data or null', async () => {
    const [plain, full] = [
      await scheduled('@hourly', at('2030-01-01T00:30:00Z')),
      await scheduled('@hourly', at('2030-01-01T00:30:00Z'), { data: { to: ['a', null, 1.5] } }),
    ]
    await schedules.sendDue(at('2030-01-01T01:01:00Z'))
    expect(await sent(plain)).toMatchObject([{ slot: at('2030-01-01T01:00:00Z'), data: null }])
    const [job] = await sent(full)
    expect(job).toMatchObject({ data: { to: ['a', null, 1.5] } })
    expect(job?.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  })
})

describe('when the clocks change', () => {
  const RULES = ['30 1 * * *', '30 2 * * *', '0,20,40 2 * * *', '15 * * * *', '0 0 * * *', '*/30 1-3 * * *'] as const
  test.each([
    {
      ...{ timezone: 'America/New_York', day: '2026-03-08', begin: '2026-03-08T05:00:00Z', hours: 23 },
      '30 1 * * *': ['06:30'],
      '30 2 * * *': ['07:00'], // 3:00, the end of the gap
      '0,20,40 2 * * *': ['07:00'],
      '*/30 1-3 * * *': ['06:00', '06:30', '07:00', '07:30'],
    },
    {
      ...{ timezone: 'America/New_York', day: '2026-11-01', begin: '2026-11-01T04:00:00Z', hours: 25 },
      '30 1 * * *': ['05:30'],
      '30 2 * * *': ['07:30'],
      '0,20,40 2 * * *': ['07:00', '07:20', '07:40'],
      '*/30 1-3 * * *': ['05:00', '05:30', '06:00', '06:30', '07:00', '07:30', '08:00', '08:30'],
    },
    {
      ...{ timezone: 'Europe/Berlin', day: '2026-03-29', begin: '2026-03-28T23:00:00Z', hours: 23 },
      '30 1 * * *': ['00:30'],
      '30 2 * * *': ['01:00'], // 3:00
      '0,20,40 2 * * *': ['01:00'],
      '*/30 1-3 * * *': ['00:00', '00:30', '01:00', '01:30'],
    },
    {
      ...{ timezone: 'Europe/Berlin', day: '2026-10-25', begin: '2026-10-24T22:00:00Z', hours: 25 },
      '30 1 * * *': ['23:30'],
      '30 2 * * *': ['00:30'],
      '0,20,40 2 * * *': ['00:00', '00:20', '00:40'],
      '*/30 1-3 * * *': ['23:00', '23:30', '00:00', '00:30', '01:00', '01:30', '02:00', '02:30'],
    },
  ])(
    '$timezone, $day: a daily slot comes once, an hourly one $hours times',
    async (expected) => {
      const { timezone, hours } = expected
      const begin = at(expected.begin)
      const names = await Promise.all(RULES.map((rule) => scheduled(rule, new Date(+begin - 10 * HOUR), { timezone })))
      for (let ms = -10 * HOUR; ms <= hours * HOUR + 3 * HOUR; ms += 2 * MINUTE)
        await schedules.sendDue(new Date(+begin + ms))
      for (const [i, rule] of RULES.entries()) {
        const times = (await sent(names[i] as string))
          .filter(({ slot }) => slot >= begin && +slot < +begin + hours * HOUR)
          .map(({ slot }) => slot.toISOString().slice(11, 16))
        if (rule === '15 * * * *') expect(times).toHaveLength(hours)
        else if (rule === '0 0 * * *') expect(times).toHaveLength(1)
        else expect(times, rule).toEqual(expected[rule])
      }
    },
    60_000,
  )

  test('while no process ticks for weeks, the slots are those of each day', async () => {
    const spring = { timezone: 'Europe/Berlin', missed: 'all' } as const
    const name = await scheduled('30 2 * * *', at('2026-03-27T00:00:00Z'), spring)
    await schedules.sendDue(at('2026-03-31T12:00:00Z'))
    expect(await slots(name)).toEqual([
      ...['2026-03-27T01:30:00Z', '2026-03-28T01:30:00Z', '2026-03-29T01:00:00Z'],
      ...['2026-03-30T00:30:00Z', '2026-03-31T00:30:00Z'],
    ])
    const once = await scheduled('30 2 * * *', at('2026-09-01T00:00:00Z'), { timezone: 'Europe/Berlin' })
    await schedules.sendDue(at('2026-10-25T02:00:00Z'))
    expect(await slots(once)).toEqual(['2026-10-25T00:30:00Z'])
    expect(await state(once)).toMatchObject({ missedSlots: 54, nextAt: at('2026-10-26T01:30:00Z') })
  })

  test('by half an hour (Lord Howe), the slots go on', async () => {
    const name = await scheduled('0 * * * *', at('2026-04-04T13:30:00Z'), {
      timezone: 'Australia/Lord_Howe',
      missed: 'all',
    })
    await schedules.sendDue(at('2026-04-04T18:00:00Z'))
    expect(await slots(name)).toEqual([
      ...['2026-04-04T14:00:00Z', '2026-04-04T15:30:00Z', '2026-04-04T16:30:00Z', '2026-04-04T17:30:00Z'],
    ])
  })
})

describe('slots that were due while no process ticked', () => {
  const minutes = (from: number, to: number) =>
    Array.from({ length: to - from + 1 }, (_, i) => iso(at('2030-01-01T01:00:00Z', (from + i) * MINUTE)))

  test.each([
    ['skip', minutes(8, 10), 8],
    ['once', minutes(8, 10), 8],
    ['all', minutes(0, 10), 0],
  ] as const)('%s: of 10 minutes, with what is younger than 150 s', async (missed, expected, missedSlots) => {
    const name = await scheduled('* * * * *', at('2030-01-01T00:59:30Z'), { missed })
    expect(await schedules.sendDue(at('2030-01-01T01:10:05Z'))).toEqual({ slots: expected.length })
    expect(await slots(name)).toEqual(expected)
    expect(await state(name)).toMatchObject({
      missedSlots,
      lastMissed: missedSlots > 0 ? at('2030-01-01T01:07:00Z') : null,
      lastSlot: at('2030-01-01T01:10:00Z'),
      nextAt: at('2030-01-01T01:11:00Z'),
    })
  })

  test.each([
    ['skip', [], 3, '2030-01-01T03:00:00Z'],
    ['once', ['2030-01-01T03:00:00Z'], 2, '2030-01-01T02:00:00Z'],
    ['all', ['2030-01-01T01:00:00Z', '2030-01-01T02:00:00Z', '2030-01-01T03:00:00Z'], 0, null],
  ] as const)('%s: of 3 hours, when all are late', async (missed, expected, missedSlots, lastMissed) => {
    const name = await scheduled('@hourly', at('2030-01-01T00:30:00Z'), { missed })
    await schedules.sendDue(at('2030-01-01T03:30:00Z'))
    expect(await slots(name)).toEqual(expected)
    expect(await state(name)).toMatchObject({
      missedSlots,
      lastMissed: lastMissed && at(lastMissed),
      lastSlot: expected.length > 0 ? at('2030-01-01T03:00:00Z') : null,
      nextAt: at('2030-01-01T04:00:00Z'),
    })
  })

  test('all: 1,000 at a tick, in order, and nothing lost', async () => {
    const begin = at('2030-01-01T00:00:00Z')
    const name = await scheduled('* * * * *', new Date(+begin - 1), { missed: 'all' })
    const now = new Date(+begin + 1_499 * MINUTE)
    expect(await schedules.sendDue(now)).toEqual({ slots: 1_000 })
    expect(await state(name)).toMatchObject({ nextAt: new Date(+begin + 1_000 * MINUTE), missedSlots: 0 })
    expect(await schedules.sendDue(now)).toEqual({ slots: 500 })
    expect(await schedules.sendDue(now)).toEqual({ slots: 0 })
    const expected = Array.from({ length: 1_500 }, (_, i) => iso(new Date(+begin + i * MINUTE)))
    expect(await slots(name)).toEqual(expected)
  })

  test('all: 1,000 at a tick, though there are 99 others and the tick goes on', async () => {
    const begin = at('2030-01-01T00:00:00Z')
    const name = await scheduled('* * * * *', new Date(+begin - 1), { missed: 'all' })
    await db.pool.query(
      `insert into lockstep.schedule (name, queue, cron, timezone, missed, next_at)
       select 'other ' || i, $1, '@daily', 'UTC', 'all', $2 from generate_series(1, 99) i`,
      [await queue(), begin],
    )
    expect(await schedules.sendDue(new Date(+begin + 1_200 * MINUTE))).toEqual({ slots: 1_099 })
    expect(await state(name)).toMatchObject({ nextAt: new Date(+begin + 1_000 * MINUTE) })
  })

  test('all: with a megabyte of data each', async () => {
    const name = await scheduled('@hourly', at('2030-01-01T00:30:00Z'), { missed: 'all', data: 'x'.repeat(1_048_000) })
    expect(await schedules.sendDue(at('2030-01-01T12:30:00Z'))).toEqual({ slots: 12 })
    expect(await slots(name)).toHaveLength(12)
  })

  test('by the second, for a year: not walked one by one', async () => {
    const [now, begin] = [at('2030-06-01T12:00:00Z'), at('2029-06-01T12:00:00Z')]
    const [each, skip] = [
      await scheduled('* * * * * *', begin),
      await scheduled('* * * * * *', begin, { missed: 'skip' }),
    ]
    const hour = await scheduled('* * 1 * * *', begin, { timezone: 'Europe/Berlin' })
    expect(await schedules.sendDue(now)).toEqual({ slots: 151 + 151 + 1 })
    for (const name of [each, skip]) {
      expect(await slots(name)).toEqual(
        Array.from({ length: 151 }, (_, i) => iso(new Date(+now - 150_000 + i * SECOND))),
      )
      const { missedSlots, nextAt, lastMissed } = await state(name)
      expect(missedSlots).toBeGreaterThanOrEqual(2_000)
      expect([nextAt, lastMissed]).toEqual([new Date(+now + SECOND), new Date(+now - 151_000)])
    }
    expect(await slots(hour)).toEqual(['2030-05-31T23:59:59Z'])
    expect((await state(hour)).nextAt).toEqual(at('2030-06-01T23:00:00Z'))
  })

  test('is not deleted by upkeep before a worker could get it', async () => {
    const to = await queue({ retentionSeconds: 60 })
    const minute = (new Date().getUTCMinutes() + 30) % 60 // half an hour ago: late
    const name = await scheduled(`${minute} * * * *`, new Date(Date.now() - 3 * DAY), { queue: to })
    await schedules.sendDue()
    const { rows } = await db.pool.query(
      `select keep_until >= created_on + interval '60 s' and keep_until < created_on + interval '70 s' as kept
         from lockstep_boss.job where name = $1`,
      [to],
    )
    expect(rows).toEqual([{ kept: true }])
    expect((await state(name)).missedSlots).toBe(71)
  })
})

describe('a ticker that is stopped between its lock and its commit', () => {
  const BEGIN = at('2030-01-01T00:30:00Z')
  const NOW = at('2030-01-01T01:00:00Z')

  test('sends the schedules that it took, and no other tick does; others send the rest', async () => {
    const name = await scheduled('@hourly', BEGIN)
    const letGo = await hold((await state(name)).queue)
    const first = ticker().schedules.sendDue(NOW)
    await isBlocked()
    const other = await scheduled('@hourly', BEGIN)
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await slots(other)).toHaveLength(1)
    await letGo()
    expect(await first).toEqual({ slots: 1 })
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 0 })
    expect(await slots(name)).toEqual(['2030-01-01T01:00:00Z'])
  })

  test('and dies: has sent nothing, and the next sends it', async () => {
    const name = await scheduled('@hourly', BEGIN)
    const letGo = await hold((await state(name)).queue)
    const first = ticker().schedules.sendDue(NOW)
    first.catch(() => {})
    await isBlocked()
    for (const pid of await blocked()) await db.pool.query('select pg_terminate_backend($1)', [pid])
    await expect(first).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await letGo()
    expect(await state(name)).toMatchObject({ nextAt: NOW, missedSlots: 0, error: null })
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await slots(name)).toEqual(['2030-01-01T01:00:00Z'])
  })

  test('and is cancelled (a time limit of its role): has sent nothing, and the next sends it', async () => {
    const name = await scheduled('@hourly', BEGIN)
    const letGo = await hold((await state(name)).queue)
    const first = ticker().schedules.sendDue(NOW)
    first.catch(() => {})
    await isBlocked()
    for (const pid of await blocked()) await db.pool.query('select pg_cancel_backend($1)', [pid])
    await expect(first).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await letGo()
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await state(name)).toMatchObject({ lastSlot: NOW, missedSlots: 0, error: null })
  })

  test('and is frozen: loses its transaction after 30 s', async () => {
    const client = await db.pool.connect()
    await client.query('begin')
    await client.query(`select from lockstep.due_schedules(null, '{}')`)
    const { rows } = await client.query('show idle_in_transaction_session_timeout')
    expect(rows).toEqual([{ idle_in_transaction_session_timeout: '30s' }])
    await client.query('rollback')
    client.release()
  })

  test('holds up unschedule: when that resolves, nothing more is sent', async () => {
    const name = await scheduled('@hourly', BEGIN)
    const { queue: to } = await state(name)
    const letGo = await hold(to)
    const first = ticker().schedules.sendDue(NOW)
    await isBlocked()
    const gone = schedules.unschedule(name)
    await isBlocked(2)
    await letGo()
    expect([await first, await gone]).toEqual([{ slots: 1 }, true])
    expect(await schedules.sendDue(at('2030-01-01T02:00:00Z'))).toEqual({ slots: 0 })
    const { rows } = await db.pool.query('select start_after from lockstep_boss.job where name = $1', [to])
    expect(rows).toEqual([{ start_after: NOW }])
  })

  test('and the schedule changes meanwhile: its slots are not sent again by the new rule', async () => {
    const name = await scheduled('* * * * * *', new Date())
    const { queue: to } = await state(name)
    const letGo = await hold(to)
    await until('a slot is due', async () => ((await state(name)).nextAt as Date) < new Date())
    const first = ticker().schedules.sendDue(new Date())
    await isBlocked()
    const change = schedules.schedule(name, '*/1 * * * * *', { queue: to })
    await isBlocked(2)
    await letGo()
    await Promise.all([first, change])
    const { lastSlot, nextAt } = await state(name)
    expect(+(nextAt as Date)).toBeGreaterThan(+(lastSlot as Date))
    expect(new Set(await slots(name)).size).toBe((await slots(name)).length)
  })
})

describe('a schedule that cannot be sent', () => {
  const BEGIN = at('2030-01-01T00:30:00Z')
  const NOW = at('2030-01-01T01:00:00Z')

  test('because its queue was deleted: says so, counts its slots as missed, goes on; the others are sent', async () => {
    const [bad, good] = [await scheduled('@hourly', BEGIN), await scheduled('@hourly', BEGIN)]
    const { queue: to } = await state(bad)
    await boss.deleteQueue(to)
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await slots(good)).toHaveLength(1)
    expect(await state(bad)).toMatchObject({
      ...{ error: expect.stringContaining(`There is no queue "${to}"`), missedSlots: 1, lastMissed: NOW },
      ...{ lastSlot: null, nextAt: at('2030-01-01T02:00:00Z') },
    })
    await boss.createQueue(to, { partition: true })
    expect(await schedules.sendDue(at('2030-01-01T02:00:00Z'))).toEqual({ slots: 2 })
    expect(await state(bad)).toMatchObject({ error: null, missedSlots: 1, lastSlot: at('2030-01-01T02:00:00Z') })
  })

  test.each([false, true])(
    'because its queue is deleted in the same instant (a table of its own: %s)',
    async (partition) => {
      const to = await queue({ partition })
      const [bad, good] = [await scheduled('@hourly', BEGIN, { queue: to }), await scheduled('@hourly', BEGIN)]
      const letGo = await hold(to, 'delete from lockstep_boss.queue where name = $1')
      const sending = schedules.sendDue(NOW)
      await isBlocked()
      await letGo()
      expect(await sending).toEqual({ slots: 1 })
      expect(await slots(good)).toHaveLength(1)
      expect(await state(bad)).toMatchObject({ error: expect.stringContaining(to), missedSlots: 1 })
    },
  )

  test('because the database refuses the job: 100 others with it are sent', async () => {
    const to = await queue()
    await db.pool.query(`create function refuse() returns trigger language plpgsql as $$
      begin if new.data = '"refused"' then raise 'not this one'; end if; return new; end $$;
      create trigger refuse before insert on lockstep_boss.job_common for each row execute function refuse()`)
    const bad = await scheduled('@hourly', BEGIN, { queue: to, data: 'refused' })
    await db.pool.query(
      `insert into lockstep.schedule (name, queue, cron, timezone, missed, next_at)
       select 'good ' || i, $1, '@hourly', 'UTC', 'once', $2 from generate_series(1, 100) i`,
      [to, NOW],
    )
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 100 })
    await db.pool.query('drop trigger refuse on lockstep_boss.job_common; drop function refuse')
    expect(await state(bad)).toMatchObject({ error: 'not this one', missedSlots: 1 })
    expect(await state('good 100')).toMatchObject({ error: null, missedSlots: 0, lastSlot: NOW })
  })

  test.each(['58030', 'XX000', '25P03', '40001', '55P03'])(
    'but not because of what is the database’s own trouble (%s): then the slot is sent by another tick',
    async (code) => {
      const to = await queue()
      const name = await scheduled('@hourly', BEGIN, { queue: to })
      const others = [await scheduled('@hourly', BEGIN), await scheduled('@hourly', BEGIN)]
      await db.pool.query(`create function trouble() returns trigger language plpgsql as $$
        begin raise 'trouble' using errcode = '${code}'; end $$;
        create trigger trouble before insert on lockstep_boss.job_common for each row
          when (new.name = '${to}') execute function trouble()`)
      await expect(schedules.sendDue(NOW)).rejects.toMatchObject({ code: 'UNAVAILABLE', cause: { code } })
      await db.pool.query('drop trigger trouble on lockstep_boss.job_common; drop function trouble')
      expect(await state(name)).toMatchObject({ error: null, missedSlots: 0, nextAt: NOW })
      for (const other of others) expect(await slots(other)).toEqual(['2030-01-01T01:00:00Z']) // not held up
      expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    },
  )

  test('because somebody keeps its queue locked: the others are sent after 5 s, and it when the lock is gone', async () => {
    const [bad, good] = [await scheduled('@hourly', BEGIN), await scheduled('@hourly', BEGIN)]
    const letGo = await hold((await state(bad)).queue)
    await expect(schedules.sendDue(NOW)).rejects.toMatchObject({ code: 'UNAVAILABLE', cause: { code: '55P03' } })
    expect(await slots(good)).toEqual(['2030-01-01T01:00:00Z'])
    await letGo()
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await slots(bad)).toEqual(['2030-01-01T01:00:00Z'])
  })

  test('because its time zone is not known here: the others are sent', async () => {
    const [bad, good] = [await scheduled('@hourly', BEGIN), await scheduled('@hourly', BEGIN)]
    await db.pool.query(`update lockstep.schedule set timezone = 'Mars/Olympus' where name = $1`, [bad])
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await slots(good)).toHaveLength(1)
    expect(await state(bad)).toMatchObject({ nextAt: null, error: expect.stringContaining('Mars/Olympus') })
  })

  test('but a step that is refused today and was stored once goes on', async () => {
    const name = await scheduled('0 * * * *', BEGIN)
    await db.pool.query(`update lockstep.schedule set cron = '*/90 * * * *' where name = $1`, [name])
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await state(name)).toMatchObject({ nextAt: at('2030-01-01T02:00:00Z'), error: null })
  })

  test('because its queue has such a job already: says so', async () => {
    const to = await queue({ policy: 'short' }) // one job waits at a time
    const name = await scheduled('@hourly', BEGIN, { queue: to, missed: 'all' })
    expect(await schedules.sendDue(at('2030-01-01T03:00:00Z'))).toEqual({ slots: 1 })
    expect(await state(name)).toMatchObject({
      ...{ lastSlot: NOW, missedSlots: 2, lastMissed: at('2030-01-01T03:00:00Z') },
      error: expect.stringContaining('The queue refused it'),
    })
  })

  test('because its cron cannot be parsed (written by hand): waits until it is scheduled again', async () => {
    const good = await scheduled('@hourly', BEGIN)
    const { queue: to } = await state(good)
    await db.pool.query(
      `insert into lockstep.schedule (name, queue, cron, timezone, missed, next_at) values ('by hand', $1, 'x', 'UTC', 'once', $2)`,
      [to, NOW],
    )
    expect(await schedules.sendDue(NOW)).toEqual({ slots: 1 })
    expect(await state('by hand')).toMatchObject({ nextAt: null, error: expect.any(String), missedSlots: 1 })
    expect(await schedules.schedule('by hand', '@hourly', { queue: to })).toBe(false)
    expect(await state('by hand')).toMatchObject({ nextAt: expect.any(Date), error: null })
  })
})

describe('schedule', () => {
  test('makes one, or changes it: true, then false; the next slot is the first after now', async () => {
    const to = await queue()
    const name = `schedule-${n++}`
    const before = new Date()
    expect(await schedules.schedule(name, ' 0  9 * * 1-5 ', { queue: to, timezone: 'Europe/Berlin', data: [1] })).toBe(
      true,
    )
    const made = await state(name)
    expect(made).toEqual({
      ...{ name, queue: to, cron: '0 9 * * 1-5', timezone: 'Europe/Berlin', data: [1], missed: 'once' },
      ...{
        nextAt: schedules.preview('0 9 * * 1-5', 'Europe/Berlin', 1)[0],
        lastSlot: null,
        lastJob: null,
        missedSlots: 0,
      },
      ...{ lastMissed: null, error: null, createdAt: expect.any(Date), updatedAt: expect.any(Date) },
    })
    expect(+(made.nextAt as Date)).toBeGreaterThan(+before)
    expect(await schedules.schedule(name, '* * * * *', { queue: to })).toBe(false)
    expect(await state(name)).toMatchObject({
      cron: '* * * * *',
      timezone: 'UTC',
      data: null,
      createdAt: made.createdAt,
    })
  })

  test('the same again keeps the next slot, though it is due: a deployment loses and shifts nothing', async () => {
    const name = await scheduled('* * * * *', at('2030-01-01T00:00:30Z'), { data: 'old', missed: 'all' })
    const due = at('2020-01-01T00:01:00Z')
    await rewind(name, due)
    const before = await state(name)
    expect(await schedules.schedule(name, '* * * * *', { queue: before.queue, data: 'old', missed: 'all' })).toBe(false)
    expect(await state(name)).toEqual(before)
    const to = await queue()
    expect(await schedules.schedule(name, '* * * * *', { queue: to, data: 'new', missed: 'skip' })).toBe(false)
    expect(await state(name)).toMatchObject({ nextAt: due, queue: to, data: 'new', missed: 'skip' })
    await schedules.sendDue(due)
    expect(await sent(name)).toMatchObject([{ slot: due, data: 'new' }])
  })

  test.each([
    ['cron', '0 6 1 1 *', 'UTC'],
    ['timezone', '0 5 1 1 *', 'Europe/Berlin'],
  ])('with another %s keeps no slot of the old one', async (_, expression, timezone) => {
    const name = await scheduled('0 5 1 1 *', at('2020-01-01T00:00:00Z'))
    const { queue: to } = await state(name)
    await schedules.schedule(name, expression, { queue: to, timezone })
    const { nextAt } = await state(name)
    expect(nextAt).toEqual(slotAfter({ cron: expression, timezone }, new Date()))
    expect(await schedules.sendDue(new Date(+(nextAt as Date) - 1))).toEqual({ slots: 0 })
    expect(await sent(name)).toEqual([])
  })

  test('by several at once is made by one', async () => {
    const to = await queue()
    const name = `schedule-${n++}`
    const all = await Promise.all(
      [schedules, ticker().schedules, schedules].map((each) => each.schedule(name, '@daily', { queue: to })),
    )
    expect(all.filter((made) => made)).toHaveLength(1)
  })

  test('to a queue that is not there rejects', async () => {
    await expect(schedules.schedule('nowhere', '@daily', { queue: 'not-there' })).rejects.toMatchObject({
      code: 'NOT_FOUND',
    })
    expect(await schedules.get('nowhere')).toBeNull()
  })

  const wrong = (name: unknown, expression: unknown, options: unknown) =>
    schedules.schedule(name as string, expression as string, options as ScheduleOptions)

  test.each([
    [7],
    [''],
    ['* * * *'],
    ['* * * * * * *'],
    ['61 * * * *'],
    ['*/0 * * * *'],
    ['0 9 * * MOM'],
    ['@fortnightly'],
    ['FREQ=DAILY'],
    ['H * * * *'],
    ['0 H(1-5) * * *'],
    ['0 0 30 2 *'],
    ['0 0 31 4,6 *'],
    ['every day'],
  ])('refuses the cron %j, and shows a right one', async (expression) => {
    const refused = {
      code: 'INVALID_ARGUMENT',
      field: 'cron',
      message: expect.stringContaining("'0 9 * * 1-5' (minute hour"),
    }
    await expect(wrong('bad', expression, { queue: 'any' })).rejects.toMatchObject(refused)
    expect(() => schedules.preview(expression as string)).toThrow(expect.objectContaining(refused))
  })

  test('says of a cron what is wrong with it', () => {
    expect(() => schedules.preview('0 0 30 2 *')).toThrow('never comes')
    expect(() => schedules.preview('61 * * * *')).toThrow('0-59')
    expect(() => schedules.preview('H * * * *')).toThrow('without H')
  })

  test.each([
    '0 9 * * THU',
    '@weekly',
    '*/10 * * * * *',
    '0 0 L * *',
    '0 9 * 3 1#2',
    '0 0 29 2 *',
    '15,45 8-18 ? * MON-FRI',
  ])('takes %s', async (expression) => {
    expect(await schedules.schedule(`takes ${expression}`, expression, { queue: await queue() })).toBe(true)
  })

  test.each([[7], [null], [''], ['Europe/Berln'], ['local'], ['UTC+2'], ['+02:00']])(
    'refuses the time zone %j, and shows a right one',
    async (timezone) => {
      const refused = {
        code: 'INVALID_ARGUMENT',
        field: 'timezone',
        message: expect.stringContaining("'Europe/Berlin'"),
      }
      await expect(wrong('bad', '* * * * *', { queue: 'any', timezone })).rejects.toMatchObject(refused)
      expect(() => schedules.preview('* * * * *', timezone as string)).toThrow(expect.objectContaining(refused))
    },
  )

  test.each([
    ['name', ['', '* * * * *', { queue: 'any' }]],
    ['name', ['a\tb', '* * * * *', { queue: 'any' }]],
    ['queue', ['bad', '* * * * *', undefined]],
    ['queue', ['bad', '* * * * *', { queue: 7 }]],
    ['queue', ['bad', '* * * * *', { queue: 'not a name' }]],
    ['missed', ['bad', '* * * * *', { queue: 'any', missed: 'twice' }]],
    ['data', ['bad', '* * * * *', { queue: 'any', data: 'x'.repeat(1_048_577) }]],
    ['data', ['bad', '* * * * *', { queue: 'any', data: '\0' }]],
    ['data', ['bad', '* * * * *', { queue: 'any', data: () => {} }]],
  ])('refuses a wrong %s, and names it', async (field, [name, expression, options]) => {
    const refused = { code: 'INVALID_ARGUMENT', field, message: expect.stringContaining(`\`${field}\``) }
    await expect(wrong(name, expression, options)).rejects.toMatchObject(refused)
  })
})

describe('looking', () => {
  test('unschedule says whether there was one; what is not there is null', async () => {
    const name = await scheduled('@daily', new Date())
    expect([await schedules.unschedule(name), await schedules.unschedule(name)]).toEqual([true, false])
    expect(await schedules.get(name)).toBeNull()
  })

  test('schedules come in the order of their code points, by prefix, a page at a time', async () => {
    const to = await queue()
    const names = ['look/A', 'look/a', 'look/%', 'look/ä', 'look/b', 'other']
    for (const name of names) await schedules.schedule(name, '@daily', { queue: to })
    const list = async (page?: object) => (await schedules.list(page)).map(({ name }) => name)
    expect(await list()).toEqual(['look/%', 'look/A', 'look/a', 'look/b', 'look/ä', 'other'])
    expect(await list({ prefix: 'look/', limit: 2, after: 'look/A' })).toEqual(['look/a', 'look/b'])
    expect(await schedules.list({ prefix: 'other' })).toEqual([await state('other')])
    await expect(schedules.list({ limit: 0 })).rejects.toMatchObject({ field: 'limit' })
    await expect(schedules.list({ limit: 1_001 })).rejects.toMatchObject({ field: 'limit' })
  })

  test('preview computes the next slots, without the database', () => {
    const ahead = schedules.preview('* * * * *')
    expect(ahead).toHaveLength(5)
    expect(ahead.map((slot) => +slot - +(ahead[0] as Date))).toEqual([0, MINUTE, 2 * MINUTE, 3 * MINUTE, 4 * MINUTE])
    const [noon] = schedules.preview('0 12 * * *', 'Asia/Kolkata', 1)
    expect(noon?.toISOString().slice(11, 16)).toBe('06:30')
    expect(schedules.preview('* * * * *', 'Europe/Berlin', 1_000)).toHaveLength(1_000)
    for (const wrong of [0, 1_001, 1.5, '5']) {
      expect(() => schedules.preview('* * * * *', 'UTC', wrong as number)).toThrow(
        expect.objectContaining({ field: 'n' }),
      )
    }
  })
})
