/**
 * A second implementation of cron, which does what Debian's does: it lives through every minute and looks at the clock on the wall.
 * It shares no code with lib/task/schedule/, is a thousand times slower, and is compared with it by zones.test.ts.
 *
 * It reads what `randomCron` writes, and not more.
 */

const HOUR = 3_600_000
const MINUTE = 60_000

/** What the clock on the wall shows. */
interface Wall {
  /** Minutes since 1970, as if the clock showed UTC. */
  minutes: number
  minute: number
  hour: number
  day: number
  month: number
  weekday: number
  lastDay: number
}

/** What the clock shows at each minute from `begin`, `hours` long. */
export function wallClock(timezone: string, begin: number, hours: number): Wall[] {
  const format = new Intl.DateTimeFormat('en', {
    ...{ timeZone: timezone, hourCycle: 'h23', year: 'numeric', month: 'numeric', day: 'numeric' },
    ...{ hour: 'numeric', minute: 'numeric' },
  })
  return Array.from({ length: hours * 4 }, (_, quarter) => {
    const from = begin + quarter * 15 * MINUTE
    const first = shown(format, from)
    const steady = shown(format, from + 15 * MINUTE) === first + 15 * MINUTE
    return Array.from({ length: 15 }, (_, i) => wallOf(steady ? first + i * MINUTE : shown(format, from + i * MINUTE)))
  }).flat()
}

/** Reads `11/30/2026, 23:59`: that time, as if it were UTC. */
function shown(format: Intl.DateTimeFormat, at: number): number {
  const [month = 0, day, year = 0, hour, minute] = format.format(at).split(/\D+/).map(Number)
  return Date.UTC(year, month - 1, day, hour, minute)
}

const known = new Map<number, Wall>()
function wallOf(time: number): Wall {
  const date = new Date(time)
  const wall = known.get(time) ?? {
    ...{ minutes: time / MINUTE, minute: date.getUTCMinutes(), hour: date.getUTCHours(), day: date.getUTCDate() },
    ...{ month: date.getUTCMonth() + 1, weekday: date.getUTCDay() },
    lastDay: new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1, 0)).getUTCDate(),
  }
  known.set(time, wall)
  return wall
}

/** The slots of an expression among the minutes of `walls`, in milliseconds since the first; those of the first 4 hours are left out. */
export function naiveSlots(cron: string, walls: Wall[]): number[] {
  const fields = cron.split(' ')
  const seconds = fields.length === 6 ? (fields.shift() as string).split(',').map(Number) : [0]
  const [minute, hour, day, month, weekday] = fields as [string, string, string, string, string]
  const [minutes, hours, months] = [plain(minute, 0, 59), plain(hour, 0, 23), plain(month, 1, 12)]
  const [days, weekdays] = [dayMatcher(day), weekdayMatcher(weekday)]
  const both = day.startsWith('*') || weekday.startsWith('*')
  const matches = (wall: Wall) => {
    if (!minutes[wall.minute] || !hours[wall.hour] || !months[wall.month]) return false
    return both ? days(wall) && weekdays(wall) : days(wall) || weekdays(wall)
  }
  const followsTheWall = minute.startsWith('*') || hour.startsWith('*')
  const slots: number[] = []
  let furthest = -Infinity // the latest time that the clock has shown
  for (const [i, wall] of walls.entries()) {
    const before = walls[i - 1]?.minutes ?? wall.minutes - 1
    const change = wall.minutes - before - 1
    const correction = Math.abs(change) > 3 * 60
    if (correction) furthest = wall.minutes - 1
    let owed = false
    if (!followsTheWall && !correction) {
      for (let skipped = before + 1; skipped < wall.minutes; skipped++) owed ||= matches(wallOf(skipped * MINUTE))
    }
    const due = (followsTheWall || wall.minutes > furthest) && matches(wall)
    furthest = Math.max(furthest, wall.minutes)
    if (i < 4 * 60) continue
    if (owed && !(due && seconds.includes(0))) slots.push(i * MINUTE)
    if (due) for (const second of seconds) slots.push(i * MINUTE + second * 1_000)
  }
  return slots
}

/** For each number, whether the field has it. */
function plain(field: string, min: number, max: number): boolean[] {
  const found = Array.from({ length: 60 }, () => false)
  for (const item of field.split(',')) {
    const [span = '', step = '1'] = item.split('/')
    const [from = '', to = from] = span === '*' ? [`${min}`, `${max}`] : span.split('-')
    for (let n = +from; n <= +to; n += +step) found[n] = true
  }
  return found
}

type Matcher = (wall: Wall) => boolean
const isWorkday = (weekday: number) => weekday >= 1 && weekday <= 5
const weekdayAt = ({ weekday, day }: Wall, other: number) => (((weekday + other - day) % 7) + 7) % 7

function dayMatcher(field: string): Matcher {
  if (field === 'L') return ({ day, lastDay }) => day === lastDay
  if (field === 'L-3') return ({ day, lastDay }) => day === lastDay - 3
  if (field === 'LW') {
    return (wall) => {
      let last = wall.lastDay
      while (!isWorkday(weekdayAt(wall, last))) last--
      return wall.day === last
    }
  }
  if (field.endsWith('W')) {
    const date = Number.parseInt(field, 10)
    return (wall) => {
      const near = [0, -1, 1, -2, 2].map((by) => date + by).filter((day) => day >= 1 && day <= wall.lastDay)
      return date <= wall.lastDay && wall.day === near.find((day) => isWorkday(weekdayAt(wall, day)))
    }
  }
  const days = plain(field, 1, 31)
  return ({ day }) => days[day] as boolean
}

function weekdayMatcher(field: string): Matcher {
  if (field.endsWith('L'))
    return ({ weekday, day, lastDay }) => weekday === +(field[0] as string) % 7 && day > lastDay - 7
  if (field.includes('#')) {
    return ({ weekday, day }) =>
      field.split(',').some((each) => weekday === +(each[0] as string) && Math.ceil(day / 7) === +(each[2] as string))
  }
  const weekdays = plain(field, 0, 6)
  return ({ weekday }) => (weekdays[weekday] || (weekday === 0 && weekdays[7])) as boolean
}

/** A source of expressions: the same seed gives the same ones. */
export function randomCron(seed: number): () => string {
  let state = seed
  const upTo = (n: number) => {
    state = (state * 48_271) % 2_147_483_647
    return state % n
  }
  const one = <T>(...choices: T[]) => choices[upTo(choices.length)] as T
  const number = (min: number, max: number) => min + upTo(max - min + 1)
  const field = (min: number, max: number, star: number): string => {
    if (upTo(10) < star) return upTo(3) === 0 ? `*/${number(2, Math.ceil((max - min) / 2))}` : '*'
    const from = number(min, max)
    const some = () => Array.from({ length: number(2, 4) }, () => number(min, max)).join(',')
    return one(
      `${from}`,
      `${from}`,
      some(),
      `${from}-${number(from, max)}`,
      `${from}-${max}/${number(1, 5)}`,
      `${min}-${from},${max}`,
    )
  }
  return () => {
    const seconds = upTo(8) === 0 ? [`${one('30', '0,59', '7')}`] : []
    const hour = upTo(3) === 0 ? one('0', '1', '2', '3', '23', '1-3', '0,2', '22-23', '0-1') : field(0, 23, 4)
    const day = upTo(6) === 0 ? one('L', 'LW', 'L-3', '1W', '15W', '31W') : field(1, 31, 6)
    const weekday = upTo(6) === 0 ? one('0L', '5L', '7L', '1#2', '0#1,0#5', '6#4') : field(0, 7, 6)
    return [...seconds, field(0, 59, 4), hour, day, field(1, 12, 8), weekday].join(' ')
  }
}

/** An instant at which the clocks of a zone change. */
export interface Change {
  at: number
  before: number
  after: number
}

/** The changes of a zone between two years, to the minute. */
export function changesOf(timezone: string, years: [number, number]): Change[] {
  const format = new Intl.DateTimeFormat('en', {
    ...{ timeZone: timezone, hourCycle: 'h23', year: 'numeric', month: 'numeric', day: 'numeric' },
    ...{ hour: 'numeric', minute: 'numeric' },
  })
  const offset = (at: number) => (shown(format, at) - at) / MINUTE
  const changes: Change[] = []
  const look = (begin: number, end: number, steps: number[]) => {
    const [step = MINUTE, ...finer] = steps
    for (let from = begin; from < end; from += step) {
      const [before, after] = [offset(from), offset(from + step)]
      if (before === after) continue
      if (finer.length > 0) look(from, from + step, finer)
      else changes.push({ at: from + step, before, after })
    }
  }
  look(Date.UTC(years[0], 0), Date.UTC(years[1], 0), [72 * HOUR, HOUR, MINUTE])
  return changes
}
