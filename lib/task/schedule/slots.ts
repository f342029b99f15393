/**
 * Slots: the instants that match a cron expression in a time zone, and which of them are sent. Nothing here uses a database, and no
 * time but what callers pass.
 *
 * THE RULE, when a zone's clocks change by at most three hours. It is that of Debian's cron (cron(8)):
 * * An expression whose minute or hour begins with `*` follows the clock on the wall: it is due when that shows a time that
 *   matches. So nothing comes for a time that is skipped, and what is repeated comes twice: `*\/30 * * * *` comes each half hour.
 * * Any other names fixed times of the day. Those that are skipped come once, together, at the end of the gap; those that are
 *   repeated come the first time only. So `30 2 * * *` comes once a day, also where 2:30 is skipped (at 3:00) or comes twice.
 *   The day is that of the skipped time: if Saturday ends at 23:00, `30 23 * * 6` comes at 0:00 of Sunday.
 *
 * A change of more than three hours is a correction of the calendar, and the new time is used at once: nothing comes for what is
 * skipped, and what is repeated comes again. In the Apia of 2011 no 30 December was, and none of its slots is. (cron(8) says
 * nothing about exactly three hours. The changes of Casey, in Antarctica, are of that size, and are like those of an hour here.)
 *
 * A sixth field, of seconds, makes no difference: `*\/10 30 2 * * *` is due six times, and where 2:30 is skipped once.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { outOfRange, Stopwatch, wrongType } from '../../base/index.ts'
import { checkSteps, parseCron } from './cron-expression.ts'
import { stretchAt } from './zone-time.ts'

/** A cron expression and its time zone. */
export interface Rule {
  cron: string
  timezone: string
}

/** Returns the first slot later than `after`; null: there is none any more. */
export type Finder = (rule: Rule, after: Date) => Date | null

export const MISSED = ['skip', 'once', 'all'] as const
export type Missed = (typeof MISSED)[number]

/** The slots that are due: those to send, and those that are missed. */
export interface Step {
  send: Date[]
  /** How many are not sent; a lower bound. */
  missed: number
  lastMissed: Date | null
  /** The first slot after those that are sent or missed; null: there is none, or it is unknown. */
  next: Date | null
  /** Why the next slot is unknown; null: it is known. */
  error: string | null
}

// Older slots are late. Ticks may be a minute apart, and one may be lost: that makes 124 s, if they come 2 s early or late.
export const LATE_MS = 150_000
// Slots of one schedule that one tick sends.
const MAX_SLOTS = 1_000
// Late slots that are counted one by one: a day of minutes, 12 weeks of hours.
const WALK = 2_000
// Slots between two pauses for the event loop. A slot takes some microseconds.
const PAGE = 100
// How long the slots of one schedule are computed. Then a later tick goes on, and other schedules get their turn.
const COMPUTE_MS = 1_000
// Slots are whole seconds.
const SECOND_MS = 1_000
// Larger changes of the clocks are corrections of the calendar.
const MAX_SHIFT_MS = 3 * 3_600_000

const CRON = `a cron expression, like '0 9 * * 1-5' (minute hour day month weekday; with six fields the first is seconds)`
const MAX_LENGTH = 1_024

/**
 * Returns the expression with single spaces. It refuses more than a walk does: a schedule that an older version has stored goes on.
 *
 * @throws {TypeError | RangeError} `field` cron
 */
export function checkCron(cron: unknown): string {
  if (typeof cron !== 'string') throw wrongType('cron', CRON, cron)
  const text = cron.trim().replace(/\s+/g, ' ')
  if (text.length > MAX_LENGTH) throw outOfRange('cron', `${CRON}, of at most 1,024 characters`, cron)
  // H stands for a random number; the H of THU does not
  if (!text.startsWith('@') && text.replace(/[a-z]{3}/gi, '').includes('H')) {
    throw outOfRange('cron', `${CRON}, without H, which is another number at each parse`, cron)
  }
  try {
    const expression = parseCron(text)
    checkSteps(text)
    if (expression.next(0) === null) throw new Error('it never comes: its months have no such day')
  } catch (error) {
    throw Object.assign(outOfRange('cron', `${CRON} (${(error as Error).message})`, cron), { cause: error })
  }
  return text
}

/** @throws {TypeError | RangeError} `field` timezone */
export function checkTimezone(timezone: unknown): asserts timezone is string {
  const expected = `an IANA time zone, like 'Europe/Berlin'`
  if (typeof timezone !== 'string') throw wrongType('timezone', expected, timezone)
  try {
    if (!/^[a-z]/i.test(timezone)) throw new RangeError('an offset has no daylight saving')
    stretchAt(timezone, 0)
  } catch (cause) {
    throw Object.assign(outOfRange('timezone', expected, timezone), { cause })
  }
}

/** The first slot later than `after`. @throws {Error} the expression cannot be parsed, or never comes; {RangeError} no such zone */
export function slotAfter({ cron, timezone }: Rule, after: Date): Date {
  const expression = parseCron(cron)
  const adjusts = (shift: number) => !expression.wild && Math.abs(shift) <= MAX_SHIFT_MS
  let at = +after
  for (let from = Math.floor(at / SECOND_MS) * SECOND_MS + SECOND_MS; ; from = at) {
    const { start, end, offset, shift } = stretchAt(timezone, at)
    const repeated = adjusts(shift) ? Math.max(0, -shift) : 0
    const local = expression.next(Math.max(from, start + repeated) + offset)
    if (local === null) throw new Error('it never comes: its months have no such day')
    if (local - offset < end) return new Date(local - offset)
    const next = stretchAt(timezone, end)
    const skipped = next.start === end && adjusts(next.shift) ? Math.max(0, next.shift) : 0
    if (local - offset < end + skipped) return new Date(end)
    at = end
  }
}

/**
 * Decides about the slots from `first` to `now`. A slot is late when it is older than 150 s; `missed` says which late slots are
 * sent. All others are sent.
 *
 * Of more than 2,000 late slots only the first 2,000 and the last two are looked at: a schedule by the second has 31 million slots
 * in a year. Then the result's `missed` is a lower bound.
 *
 * Whatever `find` does, this ends: at an error, also at a slot that is not later than the one before, with what was found until
 * then; and when the time for it is over.
 */
export async function stepTo(
  now: Date,
  rule: Rule,
  missed: Missed,
  first: Date,
  find: Finder = slotAfter,
): Promise<Step> {
  const since = new Stopwatch()
  const send: Date[] = []
  let late = 0
  let before: Date | null = null
  let latest: Date | null = null
  let next: Date | null = first
  let error: string | null = null
  const after = (slot: Date) => later(find(rule, slot), slot)
  let over = true // unless the time is: then a later slot may be late too
  try {
    for (let count = 1; next !== null && next <= now && send.length < MAX_SLOTS; count++) {
      if (missed === 'all' || +now - +next <= LATE_MS) {
        send.push(next)
      } else {
        ;[before, latest] = [latest, next]
        late += 1
      }
      const slot: Date = next
      next = null // unknown, if `find` fails
      next = after(slot)
      if (late === WALK && latest === slot) {
        const bound = new Date(+now - LATE_MS - 1)
        const last = lastUpTo(bound, slot, after)
        if (+last > +slot) {
          before = lastUpTo(new Date(+last - SECOND_MS), slot, after)
          ;[latest, next] = [last, after(last)]
        }
      }
      if (since.elapsed() > COMPUTE_MS) {
        over = next === null || next > now
        break
      }
      if (count % PAGE === 0) await sleep(0)
    }
  } catch (cause) {
    error = (cause as Error).message
    // Nothing says that the first one is a slot of this rule.
    if (send.length + late === 1) return { send: [], missed: 1, lastMissed: first, next: null, error }
  }
  if (missed !== 'once' || send.length > 0 || !latest || !over)
    return { send, missed: late, lastMissed: latest, next, error }
  return { send: [latest], missed: late - 1, lastMissed: before, next, error }
}

/** @throws {Error} it is no later slot */
function later(slot: Date | null, than: Date): Date | null {
  if (slot === null || +slot > +than) return slot
  throw new Error(`Of the slot after ${than.toISOString()} no later one was found`)
}

/** The last slot that is not later than `bound`, by bisection: `from`, or a slot after it. */
function lastUpTo(bound: Date, from: Date, after: (at: Date) => Date | null): Date {
  let last = from
  for (let none = +bound; none - +last >= SECOND_MS; ) {
    const middle = new Date(Math.floor((+last + none) / 2))
    const slot = after(middle)
    if (slot && slot <= bound) last = slot
    else none = +middle
  }
  return last
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
