/** Guards against hanging, for tests that make things fail. */
import type pg from 'pg'
import { until } from '../support/until.ts'

/** Far more than a ttl, a trust window, or the wait for a fenced transaction. */
export const SETTLES_MS = 25_000

/** Waits for `promise`; if it takes too long, throws an error that says what did not settle. */
export async function settles<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`This did not settle: ${what}`)), SETTLES_MS)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** Waits until no connection of an `applicationName` is left. */
export const noBackend = (pool: pg.Pool, application: string): Promise<void> =>
  until('no backend', async () => {
    const { rows } = await pool.query('select from pg_stat_activity where application_name = $1', [application])
    return rows.length === 0
  })
