/**
 * Leases that are kept by renewals.
 *
 * All leases of a process are kept by one {@link Renewer}: one timer, and one statement for all that are due. A lease
 * is renewed a third of its ttl after the last attempt; when one is due, every other that has half of that behind it
 * goes along, so that leases granted at different times soon share their statements for good.
 */

import { Stopwatch, trusted } from '../base/index.ts'
import type { Database } from '../database/index.ts'
import { AbstractHold } from './hold.ts'
import type { Grant, Leases } from './leases.ts'

/** A lease, kept by renewals until it is released or lost. */
export class LeaseHold extends AbstractHold {
  readonly kind = 'lease'
  readonly ttlMs: number
  readonly #leases: Leases
  readonly #renewer: Renewer
  /** When the last successful grant or renewal was attempted. */
  #kept: Stopwatch
  /** When the last renewal was attempted. */
  #attempted: Stopwatch
  #pauseMs: number
  #renewing = false

  constructor(database: Database, leases: Leases, renewer: Renewer, grant: Grant, ttlMs: number, attempted: Stopwatch) {
    super(database, leases, grant.name, grant.holder, grant.token)
    this.#leases = leases
    this.#renewer = renewer
    this.ttlMs = ttlMs
    this.#kept = attempted
    this.#attempted = attempted
    this.#pauseMs = ttlMs / 3
    renewer.keep(this)
  }

  protected withinTrust(): boolean {
    return this.#kept.elapsed() < trusted(this.ttlMs)
  }

  protected async fence(): Promise<void> {}

  protected async giveUp(): Promise<void> {
    this.#renewer.forget(this)
    await this.#leases.revoke(this.name, this.token)
  }

  protected ended(): void {
    this.#renewer.forget(this)
  }

  /** How due a renewal is: 1 is due. */
  get due(): number {
    return this.#renewing ? 0 : this.#attempted.elapsed() / this.#pauseMs
  }

  /** Ends the hold when trust has run out. */
  override check(): void {
    if (!this.withinTrust()) this.lose(`not renewed for ${Math.round(this.#kept.elapsed())} of its ${this.ttlMs} ms`)
  }

  async renew(): Promise<void> {
    const attempted = new Stopwatch()
    this.#attempted = attempted
    this.#renewing = true
    // Anything but success is tried again soon, while trust lasts.
    this.#pauseMs = Math.min(this.ttlMs / 10, 1_000)
    try {
      const { outcome } = await this.#leases.tryRenew(this.name, this.token, this.ttlMs)
      if (outcome === 'renewed') {
        this.#kept = attempted
        this.#pauseMs = this.ttlMs / 3
      } else if (outcome === 'deposed') this.lose('it was asked to step down')
      else if (outcome === 'lost') this.rowGone()
    } catch {
      // The database is away. Trust ends by the clock.
    } finally {
      this.#renewing = false
    }
  }
}

/** Keeps all leases of a process. */
export class Renewer {
  readonly #held = new Set<LeaseHold>()
  #closed = false
  #timer: NodeJS.Timeout | undefined
  #everyMs = Infinity

  keep(hold: LeaseHold): void {
    this.#held.add(hold)
    if (!this.#closed) this.#tickEvery(hold.ttlMs / 20)
  }

  forget(hold: LeaseHold): void {
    this.#held.delete(hold)
  }

  /** Every lease of this process: released when Lockstep is closed. */
  get all(): LeaseHold[] {
    return [...this.#held]
  }

  /** Releases all of them, and keeps none any more: what could not be released when `late` resolves is lost. */
  async close(late: Promise<void>): Promise<void> {
    this.#closed = true
    const all = this.all
    await Promise.race([Promise.allSettled(all.map((hold) => hold.release())), late])
    clearInterval(this.#timer)
    for (const hold of all) hold.lose('Lockstep was closed')
  }

  #tickEvery(ms: number) {
    if (ms >= this.#everyMs) return
    clearInterval(this.#timer)
    this.#everyMs = ms
    this.#timer = setInterval(() => this.#tick(), ms)
    this.#timer.unref()
  }

  #tick() {
    for (const hold of this.#held) hold.check()
    if (this.#held.size === 0) {
      clearInterval(this.#timer)
      this.#everyMs = Infinity
      return
    }
    const holds = this.all
    if (holds.some((hold) => hold.due >= 1)) {
      for (const hold of holds) if (hold.due >= 0.5) void hold.renew()
    }
  }
}
