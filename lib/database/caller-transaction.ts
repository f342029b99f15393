/**
 * Statements in a transaction of the caller, on whatever client the caller has.
 *
 * A FENCE OUTSIDE OF A TRANSACTION FENCES NOTHING: it would end with its own statement. So `trx` must be an open transaction.
 * Some objects show that they are not one: a pool, a plain Kysely, an object of another library. These are refused before
 * anything is sent. A client of pg does not show everything: it may have sent BEGIN or COMMIT and not have the answer yet. Other
 * clients show nothing at all. So the database is asked.
 *
 * Its clocks cannot answer this. `statement_timestamp()` is later than `transaction_timestamp()` in every statement that has
 * parameters, also outside of a transaction: it is set at each protocol message, and such a statement takes several messages.
 * The transaction's id can answer it. A first statement reads the id. The statement that has the effect then fails with LS008
 * if it runs under another id (check_transaction, in 0012_transaction.sql). Outside of a transaction each statement is a
 * transaction of its own; so the second one fails, and nothing of it stays. Reading the id assigns one; the effect locks a row
 * at least, so it would assign one anyway.
 *
 * A caller's client has the caller's parsers and settings. So each answer is one text, the JSON of the row: no parser changes it, and
 * in JSON an instant has the style ISO, whatever the DateStyle is. (A bigint becomes a number there: only positions of streams are
 * read this way.)
 *
 * A transaction object of Kysely is always the same transaction, so its id is read once. A client has many transactions, one
 * after another.
 */
import { CompiledQuery, Kysely, PostgresDialect, type RawBuilder, sql, type Transaction } from 'kysely'
import { SQLSTATE } from '../base/index.ts'

/**
 * A client of `pg`, or one with the same `query`, between BEGIN and COMMIT. Not a pool: it may run each statement on another
 * connection.
 */
export interface ClientInTransaction {
  /** Runs one statement, as `query` of a `pg` client does. */
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  query(text: string, values: unknown[]): Promise<{ rows: any[] }>
  /** A pool has this field, so the type refuses a pool. */
  totalCount?: never
}

/** An open transaction of yours: Kysely's, or a `pg` client between BEGIN and COMMIT. Anything else is INVALID_ARGUMENT `trx`. */
// biome-ignore lint/suspicious/noExplicitAny: a transaction over any tables
export type AnyTransaction = Transaction<any> | ClientInTransaction

/** Runs one statement that returns a row: in the caller's transaction, or not at all. @throws INVALID_ARGUMENT `trx`. */
export async function within<R>(trx: AnyTransaction, statement: RawBuilder<R>): Promise<R[]> {
  checkTransaction(trx)
  const rows = await checked(trx, (xid) => run(trx, guarded(statement, xid)))
  return rows.map(({ row }) => JSON.parse(row))
}

/** The same as {@link within}, for SQL text: the check is sent as a statement before it. */
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
export async function textWithin(trx: AnyTransaction, text: string, values: unknown[] = []): Promise<{ rows: any[] }> {
  checkTransaction(trx)
  return checked(trx, async (xid) => {
    await run(trx, sql`select lockstep.check_transaction(${xid}::xid8)`)
    return textOn(trx, text, values)
  })
}

/** The text and the parameters of a statement. */
export function compiled(statement: RawBuilder<unknown>): { text: string; values: unknown[] } {
  const { sql: text, parameters } = statement.compile(compiler)
  return { text, values: [...parameters] }
}

/** Runs a statement, without the check. */
async function run<R>(trx: AnyTransaction, statement: RawBuilder<R>): Promise<R[]> {
  if (isKysely(trx)) return (await statement.execute(trx.withoutPlugins())).rows
  const { text, values } = compiled(statement)
  return (await trx.query(text, values))?.rows
}

/** Runs a statement that reads, on a Kysely of the caller's. Each row is read as {@link within} reads it. */
export async function read<DB, R>(db: Kysely<DB>, statement: RawBuilder<R>): Promise<R[]> {
  const { rows } = await asText(statement).execute(db.withoutPlugins())
  return rows.map(({ row }) => JSON.parse(row))
}

const asText = (statement: RawBuilder<unknown>) =>
  sql<{ row: string }>`select pg_catalog.to_jsonb(s)::pg_catalog.text as row from (${statement}) s`

/** Runs SQL text in a transaction of Lockstep's own, without the check. */
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
export async function textOn(trx: AnyTransaction, text: string, values: unknown[] = []): Promise<{ rows: any[] }> {
  if (!isKysely(trx)) return trx.query(text, values)
  const { rows } = await trx.withoutPlugins().executeQuery(CompiledQuery.raw(text, values))
  return { rows }
}

/** Remembers the id of a transaction, so that it need not be read. */
// biome-ignore lint/suspicious/noExplicitAny: over any tables
export function rememberXid(trx: Transaction<any>, xid: string): void {
  xids.set(trx, xid)
}
const xids = new WeakMap<object, string>()

/** SQL for the id of the current transaction. One is assigned if the transaction has none. */
export const XID = 'pg_catalog.pg_current_xact_id()::text'

/** Refuses an object that shows that it is not an open transaction. Nothing is sent. @throws INVALID_ARGUMENT `trx`. */
export function checkTransaction(trx: unknown): asserts trx is AnyTransaction {
  let what: string | undefined
  try {
    what = otherThanTransaction(trx)
  } catch {
    what = 'an object that cannot be inspected'
  }
  if (what !== undefined) throw noTransaction(what)
}

// check_transaction is volatile, and `offset 0` keeps the planner from merging the subqueries: so the check runs before the effect.
const guarded = (statement: RawBuilder<unknown>, xid: string) => sql<{ row: string }>`
  select q.row from (select lockstep.check_transaction(${xid}::xid8) as open offset 0) c
   cross join lateral (${asText(statement)} where c.open offset 0) q`

async function checked<T>(trx: AnyTransaction, effect: (xid: string) => Promise<T>): Promise<T> {
  const xid = await xidOf(trx)
  try {
    return await effect(xid)
  } catch (error) {
    if ((error as { code?: unknown } | null)?.code !== SQLSTATE.noTransaction) throw error
    throw noTransaction(isKysely(trx) ? 'one of Kysely that has ended' : 'a client outside of a transaction', error)
  }
}

async function xidOf(trx: AnyTransaction): Promise<string> {
  const known = xids.get(trx)
  if (known !== undefined) return known
  let rows: { xid?: unknown }[]
  try {
    rows = await run(trx, sql<{ xid: string }>`select ${sql.raw(XID)} as xid`)
  } catch (error) {
    if (/^Transaction is already /.test(String((error as Error | null)?.message))) {
      throw noTransaction('one of Kysely that has ended', error)
    }
    if (error instanceof TypeError && !('code' in error)) throw noTransaction('an object whose `query` fails', error)
    throw error
  }
  const xid = rows?.[0]?.xid
  if (typeof xid !== 'string') throw noTransaction('an object whose `query` does not answer { rows }')
  if (isKysely(trx)) xids.set(trx, xid)
  return xid
}

// biome-ignore lint/suspicious/noExplicitAny: over any tables
const isKysely = (trx: AnyTransaction): trx is Transaction<any> =>
  (trx as { isTransaction?: unknown }).isTransaction === true

const noTransaction = (got: string, cause?: unknown) =>
  Object.assign(
    new TypeError(
      'Expected `trx` to be an open transaction, which is one of Kysely or a client of pg between BEGIN and COMMIT, ' +
        `got ${got}`,
      cause === undefined ? undefined : { cause },
    ),
    { code: 'INVALID_ARGUMENT' as const, field: 'trx' },
  )

/** What the object is, in words; undefined: it may be an open transaction. */
function otherThanTransaction(trx: unknown): string | undefined {
  if (trx === null || (typeof trx !== 'object' && typeof trx !== 'function')) {
    return typeof trx === 'string' ? 'a string' : String(trx)
  }
  const it = trx as Record<string, unknown>
  const has = (...methods: string[]) => methods.some((method) => typeof it[method] === 'function')
  if (typeof trx === 'function') {
    if (it.isTransaction === true) return 'a transaction of Knex'
    if (has('unsafe')) return has('savepoint') ? 'a transaction of postgres.js' : 'a client of postgres.js'
    return has('raw', 'transaction') ? 'an object of Knex' : 'a function'
  }
  if ((it.constructor as unknown as Record<symbol, unknown> | undefined)?.[DRIZZLE] !== undefined)
    return 'an object of Drizzle'
  if (has('getExecutor') && has('executeQuery')) {
    if (it.isTransaction !== true) return 'a Kysely that is no transaction'
    return it.isCommitted === true || it.isRolledBack === true ? 'one of Kysely that has ended' : undefined
  }
  if (has('$queryRaw', '$executeRaw', '$queryRawUnsafe')) return 'a client of Prisma'
  if (has('createQueryRunner') || 'isTransactionActive' in it || 'queryRunner' in it) return 'an object of TypeORM'
  if (Array.isArray(trx)) return 'an array'
  if (!has('query')) return 'an object without `query`'
  return typeof it.totalCount === 'number' ? 'a pool, which may run each statement on another connection' : undefined
}
const DRIZZLE = Symbol.for('drizzle:entityKind')

const compiler = new Kysely<unknown>({ dialect: new PostgresDialect({ pool: async () => Promise.reject() }) })
