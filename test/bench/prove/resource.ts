/**
 * What is protected: a row of PostgreSQL that its holders read, work on, and write. No lock system knows it.
 *
 * Each write says on which version it is based. If that is not the version before it, the writer has overwritten the effect of
 * another one: two processes acted at the same time, and both believed to hold. That is a *double effect*.
 *
 * With a token the row refuses a holder whose token is smaller than the largest that it has seen: in its writes, or in its reads too. A
 * row that sees tokens only in writes does not know the next holder until that one writes. Up to then it takes the late write of the
 * one before; and the next holder, which has read already, overwrites it.
 */
import pg from 'pg'

export const SCHEMA = `
  create table resource (form text primary key, version bigint not null, token numeric not null);
  create table fenced (version bigint not null);
  insert into fenced values (0);
  create table effect (form text, version bigint, based_on bigint, worker text, token numeric, at timestamptz default clock_timestamp());
  create table job_effect (form text, job integer, worker text);
  create unique index on job_effect (form, job) where form like '%idempotent';
  select lockstep.fence_table('fenced', name => 'prove/fenced')`

export class Resource implements AsyncDisposable {
  readonly #pool: pg.Pool

  constructor(url: string) {
    this.#pool = new pg.Pool({ connectionString: url, max: 8, connectionTimeoutMillis: 10_000 })
    this.#pool.on('error', () => {})
  }

  /**
   * The version that is there.
   * @param token  the row remembers it, and refuses a smaller one from now on; null: it does not learn who reads.
   * @returns undefined: the token was refused.
   */
  async read(form: string, token: string | null): Promise<number | undefined> {
    const { rows } = await this.#pool.query(
      token === null
        ? { text: 'select version from resource where form = $1', values: [form] }
        : {
            text: `update resource set token = $2::numeric where form = $1 and token <= $2::numeric returning version`,
            values: [form, token],
          },
    )
    return rows[0] && Number(rows[0].version)
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
       insert into effect select $1::text, version, $2::bigint, $4::text, $3::numeric from written returning version`,
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

  [Symbol.asyncDispose](): Promise<void> {
    return this.#pool.end()
  }
}

/** The rows of idempotent effects have a unique index. */
const IDEMPOTENT = `'%idempotent'`
