/**
 * The hold that lasts as long as this process's connection.
 *
 * The database knows only its advisory lock K, until a fence is asserted: then the hold is registered, that is, its row is written
 * over the connection that has K, and a transaction can be fenced against it. A registered hold frees its row before K passes on:
 * its token is dead before the next holder works, also when the next holder is of the same process.
 */

import { LeaseLostError, SQLSTATE } from '../base/index.ts'
import type { Database, Session } from '../database/index.ts'
import { sqlState } from '../database/index.ts'
import { AbstractHold, type Leases } from '../lease/index.ts'

/** The callers that wait for the name behind such a hold. */
export interface NameQueue {
  readonly name: string
  passOn(dead: boolean): Promise<void>
}

/** A hold that lasts as long as this process's connection lives. */
export class ConnectionHold extends AbstractHold {
  readonly kind = 'connection'
  readonly #queue: NameQueue
  readonly #leases: Leases
  readonly #session: Session
  readonly #meta: unknown
  /** The row is written or being written; undefined: it was not, or the attempt failed, and the row may be there all the same. */
  #registered: Promise<void> | undefined
  /** Whether there may be a row: from the first attempt on. */
  #mayHaveRow = false
  #passed: Promise<void> | undefined

  constructor(
    queue: NameQueue,
    { database, leases }: { database: Database; leases: Leases },
    session: Session,
    token: bigint,
    holder: string,
    meta: unknown,
  ) {
    super(database, leases, queue.name, holder, token)
    this.#queue = queue
    this.#leases = leases
    this.#session = session
    this.#meta = meta
    session.attach(this)
  }

  protected withinTrust(): boolean {
    return this.#session.isTrusted()
  }

  protected fence(): Promise<void> {
    this.#mayHaveRow = true
    this.#registered ??= this.#session.register(this.name, this.holder, this.token, this.#meta).catch((error) => {
      this.#registered = undefined // the next fence tries again; what was written all the same it finds
      if (sqlState(error) === SQLSTATE.leaseLost) this.lose('the database says so', error)
      throw error
    })
    return this.#registered
  }

  // The row first, then K, so that its token is dead before the next holder works. Whatever fails, K must go: of a row without
  // it the next grant knows that nobody has it.
  protected async giveUp(): Promise<void> {
    if (!this.#mayHaveRow) return this.#passOn(true) // nothing of it is in the database but K
    const written = await this.#registered?.then(
      () => true,
      () => false,
    )
    try {
      await this.#leases.revoke(this.name, this.token)
    } catch (error) {
      const gone = error instanceof LeaseLostError
      await this.#passOn(gone)
      if (gone && !written) return // it had not been written
      throw error
    }
    await this.#passOn(true)
  }

  #passOn(dead: boolean): Promise<void> {
    this.#passed ??= this.#queue.passOn(dead)
    return this.#passed
  }

  connectionLost(error: Error): void {
    this.lose('its connection is lost', error)
  }

  protected ended(): void {
    this.#session.detach(this)
  }

  // Lost with its connection, or taken by force: either way the next caller is served.
  override lose(why: string, cause?: unknown): void {
    if (this.over) return
    super.lose(why, cause)
    this.#passOn(!this.#mayHaveRow).catch(() => {})
  }
}
