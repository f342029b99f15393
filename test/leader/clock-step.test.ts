/** The detection of steps of the database's clock: when it has run evenly, and when it was set. */
import { describe, expect, test } from 'vitest'
import { ClockStepDetector } from '../../lib/leader/clock-step.ts'

const TTL = 1_000
const HOUR = 3_600_000
/** Milliseconds until a clock with these readings is trusted. It is `ahead` of ours; a request takes `rtt`. */
const watch = (readings: [sent: number, ahead: number, rtt?: number][]) => {
  const now = performance.now()
  const last = readings.at(-1) as [number, number, number?]
  const shift = now - last[0] - (last[2] ?? 1) // the last response came just now
  const detector = new ClockStepDetector()
  for (const [sent, ahead, rtt = 1] of readings) {
    detector.sample(sent + shift, Math.floor(sent + shift + rtt / 2 + ahead), sent + shift + rtt)
  }
  return detector.remaining(TTL)
}

describe("the database's clock", () => {
  test('is not trusted before it was watched for a ttl', () => {
    expect(new ClockStepDetector().remaining(TTL)).toBe(TTL)
    expect(watch([[0, HOUR]])).toBeGreaterThan(TTL - 100)
  })

  test('is trusted when it ran evenly for a ttl, whatever time it shows', () => {
    expect(
      watch([
        [0, HOUR],
        [TTL + 1, HOUR],
      ]),
    ).toBe(0)
    expect(
      watch([
        [0, -HOUR],
        [400, -HOUR],
        [800, -HOUR],
        [TTL + 1, -HOUR],
      ]),
    ).toBe(0)
    expect(
      watch([
        [0, 0],
        [TTL / 2, 0],
      ]),
    ).toBeGreaterThan(TTL / 2 - 100)
  })

  test.each([60, 1_000, HOUR, -60, -HOUR])(
    'set by %i ms is not trusted until it ran evenly for another ttl',
    (step) => {
      expect(
        watch([
          [0, 0],
          [5_000, step],
        ]),
      ).toBeGreaterThan(TTL - 100)
      expect(
        watch([
          [0, 0],
          [5_000, step],
          [5_000 + TTL / 2, step],
        ]),
      ).toBeGreaterThan(TTL / 2 - 100)
      expect(
        watch([
          [0, 0],
          [5_000, step],
          [5_001 + TTL, step],
        ]),
      ).toBe(0)
    },
  )

  test('set in small steps is detected as well', () => {
    const creeping = Array.from({ length: 21 }, (_, i): [number, number] => [i * 100, i * 20])
    expect(watch(creeping)).toBeGreaterThan(0)
  })

  test('is trusted though it drifts as clocks do', () => {
    const drifting = Array.from({ length: 100 }, (_, i): [number, number] => [i * 10_000, i * 10_000 * 0.0004])
    expect(watch(drifting)).toBe(0)
  })

  test('read only by slow responses is not known exactly enough', () => {
    expect(
      watch([
        [0, 0, 200],
        [2_000, 0, 200],
      ]),
    ).toBe(TTL)
    expect(
      watch([
        [0, 0, 200],
        [2_000, 0, 1],
      ]),
    ).toBe(0) // one fast response is enough
  })
})
