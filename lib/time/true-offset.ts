/**
 * φ, true time minus this process's monotonic clock, and the doubts about it. (The letters are defined in estimate.ts.)
 *
 * φ comes from two sources: the row lockstep.time_anchor, and this process's own NTP measurements. Three things put it in doubt:
 *
 * - A step: a clock was set or stood still, and no clock here shows which. The doubt ends with the next measurement.
 * - A conflict: a measurement of our own contradicts φ. The next measurement decides: our own, or another process's.
 * - It is unverified: it comes from a row that may have been measured before the database's clock was set.
 *
 * It comes from a vote, or is the word of one trusted server. The two are never intersected: the later replaces the other.
 *
 * While there is a doubt, the next measurement *replaces* φ and does not narrow it. Why: estimate.ts.
 */

import { type Interval, meet, middle, Offset, plus, widened } from './interval.ts'
import { LOCAL_DRIFT } from './tolerances.ts'

/** A measurement by this process: true time minus its monotonic clock, at `at`. */
export interface OwnMeasurement extends Interval {
  at: number
  /** The best estimate, within the interval. */
  guess: number
  falsetickers: string[]
  /** The one server on whose word it rests. Absent or null: a vote. */
  trusted?: string | null
}

/** φ by the row. */
export interface RowOffset {
  offset: Interval
  best: number
  /** When this holds, by our monotonic clock. */
  at: number
  /** When it was measured, by our monotonic clock. */
  measuredAt: number
  revision: number
  /** The row was measured after the last step that this process saw. */
  later: boolean
  /** The one server on whose word it rests; null: a vote. */
  trusted: string | null
}

export class TrueOffset {
  readonly #offset = new Offset(LOCAL_DRIFT)
  #stepped = false // a later revision ends it
  #unverifiedSince: number | null = null // φ is from an unverified row, in that epoch of the database's clock
  // A measurement of our own that contradicts φ, and the row's revision then.
  #conflict: { offset: Interval; at: number; revision: number } | null = null
  #measuredAt = -Infinity
  #trusted: string | null = null

  get known(): boolean {
    return this.#offset.known
  }

  /** When φ was measured, by our monotonic clock. */
  get measuredAt(): number {
    return this.#measuredAt
  }

  /** Whether a clock was found to have been set, or to have stood still, and it is not known yet which. */
  get inDoubt(): boolean {
    return this.#stepped || this.#conflict !== null
  }

  /** The one server on whose word φ rests; null: a vote. */
  get trusted(): string | null {
    return this.#trusted
  }

  at(at: number): Interval | null {
    return this.#offset.known ? this.#offset.at(at) : null
  }

  best(at: number): number {
    return this.#offset.best(at)
  }

  /** φ by our own measurement that contradicts it. */
  conflictAt(at: number): Interval | null {
    return this.#conflict && widened(this.#conflict.offset, LOCAL_DRIFT * Math.abs(at - this.#conflict.at))
  }

  /** A clock was set or stood still, and no clock here shows which. */
  markStepped(): void {
    this.#stepped = true
  }

  /** φ rests on a row, or a clock, that may have been set before `epoch`. */
  markUnverified(epoch: number): void {
    this.#unverifiedSince = epoch
  }

  /** Replaces φ. */
  replace(offset: Interval, at: number, best: number): void {
    this.#offset.forget()
    this.#offset.add(offset, at, best)
  }

  /** Our clock missed a time that lies in `by`. */
  shift(by: Interval, at: number, likely = middle(by)): void {
    this.replace(plus(this.#offset.at(at), by), at, this.#offset.best(at) + likely)
    this.#measuredAt -= by.hi
    const conflict = this.conflictAt(at)
    if (this.#conflict && conflict) this.#conflict = { ...this.#conflict, offset: plus(conflict, by), at }
  }

  /** @param revision  the row's revision, as this process knows it. */
  takeMeasurement({ at, lo, hi, guess, trusted = null }: OwnMeasurement, revision: number): void {
    const offset = { lo, hi }
    if (this.known && !this.#stepped && !meet(this.#offset.at(at), offset)) {
      const conflict = this.conflictAt(at)
      if (!conflict || !meet(conflict, offset)) {
        this.#conflict = { offset, at, revision }
        return
      }
    }
    // A doubtful φ is replaced, not narrowed: it may overlap the measurement and be wrong.
    if (this.inDoubt || this.#unverifiedSince !== null || trusted !== this.#trusted) this.#offset.forget()
    this.#settle()
    this.#trusted = trusted
    this.#offset.add(offset, at, guess)
    this.#measuredAt = at
  }

  /** @returns whether φ and the row are consistent; if not, the database's clock may have been set since it was measured. */
  takeRow({ offset, best, at, measuredAt, revision, later, trusted }: RowOffset, epoch: number): boolean {
    const known = this.at(at)
    const conflict = this.conflictAt(at)
    if (later && (this.#stepped || this.#unverifiedSince !== null)) {
      // The row was measured after the step, so this process was wrong, or believed a row that was wrong. A doubtful φ is
      // replaced, not narrowed: it may overlap the row and be wrong.
      this.#offset.forget()
      this.#settle()
    } else if (known && !meet(known, offset)) {
      this.#stepped = true
      return false
    } else if (later) {
      // A second measurement agrees with φ.
      if (this.#conflict && conflict && revision > this.#conflict.revision && !meet(conflict, offset)) {
        this.#conflict = null
      }
    } else if (this.#stepped || (known && this.#unverifiedSince !== epoch)) return true
    else this.#unverifiedSince = epoch
    if (trusted !== this.#trusted) this.#offset.forget()
    this.#trusted = trusted
    this.#offset.add(offset, at, best)
    this.#measuredAt = Math.max(this.#measuredAt, measuredAt)
    return true
  }

  #settle(): void {
    this.#stepped = false
    this.#unverifiedSince = null
    this.#conflict = null
  }
}
