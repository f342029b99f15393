/**
 * What is protected: a row of PostgreSQL that its holders read, work on, and write. No lock system knows it.
 *
 * Each write says on which version it is based. If that is not the version before it, the writer has overwritten the effect of
 * another one: two processes acted at the same time, and both believed to hold. That is a *double effect*.
 *
 * With a token the row refuses a writer whose token is smaller than the largest that it has seen.
 */
import pg from 'pg'

export const SCHEMA = `
  create table resource (form text primary key, version bigint not null, token numeric not null);
  create table fenced (version bigint not null);
  insert into fenced values (0);
  create table effect (form text, version bigint, based_on bigint, worker text);
  create table job_effect (form text, job integer, worker text);
  create unique index on job_effect (form, job) where form like '%idempotent';
  select lockstep.fence_table('fenced', name => 'prove/fenced')`

export class Resource {
  readonly #pool: pg.Pool

  constructor(url: string) {
    this.#pool = new pg.Pool({ connectionString: url, max: 8, connectionTimeoutMillis: 10_000 })
    this.#pool.on('error', () => {})
  }

  /** The version that is there. */
  async read(form: string): Promise<number> {
    const { rows } = await this.#pool.query('select version from resource where form = $1', [form])
    return Number(rows[0].version)
  }

  /**
   * Writes the next version.
   * @param based   the version that was read.
   * @param token   checked by the row; null: it checks nothing.
   * @returns the version that was written; undefined: the token was refused.
   */
  async write(form: string, based: number, token: string | null, worker: string): Promise<number | undefined> {
    const { rows } = await this.#pool.query(
      `with written as (
         update resource set version = version + 1, token = greatest(token, coalesce($3::numeric, 0))
          where form = $1 and ($3::numeric is null or token <= $3::numeric)
         returning version)
       insert into effect select $1::text, version, $2::bigint, $4::text from written returning version`,
      [form, based, token, worker],
    )
    return rows[0] && Number(rows[0].version)
  }

  /**
   * The effect of a job.
   * @param once  only if it is not there yet: the effect is idempotent.
   * @returns whether a row was written.
   */
  async effect(form: string, job: number, worker: string, once: boolean): Promise<boolean> {
    const values = [form, job, worker]
    if (!once) {
      await this.#pool.query('insert into job_effect values ($1, $2::integer, $3)', values)
      return true
    }
    const text =
      'insert into job_effect values ($1, $2::integer, $3) on conflict (form, job) where form like $4 do nothing'
    const { rowCount } = await this.#pool.query(text.replace('$4', IDEMPOTENT), values)
    return rowCount === 1
  }
}

/** The rows of idempotent effects have a unique index. */
const IDEMPOTENT = `'%idempotent'`
