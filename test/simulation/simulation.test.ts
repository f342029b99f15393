/** Locks in simulated worlds (simulate.ts): a few of them here, more in simulation.long.test.ts, and any number by `npm run simulate`. */
import { describe, expect, test } from 'vitest'
import { shrink } from './shrink.ts'
import { simulate } from './simulate.ts'
import { brokenIn } from './worlds.ts'

describe('in worlds where statements, connections, processes and clocks fail', () => {
  test('every promise of locks is kept, every caller is answered, and nothing is left after close()', async () => {
    expect(await brokenIn(1, 25)).toEqual([])
  }, 120_000)

  test('every promise of leaders is kept, also while the clock of the server is set', async () => {
    expect(await brokenIn(34, 6)).toEqual([]) // elections in 34, 36, 37 and 39, with such a clock in the last two
  }, 60_000)

  test('a seed is always the same world', async () => {
    const told = async () => {
      const lines: string[] = []
      const outcome = await simulate(7, undefined, (line) => lines.push(line))
      return { ...outcome, lines: lines.map((line) => line.replace(/[0-9a-f]{8}-[0-9a-f-]{27}\.\d+/g, 'holder')) }
    }
    const first = await told()
    await simulate(8)
    expect(first.lines.length).toBeGreaterThan(100)
    expect(await told()).toEqual(first)
  }, 60_000)

  test('a world that breaks a promise is made smaller as long as it does', async () => {
    const broken = await simulate(5, undefined, undefined, { forgets: 'a' })
    expect(broken.violation).toMatch(/is trusted, and not held/)
    const { without, outcome } = await shrink(broken, { forgets: 'a' })
    expect(outcome.violation).toMatch(/is trusted, and not held/)
    expect(without.callers.length + without.kinds.length).toBeGreaterThan(3)
    expect(outcome.steps).toBeLessThanOrEqual(broken.steps)
  }, 120_000)
})
