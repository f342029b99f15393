/**
 * The functions of 0001_lease.sql, changed in a database that is made for it: stopped between their statements, or with one
 * of their rules taken out.
 *
 * A verb is one call, so its statements cannot be distinguished from outside. Therefore `assert stop.here()` is put before each
 * statement of each plpgsql function (an assert, because it touches neither FOUND nor what GET DIAGNOSTICS reads), and
 * `stop.here() and` inside a statement before it tries for K: its snapshot is taken, K is not yet gained. The n-th of them that
 * a backend passes, n being its setting `stop.at`, waits at a gate: an advisory lock with two keys, which no K(name) is. The
 * setting `stop.gate` says which gate.
 */
import type pg from 'pg'

const HERE = `
create schema stop;
create function stop.here() returns boolean language plpgsql as $$
declare
  passed integer := coalesce(nullif(current_setting('stop.passed', true), ''), '0')::integer + 1;
  gate integer;
begin
  perform set_config('stop.passed', passed::text, false);
  if passed::text = current_setting('stop.at', true) then
    gate := current_setting('stop.gate')::integer;
    perform pg_advisory_lock_shared(7, gate), pg_advisory_unlock_shared(7, gate);
  end if;
  return true;
end $$`

const FUNCTIONS = `grant_leases renew_leases revoke_leases release_held force_revoke sweep take try_key turn_keys queue enter assert_held check_fence check_hold has_by_transaction`
const GAINS = /(?:pg_catalog\.)?pg_try_advisory(_xact)?_lock\((?:lockstep\.key\([^)]*\)|key|k)\)/g

/** Puts a stop wherever one can be; answers how many. */
export async function addStops(pool: pg.Pool): Promise<number> {
  await pool.query(HERE)
  let stops = 0
  for (const name of FUNCTIONS.split(' ')) {
    let begun = false
    let last = ''
    const lines: string[] = []
    for (const line of (await source(pool, name)).split('\n')) {
      const code = line.replace(/--.*$/, '').trim()
      // A statement begins where the last one has ended. Not before what reads FOUND or the count of the last one.
      const begins = begun && code !== '' && /(;|\b(then|else|loop|begin))$/.test(last)
      if (begins && !/^(end|else|elsif|get diagnostics|if not found|exception|declare)\b/.test(code)) {
        lines.push('assert stop.here();')
        stops += 1
      }
      const withStop = line.replace(GAINS, (gain) => `(stop.here() and ${gain})`)
      if (withStop !== line) stops += 1
      lines.push(withStop)
      if (code === 'begin') begun = true
      if (code !== '') last = code
    }
    await pool.query(lines.join('\n'))
  }
  return stops
}

/** Replaces a piece of a function, which must be there, until it is disposed of. */
export async function mutate(pool: pg.Pool, name: string, from: string | RegExp, to: string): Promise<AsyncDisposable> {
  const text = await source(pool, name)
  const changed = text.replace(from, to)
  if (changed === text) throw new Error(`lockstep.${name} has no ${from}`)
  await pool.query(changed)
  return { [Symbol.asyncDispose]: async () => void (await pool.query(text)) }
}

async function source(pool: pg.Pool, name: string): Promise<string> {
  const { rows } = await pool.query('select pg_get_functiondef($1::regproc) as text', [`lockstep.${name}`])
  return rows[0].text
}
