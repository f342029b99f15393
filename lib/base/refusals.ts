/** Why a server, or a pooler in front of it, refuses a connection or a statement, in one sentence, by its SQLSTATE. */

import { SQLSTATE } from './sqlstates.ts'

/** The server refuses to write. */
export const READ_ONLY = '25006'

const REFUSALS: Record<string, string> = {
  [READ_ONLY]: 'The database can only be read: it is a standby, or default_transaction_read_only is on',
  '57P03': 'The database takes no connections now: its server is starting, recovering or stopping',
  '55000': 'The database takes no connections: ALLOW_CONNECTIONS is false',
}

export const whyRefused = (code: string): string => REFUSALS[code] ?? 'The database is not available'

/** What our own functions refuse to work with, wherever a statement of ours meets it. */
const OURS: Record<string, string> = {
  [SQLSTATE.wrongIsolation]:
    'The transaction is not READ COMMITTED, which locks, terms and appends need: alter role … set default_transaction_isolation to ' +
    "'read committed'",
  [SQLSTATE.wrongBackend]:
    "Another backend of the server answers than the one that has this session's locks, as behind a pooler: connect to the server " +
    'directly (directConnectionString), or pass directConnectionString: null for leases',
  [SQLSTATE.sequenceBehind]:
    'The sequences of the database are behind its rows, as after a restore: run the migrations, which set them right',
}

/**
 * Why Lockstep does not work on this database, with this role, or through what is in front of the server; undefined: the error does not
 * say so. PgBouncer has no SQLSTATE of its own for it, and its messages are English. Of a message of the server only a name is read,
 * which is not translated. @param routine  the place in the server's source.
 */
export function whyUnfit(sqlState: string | undefined, message: string, routine?: string): string | undefined {
  const ours = sqlState === undefined ? undefined : OURS[sqlState]
  if (ours !== undefined) return ours
  const [, schema] = /\b(lockstep(?:_boss)?)\b/.exec(message) ?? []
  if (sqlState === '42501' && routine === 'aclcheck_error' && schema !== undefined) {
    return `${message}: the role lacks rights, and \`lockstep migrate --grant <role>\`, run by the owner, gives it what the functions need`
  }
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
