/**
 * What a holder has in its hands: what both kinds share. A hold is lost once or given up once; it is asserted inside the
 * user's transaction, where the database has the last word; and giving it up waits for the transactions under it.
 *
 * Once it was attempted to give it up, a hold is never trusted again: an attempt that failed may have had its effect. Then
 * the hold counts as lost, its signal says so, and `release` may be asked again. The one exception is `release({ trx })`,
 * whose transaction may roll back: until that is known the hold is not trusted, and if it is still held, it is again.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Transaction } from 'kysely'
import { LeaseLostError } from '../base/index.ts'
import { type AnyTransaction, checkTransaction, type Database } from '../database/index.ts'
import { denied, otherHoldLost } from './denied-holds.ts'
import { type Hold, type Leases, RELEASE_WAITS_MS, transactionStillOpen } from './leases.ts'

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
  #failed = false // a release was attempted, and it is not known what became of it
  #releasedInside = false // release({ trx }) was called; that transaction may still roll back
  #attempts = 0 // of release({ trx })
  #watching = false
  #transactions: Set<Promise<unknown>> | undefined

  constructor(database: Database, leases: Leases, name: string, holder: string, token: bigint) {
    this.#database = database
    this.#leases = leases
    this.name = name
    this.holder = holder
    this.token = token
  }

  /** Whether clocks say that it may be believed. */
  protected abstract withinTrust(): boolean
  /** Loses the hold if clocks say that it may not be believed any more. */
  protected check(): void {}
  /** Makes the row visible to fences. */
  protected abstract fence(): Promise<void>
  /** Gives it up in the database. @throws {LeaseLostError} */
  protected abstract giveUp(): Promise<void>
  /** It is over, one way or the other: stop whatever kept it. */
  protected abstract ended(): void

  // Made when asked for: most holds end before anybody looks.
  get signal(): AbortSignal {
    this.check() // right also when no timer has had its turn yet
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
    const running = this.#database.users.supervised(
      async (trx, runWork) => {
        await this.#inside(trx, 'assertHeld', this.#lost)
        return await runWork(() => work(trx))
      },
      { signal: this.signal },
    )
    this.#transactions ??= new Set()
    this.#transactions.add(running)
    try {
      return await running
    } catch (error) {
      throw this.#explained(error) // a fenced table answers at COMMIT
    } finally {
      this.#transactions?.delete(running)
    }
  }

  release({ trx }: { trx?: AnyTransaction } = {}): Promise<void> {
    if (trx !== undefined) return this.#releaseInside(trx)
    this.#release ??= this.#releaseNow()
    return this.#release
  }

  async #releaseInside(trx: AnyTransaction): Promise<void> {
    const over = this.#whyOver()
    const before = this.#releasedInside
    if (!over) this.#releasedInside = true // the commit may be on its way before the answer is
    this.#attempts++
    try {
      await this.#inside(trx, 'releaseHeld', over)
    } catch (error) {
      this.#releasedInside = before && this.#watching
      throw error
    }
    if (!this.#watching) void this.#watch()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.release()
    } catch (error) {
      if (!(error instanceof LeaseLostError)) throw error
    }
  }

  /** The row says another token, or none: lost, unless a transaction of our own released it. */
  rowGone(): void {
    if (this.#releasedInside) void this.release().catch(() => {})
    else this.lose('it expired or passed on')
  }

  /** Whether it was lost or given up. */
  protected get over(): boolean {
    return this.#lost !== undefined || this.#released
  }

  /** Loses the hold: once, and not after it was given up. */
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
        this.lose('its release failed, and perhaps had its effect', error)
        this.#release = undefined // it may be asked again
      }
      throw error
    }
  }

  // What was begun under the hold ends under it: `return held.transaction(…)` in an `await using` block releases before
  // the transaction has even begun.
  async #settled(transactions: Set<Promise<unknown>>): Promise<void> {
    const late = Symbol()
    const timer = new AbortController()
    const ended = await Promise.race([
      Promise.allSettled(transactions),
      sleep(RELEASE_WAITS_MS, late, { signal: timer.signal, ref: false }).catch(() => {}), // their connections keep the process
    ])
    timer.abort()
    if (ended === late) throw transactionStillOpen()
  }

  // release({ trx }) is done when that transaction commits, and undone when it rolls back. Both are seen from outside.
  async #watch(): Promise<void> {
    this.#watching = true
    await this.#untilDecided()
    this.#watching = false
  }

  async #untilDecided(): Promise<void> {
    for (let pause = 10; !this.#released && !this.#lost && !this.#release; pause = Math.min(pause * 2, 1_000)) {
      try {
        const attempts = this.#attempts
        const state = await this.#leases.rowState(this.name, this.token)
        if (state === 'gone') return this.rowGone()
        if (state === 'held' && attempts === this.#attempts) {
          this.#releasedInside = false
          return
        }
      } catch {} // the database is away: asked again
      await sleep(pause, undefined, { ref: false })
    }
  }

  async #inside(trx: AnyTransaction, verb: 'assertHeld' | 'releaseHeld', over?: LeaseLostError): Promise<void> {
    checkTransaction(trx) // before the row is written
    let failure: unknown = over
    if (!over) {
      await this.fence().catch((error) => {
        failure = this.#lost ?? error
      })
    }
    try {
      // After a failure, a token that nobody has: who catches the error shall still not be able to commit.
      await this.#leases[verb](trx, this.name, failure ? 0n : this.token)
    } catch (error) {
      throw failure ?? this.#explained(error)
    }
  }

  #explained(error: unknown): unknown {
    const name = this.#leases.rowName(this.name)
    const ours = denied(error).some((hold) => hold.name === name && hold.token === String(this.token))
    if (!ours) return otherHoldLost(error) // a fenced table may want another hold for the row
    this.lose('the database says so', error)
    return this.#lost ?? new LeaseLostError(this.name, this.token, 'the database says so', { cause: error })
  }

  /** @throws {LeaseLostError} lost or given up. */
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
