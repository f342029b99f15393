/**
 * The common part of both kinds of holds, leases and connection holds.
 *
 * A hold ends once: it is lost, or it is released. It is asserted inside the user's transaction, and there the database
 * decides whether it is held. A release waits for the transactions that are fenced by the hold.
 *
 * After an attempt to release it a hold is never trusted again: an attempt that failed may have had its effect. Then the hold
 * counts as lost, its signal aborts, and `release` may be called again. The only exception is `release({ trx })`, because that
 * transaction may roll back: the hold is not trusted until the outcome is known, and trusted again if it is still held.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Transaction } from 'kysely'
import { BackoffDelays, checkOptions, fromDatabase, LeaseLostError, TRX } from '../base/index.ts'
import { type AnyTransaction, checkTransaction, type Database, sqlState } from '../database/index.ts'
import type { Hold } from './api.ts'
import { denied, otherHoldLost } from './denied-holds.ts'
import { BUSY_WAIT_MS, type Leases, transactionStillOpen } from './leases.ts'

/** How often a transaction under a hold is begun, while another one is changing the hold's row. */
const MOST_TRIES = 10

export abstract class AbstractHold implements Hold {
  readonly name: string
  readonly holder: string
  readonly token: bigint
  abstract readonly kind: Hold['kind']
  readonly #database: Database
  readonly #leases: Leases
  #controller: AbortController | undefined
  #lost: LeaseLostError | undefined
  #release: Promise<void> | undefined
  #released = false
  #failed = false // a release failed, and its outcome is unknown
  #releasedInside = false // release({ trx }) was called; that transaction may still roll back
  #attempts = 0 // calls of release({ trx })
  #watching = false
  #transactions: Set<Promise<unknown>> | undefined

  constructor(database: Database, leases: Leases, name: string, holder: string, token: bigint) {
    this.#database = database
    this.#leases = leases
    this.name = name
    this.holder = holder
    this.token = token
  }

  /** Whether the hold may still be trusted, by the local clocks. */
  protected abstract withinTrust(): boolean
  /** Marks the hold as lost if it may not be trusted any more, by the local clocks. */
  protected check(): void {}
  /** Makes sure that the hold has a row, so that transactions can be fenced against it. */
  protected abstract fence(): Promise<void>
  /** Gives the hold up in the database. @throws {LeaseLostError} */
  protected abstract giveUp(): Promise<void>
  /** Called when the hold has been lost or released: stops its renewals. */
  protected abstract ended(): void

  // The signal is made at first use: most holds end before anybody asks for it.
  get signal(): AbortSignal {
    this.check() // so that it is right even if the timer is late
    if (!this.#controller) {
      this.#controller = new AbortController()
      if (this.#lost) this.#controller.abort(this.#lost)
    }
    return this.#controller.signal
  }

  isTrusted(): boolean {
    return !this.#lost && !this.#released && !this.#release && !this.#releasedInside && this.withinTrust()
  }

  async assertHeld(trx: AnyTransaction): Promise<void> {
    await this.#inside(trx, 'assertHeld', this.#whyOver())
  }

  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  async transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T> {
    this.assertNotOver()
    const running = this.#fenced(work)
    this.#transactions ??= new Set()
    this.#transactions.add(running)
    try {
      return await running
    } catch (error) {
      throw this.#explained(error) // the check of a fenced table runs at COMMIT
    } finally {
      this.#transactions?.delete(running)
    }
  }

  // The isolation level is the role's. Under SERIALIZABLE the transaction sees the hold's row as it was at its first statement: so
  // the row is written before, and if it has been renewed since, the transaction begins again.
  // biome-ignore lint/suspicious/noExplicitAny: as above
  async #fenced<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T> {
    await this.fence().catch(() => {}) // #inside explains why
    for (let tries = 1; ; tries++) {
      let entered = false
      try {
        return await this.#database.users.supervised(
          async (trx, runWork) => {
            await this.#inside(trx, 'assertHeld', this.#lost).catch((error) => {
              throw fromDatabase(error) // a statement of ours, and not of `work`
            })
            entered = true
            return await runWork(() => work(trx))
          },
          { signal: this.signal },
        )
      } catch (error) {
        if (entered || sqlState(error) !== '40001' || tries === MOST_TRIES) throw error
      }
    }
  }

  release(options?: { trx?: AnyTransaction | undefined }): Promise<void> {
    if (options !== undefined) return this.#releaseBy(options)
    this.#release ??= this.#releaseNow()
    return this.#release
  }

  async #releaseBy(options: { trx?: AnyTransaction | undefined }): Promise<void> {
    checkOptions(options, TRX)
    return options.trx === undefined ? this.release() : this.#releaseInside(options.trx)
  }

  async #releaseInside(trx: AnyTransaction): Promise<void> {
    const over = this.#whyOver()
    const before = this.#releasedInside
    if (!over) this.#releasedInside = true // set before the statement: the commit may be sent before its answer arrives
    this.#attempts++
    try {
      await this.#inside(trx, 'releaseHeld', over)
    } catch (error) {
      this.#releasedInside = before && this.#watching
      throw error
    }
    if (!this.#watching) void this.#watch()
  }

  toJSON(): Record<string, unknown> {
    const { name, holder, token, kind } = this
    return { name, holder, token: String(token), kind }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.release()
    } catch (error) {
      if (!(error instanceof LeaseLostError)) throw error
    }
  }

  /** The row has another token, or is gone: the hold is lost, unless a transaction of this process released it. */
  rowGone(): void {
    if (this.#releasedInside) void this.release().catch(() => {})
    else this.lose('it expired or passed on')
  }

  /** Whether the hold was lost or released. */
  protected get over(): boolean {
    return this.#lost !== undefined || this.#released
  }

  /** Marks the hold as lost: once, and not after it was released. */
  lose(why: string, cause?: unknown): void {
    if (this.over) return
    this.#lost = new LeaseLostError(this.name, this.token, why, cause === undefined ? undefined : { cause })
    this.ended()
    this.#controller?.abort(this.#lost)
  }

  async #releaseNow(): Promise<void> {
    if (this.#released) return
    if (this.#lost && !this.#failed) throw this.#lost
    try {
      if (this.#transactions?.size) await this.#settled(this.#transactions)
      await this.giveUp()
      this.#released = true
      this.ended()
    } catch (error) {
      if (error instanceof LeaseLostError && this.#releasedInside) {
        this.#released = true
        this.ended()
        return
      }
      if (error instanceof LeaseLostError) this.lose('it expired or passed on before it was released', error)
      else {
        this.#failed = true
        this.lose('its release failed, and may have taken effect', error)
        this.#release = undefined // it may be called again
      }
      throw error
    }
  }

  // A transaction that was begun under the hold ends under it. `return held.transaction(…)` in an `await using` block calls the
  // release before the transaction has even begun.
  async #settled(transactions: Set<Promise<unknown>>): Promise<void> {
    const late = Symbol()
    const timer = new AbortController()
    const ended = await Promise.race([
      Promise.allSettled(transactions),
      // the connections of the transactions keep the process alive, not this timer
      sleep(BUSY_WAIT_MS, late, { signal: timer.signal, ref: false }).catch(() => {}),
    ])
    timer.abort()
    if (ended === late) throw transactionStillOpen()
  }

  // release({ trx }) takes effect when that transaction commits, and has no effect if it rolls back. The row shows which.
  async #watch(): Promise<void> {
    this.#watching = true
    await this.#untilDecided()
    this.#watching = false
  }

  async #untilDecided(): Promise<void> {
    const delays = new BackoffDelays({ firstMs: 10, mostMs: 1_000 })
    while (!this.#released && !this.#lost && !this.#release) {
      try {
        const attempts = this.#attempts
        const state = await this.#leases.rowState(this.name, this.token)
        if (state === 'gone') return this.rowGone()
        if (state === 'held' && attempts === this.#attempts) {
          this.#releasedInside = false
          return
        }
      } catch {} // the database does not answer: try again
      await sleep(delays.next(), undefined, { ref: false })
    }
  }

  async #inside(trx: AnyTransaction, verb: 'assertHeld' | 'releaseHeld', over?: LeaseLostError): Promise<void> {
    checkTransaction(trx) // before fence() writes a row
    let failure: unknown = over
    if (!over) {
      await this.fence().catch((error) => {
        failure = this.#lost ?? error
      })
    }
    try {
      // After a failure the statement is sent with a token that nobody has: a caller that catches the error cannot commit either.
      await this.#leases[verb](trx, this.name, failure ? 0n : this.token)
    } catch (error) {
      throw failure ?? this.#explained(error)
    }
  }

  #explained(error: unknown): unknown {
    const name = this.#leases.rowName(this.name)
    const ours = denied(error).some((hold) => hold.name === name && hold.token === String(this.token))
    if (!ours) return otherHoldLost(error) // a fenced table may need another hold for the row
    this.lose('the database says so', error)
    return this.#lost ?? new LeaseLostError(this.name, this.token, 'the database says so', { cause: error })
  }

  /** @throws {LeaseLostError} the hold was lost or released. */
  protected assertNotOver(): void {
    const over = this.#whyOver()
    if (over) throw over
  }

  #whyOver(): LeaseLostError | undefined {
    if (this.#lost) return this.#lost
    if (this.#released || this.#release) return new LeaseLostError(this.name, this.token, 'it was released')
    return undefined
  }
}
