/** Why a server, or a pooler in front of it, refuses a connection or a statement, in one sentence, by its SQLSTATE. */

/** The server refuses to write. */
export const READ_ONLY = '25006'

const REFUSALS: Record<string, string> = {
  [READ_ONLY]: 'The database can only be read: it is a standby, or default_transaction_read_only is on',
  '57P03': 'The database takes no connections now: its server is starting, recovering or stopping',
  '55000': 'The database takes no connections: ALLOW_CONNECTIONS is false',
}

export const whyRefused = (code: string): string => REFUSALS[code] ?? 'The database is not available'

/**
 * Why Lockstep does not work through what is in front of the server; undefined: the error does not say so. PgBouncer has no SQLSTATE
 * of its own for it, and its messages are English. Of a message of the server only a name is read, which is not translated.
 */
export function whyUnfit(sqlState: string | undefined, message: string): string | undefined {
  if (sqlState === '08P01' && /statement pooling mode/.test(message)) {
    return (
      'The pooler in front of the database is in statement mode, which allows no transactions: set pool_mode = transaction, ' +
      'or connect to the server directly'
    )
  }
  if (sqlState === '42P05' && /"lockstep_/.test(message)) {
    return 'Several connections share one session of the server, as on PGlite: use PostgreSQL 14 or newer, and a pooler that resets its sessions'
  }
  return undefined
}
