/** Which instants a cron expression means, what it may say, and that a walk along slots always ends. */
import { describe, expect, test } from 'vitest'
import { checkCron, type Finder, slotAfter, stepTo } from '../../lib/task/schedule/slots.ts'

const at = (text: string) => new Date(`${text}Z`)
const iso = (slot: Date | null) => slot?.toISOString().replace(/(:00)?\.000Z$/, '')

/** The first slots after an instant. */
function slots(cron: string, after: string, count: number, timezone = 'UTC'): (string | undefined)[] {
  const found: Date[] = []
  for (let n = 0; n < count; n++) found.push(slotAfter({ cron: checkCron(cron), timezone }, found.at(-1) ?? at(after)))
  return found.map(iso)
}

describe('when the clocks change', () => {
  test.each([
    ['@weekly', 'Atlantic/Azores', '2026-10-25T00:00', '2026-11-01T01:00'], // it came at 0:00, an hour before 0:00
    ['@weekly', 'Atlantic/Azores', '2026-10-24T20:00', '2026-10-25T00:00'],
    ['0 */2 * * *', 'America/Nuuk', '2026-03-28T00:00', '2026-03-28T02:00'],
    ['0 22 * * *', 'America/Nuuk', '2026-03-28T00:00', '2026-03-29T00:00'],
    ['*/30 * * * *', 'Australia/Lord_Howe', '2026-10-03T15:00', '2026-10-03T15:30'],
    ['10,20 * * * *', 'Australia/Lord_Howe', '2026-04-04T14:20', '2026-04-04T15:40'],
    ['*/15 * 1-7 * *', 'America/Havana', '2026-11-01T04:00', '2026-11-01T04:15'],
    ['30 2 * * *', 'Europe/Berlin', '2026-03-28T12:00', '2026-03-29T01:00'], // skipped: at 3:00, the end of the gap
    ['0,20,40 2 * * *', 'Europe/Berlin', '2026-03-29T01:00', '2026-03-30T00:00'], // once, not three times
    ['0 2,3 * * *', 'Europe/Berlin', '2026-03-29T01:00', '2026-03-30T00:00'], // with the 3:00 that there is
    ['*/10 30 2 * * *', 'Europe/Berlin', '2026-03-29T01:00', '2026-03-30T00:30'], // with seconds too
    ['30 2 * * *', 'Europe/Berlin', '2026-10-25T00:30', '2026-10-26T01:30'], // repeated: the first time
    ['*/30 2 * * *', 'Europe/Berlin', '2026-03-28T12:00', '2026-03-30T00:00'], // follows the wall, which shows no 2:30
    ['*/30 2 * * *', 'Europe/Berlin', '2026-10-25T00:30', '2026-10-25T01:00'], // and shows 2:00 twice
    ['30 23 * * 6', 'America/Nuuk', '2026-03-28T00:00', '2026-03-29T01:00'], // Saturday's, at 0:00 of Sunday
    ['0 0 1 * *', 'Asia/Beirut', '2026-03-28T00:00', '2026-03-31T21:00'],
    ['0 0 29 3 *', 'Asia/Beirut', '2026-03-28T00:00', '2026-03-28T22:00'], // a day without midnight: at 1:00
    ['0 9 * * *', 'Pacific/Apia', '2011-12-29T19:00', '2011-12-30T19:00'], // 29 December, then 31: the 30th was not
    ['0 9 30 12 *', 'Pacific/Apia', '2011-01-01T00:00', '2012-12-29T19:00'],
    ['30 4 * * *', 'Antarctica/Casey', '2018-03-10T00:00', '2018-03-10T20:30'], // back by three hours, at 4:00
    ['30 2 * * *', 'Antarctica/Casey', '2018-03-10T16:00', '2018-03-11T18:30'], // 2:30 came already
  ])('%s in %s, after %s, is due at %s', (cron, timezone, after, expected) => {
    expect(slots(cron, after, 1, timezone)).toEqual([expected])
  })

  test('between two years, in a zone without changes, and where local time was that of the sun', () => {
    expect(slots('30 0 1 1 *', '2025-12-31T00:00', 2, 'Asia/Kathmandu')).toEqual([
      '2025-12-31T18:45',
      '2026-12-31T18:45',
    ])
    expect(slots('0 12 * * *', '1971-12-31T00:00', 1, 'Africa/Monrovia')).toEqual(['1971-12-31T12:44:30'])
    expect(slots('0 0 29 2 *', '2026-01-01T00:00', 3, 'Europe/Berlin')).toEqual([
      ...['2028-02-28T23:00', '2032-02-28T23:00', '2036-02-28T23:00'],
    ])
  })
})

// Sunday, 1 November 2026; the first days of the months that follow are a Tuesday, a Friday and a Monday.
const NOVEMBER = '2026-10-31T23:59'
describe('an expression may say', () => {
  test.each([
    ['0 0 1,1,15 * *', ['2026-11-01', '2026-11-15', '2026-12-01']],
    ['0 0 15,1 * *', ['2026-11-01', '2026-11-15', '2026-12-01']],
    ['0 9-17,12 1 * *', ['2026-11-01T09', '2026-11-01T10', '2026-11-01T11', '2026-11-01T12', '2026-11-01T13']],
    ['0 0 * * MON-FRI,WED', ['2026-11-02', '2026-11-03', '2026-11-04', '2026-11-05', '2026-11-06', '2026-11-09']],
    ['0 0 * * MON-SUN', ['2026-11-01', '2026-11-02', '2026-11-03']],
    ['0 0 * * SAT-SUN', ['2026-11-01', '2026-11-07', '2026-11-08']],
    ['0 0 * * 5-7', ['2026-11-01', '2026-11-06', '2026-11-07', '2026-11-08']],
    ['0 0 * * 7', ['2026-11-01', '2026-11-08']],
    ['0 0 * * 1/2', ['2026-11-01', '2026-11-02', '2026-11-04', '2026-11-06', '2026-11-08']],
    ['0 0 * * */2', ['2026-11-01', '2026-11-03', '2026-11-05', '2026-11-07', '2026-11-08']],
    ['@midnight', ['2026-11-01', '2026-11-02']],
    ['@DAILY', ['2026-11-01', '2026-11-02']],
    ['@Weekdays', ['2026-11-02', '2026-11-03']],
    ['@weekends', ['2026-11-01', '2026-11-07']],
    ['@monthly', ['2026-11-01', '2026-12-01']],
    ['@annually', ['2027-01-01', '2028-01-01']],
    ['@secondly', ['2026-10-31T23:59:01', '2026-10-31T23:59:02']],
    ['0 0 L * *', ['2026-11-30', '2026-12-31', '2027-01-31', '2027-02-28']],
    ['0 0 l * *', ['2026-11-30']],
    ['0 0 15,L * *', ['2026-11-15', '2026-11-30', '2026-12-15']],
    ['0 0 L-3 * *', ['2026-11-27', '2026-12-28', '2027-01-28', '2027-02-25']],
    ['0 0 LW * *', ['2026-11-30', '2026-12-31', '2027-01-29', '2027-02-26']],
    ['0 0 15W * *', ['2026-11-16', '2026-12-15', '2027-01-15', '2027-02-15']],
    ['0 0 1W * *', ['2026-11-02', '2026-12-01', '2027-01-01']],
    ['0 0 1w 5 *', ['2027-05-03']], // a Saturday: not in April
    ['0 0 31W * *', ['2026-12-31', '2027-01-29']], // a Sunday: not in February; and no month of 30 days
    ['0 0 * * 5L', ['2026-11-27', '2026-12-25', '2027-01-29']],
    ['0 0 * * fril', ['2026-11-27', '2026-12-25']],
    ['0 0 * * MON#1,MON#3', ['2026-11-02', '2026-11-16', '2026-12-07', '2026-12-21']],
    ['0 0 * * 0#5', ['2026-11-29', '2027-01-31']],
    ['0 0 * * 1#2,5', ['2026-11-06', '2026-11-09', '2026-11-13']],
    ['0 0 1 JAN-mar/2 ?', ['2027-01-01', '2027-03-01']],
    ['5/20 * * * *', ['2026-11-01T00:05', '2026-11-01T00:25', '2026-11-01T00:45', '2026-11-01T01:05']],
    ['*/60 */24 * * *', ['2026-11-01', '2026-11-02']],
    ['0,30 0 0 1 * *', ['2026-11-01', '2026-11-01T00:00:30', '2026-12-01']],
  ])('%s', (cron, days) => {
    const expected = days.map((day) => (day.length === 10 ? `${day}T00:00` : day.length === 13 ? `${day}:00` : day))
    expect(slots(cron, NOVEMBER, days.length)).toEqual(expected)
  })

  // The first field that begins with a star decides, as in Debian's cron.
  test.each([
    ['0 0 1,15 * 1', ['2026-11-01', '2026-11-02', '2026-11-09', '2026-11-15', '2026-11-16']], // one of them
    ['0 0 1-31/2 * 1', ['2026-11-01', '2026-11-02', '2026-11-03', '2026-11-05', '2026-11-07', '2026-11-09']],
    ['0 0 */2 * 1', ['2026-11-09', '2026-11-23', '2026-12-07', '2026-12-21']], // both: Mondays with an odd date
    ['0 0 1,15 * */2', ['2026-11-01', '2026-11-15', '2026-12-01', '2026-12-15']], // both: on Sunday, Tuesday, …
    ['0 0 */2 * */3', ['2026-11-01', '2026-11-07', '2026-11-11', '2026-11-15']],
    ['0 0 13 * ?', ['2026-11-13', '2026-12-13']],
  ])('a day and a weekday: %s', (cron, days) => {
    expect(slots(cron, NOVEMBER, days.length)).toEqual(days.map((day) => `${day}T00:00`))
  })

  test.each([
    ['*/90 * * * *', 'the step of "*/90" in the minute must be 1-60'],
    ['0 */25 * * *', 'the step of "*/25" in the hour must be 1-24'],
    ['0 0 1/32 * *', 'the step of "1/32" in the day must be 1-31'],
    ['0 0 1 */13 *', 'the step of "*/13" in the month must be 1-12'],
    ['0 0 * * */8', 'the step of "*/8" in the weekday must be 1-7'],
    ['*/61 * * * * *', 'the step of "*/61" in the second must be 1-60'],
    ['*/0 * * * *', 'must be 1-60'],
    ['60 * * * *', '"60" is no minute: it must be 0-59'],
    ['0 0 0 * *', '"0" is no day: it must be 1-31'],
    ['0 0 32W * *', '"32" is no day'],
    ['0 0 L-31 * *', 'at most L-30'],
    ['0 0 * 13 *', '"13" is no month: it must be 1-12, or a name like JAN'],
    ['0 0 * * 8', '"8" is no weekday: it must be 0-7, or a name like MON'],
    ['0 0 * * MON#6', '# goes from 1 to 5'],
    ['0 0 * * L', '"L" is no weekday'],
    ['0 0 * * FRI-MON', 'goes down'],
    ['0 17-9 * * *', 'the range "17-9" in the hour goes down'],
    ['1,,2 * * * *', '"" is no minute'],
    ['1-2-3 * * * *', '"1-2-3" is no minute'],
    ['-1 * * * *', '"-1" is no minute'],
    ['1.5 * * * *', '"1.5" is no minute'],
    ['JAN * * * *', '"JAN" is no minute'],
    ['0 0 * FOO *', '"FOO" is no month'],
    ['0 0 30 2 *', 'it never comes'],
    ['0 0 31 4,6 */2', 'it never comes'],
    ['0 0 31W 6 *', 'it never comes'],
    ['@reboot', 'the words are @yearly @annually'],
    ['* * * *', 'it has 4 fields'],
  ])('but not %s', (cron, why) => {
    expect(() => checkCron(cron)).toThrow(
      expect.objectContaining({ field: 'cron', message: expect.stringContaining(why) }),
    )
  })
})

test('an expression of more than 1,024 characters is refused', () => {
  expect(checkCron(`${'1,'.repeat(507)}1 * * * *`)).toHaveLength(1_023)
  expect(() => checkCron(`${'1,'.repeat(508)}1 * * * *`)).toThrow('at most 1,024 characters')
})

describe('a walk ends, whatever the finder says:', () => {
  const RULE = { cron: '10,20 * * * *', timezone: 'UTC' }
  const [FIRST, NOW] = [at('2026-04-04T14:10'), at('2026-04-04T18:00')]
  const minutes = (n: number) => new Date(+FIRST + n * 60_000)
  /** Finds the slots of a list, in its order. */
  const listed = (...found: (Date | null)[]): Finder => {
    const rest = [...found]
    return () => rest.shift() as Date | null
  }

  test('a slot before the one before (14:10, 14:20, 14:10, …)', async () => {
    const circle: Finder = (_, after) => (+after === +FIRST ? minutes(10) : FIRST)
    expect(await stepTo(NOW, RULE, 'all', FIRST, circle)).toEqual({
      ...{ send: [FIRST, minutes(10)], missed: 0, lastMissed: null, next: null },
      error: 'Of the slot after 2026-04-04T14:20:00.000Z no later one was found',
    })
    expect(await stepTo(NOW, RULE, 'once', FIRST, circle)).toMatchObject({ send: [minutes(10)], missed: 1, next: null })
    expect(await stepTo(NOW, RULE, 'skip', FIRST, circle)).toMatchObject({ send: [], missed: 2, next: null })
  })

  test('the same slot again, at once', async () => {
    const step = await stepTo(NOW, RULE, 'all', FIRST, (_, after) => after)
    expect(step).toMatchObject({ send: [], missed: 1, lastMissed: FIRST, next: null, error: expect.any(String) })
  })

  test('an error after two slots: they are sent', async () => {
    const find = listed(minutes(1))
    const fails: Finder = (rule, after) => {
      const slot = find(rule, after)
      if (slot === undefined) throw new Error('no more')
      return slot
    }
    const step = await stepTo(NOW, RULE, 'all', FIRST, fails)
    expect(step).toMatchObject({ send: [FIRST, minutes(1)], missed: 0, next: null, error: 'no more' })
  })

  test('no slot any more: no error', async () => {
    const step = await stepTo(NOW, RULE, 'all', FIRST, listed(minutes(1), null))
    expect(step).toEqual({ send: [FIRST, minutes(1)], missed: 0, lastMissed: null, next: null, error: null })
  })

  test('a circle behind the 2,000 that are looked at one by one', async () => {
    const now = new Date(+FIRST + 3_000 * 60_000)
    const find: Finder = (_, after) => (+after < +minutes(2_500) ? new Date(+after + 60_000) : FIRST)
    const step = await stepTo(now, RULE, 'skip', FIRST, find)
    expect(step).toMatchObject({ send: [], missed: 2_000, error: expect.stringContaining('no later one') })
    expect(step.next).toEqual(minutes(2_000))
  })

  test('one that is slow: what it has found, and a later tick goes on from there', async () => {
    const slow: Finder = (_, after) => {
      for (const end = performance.now() + 400; performance.now() < end; );
      return new Date(+after + 60_000)
    }
    const { send, missed, next } = await stepTo(NOW, RULE, 'all', FIRST, slow)
    expect(send.length).toBeGreaterThan(0)
    expect(send.length).toBeLessThan(4)
    expect([missed, next]).toEqual([0, minutes(send.length)])
    const once = await stepTo(NOW, RULE, 'once', FIRST, slow)
    expect(once).toMatchObject({ send: [], missed: expect.any(Number), next: minutes(once.missed), error: null })
  })

  test('the last of very many late slots is found though they are far away', async () => {
    const rule = { cron: '* * * * 1 *', timezone: 'Europe/Berlin' } // each second of January
    const step = await stepTo(at('2026-02-27T00:00'), rule, 'once', at('2025-12-31T23:00'))
    expect(step).toMatchObject({
      send: [at('2026-01-31T22:59:59')],
      lastMissed: at('2026-01-31T22:59:58'),
      missed: 1_999,
    })
    expect(step.next).toEqual(at('2026-12-31T23:00'))
  })
})
