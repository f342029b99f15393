/** The same as simulation.test.ts, in more worlds. */
import { expect, test } from 'vitest'
import { brokenIn } from './worlds.ts'

test('in 300 worlds every promise of locks is kept, every caller is answered, and nothing is left', async () => {
  expect(await brokenIn(100_001, 300)).toEqual([])
}, 600_000)
