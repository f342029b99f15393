/**
 * What Lockstep needs of a server, asked before it is trusted.
 *
 * Everything here stands on advisory locks, and on their being seen in pg_locks: who holds a connection hold, and which events may
 * still commit. There are servers that speak Postgres' protocol and take advisory locks without showing them, or without taking
 * them; there an event that commits late would never be read. So one is taken, and looked for in the same transaction: by plain
 * statements before anything is made (setup/migrate.ts), by lockstep.engine afterwards (`ready`, database.ts).
 */

/** What a server says of itself; as lockstep.engine answers. */
export interface ServerFacts {
  /** server_version_num */
  version: number
  encoding: string
  /** Null: it was not asked for. */
  shown: boolean | null
  standby: boolean
  read_only: boolean
}

const OLDEST = 140_000

/** One sentence: why this server will not do; undefined: it will. */
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

/** Why a server can only be read; undefined: it can be written to. */
export function whyReadOnly({ standby, read_only }: Pick<ServerFacts, 'standby' | 'read_only'>): string | undefined {
  if (standby) return 'The database is a standby, which can only be read: connect to its primary'
  return read_only ? 'The database can only be read by this role (default_transaction_read_only is on)' : undefined
}

/** The server does not keep the promise that everything stands on. */
export const LOCKS_NOT_SHOWN =
  'Lockstep needs a server that shows in pg_locks the advisory locks that it takes, and this one does not ' +
  '(YugabyteDB and CockroachDB do not): use PostgreSQL 14 or newer'
