/**
 * A client of a pool, for one use.
 *
 * It is used again after an error that the server sent, and after no other error; and not after 25006. A connection keeps the
 * default_transaction_read_only that it was opened with, and stays with the server that has become a standby. So a new one is
 * opened, which can write as soon as the database can be written; a statement by itself is tried again on it ({@link metOldConnection}).
 * So it is after 57P05, the role's idle_session_timeout: the server had ended the connection before the statement came.
 * And a client that is left in a transaction is not used again.
 */
import pg from 'pg'
import { isReadOnly, UnavailableError } from '../base/index.ts'
import { destroyConnection, isOdd, keepsNames } from './pool-clients.ts'
import type { PreparedNames } from './prepared.ts'
import { BEGUN_BY_PROXY, type Probe, probeOf } from './proxies.ts'
import { queryPinned } from './settings.ts'
import type { Connection, HowToQuery } from './supervised-transaction.ts'
import { controlsTransaction } from './transaction-control.ts'
import { sqlState } from './values.ts'

export interface GuardedClient extends Connection, Omit<Probe, 'query'> {
  release(): void
  /** Releases the client; it is not used again. */
  discard(why: Error): void
  /** Closes the socket at once. */
  destroy(): void
}

/** What a client needs of its pool. */
export interface Guard {
  /** Whether it is for the user's own statements. */
  users: boolean
  /** Makes the query of a statement. */
  query(text: string, values: unknown[] | undefined, how: HowToQuery): pg.QueryConfig
  /** The names of its prepared statements. */
  names: PreparedNames
  /** Whether the pool is being closed. */
  closing(): boolean
}

const IDLE_SESSION_TIMEOUT = '57P05'
const NEVER_SENT = /is not queryable$/ // pg: the end of the connection has been read already

const USED = new WeakSet<object>()
const OLD = new WeakSet<object>()
/** Whether a statement had no effect because of a connection that was opened for an earlier use: it can only read, or has ended. */
export const metOldConnection = (error: unknown): boolean =>
  typeof error === 'object' && error !== null && OLD.has(error)

// A transaction that was begun on it and not ended, by whatever: the next user's writes would be in it, and be lost.
const leftOpen = (client: pg.PoolClient): Error | undefined =>
  client.getTransactionStatus() === 'I' ? undefined : new Error('It was left in a transaction')

export function guarded(client: pg.PoolClient, guard: Guard): GuardedClient {
  const old = USED.has(client)
  USED.add(client)
  let broken: Error | undefined
  let begun = false
  return {
    ...probeOf(client as unknown as pg.Client),
    query: async (text, values, how = { theirs: guard.users }) => {
      const config = guard.query(text, values as unknown[], how)
      const alone = !guard.users && client.getTransactionStatus() === 'I'
      const pinned = alone && isOdd(client)
      // In a transaction a name that fails would end it.
      const name = alone && keepsNames(client) ? guard.names.of(text, values) : undefined
      const send = async () => {
        if (pinned) return queryPinned(client, config)
        if (name === undefined) return client.query(config)
        try {
          return await client.query({ ...config, name })
        } catch (error) {
          if (!guard.names.failed(text, error)) throw error
          return client.query(config)
        }
      }
      try {
        const result = await send()
        if (!begun && client.getTransactionStatus() === 'T') {
          begun = controlsTransaction(text) !== 'no'
          if (!begun) throw new UnavailableError(BEGUN_BY_PROXY)
        }
        return result
      } catch (error) {
        const answered = error instanceof pg.DatabaseError
        const over = sqlState(error) === IDLE_SESSION_TIMEOUT
        if (old && (over || isReadOnly(error) || NEVER_SENT.test(String(error)))) OLD.add(error as Error)
        if (!answered || over || isReadOnly(error)) broken = error as Error
        else if (pinned) await client.query('rollback').catch((failure) => (broken = failure))
        if (answered) throw error
        throw guard.closing() ? closed(error) : error
      }
    },
    status: () => client.getTransactionStatus(),
    release: () => client.release(broken ?? leftOpen(client)),
    discard: (why) => client.release(broken ?? why),
    destroy() {
      broken ??= new Error('The transaction was abandoned')
      destroyConnection(client)
    },
  }
}

/** The error for a call after which, or during which, the pool was closed. */
export const closed = (cause?: unknown): UnavailableError =>
  new UnavailableError('Lockstep was closed', cause === undefined ? {} : { cause })
