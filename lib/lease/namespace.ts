/**
 * The namespaces of locks, elections and groups. All of them are rows of one table, lockstep.lease.
 *
 * A namespace is a prefix that ends with a control character. A caller's name cannot have one, so no route and no verb of locks can
 * grant, force or renew a row of another namespace.
 */

/** A part of lockstep.lease, and the SQL functions that free its rows. */
export interface Namespace {
  /** Put before each name. */
  readonly prefix: string
  /** Frees many rows by name and token. */
  readonly revoke: 'revoke_leases' | 'resign'
  /** Frees one row inside the user's transaction. */
  readonly release: 'release_held' | 'resign_held'
}

export const LOCKS: Namespace = { prefix: '', revoke: 'revoke_leases', release: 'release_held' }
/** Terms have separate functions, which also notify the candidates (0002_election.sql). */
export const ELECTIONS: Namespace = { prefix: 'leader\t', revoke: 'resign', release: 'resign_held' }
/** The partitions of consumer groups, and their consumers. */
export const GROUPS: Namespace = { prefix: 'group\t', revoke: 'revoke_leases', release: 'release_held' }
