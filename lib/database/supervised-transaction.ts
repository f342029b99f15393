/**
 * A transaction that Lockstep begins and ends, and whose work is a user's: under a lock, in a handler.
 *
 * If the work ends it, what follows is in no transaction: a job would be completed and its effects gone, or its effects would
 * be there and the job run again, and what is written under a lock would be written under none. So:
 *
 * 1. While the work has the connection, a statement that begins or ends a transaction is refused before it is sent
 *    (transaction-control.ts). Nothing is lost then: it is an error of the work as any other.
 * 2. What slips through is noticed. The protocol tells after each statement whether a transaction is open; from then on nothing
 *    of the work's is sent. And COMMIT goes in one message with the check that the transaction is still the one that was begun,
 *    by its id, for it may have been ended and another begun: no round trip more.
 * 3. When it ends otherwise the database is asked what became of the one that was begun, with ROLLBACK, in the same message.
 *
 * Kysely begins and ends it through this connection, with texts that are known: so nothing of Kysely is done again here.
 */

import { type EndedOutcome, fromDatabase, outOfRange, TransactionEndedError } from '../base/index.ts'
import { XID } from './caller-transaction.ts'
import { controlsTransaction } from './transaction-control.ts'

/** What is needed of a client. */
export interface Connection {
  /** @param single  the server shall refuse a text of several statements. */
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  query(text: string, values?: readonly unknown[], single?: boolean): Promise<any>
  /** As the last answer told: T: a transaction is open; E: it has failed; I: none is open. */
  status(): string | null
}

/** Runs the user's part of the transaction. @param xid  its id, if it was not begun with one. */
export type RunWork = <T>(work: () => Promise<T> | T, xid?: string) => Promise<T>

export class SupervisedTransaction {
  readonly #client: Connection
  readonly #identified: boolean
  #begun = false
  #workRuns = false
  #xid: string | undefined
  /** Its COMMIT was answered: with an error, it is rolled back. */
  #answered = false
  /** It was ended under us. */
  #ended: TransactionEndedError | undefined
  #outcome: EndedOutcome = 'unknown'

  /** @param identified  whether the transaction's id is asked for at its beginning, in the same message. */
  constructor(client: Connection, identified: boolean) {
    this.#client = client
    this.#identified = identified
  }

  /** The transaction's id, once it is known. */
  get xid(): string | undefined {
    return this.#xid
  }

  /** As of a client: for Kysely, and through it for the work. */
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  async query(text: string, values?: readonly unknown[]): Promise<any> {
    if (this.#workRuns) return this.#theirs(text, values)
    if (!this.#begun) return this.#begin(text)
    if (text === 'commit') return this.#commit()
    if (text === 'rollback') return this.#rollback()
    return this.#send(text, values)
  }

  readonly runWork: RunWork = async (work, xid = this.#xid) => {
    this.#xid = xid
    this.#workRuns = true
    try {
      const result = await work()
      this.#look()
      if (this.#ended) throw this.#ended
      return result
    } finally {
      this.#workRuns = false
    }
  }

  /** What was thrown, if it was not that the transaction was ended; else that. */
  explained(error: unknown): unknown {
    if (!this.#ended) return error
    const cause = error instanceof TransactionEndedError ? error.cause : error
    return new TransactionEndedError(this.#outcome, cause === undefined ? undefined : { cause })
  }

  // biome-ignore lint/suspicious/noExplicitAny: as above
  async #theirs(text: string, values: readonly unknown[] | undefined): Promise<any> {
    this.#look()
    if (this.#ended) throw this.#ended
    const control = controlsTransaction(text)
    if (control === 'yes') {
      throw outOfRange('sql', 'a statement that does not begin or end the transaction, since Lockstep does both', text)
    }
    try {
      return await this.#send(text, values, control === 'perhaps')
    } finally {
      this.#look()
    }
  }

  // biome-ignore lint/suspicious/noExplicitAny: as above
  async #send(text: string, values: readonly unknown[] | undefined, single?: boolean): Promise<any> {
    try {
      return await this.#client.query(text, values, single)
    } catch (error) {
      // A statement that is checked (caller-transaction.ts) has found another transaction, which has failed by that and tells no more.
      if ((error as { code?: unknown }).code === 'LS008') this.#notice(error)
      throw error
    }
  }

  #look(): void {
    if (this.#client.status() === 'I') this.#notice()
  }

  #notice(cause?: unknown): TransactionEndedError {
    this.#ended ??= new TransactionEndedError('unknown', cause === undefined ? undefined : { cause })
    return this.#ended
  }

  // biome-ignore lint/suspicious/noExplicitAny: as above
  async #begin(text: string): Promise<any> {
    this.#begun = true
    if (!this.#identified) return this.#client.query(text)
    const results = await this.#client.query(`${text}; select ${XID} as xid`)
    this.#xid = results.at(-1).rows[0].xid
    return results[0]
  }

  // In a failed transaction what is asked first fails: so work that has swallowed an error is not taken for done.
  // biome-ignore lint/suspicious/noExplicitAny: as above
  async #commit(): Promise<any> {
    if (this.#ended) throw this.#ended
    if (this.#xid === undefined) return this.#client.query('commit')
    try {
      return (await this.#client.query(`select lockstep.check_transaction('${this.#xid}'); commit`)).at(-1)
    } catch (error) {
      const { code } = error as { code?: unknown }
      if (code === 'LS008') throw this.#notice(error)
      this.#answered = (error as { severity?: unknown }).severity !== undefined // a deferred constraint, a fenced table
      throw code === '42883' ? fromDatabase(error) : error
    }
  }

  // biome-ignore lint/suspicious/noExplicitAny: as above
  async #rollback(): Promise<any> {
    if (this.#xid === undefined || this.#answered) return this.#client.query('rollback')
    const end = `rollback; select pg_catalog.pg_xact_status('${this.#xid}') as became`
    let results: { rows: Record<string, string | null>[] }[]
    try {
      const current = 'select pg_catalog.pg_current_xact_id_if_assigned()::text as xid'
      results = await this.#client.query(`${current}; ${end}`)
      if (results[0]?.rows[0]?.xid !== this.#xid) this.#notice()
    } catch (error) {
      if ((error as { code?: unknown }).code !== '25P02') throw error
      results = await this.#client.query(end)
    }
    const became = results.at(-1)?.rows[0]?.became
    if (became === 'committed' || became === 'in progress') this.#notice() // prepared, if it is in progress
    if (became === 'committed') this.#outcome = 'committed'
    if (became === 'aborted') this.#outcome = 'rolled back'
    return results.at(-2)
  }
}
