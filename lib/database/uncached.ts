/**
 * Statements that no proxy answers from a cache.
 *
 * Cloudflare's Hyperdrive answers a statement that only reads from a cache, up to 75 s old, unless the statement calls a function
 * that PostgreSQL has as volatile or stable (hyperdrive/concepts/query-caching). Lockstep's functions are: a grant is `select * from
 * lockstep.grant_leases(…)`. But it is not documented whether a proxy knows that of user-defined functions, and a grant from a
 * cache would make a second holder. So each statement that begins with a read gets a call of a volatile built-in function, which
 * any proxy knows. The call is in a CTE that nothing refers to, so PostgreSQL does not even run it.
 */
const FRESH = 'fresh as (select clock_timestamp())'

/** The same statement with a call of a volatile function. */
export function uncached(text: string): string {
  const [, blank = '', verb = ''] = /^(\s*)(select|with(?:\s+recursive)?)\b/i.exec(text) ?? []
  if (verb === '') return text
  const rest = text.slice(blank.length + verb.length)
  return /^select/i.test(verb) ? `with ${FRESH} ${verb}${rest}` : `${verb} ${FRESH},${rest}`
}
