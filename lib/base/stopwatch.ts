/**
 * How long a process may believe that it still holds, without asking.
 *
 * A promise of the database for `ms` milliseconds is believed from the moment the *attempt* began, so that a slow
 * answer cannot stretch it, and a margin less, for clocks that run at unlike speeds and timers that come late.
 *
 * Two clocks are read, and the one that says more time has passed is believed. The monotonic clock cannot be set
 * back, but stands still while the machine sleeps; the wall clock does not sleep, but can be set. A wall clock set
 * forward ends trust early, which is safe.
 */

/** A point in time on both local clocks. */
export class Stopwatch {
  readonly #monotonic = performance.now()
  readonly #wall = Date.now()

  /** Milliseconds since, on the clock that nobody sets. */
  monotonic(): number {
    return performance.now() - this.#monotonic
  }

  /** Milliseconds since, on the clock that ran further. */
  elapsed(): number {
    return Math.max(performance.now() - this.#monotonic, Date.now() - this.#wall)
  }
}

/** Milliseconds of a promise of `ms` that may be believed: nine tenths. */
export const trusted = (ms: number): number => ms * 0.9
