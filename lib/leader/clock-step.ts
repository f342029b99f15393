/**
 * Detects whether the database's clock was set.
 *
 * A lease has expired when the database's clock says so. There is one exception: if that clock was set forward, the
 * holder, which trusts its own clock, still believes in the lease. So we compare the two clocks. Each response of the database
 * bounds the difference between them, because its time was read after we sent the request and before we received
 * the response. As long as all these bounds have a difference in common (allowing for the drift of clocks), the clock has
 * run evenly. When they have none, the clock was set, and the comparison begins anew.
 */

// Two free-running clocks differ by less; a clock that is being slewed faster counts as set, which is safe.
const MAX_DRIFT = 0.0005
/** How exactly the difference must be known, as a part of a ttl. Half of the margin of trust (base/stopwatch.ts). */
const PRECISION = 0.05

export class ClockStepDetector {
  #low = Number.NEGATIVE_INFINITY
  #high = Number.POSITIVE_INFINITY
  #lastAt = 0
  #evenSince = Number.POSITIVE_INFINITY

  /** Adds one reading: the database's time, and our monotonic clock before the request and after the response. */
  sample(sent: number, databaseMs: number, received: number): void {
    const drift = (received - this.#lastAt) * MAX_DRIFT
    const low = databaseMs - received - 1 // its milliseconds are whole
    const high = databaseMs + 1 - sent
    const both = { low: Math.max(low, this.#low - drift), high: Math.min(high, this.#high + drift) }
    this.#lastAt = received
    if (both.low <= both.high) {
      this.#low = both.low
      this.#high = both.high
      if (this.#evenSince === Number.POSITIVE_INFINITY) this.#evenSince = received
    } else {
      this.#low = low
      this.#high = high
      this.#evenSince = received
    }
  }

  /**
   * Milliseconds until the clock has been watched for a whole ttl; 0: it has been. A promise for a ttl that was made before
   * we began to watch has then ended by our own clock. For a promise made since, the database's clock is right.
   */
  remaining(ttlMs: number): number {
    if (!(this.#high - this.#low <= ttlMs * PRECISION)) return ttlMs
    return Math.max(0, ttlMs - (performance.now() - this.#evenSince))
  }
}
