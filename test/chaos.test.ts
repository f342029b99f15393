/** The short run of `npm run chaos`: six processes, a few seconds, all kinds of holds mixed. */
import { expect, test } from 'vitest'
import { runCounter } from './chaos/counter.ts'
import { freshDatabase } from './database.ts'

test('no increment is lost when holders are killed and paused past their ttl', { timeout: 120_000 }, async () => {
  await using db = await freshDatabase()
  const { violations, increments, kills, pauses } = await runCounter({
    url: db.url,
    kind: 'mixed',
    workers: 6,
    seconds: 8,
    seed: 1,
  })
  expect(violations).toEqual([])
  expect(increments).toBeGreaterThan(0)
  expect(kills).toBeGreaterThan(0)
  expect(pauses).toBeGreaterThan(0)
})
