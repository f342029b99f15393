/**
 * Slots around every change of the clocks, in every zone, against an implementation that walks minute by minute.
 *
 * `npm test` looks at the zones that differ from all others, with 30 expressions each; `npm run test:zones` at every zone, with 300.
 */
import { expect, test } from 'vitest'
import { slotAfter } from '../../lib/task/schedule/slots.ts'
import { changesOf, naiveSlots, randomCron, wallClock } from './naive-cron.ts'

const LONG = process.env.TEST_LONG !== undefined
const YEARS: [number, number] = [2020, 2030]
const HOUR = 3_600_000
const AROUND = 26
// What the naive walk has to see before it can say that a time comes again.
const WARM_UP = 4

const ZONES = Intl.supportedValuesOf('timeZone')

/** Each change once for each pair of offsets; or, in the long run, for each zone. */
function cases(): { timezone: string; at: number }[] {
  const found = new Map<string, { timezone: string; at: number }>()
  for (const timezone of ZONES) {
    for (const { at, before, after } of changesOf(timezone, YEARS)) {
      const key = `${LONG ? timezone : ''} ${at} ${before} ${after}`
      if (!found.has(key)) found.set(key, { timezone, at })
    }
  }
  return [...found.values()]
}

test('the slots of 26 hours before and after each change of the clocks are those of Debian’s cron', () => {
  const all = cases()
  expect(ZONES.length).toBeGreaterThan(400)
  expect(all.length).toBeGreaterThan(LONG ? 2_000 : 200)
  const next = randomCron(20)
  const wrong: string[] = []
  let compared = 0
  for (const { timezone, at } of all) {
    const begin = at - (AROUND + WARM_UP) * HOUR
    const walls = wallClock(timezone, begin, 2 * AROUND + WARM_UP)
    for (let n = 0; n < (LONG ? 300 : 30); n++) {
      const cron = next()
      const expected = naiveSlots(cron, walls).map((ms) => begin + ms)
      const found = slotsBetween({ cron, timezone }, at - AROUND * HOUR, at + AROUND * HOUR)
      compared += expected.length
      if (found.join() === expected.join()) continue
      const [is, right] = [found, expected].map((slots, i, both) => slots.find((slot) => !both[1 - i]?.includes(slot)))
      wrong.push(
        `${timezone} '${cron}': ${is && new Date(is).toISOString()}, not ${right && new Date(right).toISOString()}`,
      )
    }
  }
  console.log(`${all.length} changes, ${compared} slots compared`)
  expect(wrong.slice(0, 20)).toEqual([])
  expect(compared).toBeGreaterThan(10_000)
}, 7_200_000)

/** Slots from `begin` on, and before `end`. */
function slotsBetween(rule: { cron: string; timezone: string }, begin: number, end: number): number[] {
  const slots: number[] = []
  for (let at = begin - 1; ; at = slots.at(-1) as number) {
    let slot: number
    try {
      slot = +slotAfter(rule, new Date(at))
    } catch (error) {
      if (/never comes/.test(String(error))) return slots
      throw error
    }
    if (slot >= end) return slots
    slots.push(slot)
  }
}
