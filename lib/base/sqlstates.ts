/**
 * The SQLSTATEs that the functions of the schema `lockstep` raise, each by its name: class LS, which PostgreSQL does not use.
 *
 * `docs/sqlstates.md` says of each when it is raised and what a client does about it. test/facts/sqlstates.test.ts compares the two
 * with each other and with what `db/schema.sql` raises.
 */

/** What the `code` of an error of the database may be, as any driver shows it. */
export const SQLSTATE = {
  /** Never leaves its function: it undoes what was made there for a look only. */
  undo: 'LS000',
  /** The hold, term or partition is not held under this token, or the transaction does not name the hold that a write needs. */
  leaseLost: 'LS001',
  /** A write to a fenced table in a transaction that names no hold. */
  fenceMissing: 'LS002',
  /** The transaction is not READ COMMITTED. */
  wrongIsolation: 'LS003',
  /** Another backend answers than the one that has the session's locks: there is a pooler in between. */
  wrongBackend: 'LS004',
  /** A batch of events that is not the last one of its partition. */
  staleBatch: 'LS005',
  /** A sequence is behind the rows that were numbered from it, as after a restore. */
  sequenceBehind: 'LS006',
  /** An event that was not in the batch. */
  notInBatch: 'LS007',
  /** The statement ran in another transaction than the caller's: the caller has none open. */
  noTransaction: 'LS008',
} as const
