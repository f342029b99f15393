/** The bounds of answers (bounds.suite.ts) on direct connections, and the number that they come from. */
import { expect, test } from 'vitest'
import { LIMITS } from '../../lib/index.ts'
import { freshDatabase } from '../support/database.ts'
import { boundsOf, CARRIER } from './bounds.suite.ts'

test('the database counts by the same number as the library', async () => {
  await using db = await freshDatabase()
  const { rows } = await db.pool.query('select lockstep.page_bytes()::integer as bytes')
  expect(rows[0].bytes).toBe(LIMITS.answerBytes)
  expect(LIMITS.answerBytes).toBeLessThan(CARRIER)
})

boundsOf(false)
