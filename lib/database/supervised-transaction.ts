/**
 * A transaction that Lockstep begins and ends, while its work is the user's: under a lock, or in a handler.
 *
 * If the user's work ended the transaction, the statements after that would be outside of it. A job would be completed and
 * its effects gone, or its effects would be there and the job would run again; and a write under a lock would be without the
 * lock. So:
 *
 * 1. While the work runs, a statement that begins or ends a transaction is refused before it is sent
 *    (transaction-control.ts). Nothing is lost then: the work gets an error, as for any other statement that fails.
 * 2. A statement that was not recognized is detected afterwards. After each statement the protocol reports whether a transaction
 *    is open; if none is, no further statement of the work is sent. The work may also have ended the transaction and begun
 *    another. So COMMIT is sent in one message with a check of the transaction's id, which costs no extra round trip.
 * 3. If the transaction does not commit, ROLLBACK is sent in one message with the question how the original transaction ended.
 *
 * Kysely begins and ends the transaction through this connection, with texts that are known. So nothing of Kysely is rebuilt here.
 */

import { type EndedOutcome, fromDatabase, outOfRange, SQLSTATE, TransactionEndedError } from '../base/index.ts'
import { XID } from './caller-transaction.ts'
import { controlsTransaction } from './transaction-control.ts'

/** The client that the transaction runs on. */
export interface Connection {
  /** Runs SQL text. @param single  whether the server must refuse a text of several statements. */
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  query(text: string, values?: readonly unknown[], single?: boolean): Promise<any>
  /** The status of the last answer. T: a transaction is open; E: it has failed; I: none is open. */
  status(): string | null
}

/** Runs the user's part of the transaction. @param xid  the transaction's id, if it was not read when it began. */
export type RunWork = <T>(work: () => Promise<T> | T, xid?: string) => Promise<T>

export class SupervisedTransaction {
  readonly #client: Connection
  readonly #identified: boolean
  #begun = false
  #workRuns = false
  #xid: string | undefined
  /** The server has answered its COMMIT with an error; so it is rolled back. */
  #answered = false
  /** The user's work has ended it. */
  #ended: TransactionEndedError | undefined
  #outcome: EndedOutcome = 'unknown'

  /** @param identified  whether the transaction's id is read when it begins, in the same message. */
  constructor(client: Connection, identified: boolean) {
    this.#client = client
    this.#identified = identified
  }

  /** The transaction's id, once it is known. */
  get xid(): string | undefined {
    return this.#xid
  }

  /** Runs SQL text, as a client does: for Kysely, and through Kysely for the work. */
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

  /** The error to throw for `error`: a TransactionEndedError if the work has ended the transaction; else the same. */
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
      // A checked statement (caller-transaction.ts) has found another transaction. That has failed now, so its status shows nothing.
      if ((error as { code?: unknown }).code === SQLSTATE.noTransaction) this.#notice(error)
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
    // It is Lockstep's own statement, so its failure is said in Lockstep's words.
    const sent = this.#client.query(this.#identified ? `${text}; select ${XID} as xid` : text)
    const results = await sent.catch((error) => {
      throw fromDatabase(error)
    })
    if (!this.#identified) return results
    this.#xid = results.at(-1).rows[0].xid
    return results[0]
  }

  // In a failed transaction the check fails, and COMMIT is not run: so work that has swallowed an error does not count as done.
  // biome-ignore lint/suspicious/noExplicitAny: as above
  async #commit(): Promise<any> {
    if (this.#ended) throw this.#ended
    if (this.#xid === undefined) return this.#client.query('commit')
    try {
      return (await this.#client.query(`select lockstep.check_transaction('${this.#xid}'); commit`)).at(-1)
    } catch (error) {
      const { code } = error as { code?: unknown }
      if (code === SQLSTATE.noTransaction) throw this.#notice(error)
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
