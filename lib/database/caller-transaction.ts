/**
 * Statements in a transaction of the caller's, whatever client it is.
 *
 * A FENCE OUTSIDE OF A TRANSACTION FENCES NOTHING: it would hold for one statement. So what is given as `trx` must be an open
 * transaction. What is none by its own sign is refused before anything is sent: a pool, a plain Kysely, an object of another
 * library. A client of pg does not tell all: BEGIN may be sent and not yet answered, or COMMIT; and of other clients nothing
 * is known. So the database is asked.
 *
 * It cannot be asked by its clocks. `statement_timestamp()` is later than `transaction_timestamp()` in any statement that has
 * parameters, also outside of a transaction: it is set at each message, and such a statement is several. What tells is the
 * transaction's id: a first statement brings it, and the one that has the effect fails with LS008 if it runs in another
 * (check_transaction, in 0012_transaction.sql). Outside of a transaction each statement is one of its own; so it fails, and
 * nothing of it stays. An id is assigned thereby, which the effect, a lock on a row at least, would do in any case.
 *
 * An object of Kysely stands for one transaction, so its id is asked for once. A client has many.
 */
import { CompiledQuery, Kysely, PostgresDialect, type RawBuilder, sql, type Transaction } from 'kysely'

/**
 * A client of `pg`, or one with its `query`, between BEGIN and COMMIT. Not a pool, of which each statement may have another
 * connection.
 */
export interface ClientInTransaction {
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  query(text: string, values: unknown[]): Promise<{ rows: any[] }>
  /** Pools have it. */
  totalCount?: never
}

/** An open transaction of yours: Kysely's, or a `pg` client between BEGIN and COMMIT. Anything else is INVALID_ARGUMENT `trx`. */
// biome-ignore lint/suspicious/noExplicitAny: a transaction over any tables will do
export type AnyTransaction = Transaction<any> | ClientInTransaction

/** Runs one statement that answers a row, in the caller's transaction or not at all. @throws INVALID_ARGUMENT `trx`. */
export async function within<R>(trx: AnyTransaction, statement: RawBuilder<R>): Promise<R[]> {
  checkTransaction(trx)
  return checked(trx, (xid) => run(trx, guarded(statement, xid)))
}

/** As {@link within}, for SQL that is text already; so the check goes before it. */
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
export async function textWithin(trx: AnyTransaction, text: string, values: unknown[] = []): Promise<{ rows: any[] }> {
  checkTransaction(trx)
  return checked(trx, async (xid) => {
    await run(trx, sql`select lockstep.check_transaction(${xid}::xid8)`)
    return textOn(trx, text, values)
  })
}

/** Runs a statement on a client of our own, or in a transaction of our own: no questions asked. */
export async function run<R>(trx: AnyTransaction, statement: RawBuilder<R>): Promise<R[]> {
  if (isKysely(trx)) return (await statement.execute(trx.withoutPlugins())).rows
  const compiled = statement.compile(compiler)
  return (await trx.query(compiled.sql, [...compiled.parameters]))?.rows
}

/** As {@link run}, for SQL that is text already. */
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
export async function textOn(trx: AnyTransaction, text: string, values: unknown[] = []): Promise<{ rows: any[] }> {
  if (!isKysely(trx)) return trx.query(text, values)
  const { rows } = await trx.withoutPlugins().executeQuery(CompiledQuery.raw(text, values))
  return { rows }
}

/** The id of a transaction that is known, so that it is not asked for. */
// biome-ignore lint/suspicious/noExplicitAny: over any tables
export function rememberXid(trx: Transaction<any>, xid: string): void {
  xids.set(trx, xid)
}
const xids = new WeakMap<object, string>()

/** The id of the current transaction, which is assigned if it has none; text that goes into any statement. */
export const XID = 'pg_catalog.pg_current_xact_id()::text'

/** @throws INVALID_ARGUMENT `trx`: it is no open transaction, by its own sign. Nothing is sent. */
export function checkTransaction(trx: unknown): asserts trx is AnyTransaction {
  let what: string | undefined
  try {
    what = otherThanTransaction(trx)
  } catch {
    what = 'an object that cannot be looked at'
  }
  if (what !== undefined) throw noTransaction(what)
}

// Volatile, and not to be flattened: the check is made before the effect, whatever the planner thinks.
const guarded = <R>(statement: RawBuilder<R>, xid: string) => sql<R>`
  select q.* from (select lockstep.check_transaction(${xid}::xid8) as open offset 0) c
   cross join lateral (select s.* from (${statement}) s where c.open offset 0) q`

async function checked<T>(trx: AnyTransaction, effect: (xid: string) => Promise<T>): Promise<T> {
  const xid = await xidOf(trx)
  try {
    return await effect(xid)
  } catch (error) {
    if ((error as { code?: unknown } | null)?.code !== 'LS008') throw error
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

/** What it is, unless it may be an open transaction. */
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
  return typeof it.totalCount === 'number' ? 'a pool, of which each statement may have another connection' : undefined
}
const DRIZZLE = Symbol.for('drizzle:entityKind')

const compiler = new Kysely<unknown>({ dialect: new PostgresDialect({ pool: async () => Promise.reject() }) })
