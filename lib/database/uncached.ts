/**
 * Statements that no proxy answers out of a cache.
 *
 * Cloudflare's Hyperdrive answers what only reads from a cache, up to 75 s old, unless it calls a function that PostgreSQL has
 * as volatile or stable (hyperdrive/concepts/query-caching). Ours do: a grant is `select * from lockstep.grant_leases(…)`. But
 * whether a proxy knows that of a function of ours nobody has written down, and a grant out of a cache would be a second
 * holder. So each statement that begins with a read gets a call that any proxy knows: in a part of it that nothing refers to,
 * which PostgreSQL does not even run.
 */
const FRESH = 'fresh as (select clock_timestamp())'

/** The same statement, in a way that tells that its answer is of now. */
export function uncached(text: string): string {
  const [, blank = '', verb = ''] = /^(\s*)(select|with(?:\s+recursive)?)\b/i.exec(text) ?? []
  if (verb === '') return text
  const rest = text.slice(blank.length + verb.length)
  return /^select/i.test(verb) ? `with ${FRESH} ${verb}${rest}` : `${verb} ${FRESH},${rest}`
}
