/**
 * Cron expressions: what their fields say, and the local times that match. A local time here is a number of milliseconds as if the
 * clock on the wall were UTC; slots.ts turns it into an instant.
 *
 *     minute hour day month weekday        with six fields the first is the second
 *     *  ?  5  1-5  *\/10  1-30/5  5/15    each a list: 1,15,1-3; months and weekdays have names; Sunday is 0 and 7
 *     L  L-3  LW  15W                      days: the last, the third before it, the last weekday, the weekday nearest to the 15th
 *     5L  MON#1                            weekdays: the last Friday of a month, the first Monday
 *
 * DAY AND WEEKDAY. A day must match both fields if either of them begins with a `*` (or `?`, which is the same), also as in `*\/2`.
 * If neither does, it must match one of them. That is what Debian's cron does: `0 0 1 * 1` is the first and every Monday, and
 * `0 0 *\/2 * 1` is those Mondays that have an odd date.
 */
import { BoundedMap } from '../../base/index.ts'

interface Field {
  name: string
  min: number
  max: number
  /** How many different values it has: the largest step. */
  size: number
  names?: string[]
}

/** A month: its number of days, and the weekday of its first. */
interface Month {
  days: number
  first: number
}
/** A day of that month; of one that it does not have, any other number. */
type DayOf = (month: Month) => number

const SECOND: Field = { name: 'second', min: 0, max: 59, size: 60 }
const MINUTE: Field = { name: 'minute', min: 0, max: 59, size: 60 }
const HOUR: Field = { name: 'hour', min: 0, max: 23, size: 24 }
const DAY: Field = { name: 'day', min: 1, max: 31, size: 31 }
const MONTHS = ['', 'JAN', 'FEB', 'MAR', 'APR', 'MAY', 'JUN', 'JUL', 'AUG', 'SEP', 'OCT', 'NOV', 'DEC']
const MONTH: Field = { name: 'month', min: 1, max: 12, size: 12, names: MONTHS }
const WEEKDAYS = ['SUN', 'MON', 'TUE', 'WED', 'THU', 'FRI', 'SAT']
const WEEKDAY: Field = { name: 'weekday', min: 0, max: 7, size: 7, names: WEEKDAYS }

const WORDS: Record<string, string> = {
  ...{ '@YEARLY': '0 0 1 1 *', '@ANNUALLY': '0 0 1 1 *', '@MONTHLY': '0 0 1 * *', '@WEEKLY': '0 0 * * 0' },
  ...{ '@DAILY': '0 0 * * *', '@MIDNIGHT': '0 0 * * *', '@WEEKDAYS': '0 0 * * 1-5', '@WEEKENDS': '0 0 * * 0,6' },
  ...{ '@HOURLY': '0 * * * *', '@MINUTELY': '* * * * *', '@SECONDLY': '* * * * * *' },
}

const DAY_MS = 86_400_000
const MINUTE_MS = 60_000
// The calendar repeats itself after 400 years, weekdays too: what does not come in these never comes.
const CYCLE_MONTHS = 4_800

export class CronExpression {
  /** Whether the minute or the hour begins with a `*`: it follows the clock on the wall (slots.ts). */
  readonly wild: boolean
  readonly #seconds: number[]
  readonly #minutes: number[]
  readonly #hours: number[]
  readonly #months: Set<number>
  readonly #days: DayOf[]
  readonly #weekdays: DayOf[]
  readonly #both: boolean

  /** @throws {Error} a message that says which field is wrong, and what it may be. */
  constructor(text: string) {
    const word = text.toUpperCase()
    if (word.startsWith('@') && !WORDS[word])
      throw new Error(`the words are ${Object.keys(WORDS).join(' ').toLowerCase()}`)
    const fields = (WORDS[word] ?? word).split(' ')
    if (fields.length === 5) fields.unshift('0')
    if (fields.length !== 6) throw new Error(`it has ${fields.length} fields, not five or six`)
    const [second, minute, hour, day, month, weekday] = fields as [string, string, string, string, string, string]
    const wild = (field: string) => /^[*?]/.test(field)
    this.wild = wild(minute) || wild(hour)
    this.#both = wild(day) || wild(weekday)
    this.#seconds = values(SECOND, second)
    this.#minutes = values(MINUTE, minute)
    this.#hours = values(HOUR, hour)
    this.#months = new Set(values(MONTH, month))
    this.#days = day.split(',').flatMap((item) => specialDay(item) ?? range(DAY, item).map((n) => () => n))
    this.#weekdays = weekday
      .split(',')
      .flatMap((item) => specialWeekday(item) ?? range(WEEKDAY, item).flatMap(eachWeek))
  }

  /** The first local time that matches, `from` or later, in milliseconds; null: none ever does. */
  next(from: number): number | null {
    const begin = new Date(from)
    const [year, month] = [begin.getUTCFullYear(), begin.getUTCMonth()]
    for (let n = 0; n <= CYCLE_MONTHS; n++) {
      if (!this.#months.has(((month + n) % 12) + 1)) continue
      const first = Date.UTC(year, month + n)
      const days = this.#daysOf({
        days: (Date.UTC(year, month + n + 1) - first) / DAY_MS,
        first: new Date(first).getUTCDay(),
      })
      for (let day = Math.max(0, Math.floor((from - first) / DAY_MS)); days >> day !== 0 && day < 31; day++) {
        const time = (days >> day) & 1 ? this.#time(from - first - day * DAY_MS) : null
        if (time !== null) return first + day * DAY_MS + time
      }
    }
    return null
  }

  /** The days of a month that match, a bit each: the lowest is the first. */
  #daysOf(month: Month): number {
    const bits = (days: DayOf[]) =>
      days
        .map((dayOf) => dayOf(month))
        .reduce((all, day) => (day >= 1 && day <= month.days ? all | (1 << (day - 1)) : all), 0)
    const [days, weekdays] = [bits(this.#days), bits(this.#weekdays)]
    return this.#both ? days & weekdays : days | weekdays
  }

  /** The first time of a day that matches, `from` or later, in milliseconds; null: the day has none. */
  #time(from: number): number | null {
    for (const hour of this.#hours) {
      if ((hour + 1) * 60 * MINUTE_MS <= from) continue
      for (const minute of this.#minutes) {
        const begin = (hour * 60 + minute) * MINUTE_MS
        if (begin + MINUTE_MS <= from) continue
        for (const second of this.#seconds) if (begin + second * 1_000 >= from) return begin + second * 1_000
      }
    }
    return null
  }
}

/** @throws {Error} a step is larger than its field: it would be another rule than it says, as `*\/90` in the minute is each hour. */
export function checkSteps(text: string): void {
  const fields = text.split(' ')
  const kinds = [SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY].slice(6 - fields.length)
  for (const [i, field] of kinds.entries()) {
    const wide = fields[i]?.split(',').find((item) => Number(item.split('/')[1] ?? 1) > field.size)
    if (wide !== undefined) throw wrongStep(field, wide)
  }
}

const wrongStep = ({ name, size }: Field, item: string) =>
  new Error(`the step of ${JSON.stringify(item)} in the ${name} must be 1-${size}`)

const parsed = new BoundedMap<string, CronExpression>(500)

/** Returns what an expression says; its fields have single spaces between them. @throws {Error} as the constructor. */
export function parseCron(text: string): CronExpression {
  const known = parsed.get(text) ?? new CronExpression(text)
  parsed.set(text, known)
  return known
}

function values(field: Field, text: string): number[] {
  return [...new Set(text.split(',').flatMap((item) => range(field, item)))].sort((a, b) => a - b)
}

/** The values of one item of a list: `*`, a value, a range, with a step or without. */
function range(field: Field, item: string): number[] {
  const { name, min, max, size } = field
  const match = /^(?:([*?])|([A-Z\d]+)(?:-([A-Z\d]+))?)(?:\/(\d+))?$/.exec(item)
  if (!match) throw new Error(`${JSON.stringify(item)} is no ${name}: ${expected(field)}`)
  const [, all, begin = '', end, by] = match
  const step = Number(by ?? 1)
  if (step < 1) throw wrongStep(field, item)
  const first = all ? min : numberOf(field, begin)
  let last = all ? min + size - 1 : first
  if (end !== undefined) last = numberOf(field, end)
  else if (by !== undefined && !all) last = max
  if (end === 'SUN' && first > 0) last = 7
  if (last < first) throw new Error(`the range ${JSON.stringify(item)} in the ${name} goes down`)
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => first + i * step)
}

function numberOf(field: Field, text: string): number {
  const named = text === '' ? -1 : (field.names?.indexOf(text) ?? -1)
  const value = named < 0 && /^\d+$/.test(text) ? Number(text) : named
  if (value >= field.min && value <= field.max) return value
  throw new Error(`${JSON.stringify(text)} is no ${field.name}: ${expected(field)}`)
}

const expected = ({ min, max, names }: Field) =>
  `it must be ${min}-${max}${names ? `, or a name like ${names[1]}` : ''}`

function specialDay(item: string): DayOf | undefined {
  const [all, before = '0', last, date, near] = /^(?:L(?:-(\d+))?(W?)|(\d+)(W))$/.exec(item) ?? []
  if (all === undefined) return undefined
  const exact = date === undefined ? 0 : numberOf(DAY, date)
  if (Number(before) > 30) throw new Error(`${JSON.stringify(item)} is no day: at most L-30`)
  const dayOf: DayOf = ({ days }) => exact || days - Number(before)
  return last || near ? (month) => nearestWorkday(dayOf(month), month) : dayOf
}

/** Monday to Friday, in the same month. */
function nearestWorkday(day: number, { days, first }: Month): number {
  const weekday = (first + day - 1) % 7
  if (day < 1 || day > days) return 0
  if (weekday === 6) return day > 1 ? day - 1 : day + 2
  if (weekday === 0) return day < days ? day + 1 : day - 2
  return day
}

function specialWeekday(item: string): DayOf | undefined {
  const [, begin, nth] = /^([A-Z\d]+?)(?:L|#(\d+))$/.exec(item) ?? []
  if (begin === undefined) return undefined
  if (nth !== undefined && !/^[1-5]$/.test(nth))
    throw new Error(`${JSON.stringify(item)} is no weekday: # goes from 1 to 5`)
  const dates = eachWeek(numberOf(WEEKDAY, begin))
  if (nth !== undefined) return dates[Number(nth) - 1]
  return (month) => Math.max(...dates.map((dayOf) => dayOf(month)).filter((day) => day <= month.days))
}

/** The days of a month that are this weekday: at most five. */
function eachWeek(weekday: number): DayOf[] {
  return [0, 1, 2, 3, 4].map(
    (week) =>
      ({ first }: Month) =>
        1 + ((weekday - first + 7) % 7) + week * 7,
  )
}
