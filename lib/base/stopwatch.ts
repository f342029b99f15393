/**
 * How long a process may trust that it still holds a lease, without asking the database.
 *
 * The database grants a lease for `ms` milliseconds. The process counts them from the time when it *sent* the request, so a slow
 * answer cannot make the lease seem longer. It trusts the lease for less than `ms`, because clocks run at different speeds and
 * timers fire late.
 *
 * Two clocks are read, and the longer time counts. The monotonic clock cannot be set, but it stands still while the machine
 * sleeps. The wall clock does not stand still, but it can be set. A wall clock that is set forward ends the trust early,
 * which is safe.
 */

/** Measures the time since it was made, on both local clocks. */
export class Stopwatch {
  readonly #monotonic = performance.now()
  readonly #wall = Date.now()

  /** Milliseconds since then on the monotonic clock. */
  monotonic(): number {
    return performance.now() - this.#monotonic
  }

  /** Milliseconds since then: the larger of what the two clocks say. */
  elapsed(): number {
    return Math.max(performance.now() - this.#monotonic, Date.now() - this.#wall)
  }
}

/** For how many milliseconds a lease of `ms` may be trusted: nine tenths. */
export const trusted = (ms: number): number => ms * 0.9
