/** What may not be among the statements that go through a pooler, or a proxy with a cache. */
import type pg from 'pg'

/**
 * The statements that a transaction pooler, Hyperdrive or RDS Proxy does not support: PREPARE, LISTEN, session locks, state of a
 * session. SET LOCAL is a transaction's. (Hyperdrive: supported-databases-and-features.)
 */
export function unsupported(messages: string[]): string[] {
  const statements = messages.flatMap((each) => each.split(/;\s*/)).filter(Boolean)
  const not =
    /^\s*(prepare|deallocate|discard|execute|listen|unlisten|load|declare|lock|set (?!local|transaction))\b|\bpg_(try_)?advisory_lock|\btemp(orary)? table\b/i
  return statements.filter((each) => not.test(each) || /set_config\((?!.*,\s*true\))/is.test(each))
}

/** The statements that a cache of queries may answer: none of them writes, begins a transaction, or calls a volatile or stable function. */
export async function cacheable(messages: string[], pool: pg.Pool): Promise<string[]> {
  const { rows } = await pool.query(
    `select distinct proname from pg_proc where pronamespace = 'pg_catalog'::regnamespace and provolatile <> 'i'`,
  )
  const fresh = new Set(rows.map(({ proname }) => proname))
  const calls = (each: string) =>
    [...each.matchAll(/(?<=\bpg_catalog\.|(?<![.\w]))(\w+)\s*\(/g)].some(([, name]) => fresh.has(name?.toLowerCase()))
  const writes =
    /^\s*(insert|update|delete|with\b.*\b(insert into|update|delete from)|begin|start|commit|rollback|set|savepoint|release)\b/is
  if (!calls(`select clock_timestamp()`) || calls(`select lower(x), lockstep.now()`))
    throw new Error('It tells none from another')
  return messages.filter((each) => !writes.test(each) && !calls(each))
}
