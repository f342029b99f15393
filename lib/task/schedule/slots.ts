/**
 * Slots: the instants that match a cron expression in a time zone. Nothing here uses a database, and no time but what callers pass.
 *
 * cron-parser finds the slots, through pg-boss. When it walks over a change of the clocks it is right: a daily 2:30 comes once on
 * the day that has none (at 3:30) and once on the day that has two; every hour comes 23 and 25 times. When it begins within a
 * change it is not right, because it knows only the part of the change that it has walked over: begun at 3:00 on the first day,
 * `0,20,40 2 * * *` loses 3:20 and 3:40; begun in the second 1 o'clock of the other day, `30 1 * * *` comes again. So a walk begins
 * before the change, and the slots that it finds again are left out.
 *
 * A slot costs 15–150 µs. A page of slots blocks the event loop for some milliseconds; a long walk yields to the event loop between
 * pages.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { BoundedMap, outOfRange, wrongType } from '../../base/index.ts'
import type { Engine } from '../engine.ts'

type Finder = Pick<Engine, 'previewSchedule'>

/** A cron expression and its time zone. */
export interface Rule {
  cron: string
  timezone: string
}

export const MISSED = ['skip', 'once', 'all'] as const
export type Missed = (typeof MISSED)[number]

/** The slots that are due: those to send, and those that are missed. */
export interface Step {
  send: Date[]
  /** How many are not sent; a lower bound. */
  missed: number
  lastMissed: Date | null
  /** The first slot after those that are sent or missed; null: unknown. */
  next: Date | null
}

// Older slots are late. Ticks may be a minute apart, and one may be lost: that makes 124 s, if they come 2 s early or late.
export const LATE_MS = 150_000
// Slots of one schedule that one tick sends.
const MAX_SLOTS = 1_000
// Late slots that are counted one by one, 0.03–0.3 s: a day of minutes, 12 weeks of hours.
const WALK = 2_000
/** Slots that are found at a time. */
export const PAGE = 100
const HOUR_MS = 3_600_000

const CRON = `a cron expression, like '0 9 * * 1-5' (minute hour day month weekday; with six fields the first is seconds)`

/** Returns the expression with single spaces. @throws {TypeError | RangeError} `field` cron */
export function checkCron(finder: Finder, cron: unknown): string {
  if (typeof cron !== 'string') throw wrongType('cron', CRON, cron)
  const fields = cron.trim().split(/\s+/)
  const word = fields.length === 1 && fields[0]?.startsWith('@')
  if (!word && fields.length !== 5 && fields.length !== 6) throw outOfRange('cron', CRON, cron) // cron-parser would take fewer fields
  // H stands for a random number; the H of THU does not
  if (!word && fields.some((field) => field.replace(/[a-z]{3}/gi, '').includes('H'))) {
    throw outOfRange('cron', `${CRON}, without H, which is another number at each parse`, cron)
  }
  try {
    slotsAfter(finder, { cron: fields.join(' '), timezone: 'UTC' }, new Date(), 1)
  } catch (error) {
    const { message } = error as Error
    const why = /explicit day of month/.test(message) ? 'it never comes: its months have no such day' : message
    throw Object.assign(outOfRange('cron', `${CRON} (${why})`, cron), { cause: error })
  }
  return fields.join(' ')
}

/** @throws {TypeError | RangeError} `field` timezone */
export function checkTimezone(timezone: unknown): asserts timezone is string {
  const expected = `an IANA time zone, like 'Europe/Berlin'`
  if (typeof timezone !== 'string') throw wrongType('timezone', expected, timezone)
  try {
    if (!/^[a-z]/i.test(timezone)) throw new RangeError('an offset has no daylight saving')
    offsetOf(timezone, new Date(0))
  } catch (cause) {
    throw Object.assign(outOfRange('timezone', expected, timezone), { cause })
  }
}

/** The first slots later than `after`, in order: at least one, at most `count`. */
export function slotsAfter(finder: Finder, rule: Rule, after: Date, count: number): Date[] {
  const from = beforeChange(rule.timezone, after)
  try {
    for (let n = count; n <= MAX_SLOTS; n *= 4) {
      const slots = find(finder, rule, from, n).filter((slot) => slot > after)
      if (slots.length > 0) return slots.slice(0, count)
    }
    return find(finder, rule, after, count) // a schedule by the second in some hours: too many slots since before the change
  } catch {
    return [slotAfter(finder, rule, after)] // they are so rare that the time for `count` ran out
  }
}

/**
 * Decides about the slots from `first` to `now`. A slot is late when it is older than 150 s; `missed` says which late slots are
 * sent. All others are sent.
 *
 * Of more than 2,000 late slots only the first 2,000 and the last are looked at: a schedule by the second has 31 million slots in a
 * year. Then the result's `missed` is a lower bound.
 */
export async function stepTo(now: Date, finder: Finder, rule: Rule, missed: Missed, first: Date): Promise<Step> {
  const send: Date[] = []
  let late = 0
  let before: Date | null = null
  let latest: Date | null = null
  for (let start = first, leapt = false; ; leapt = true) {
    for await (const slot of slotsFrom(finder, rule, start)) {
      if (slot > now || send.length === MAX_SLOTS) {
        if (missed !== 'once' || send.length > 0 || !latest)
          return { send, missed: late, lastMissed: latest, next: slot }
        return { send: [latest], missed: late - 1, lastMissed: before, next: slot }
      }
      if (missed === 'all' || +now - +slot <= LATE_MS) {
        send.push(slot)
      } else {
        late += 1
        before = latest
        latest = slot
        if (late === WALK && !leapt) break
      }
    }
    start = lastStretch(now, finder, rule, latest as Date)
  }
}

async function* slotsFrom(finder: Finder, rule: Rule, first: Date): AsyncGenerator<Date> {
  yield first
  for (let last = first, count = 1; ; count = Math.min(count * 4, PAGE)) {
    const slots = slotsAfter(finder, rule, last, count)
    yield* slots
    last = slots.at(-1) as Date
    if (count === PAGE) await sleep(0)
  }
}

/** A slot after `latest` that is near to `now`, and that is late if any slot after `latest` is. */
function lastStretch(now: Date, finder: Finder, rule: Rule, latest: Date): Date {
  for (let ms = 600_000; ; ms *= 8) {
    const from = new Date(Math.max(+now - LATE_MS - ms, +latest))
    const [slot] = slotsAfter(finder, rule, from, 1) as [Date]
    if (+now - +slot > LATE_MS || +from === +latest) return slot
  }
}

/**
 * Where the clocks go back by half an hour (Lord Howe), cron-parser walks in a circle until it gives up after 0.5 s. Then the walk
 * begins again at the change.
 */
function slotAfter(finder: Finder, rule: Rule, after: Date, circles = 4): Date {
  try {
    return find(finder, rule, after, 1)[0] as Date
  } catch (error) {
    const change = circles > 0 && /loop limit/.test(String(error)) && nextChange(rule.timezone, after)
    if (!change) throw error
    return slotAfter(finder, rule, change, circles - 1)
  }
}

const find = (finder: Finder, { cron, timezone }: Rule, from: Date, count: number) =>
  finder.previewSchedule(cron, { tz: zoneOf(timezone).name, from, count })

/** `at`; but if the clocks change in the two hours before it or in the hour after it, an instant well before that. */
function beforeChange(timezone: string, at: Date): Date {
  const [early, soon] = [new Date(+at - 2 * HOUR_MS), new Date(+at + HOUR_MS)]
  return offsetOf(timezone, early) === offsetOf(timezone, soon) ? at : new Date(+at - 3 * HOUR_MS)
}

/** The first change of the clocks after `from`, within 400 days. */
function nextChange(timezone: string, from: Date): Date | undefined {
  const half = HOUR_MS / 2
  const begin = Math.ceil(+from / half) * half
  for (let at = begin; at < begin + 400 * 24 * HOUR_MS; at += half) {
    if (offsetOf(timezone, new Date(at)) !== offsetOf(timezone, from)) return new Date(at)
  }
  return undefined
}

interface Zone {
  /** The name that cron-parser gets. It caches every name, and a place has up to a thousand spellings; it gets one of them. */
  name: string
  format: Intl.DateTimeFormat // takes 0.1 ms to make
}
const zones = new BoundedMap<string, Zone>(500)

function zoneOf(timezone: string): Zone {
  let zone = zones.get(timezone)
  if (!zone) {
    const format = new Intl.DateTimeFormat('en', { timeZone: timezone, timeZoneName: 'longOffset' })
    const known = format.resolvedOptions().timeZone
    zone = { name: known.includes('/') ? known : timezone, format }
    zones.set(timezone, zone)
  }
  return zone
}

function offsetOf(timezone: string, at: Date): string | undefined {
  const parts = zoneOf(timezone).format.formatToParts(at)
  return parts.find(({ type }) => type === 'timeZoneName')?.value
}

/** The id of a slot's job, in the form of a UUID of version 5. A slot that is sent again has the same id. */
export async function slotId(name: string, slot: Date): Promise<string> {
  const text = new TextEncoder().encode(`lockstep.schedule\t${name}\t${slot.toISOString()}`)
  const bytes = new Uint8Array(await crypto.subtle.digest('SHA-1', text)).slice(0, 16)
  const hex = [...bytes].map((byte, i) => {
    if (i === 6) return (byte & 0x0f) | 0x50
    return i === 8 ? (byte & 0x3f) | 0x80 : byte
  })
  return hex
    .map((byte) => byte.toString(16).padStart(2, '0'))
    .join('')
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}
