/**
 * The hold that lasts as long as this process's connection.
 *
 * Nothing of it is in the database but K, until a fence asks for it: then its row is written, over the connection that
 * has K, so that a transaction can be fenced against it. A registered hold frees its row before K passes on: its token
 * is dead before the next holder works, also when that is the next one of the same process.
 */

import { LeaseLostError } from '../base/index.ts'
import type { Database, Session } from '../database/index.ts'
import { sqlState } from '../database/index.ts'
import { AbstractHold, type Leases } from '../lease/index.ts'

/** The line that such a hold belongs to. */
export interface HeldLine {
  readonly name: string
  passOn(dead: boolean): Promise<void>
}

/** A hold that lasts as long as this process's connection lives. */
export class ConnectionHold extends AbstractHold {
  readonly kind = 'connection'
  readonly #line: HeldLine
  readonly #leases: Leases
  readonly #gate: Session
  readonly #meta: unknown
  /** The row was written, or is being written; undefined: it was not, or it failed and may be there all the same. */
  #registered: Promise<void> | undefined
  /** Whether there may be a row: from the first attempt on. */
  #mayHaveRow = false
  #passed: Promise<void> | undefined

  constructor(
    line: HeldLine,
    { database, leases }: { database: Database; leases: Leases },
    gate: Session,
    token: bigint,
    holder: string,
    meta: unknown,
  ) {
    super(database, leases, line.name, holder, token)
    this.#line = line
    this.#leases = leases
    this.#gate = gate
    this.#meta = meta
    gate.attach(this)
  }

  protected withinTrust(): boolean {
    return this.#gate.isTrusted()
  }

  protected fence(): Promise<void> {
    this.#mayHaveRow = true
    this.#registered ??= this.#gate.register(this.name, this.holder, this.token, this.#meta).catch((error) => {
      this.#registered = undefined // the next fence tries again; what was written all the same it finds
      if (sqlState(error) === 'LS001') this.lose('the database says so', error)
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
    this.#passed ??= this.#line.passOn(dead)
    return this.#passed
  }

  connectionLost(error: Error): void {
    this.lose('its connection is lost', error)
  }

  protected ended(): void {
    this.#gate.detach(this)
  }

  // Lost with its connection, or forced out by its row: either way the line goes on.
  override lose(why: string, cause?: unknown): void {
    if (this.over) return
    super.lose(why, cause)
    this.#passOn(!this.#mayHaveRow).catch(() => {})
  }
}
