/** The transaction of a batch: its first statement, and what its errors mean. */
import { type RawBuilder, sql, type Transaction } from 'kysely'
import { fromDatabase, UnavailableError } from '../../base/index.ts'
import { sqlState } from '../../database/index.ts'

// How often the server checks whether the connection of a running statement was cut.
const CHECK_MS = 1_000

// Sets limits of the server too: for a process that is paused, for a statement that waits in the database, for a
// connection that is cut.
export const beginStatement = <R>(outcome: RawBuilder<R>, timeoutMs: number) => sql<R & { xid: string }>`
  with outcome as materialized (${outcome})
  select outcome.*, pg_current_xact_id()::text as xid,
         set_config('idle_in_transaction_session_timeout', ${`${timeoutMs}ms`}, true),
         set_config('statement_timeout', ${`${timeoutMs}ms`}, true),
         case when current_setting('transaction_timeout', true) is not null then set_config('transaction_timeout', '0', true) end,
         set_config('client_connection_check_interval', ${`${CHECK_MS}ms`}, true)
    from outcome`

export const currentXid = sql<{ xid: string | null }>`select pg_current_xact_id_if_assigned()::text as xid`

/** Whether the connection of a transaction works, in whatever state the transaction is. */
// biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
export const isConnected = (trx: Transaction<any>): Promise<boolean> =>
  currentXid.execute(trx).then(() => true, isServerError)

/** Whether the error is an answer of the server, and not of the connection. */
export const isServerError = (error: unknown): boolean => (error as { severity?: unknown }).severity !== undefined

/**
 * The database is away, or asks to run the transaction again (40001, 40P01). Not what a handler's own statements may
 * cause each time: too slow (57014), waited for a lock (55P03), or an error of the system (58, XX).
 */
export const isFault = (error: unknown): boolean =>
  fromDatabase(error) instanceof UnavailableError && !/^(55P03|57014|58|XX)/.test(sqlState(error))
