/**
 * The hold that lasts as long as this process's connection.
 *
 * Nothing of it is in the database but K, until a fence asks for it: then its row is written, over the connection that
 * has K, so that a transaction can be fenced against it. A registered hold frees its row before K passes on: its token
 * is dead before the next holder works, also when that is the next one of the same process.
 */
import type { Desk } from './contender.ts'
import { LeaseLostError } from './errors.ts'
import { Hold } from './hold.ts'
import type { Line } from './line.ts'
import type { Session } from './session.ts'

/** Held as long as this process's connection lives. */
export class ConnectionHold extends Hold {
  readonly kind = 'connection'
  readonly #line: Line
  readonly #desk: Desk
  readonly #gate: Session
  readonly #meta: unknown
  #registered: Promise<void> | undefined
  #passed: Promise<void> | undefined

  constructor(line: Line, desk: Desk, gate: Session, token: bigint, holder: string, meta: unknown) {
    super(desk.database, desk.leases, line.name, holder, token)
    this.#line = line
    this.#desk = desk
    this.#gate = gate
    this.#meta = meta
    gate.dependents.add(this)
  }

  protected believed(): boolean {
    return this.#gate.isTrusted()
  }

  protected fence(): Promise<void> {
    this.#registered ??= this.#gate.register(this.name, this.holder, this.token, this.#meta).catch((error) => {
      this.#registered = undefined // if the row was written all the same, the next grant finds its connection dead
      throw error
    })
    return this.#registered
  }

  protected giveUp(): Promise<void> {
    // Not registered: nothing of it is in the database but K.
    return this.#registered ? this.#giveUpRow() : this.#passOn()
  }

  // The row first, then K. If the row has gone already, K must go all the same.
  async #giveUpRow(): Promise<void> {
    try {
      await this.#registered?.catch(() => {})
      if (this.#registered) await this.#desk.leases.revoke(this.name, this.token)
    } catch (error) {
      if (error instanceof LeaseLostError) await this.#passOn()
      throw error
    }
    await this.#passOn()
  }

  #passOn(): Promise<void> {
    this.#passed ??= this.#line.passOn()
    return this.#passed
  }

  connectionLost(error: Error): void {
    this.lose('its connection is lost', error)
  }

  protected ended(): void {
    this.#gate.dependents.delete(this)
  }

  // Lost with its connection, or forced out by its row: either way the line goes on.
  override lose(why: string, cause?: unknown): void {
    if (this.over) return
    super.lose(why, cause)
    this.#passOn().catch(() => {})
  }
}
