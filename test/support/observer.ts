/** A test's own look at the database: with the standard settings and parsers, also in a run where everything is odd (odd.ts). */
import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'

export function observer(url: string): Kysely<unknown> {
  const pool = new pg.Pool({ connectionString: url, max: 2 })
  pool.on('error', () => {}) // the server may be restarted
  return new Kysely({ dialect: new PostgresDialect({ pool }) })
}
