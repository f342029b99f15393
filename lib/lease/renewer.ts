/**
 * Holds by lease, and their renewals.
 *
 * One {@link Renewer} renews all leases of a process: with one timer, and one statement for all leases that are due. A lease
 * is due a third of its ttl after the last attempt. When one lease is due, every other lease that has waited for half of its time
 * is renewed in the same statement. So leases that were granted at different times soon share their statements for good.
 */

import { Stopwatch, trusted } from '../base/index.ts'
import type { Database } from '../database/index.ts'
import type { Grant } from './api.ts'
import { AbstractHold } from './hold.ts'
import type { Leases } from './leases.ts'

/** A hold by lease: it is renewed until it is released or lost. */
export class LeaseHold extends AbstractHold {
  readonly kind = 'lease'
  readonly ttlMs: number
  readonly #leases: Leases
  readonly #renewer: Renewer
  /** When the last successful grant or renewal was sent. */
  #kept: Stopwatch
  /** When the last renewal was sent. */
  #attempted: Stopwatch
  #pauseMs: number
  #renewing = false
  /** The holds of this process that are this same grant. */
  #sharing: Set<LeaseHold> | undefined

  constructor(database: Database, leases: Leases, renewer: Renewer, grant: Grant, ttlMs: number, attempted: Stopwatch) {
    super(database, leases, grant.name, grant.holder, grant.token)
    this.#leases = leases
    this.#renewer = renewer
    this.ttlMs = ttlMs
    this.#kept = attempted
    this.#attempted = attempted
    this.#pauseMs = ttlMs / 3
    if (grant.renewed) this.#share(renewer)
    renewer.add(this)
  }

  // The holder has it already; where it was granted here, both learn at once when one of them is released.
  #share(renewer: Renewer): void {
    const same = renewer.all.find((hold) => hold.name === this.name && hold.token === this.token && !hold.over)
    if (!same) return
    same.#sharing ??= new Set([same])
    this.#sharing = same.#sharing.add(this)
  }

  protected withinTrust(): boolean {
    return this.#kept.elapsed() < trusted(this.ttlMs)
  }

  protected async fence(): Promise<void> {}

  protected async giveUp(): Promise<void> {
    this.#renewer.remove(this)
    for (const other of this.#sharing ?? []) if (other !== this) other.lose('its holder has released it')
    await this.#leases.revoke(this.name, this.token)
  }

  protected ended(): void {
    this.#renewer.remove(this)
  }

  /** The time since the last attempt, as a part of the time between two attempts: at 1 a renewal is due. */
  get due(): number {
    return this.#renewing ? 0 : this.#attempted.elapsed() / this.#pauseMs
  }

  /** Marks the hold as lost when the time of trust has ended. */
  override check(): void {
    if (!this.withinTrust()) this.lose(`not renewed for ${Math.round(this.#kept.elapsed())} of its ${this.ttlMs} ms`)
  }

  /** Tries once to renew the lease. */
  async renew(): Promise<void> {
    const attempted = new Stopwatch()
    this.#attempted = attempted
    this.#renewing = true
    // If it does not succeed it is tried again soon, as long as trust lasts.
    this.#pauseMs = Math.min(this.ttlMs / 10, 1_000)
    try {
      const { outcome } = await this.#leases.tryRenew(this.name, this.token, this.ttlMs)
      if (outcome === 'renewed') {
        this.#kept = attempted
        this.#pauseMs = this.ttlMs / 3
      } else if (outcome === 'deposed') this.lose('it was asked to step down')
      else if (outcome === 'lost') this.rowGone()
    } catch {
      // The database does not answer. Trust ends by the clock.
    } finally {
      this.#renewing = false
    }
  }
}

/** Renews all leases of a process. */
export class Renewer {
  readonly #held = new Set<LeaseHold>()
  #closed = false
  #timer: NodeJS.Timeout | undefined
  #everyMs = Infinity

  /** Begins to renew a lease. */
  add(hold: LeaseHold): void {
    this.#held.add(hold)
    if (!this.#closed) this.#tickEvery(hold.ttlMs / 20)
  }

  /** Stops renewing a lease. */
  remove(hold: LeaseHold): void {
    this.#held.delete(hold)
    if (this.#held.size === 0) this.#stop()
  }

  /** Every lease of this process. They are released when Lockstep is closed. */
  get all(): LeaseHold[] {
    return [...this.#held]
  }

  /** Releases all leases, and renews none any more. A lease that is not released when `late` resolves counts as lost. */
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
    this.#timer = setInterval(() => this.#tick(), ms) // keeps the process alive, as long as it holds a lease
  }

  #stop() {
    clearInterval(this.#timer)
    this.#everyMs = Infinity
  }

  #tick() {
    for (const hold of this.#held) hold.check()
    const holds = this.all
    if (holds.some((hold) => hold.due >= 1)) {
      for (const hold of holds) if (hold.due >= 0.5) void hold.renew()
    }
  }
}
