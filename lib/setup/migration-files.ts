/**
 * The files of `db/migrations`, in the order of their numbers, and the transactions that they run in.
 *
 * Rules for a file: every name has its schema, because the search path is pg_catalog alone, so that an object that a tenant has put
 * into `public` is never used by mistake; no `begin` or `commit`; no statement that cannot run in a transaction (`create index
 * concurrently`).
 *
 * All pending files run in one transaction, unless the first line of a file ends it:
 *
 *     -- barrier   commit with this file, then wait until the database is quiet (exclusive-migration.ts) before the next
 *     -- commit    commit with this file
 *
 * The files from a barrier to the end of the closing may be applied, undone and applied again.
 */
import { readdir, readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { type Kysely, sql, type Transaction } from 'kysely'
import type { Migration } from 'kysely/migration'
import type pg from 'pg'

export interface MigrationFile extends Migration {
  /** How the file ends the transaction, from its first line; undefined: it does not. */
  ends: 'barrier' | 'commit' | undefined
}

/**
 * Runs `work` in a READ COMMITTED transaction whose search path is pg_catalog alone, without the timeouts that a role may have, and with
 * the syntax of strings and arrays that the files are written in.
 */
export function pinnedTransaction<DB, T>(db: Kysely<DB>, work: (trx: Transaction<DB>) => Promise<T>): Promise<T> {
  return db
    .transaction()
    .setIsolationLevel('read committed')
    .execute(async (trx) => {
      await sql`
        set local search_path = pg_catalog, pg_temp;
        set local statement_timeout = 0; set local lock_timeout = 0; set local idle_in_transaction_session_timeout = 0;
        set local standard_conforming_strings = on; set local array_nulls = on; set local DateStyle = 'ISO, MDY';
        set local IntervalStyle = 'postgres'; set local TimeZone = 'UTC'; set local quote_all_identifiers = off;
        select case when current_setting('server_version_num')::int >= 170000 then set_config('transaction_timeout', '0', true) end`.execute(
        trx,
      )
      return work(trx)
    })
}

/**
 * Takes the lock of migrations: only one process has it at a time, until its transaction ends. A session lock would stay behind on a
 * transaction pooler. Kysely's own lock is not enough, because Kysely creates the schema outside of it, and that is a race.
 */
export async function lockMigrations<DB>(trx: Kysely<DB>): Promise<void> {
  // two integers ('lock', 'step' in ASCII): a key space apart from that of the locks themselves
  await sql`select pg_advisory_xact_lock(1819239275, 1937007984)`.execute(trx)
}

/** Migrations by their names without `.sql`, in order, as Kysely needs them. */
export type MigrationFiles = Map<string, MigrationFile>

/** Reads the migrations of a folder. @param folder  @default the `db/migrations` of this package */
export async function migrationFiles(folder: string | undefined): Promise<MigrationFiles> {
  const at = folder ?? ownFolder()
  const all = await readdir(at).catch((cause) => {
    throw folder === undefined ? withoutFolder(cause) : cause
  })
  const files = all.filter((file) => file.endsWith('.sql')).sort()
  if (files.length === 0) throw new Error(`There are no migrations in ${at}: the package is incomplete`)
  for (const [i, file] of files.entries()) {
    if (!/^\d{4}_[a-z0-9_]+\.sql$/.test(file)) throw new Error(`A migration is named NNNN_name.sql, not ${file}`)
    if (file.slice(0, 4) === files[i - 1]?.slice(0, 4))
      throw new Error(`Two migrations have the number ${file.slice(0, 4)}`)
  }
  const texts = await Promise.all(files.map((file) => readFile(`${at}/${file}`, 'utf8')))
  return new Map(
    files.map((file, i) => {
      const text = texts[i] as string
      const ends = /^-- (barrier|commit)$/m.exec(text.split('\n', 1)[0] as string)?.[1] as MigrationFile['ends']
      return [file.slice(0, -'.sql'.length), { ends, up: (db) => run(db, file, text) }]
    }),
  )
}

function ownFolder(): string {
  try {
    return fileURLToPath(new URL('../../db/migrations', import.meta.url))
  } catch (cause) {
    throw withoutFolder(cause) // a bundle of CommonJS knows no URL of its own
  }
}

// A bundler takes the code along, and not the files beside it.
const withoutFolder = (cause: unknown) =>
  new Error(
    'The migrations are not beside this code, as in a bundle: pass the option `folder`, the path of a copy of `lockstep/dist/db/migrations`',
    { cause },
  )

/** Runs a file inside a savepoint: Kysely still has to run a statement in this transaction after a file has failed. */
async function run<DB>(db: Kysely<DB>, file: string, text: string): Promise<void> {
  await sql`savepoint migration`.execute(db)
  try {
    await sql.raw(text).execute(db)
    await sql`release savepoint migration`.execute(db)
  } catch (cause) {
    await sql`rollback to savepoint migration`.execute(db).catch(() => {}) // the connection may be gone
    const { message, position, code, severity } = cause as Error & Partial<pg.DatabaseError>
    if (severity === undefined || /^(08|53|57P)/.test(code ?? '')) throw cause // the connection, not the file
    if (code === '25P01') throw new Error(`Migration ${file} ends the transaction it runs in: take its commit out`)
    const line =
      position === undefined ? '' : ` at line ${[...text].slice(0, Number(position)).join('').split('\n').length}`
    throw new Error(`Migration ${file} failed${line}, and nothing was changed: ${message}`, { cause })
  }
}
