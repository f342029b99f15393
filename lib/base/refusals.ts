/** Why a server refuses a connection or a write, in one sentence, by its SQLSTATE. */

/** The server refuses to write. */
export const READ_ONLY = '25006'

const REFUSALS: Record<string, string> = {
  [READ_ONLY]: 'The database can only be read: it is a standby, or default_transaction_read_only is on',
  '57P03': 'The database takes no connections now: its server is starting, recovering or stopping',
  '55000': 'The database takes no connections: ALLOW_CONNECTIONS is false',
}

export const whyRefused = (code: string): string => REFUSALS[code] ?? 'The database is not available'
