/**
 * pg-boss's fetch, with a plan that does not depend on statistics.
 *
 * The fetch chooses jobs and then updates them, by the queue's name and their ids. Of a queue that was filled after the last
 * ANALYZE Postgres expects one row: it reads the whole queue, and compares every job with every chosen one. With 50,000 jobs that
 * wait, a claim of 100 took 445 ms, and 7 after ANALYZE. So the update finds the jobs by their place in the table (ctid) instead.
 * The place is that of a row which the same statement has just locked. A job that another transaction changed between the
 * statement's snapshot and the lock is left for the next fetch, as one is that is still locked.
 *
 * How the jobs are chosen remains pg-boss's. If a later pg-boss writes its fetch otherwise the text stays as it is, and
 * test/task/growth.test.ts fails.
 */
import { sql } from 'kysely'
import type { Pool } from '../../database/index.ts'
import type { EngineDb } from '../engine.ts'

const CHOSEN = /\bnext AS \(\s*SELECT /
const RANKED = /\bsingleton_ranking AS \(\s*SELECT /
const UPDATED = /\bFROM (next|singleton_ranking)\s+WHERE name = '[^']*' AND j\.id = \1\.id/
const GROUPED = /\bWHERE name = '[^']*' AND j\.id = ANY \(ARRAY\(SELECT id FROM group_filtered\)\)/

/** The text of pg-boss's fetch, with which it finds the jobs that it has chosen by their place. */
export function byPlace(text: string): string {
  if (!CHOSEN.test(text) || !(UPDATED.test(text) || GROUPED.test(text))) return text
  return text
    .replace(CHOSEN, '$&j.ctid as place, ')
    .replace(RANKED, '$&place, ')
    .replace(UPDATED, 'FROM $1 WHERE j.ctid = $1.place')
    .replace(GROUPED, 'WHERE j.ctid = any (array(select place from next where id in (select id from group_filtered)))')
}

/** Where the fetch of a worker goes. */
export function fetching(pool: Pool): EngineDb {
  return {
    executeSql: async (text, values = []) => {
      const [perGroup = null, ...others] = values
      if (others.length > 0) throw new Error('The statement of a fetch has more parameters than it ever had')
      return { rows: await pool.run(sql`select * from lockstep.fetch_jobs(${byPlace(text)}, ${perGroup})`) }
    },
  }
}
