/**
 * The local time of a zone: stretches of time in which its clocks do not change, from the platform's own data (`Intl`).
 *
 * `Intl` tells the offset of one instant, and takes 1 µs. So it is asked for every fourth day of a year, 0.1 ms in all, and where
 * two answers differ the change between them is found by bisection, to the second. No zone has had two changes within four days
 * since 1970; the nearest were seven days apart (Recife, in 2000).
 */
import { BoundedMap } from '../../base/index.ts'

/** A stretch of time with one offset. Instants are milliseconds. */
export interface Stretch {
  /** Its first instant. */
  start: number
  /** The first instant after it; or the end of a year, where its offset goes on. */
  end: number
  /** Local time minus UTC, in milliseconds. */
  offset: number
  /** By how much the clocks went forward at `start`, in milliseconds; less than 0: back; 0: not known. */
  shift: number
}

const DAY_MS = 86_400_000
const STEP_MS = 4 * DAY_MS

interface Zone {
  format: Intl.DateTimeFormat // takes 0.05 ms to make
  years: BoundedMap<number, Stretch[]>
}
const zones = new BoundedMap<string, Zone>(500)
/** By the name as it was given: one place has up to a thousand spellings. */
const spellings = new BoundedMap<string, Zone>(500)

/** The stretch that an instant is in. @throws {RangeError} no such zone */
export function stretchAt(timezone: string, at: number): Stretch {
  const { format, years } = zoneOf(timezone)
  const year = new Date(at).getUTCFullYear()
  let stretches = years.get(year)
  if (!stretches) {
    stretches = stretchesOf(format, year)
    years.set(year, stretches)
  }
  return stretches.find(({ end }) => at < end) as Stretch
}

/** Begins a day early: a stretch that began just before the year has its true `start` and `shift`. */
function stretchesOf(format: Intl.DateTimeFormat, year: number): Stretch[] {
  const begin = Date.UTC(year, 0) - DAY_MS
  const over = Date.UTC(year + 1, 0)
  let last: Stretch = { start: begin, end: over, offset: offsetAt(format, begin), shift: 0 }
  const stretches = [last]
  for (let at = begin; at < over; at += STEP_MS) {
    const until = Math.min(at + STEP_MS, over - 1_000)
    const offset = offsetAt(format, until)
    if (offset === last.offset) continue
    let [before, change] = [at, until]
    while (change - before > 1_000) {
      const middle = Math.floor((before + change) / 2_000) * 1_000
      if (offsetAt(format, middle) === last.offset) before = middle
      else change = middle
    }
    const next = { start: change, end: over, offset, shift: offset - last.offset }
    last.end = change
    stretches.push(next)
    last = next
  }
  return stretches
}

function zoneOf(timezone: string): Zone {
  let zone = spellings.get(timezone)
  if (!zone) {
    const format = new Intl.DateTimeFormat('en', { timeZone: timezone, timeZoneName: 'longOffset' })
    const name = format.resolvedOptions().timeZone
    zone = zones.get(name) ?? { format, years: new BoundedMap(100) }
    zones.set(name, zone)
    spellings.set(timezone, zone)
  }
  return zone
}

/** Reads the offset at the end of a text like `11/30/2026, GMT+05:30`. It has seconds where local time was the sun's. */
function offsetAt(format: Intl.DateTimeFormat, at: number): number {
  const [, sign, hours, minutes, seconds = 0] = /([+-])(\d+):(\d+)(?::(\d+))?$/.exec(format.format(at)) ?? []
  if (sign === undefined) return 0 // GMT
  return (sign === '-' ? -1 : 1) * ((Number(hours) * 60 + Number(minutes)) * 60 + Number(seconds)) * 1_000
}
