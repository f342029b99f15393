/**
 * Migrations: the plain SQL files of `db/migrations`, each applied once, in the order of their numbers.
 *
 * All pending files are applied in one transaction, so a database is never between two releases: if one file fails, neither that
 * file nor the files before it leave anything. Any number of processes may migrate at once, as every instance of a deployment
 * does: one of them gets an advisory lock for its transaction, and the others find the work done.
 *
 * A change during which nobody may hold anything is different: it must first close the database, and wait until it is quiet. Then
 * there are several transactions; the wait is explained in exclusive-migration.ts. On a new database there is nothing to wait for, and
 * one transaction.
 *
 * Forward only. A database with a migration that this code does not know is refused: deploy the newer code. Migrations are never
 * rolled back.
 *
 * A server that Lockstep does not support is refused before anything is created (database/server-facts.ts).
 *
 * A database that was restored, or replicated logically, without its sequences would grant a token a second time. Each run checks
 * this and sets the sequences right, also when there is nothing to migrate.
 *
 * The role that runs the functions need not own the tables. Its rights are listed in role-rights.ts, and it gets them in the
 * same transaction, so that no program finds tables on which it has no rights yet.
 */

import { Kysely, PostgresDialect, sql } from 'kysely'
import { Migrator } from 'kysely/migration'
import pg from 'pg'
import {
  checkMs,
  checkOptions,
  fromDatabase,
  known,
  notConnected,
  UnavailableError,
  WAIT,
  wrongType,
} from '../base/index.ts'
import { checkedConnectionString, PARSERS, read, whyReadOnly } from '../database/index.ts'
import { type Blocker, closingOf, described, reopen, untilQuiet, type WaitOptions } from './exclusive-migration.ts'
import { lockMigrations, type MigrationFiles, migrationFiles, pinnedTransaction } from './migration-files.ts'
import { checkRole, grant } from './role-rights.ts'
import { checkServer } from './server-check.ts'

export { type Blocker, described }

/** Options of {@link migrate}. */
export interface MigrateOptions extends WaitOptions {
  /** A folder of `NNNN_name.sql` files. In a bundle it must be given. @default the `db/migrations` of this package */
  folder?: string | undefined
  /**
   * The name of a role, at most 63 bytes. It is granted exactly the rights that the functions need, in the same transaction; also when
   * there is nothing to migrate.
   * @default no role
   */
  grant?: string | undefined
}

/** What {@link migrate} did. */
export interface Migrated {
  /** The migrations that this call applied, in order; empty: the database was up to date. */
  applied: string[]
  /** The last migration that this code knows. */
  latest: string
  /** Set when this call continued an exclusive migration that another process had begun. */
  resumed?: true
  /** With `grant`: every right that the role has now, like `INSERT on lockstep.stream (name)`. */
  granted?: string[]
}

/** The state of a database's schema. Migrations are named like their files, without `.sql`. */
export interface SchemaState {
  /** The last migration that was applied; null: none was, or there is no schema. */
  current: string | null
  /** The last migration that this code knows. */
  latest: string
  /** The migrations that this code knows and the database lacks, in order. */
  pending: string[]
  /** Whether the database has a migration that this code does not know. */
  newer: boolean
}

/**
 * Brings the database to the schema that this code needs. If it has that schema it does nothing, and needs no rights.
 *
 * @param database  a connection string (direct or pooled), or a Kysely, which stays open.
 * @throws {Error} one sentence. Lockstep does not support the server, the database is newer than this code, a file failed (which, and
 *   in which line), the role lacks a right, the role of `grant` does not exist, the folder contains something unexpected, or
 *   others were in the way for `waitMs` (which). Nothing was changed.
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`: an option or the connection string (`connectionString`) is wrong, or
 *   `grant` cannot be a role of yours.
 * @throws {UnavailableError} the database cannot be reached, or can only be read.
 * @throws the signal's reason.
 */
export async function migrate<DB>(database: string | Kysely<DB>, options: MigrateOptions = {}): Promise<Migrated> {
  checkMigrate(options)
  if (typeof database !== 'string') return apply(database, options)
  const connectionString = checkedConnectionString('connectionString', database)
  const pool = new pg.Pool({ connectionString, max: 1, types: PARSERS })
  pool.on('error', () => {}) // an idle connection that breaks must not end the process
  pool.on('connect', (client) => client.on('error', () => {})) // nor one that breaks between two statements
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) })
  try {
    const client = await pool.connect().catch((error) => {
      throw notConnected(error)
    })
    client.release()
    return await apply(db, options)
  } finally {
    await db.destroy()
  }
}

const FOLDER = known<Pick<MigrateOptions, 'folder'>>({ folder: true })
const MIGRATE = known<MigrateOptions>({
  ...{ folder: true, grant: true, waitMs: true, terminate: true, signal: true, onWait: true },
})

function checkMigrate(options: MigrateOptions): void {
  checkOptions(options, MIGRATE)
  const { grant, waitMs, terminate, signal, onWait } = options
  if (grant !== undefined) checkRole(grant)
  if (waitMs !== undefined) checkMs('waitMs', waitMs, WAIT)
  if (terminate !== undefined && typeof terminate !== 'boolean') throw wrongType('terminate', 'a boolean', terminate)
  if (signal !== undefined && !(signal instanceof AbortSignal)) throw wrongType('signal', 'an AbortSignal', signal)
  if (onWait !== undefined && typeof onWait !== 'function') throw wrongType('onWait', 'a function', onWait)
}

/**
 * Compares the database with this code. It only reads, and it works before the first migration too.
 *
 * @throws {UnavailableError} the database cannot be reached.
 */
export async function schemaState<DB>(
  db: Kysely<DB>,
  options: Pick<MigrateOptions, 'folder'> = {},
): Promise<SchemaState> {
  checkOptions(options, FOLDER)
  const files = await migrationFiles(options.folder)
  return pinnedTransaction(db, (trx) => stateOf(trx, files)).then(
    ({ current, latest, pending, newer }) => ({ current, latest, pending, newer }),
    (error) => {
      throw fromDatabase(error)
    },
  )
}

async function apply<DB>(db: Kysely<DB>, options: MigrateOptions): Promise<Migrated> {
  const files = await migrationFiles(options.folder)
  const done: Migrated = { applied: [], latest: [...files.keys()].at(-1) as string }
  const since = performance.now()
  const left = () => (options.waitMs ?? 30_000) - (performance.now() - since)
  let closed: 'no' | 'perhaps' | 'yes' = 'no'
  try {
    const before = await pinnedTransaction(db, async (trx) => ({
      ...(await checkServer(trx)),
      ...(await stateOf(trx, files)),
    }))
    refuseNewer(before)
    if (before.pending.length === 0 && !before.misaligned && options.grant === undefined) return done
    const why = whyReadOnly(before)
    if (why !== undefined) throw new UnavailableError(why)
    if (before.current !== null && before.pending.some((name) => files.get(name)?.ends === 'barrier'))
      closed = 'perhaps'
    for (let quiet: number | null = null; ; ) {
      options.signal?.throwIfAborted()
      const step: Step = await pinnedTransaction(db, (trx) => advance(trx, files, options, quiet))
      if (step.resumed && closed !== 'yes') done.resumed = true
      done.applied.push(...step.applied)
      if (step.finished) return { ...done, ...step.finished }
      closed = 'yes'
      if (step.closing !== null) quiet = (await untilQuiet(db, step.closing, options, left)) ? step.closing : null
    }
  } catch (error) {
    const known = fromDatabase(error)
    if (closed === 'yes') await undoClosing(db, files, error)
    // The closing may have committed, and its answer was lost.
    else if (closed === 'perhaps' && known instanceof UnavailableError) await reopen(db, files).catch(() => {})
    throw known
  }
}

/** What one transaction did. */
interface Step {
  applied: string[]
  resumed: boolean
  /** The closing in which the next step has to wait until the database is quiet. */
  closing: number | null
  /** Set when the migration is complete. */
  finished?: { granted?: string[] }
}

/** Applies files in one transaction, up to the next file that ends it. @param quiet  the closing in which the database is quiet. */
async function advance<DB>(
  trx: Kysely<DB>,
  files: MigrationFiles,
  options: MigrateOptions,
  quiet: number | null,
): Promise<Step> {
  await lockMigrations(trx)
  const { current, pending, ...state } = await stateOf(trx, files)
  refuseNewer(state)
  const ends = (name: string | null | undefined) => files.get(name ?? '')?.ends
  const closing = await closingOf(trx)
  const resumed = closing !== null
  if (resumed && pending.length > 0 && ends(current) === 'barrier' && closing !== quiet) {
    return { applied: [], resumed, closing }
  }
  // In a new database nobody holds anything, so no file has to end the transaction.
  const end = current === null ? -1 : pending.findIndex((name) => ends(name) !== undefined)
  const target = end < 0 ? pending.at(-1) : pending[end]
  const applied = target === undefined ? [] : await bringUp(trx, files, target)
  if (target !== pending.at(-1)) {
    return { applied, resumed, closing: ends(target) === 'barrier' ? await closingOf(trx) : null }
  }
  if (await isMisaligned(trx)) await sql`select lockstep.realign()`.execute(trx)
  const granted = options.grant === undefined ? {} : { granted: await grant(trx, options.grant) }
  return { applied, resumed, closing: null, finished: granted }
}

async function undoClosing<DB>(db: Kysely<DB>, files: MigrationFiles, error: unknown): Promise<void> {
  await reopen(db, files).catch((cause) => {
    const why = error instanceof Error ? error.message : String(error)
    throw new UnavailableError(
      `The migration was aborted (${why}) and could not be undone: until it is run again locks and appends are refused`,
      { cause },
    )
  })
}

async function bringUp<DB>(trx: Kysely<DB>, files: MigrationFiles, target: string): Promise<string[]> {
  await makeSchema(trx)
  const { error, results } = await new Migrator({
    db: trx,
    provider: { getMigrations: async () => Object.fromEntries(files) },
    migrationTableSchema: 'lockstep',
    migrationTableName: 'migration',
    migrationLockTableName: 'migration_lock',
  }).migrateTo(target)
  if (error !== undefined) throw error
  return (results ?? []).map((result) => result.migrationName)
}

async function stateOf<DB>(
  db: Kysely<DB>,
  files: MigrationFiles,
): Promise<SchemaState & { unknown: string[]; misaligned: boolean }> {
  const known = [...files.keys()]
  const [migrated] = await read(
    db,
    sql<{ there: boolean }>`select to_regclass('lockstep.migration') is not null as there`,
  )
  const done = migrated?.there
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

// Every role may ask. An older schema does not have the function; then it counts as no.
async function isMisaligned<DB>(db: Kysely<DB>): Promise<boolean> {
  const known = sql<{ known: boolean }>`select to_regprocedure('lockstep.misaligned()') is not null as known`
  if (!(await read(db, known))[0]?.known) return false
  const [row] = await read(db, sql<{ misaligned: boolean }>`select lockstep.misaligned() as misaligned`)
  return row?.misaligned ?? false
}

function refuseNewer({ unknown, latest }: { unknown: string[]; latest: string }): void {
  if (unknown.length === 0) return
  throw new Error(
    `The database has migration ${unknown.at(-1)}, which this version of Lockstep (up to ${latest}) does not know: ` +
      'deploy the newer version; migrations are never rolled back',
  )
}

/** Creates the schema. Kysely would do it too, but hides a refusal behind "current transaction is aborted". */
async function makeSchema<DB>(db: Kysely<DB>): Promise<void> {
  const facts = sql<{ role: string; there: boolean; may: boolean }>`
    select current_user::text as role, s.oid is not null as there, case
             when s.oid is null then has_database_privilege(current_database(), 'create')
             else has_schema_privilege(s.oid, 'create')
           end as may
      from (select 1) as one left join pg_catalog.pg_namespace as s on s.nspname = 'lockstep'`
  const [row] = await read(db, facts)
  if (!row) throw new UnavailableError('The database did not answer')
  const { role, there, may } = row
  if (!may) {
    const where = there ? 'in the schema "lockstep"' : 'schemas in this database'
    throw new Error(`The role "${role}" may not create ${where}: migrate as a role that may, or grant it CREATE`)
  }
  if (!there) await sql`create schema lockstep`.execute(db)
}
