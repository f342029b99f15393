/**
 * What Lockstep requires of a server. It is checked before the server is trusted.
 *
 * Lockstep depends on advisory locks, and on seeing them in pg_locks: they show who has a connection hold, and which events may
 * still commit. Some servers speak the Postgres protocol but do not show advisory locks, or do not take them at all; there an event
 * that commits late would never be read. So a lock is taken and looked up in the same transaction: by plain statements before
 * the first migration (setup/migrate.ts), by lockstep.engine later (`ready`, database.ts).
 */

/** Facts about a server, as lockstep.engine returns them. */
export interface ServerFacts {
  /** The setting server_version_num. */
  version: number
  /** The encoding of the database. */
  encoding: string
  /** Whether pg_locks shows advisory locks; null: it was not checked. */
  shown: boolean | null
  /** Whether the server is a standby. */
  standby: boolean
  /** Whether transactions of this role are read-only by default. */
  read_only: boolean
}

const OLDEST = 140_000

/** Why Lockstep does not support this server, in one sentence; undefined: it does. */
export function whyUnsupported({
  version,
  encoding,
  shown,
}: Omit<ServerFacts, 'standby' | 'read_only'>): string | undefined {
  if (version < OLDEST) {
    return `Lockstep needs PostgreSQL 14 or newer, and this server says that it is ${Math.floor(version / 10_000)}`
  }
  if (encoding !== 'UTF8') {
    return (
      `Lockstep needs a database whose encoding is UTF8, and that of this one is ${encoding}: ` +
      `make one by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`
    )
  }
  return shown === false ? LOCKS_NOT_SHOWN : undefined
}

/** Why the database can only be read, in one sentence; undefined: it can be written. */
export function whyReadOnly({ standby, read_only }: Pick<ServerFacts, 'standby' | 'read_only'>): string | undefined {
  if (standby) return 'The database is a standby, which can only be read: connect to its primary'
  return read_only ? 'The database can only be read by this role (default_transaction_read_only is on)' : undefined
}

/** The error for a server that does not show advisory locks. */
export const LOCKS_NOT_SHOWN =
  'Lockstep needs a server that shows in pg_locks the advisory locks that it takes, and this one does not ' +
  '(YugabyteDB and CockroachDB do not): use PostgreSQL 14 or newer'
