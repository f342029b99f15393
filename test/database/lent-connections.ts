/** A pg pool for tests of shared pools. */
import type pg from 'pg'
import type { LentPool } from '../../lib/database/shared-pool.ts'

/** A pg pool, as SharedPool needs it. */
export const lent = (pool: pg.Pool): LentPool => ({
  options: pool.options,
  get idle() {
    return pool.idleCount > 0
  },
  get live() {
    return pool.totalCount > 0
  },
  connect: () => pool.connect(),
  end: () => pool.end(),
})
