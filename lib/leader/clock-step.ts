/**
 * Whether the database's clock has run evenly.
 *
 * A lease is over when the database's clock says so, unless that clock was set forward meanwhile: then its holder, who
 * trusts its own clock, still believes in it. Each answer of the database bounds the difference of the two clocks:
 * its time was read between our sending and our receiving. As long as all these bounds have a difference in common
 * (give or take what clocks drift), nobody has set the clock. When they have none, it was set, and we begin anew.
 */

// Two free-running clocks differ by less; a clock that is being slewed faster counts as set, which is safe.
const DRIFT = 0.0005
/** Of a ttl: how exactly the difference must be known. Half of the margin of trust (base/stopwatch.ts). */
const EXACT = 0.05

export class ClockStepDetector {
  #low = Number.NEGATIVE_INFINITY
  #high = Number.POSITIVE_INFINITY
  #at = 0
  #since = Number.POSITIVE_INFINITY

  /** One reading: the database's time, and our monotonic clock before the question and after the answer. */
  sample(sent: number, databaseMs: number, received: number): void {
    const drifted = (received - this.#at) * DRIFT
    const low = databaseMs - received - 1 // its milliseconds are whole
    const high = databaseMs + 1 - sent
    const both = { low: Math.max(low, this.#low - drifted), high: Math.min(high, this.#high + drifted) }
    this.#at = received
    if (both.low <= both.high) {
      this.#low = both.low
      this.#high = both.high
      if (this.#since === Number.POSITIVE_INFINITY) this.#since = received
    } else {
      this.#low = low
      this.#high = high
      this.#since = received
    }
  }

  /**
   * Milliseconds until the clock will have been watched for a whole ttl; 0: it has been. What was promised for a ttl
   * before we began is over then by our own clock; what was promised since, the database's clock is right about.
   */
  left(ttlMs: number): number {
    if (!(this.#high - this.#low <= ttlMs * EXACT)) return ttlMs
    return Math.max(0, ttlMs - (performance.now() - this.#since))
  }
}
