/**
 * Migrations: the plain SQL files of `db/migrations`, each applied once, in the order of their numbers.
 *
 * All that are pending are applied in one transaction, so a database is never between two releases: a file that
 * fails leaves nothing of itself nor of those before it. Any number of processes may migrate at once (every
 * instance of a deployment does): an advisory lock of that transaction admits one, the others find it done. The
 * lock is ours and not only Kysely's because creating the schema itself is a race that Kysely leaves outside its
 * lock; and it ends with the transaction because a session lock would stay behind on a transaction pooler.
 *
 * Forward only. A database that knows a migration which this code does not is refused: the answer to an old
 * deployment on a new database is the new deployment, never a rollback.
 *
 * A database that was restored, or replicated logically, without its sequences would grant a token a second time. Each run sees
 * that and sets them right, also when there is nothing else to do.
 *
 * Who runs the functions need not own the tables: what such a role gets is in grant.ts, and it gets it in the same transaction,
 * so that no program meets tables that it has no rights on yet.
 *
 * In a file: no `begin`/`commit`, nothing that refuses to run in a transaction (`create index concurrently`).
 */

import { readdir, readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { Kysely, PostgresDialect, sql } from 'kysely'
import type { Migration } from 'kysely/migration'
import { Migrator } from 'kysely/migration'
import pg from 'pg'
import { fromDatabase } from './errors.ts'
import { checkRole, grant } from './grant.ts'

export interface MigrateOptions {
  /** Folder of `NNNN_name.sql` files. @default the `db/migrations` of this package */
  folder?: string
  /**
   * A role that shall have exactly the rights that the functions need, in the same transaction; also when there is nothing to
   * migrate.
   */
  grant?: string
}

/** What {@link migrate} did. */
export interface Migrated {
  /** The migrations applied by this call, in order; none: up to date. */
  applied: string[]
  /** The last one known. */
  latest: string
  /** With `grant`: every right that the role has now, like `INSERT on lockstep.stream (name)`. */
  granted?: string[]
}

/** Where a database stands; migrations are named like their files, without `.sql`. */
export interface SchemaState {
  /** The last migration applied; null: none, or not even the schema is there. */
  current: string | null
  /** The last migration this code knows. */
  latest: string
  /** Those this code knows and the database lacks, in order. */
  pending: string[]
  /** Whether the database has a migration that this code does not know. */
  newer: boolean
}

/**
 * Brings the database to the schema this code needs; does nothing, and needs no rights, when it is there already.
 *
 * @param database  a connection string (direct or pooled), or a Kysely, which stays open.
 * @throws {Error} one sentence: the database is newer than this code, a file failed (which, and in which line),
 *   the role lacks a right, there is nobody to grant to, or the folder holds something unexpected. Nothing was changed.
 * @throws {TypeError} or {RangeError}, `code` INVALID_ARGUMENT: `grant` cannot be a role of yours.
 * @throws {UnavailableError} the database cannot be reached.
 */
export async function migrate<DB>(database: string | Kysely<DB>, options: MigrateOptions = {}): Promise<Migrated> {
  if (options.grant !== undefined) checkRole(options.grant)
  if (typeof database !== 'string') return apply(database, options)
  const pool = new pg.Pool({ connectionString: database, max: 1 })
  pool.on('error', () => {}) // an idle connection that breaks is not our business
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) })
  try {
    return await apply(db, options)
  } finally {
    await db.destroy()
  }
}

/**
 * Compares the database with this code; reads only, and works before the first migration too.
 *
 * @throws {UnavailableError} the database cannot be reached.
 */
export async function schemaState<DB>(db: Kysely<DB>, options: MigrateOptions = {}): Promise<SchemaState> {
  return stateOf(db, await migrationFiles(options.folder)).catch((error) => {
    throw fromDatabase(error)
  })
}

async function apply<DB>(db: Kysely<DB>, options: MigrateOptions): Promise<Migrated> {
  const files = await migrationFiles(options.folder)
  const latest = [...files.keys()].at(-1) as string
  try {
    const before = await stateOf(db, files)
    refuseNewer(before)
    if (before.pending.length === 0 && !before.misaligned && options.grant === undefined) return { applied: [], latest }
    return await db
      .transaction()
      .setIsolationLevel('read committed') // what another process did while we waited must be seen
      .execute(async (trx) => {
        // a role's own time limits are for its queries, not for waiting in this line
        await sql`set local statement_timeout = 0; set local lock_timeout = 0`.execute(trx)
        // two integers ('lock', 'step' in ASCII): a key space apart from that of the locks themselves
        await sql`select pg_advisory_xact_lock(1819239275, 1937007984)`.execute(trx)
        const now = await stateOf(trx, files)
        refuseNewer(now)
        const applied = now.pending.length > 0 ? await bringUp(trx, files) : []
        if (await isMisaligned(trx)) await sql`select lockstep.realign()`.execute(trx)
        return { applied, latest, ...(options.grant !== undefined && { granted: await grant(trx, options.grant) }) }
      })
  } catch (error) {
    throw fromDatabase(error)
  }
}

async function bringUp<DB>(trx: Kysely<DB>, files: Map<string, Migration>): Promise<string[]> {
  await makeSchema(trx)
  const { error, results } = await new Migrator({
    db: trx,
    provider: { getMigrations: async () => Object.fromEntries(files) },
    migrationTableSchema: 'lockstep',
    migrationTableName: 'migration',
    migrationLockTableName: 'migration_lock',
  }).migrateToLatest()
  if (error !== undefined) throw error
  return (results ?? []).map((result) => result.migrationName)
}

async function stateOf<DB>(
  db: Kysely<DB>,
  files: Map<string, Migration>,
): Promise<SchemaState & { unknown: string[]; misaligned: boolean }> {
  const known = [...files.keys()]
  const { rows } = await sql<{ there: boolean }>`select to_regclass('lockstep.migration') is not null as there`.execute(
    db,
  )
  const done = rows[0]?.there
    ? (await sql<{ name: string }>`select name from lockstep.migration order by name`.execute(db)).rows.map(
        (row) => row.name,
      )
    : []
  const unknown = done.filter((name) => !files.has(name))
  return {
    current: done.at(-1) ?? null,
    latest: known.at(-1) as string,
    pending: known.filter((name) => !done.includes(name)),
    newer: unknown.length > 0,
    unknown,
    misaligned: await isMisaligned(db),
  }
}

// Anybody may ask; of a schema that does not know yet, it is not so.
async function isMisaligned<DB>(db: Kysely<DB>): Promise<boolean> {
  const known = sql<{ known: boolean }>`select to_regprocedure('lockstep.misaligned()') is not null as known`
  if (!(await known.execute(db)).rows[0]?.known) return false
  const { rows } = await sql<{ misaligned: boolean }>`select lockstep.misaligned() as misaligned`.execute(db)
  return rows[0]?.misaligned ?? false
}

function refuseNewer({ unknown, latest }: { unknown: string[]; latest: string }): void {
  if (unknown.length === 0) return
  throw new Error(
    `The database has migration ${unknown.at(-1)}, which this version of Lockstep (up to ${latest}) does not know: ` +
      'deploy the newer version; migrations are never rolled back',
  )
}

/** Kysely would make the schema, but hides a refusal behind "current transaction is aborted". */
async function makeSchema<DB>(db: Kysely<DB>): Promise<void> {
  const { rows } = await sql<{ role: string; there: boolean; may: boolean }>`
    select current_user::text as role, s.oid is not null as there, case
             when s.oid is null then has_database_privilege(current_database(), 'create')
             else has_schema_privilege(s.oid, 'create')
           end as may
      from (select 1) as one left join pg_catalog.pg_namespace as s on s.nspname = 'lockstep'`.execute(db)
  const { role, there, may } = rows[0] as (typeof rows)[0]
  if (!may) {
    const where = there ? 'in the schema "lockstep"' : 'schemas in this database'
    throw new Error(`The role "${role}" may not create ${where}: migrate as a role that may, or grant it CREATE`)
  }
  if (!there) await sql`create schema lockstep`.execute(db)
}

/** The files in order, as Kysely wants them. */
async function migrationFiles(folder: string | undefined): Promise<Map<string, Migration>> {
  const at = folder ?? fileURLToPath(new URL('../db/migrations', import.meta.url))
  const files = (await readdir(at)).filter((file) => file.endsWith('.sql')).sort()
  if (files.length === 0) throw new Error(`There are no migrations in ${at}: the package is incomplete`)
  for (const [i, file] of files.entries()) {
    if (!/^\d{4}_[a-z0-9_]+\.sql$/.test(file)) throw new Error(`A migration is named NNNN_name.sql, not ${file}`)
    if (file.slice(0, 4) === files[i - 1]?.slice(0, 4))
      throw new Error(`Two migrations have the number ${file.slice(0, 4)}`)
  }
  const text = await Promise.all(files.map((file) => readFile(`${at}/${file}`, 'utf8')))
  return new Map(
    files.map((file, i) => [file.slice(0, -'.sql'.length), { up: (db) => run(db, file, text[i] as string) }]),
  )
}

/** A savepoint around the file: Kysely still has a statement to run in this transaction when the file failed. */
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
