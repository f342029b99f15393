/**
 * The clock model that `now()` reads: two clocks and a few sums, because everything else was computed when the last sample
 * arrived.
 *
 * Between two samples an interval only grows. The model checks one thing: whether the wall clock has advanced further than the
 * monotonic clock. Then this machine may have slept, and the monotonic clock, which measures everything, did not count the
 * sleep. Until the next sample `latest` is later by that difference, and the status is `disrupted`. (A wall clock that was set
 * back proves nothing: no machine wakes up before it slept.)
 */

import { gapOf, type LocalClock } from '../database/index.ts'
import type { Interval } from './interval.ts'
import { Reading, type TimeSource, type TimeStatus } from './reading.ts'
import { DIVERGED_US, LOCAL_DRIFT, SLEEP_SLACK_US, SYNCHRONIZED_US } from './tolerances.ts'

/** What is known from `at` on: offsets from the monotonic clock, all in microseconds. */
export interface ClockState extends Interval {
  at: number
  /** The best estimate of the offset. */
  best: number
  /** By how much the interval grows at both ends, in a microsecond. */
  growth: number
  /** The uncertainty of the database's clock, ±. */
  spread: number
  status: TimeStatus
  source: TimeSource
  /** When the interval was measured. */
  measuredAt: number
  falsetickers: readonly string[]
  /** The one server on whose word it rests; null: a vote. */
  trusted: string | null
}

export class ClockModel {
  readonly #clock: LocalClock
  readonly #readDelay: number
  #last = -Infinity // milliseconds
  #gap: number
  #gapAt: number
  #diverged = false
  #state: ClockState

  constructor(clock: LocalClock) {
    this.#clock = clock
    this.#readDelay = clock.granularity + clock.lag
    this.#gapAt = clock.mono()
    this.#gap = gapOf(clock)
    this.#state = {
      ...{ at: 0, lo: -Infinity, hi: Infinity, best: 0, growth: 0, spread: Infinity, measuredAt: -Infinity },
      ...{ status: 'unsynchronized', source: 'local', falsetickers: [], trusted: null },
    }
  }

  /** Whether a reading saw that the wall clock had advanced further, or less far, than the monotonic clock. */
  get diverged(): boolean {
    return this.#diverged
  }

  update(state: ClockState): void {
    this.#state = state
  }

  /** How much further the wall clock has advanced than the monotonic clock since the last sample; 0: within their drift. */
  divergence(gap: number, at: number): number {
    const moved = gap - this.#gap
    return Math.abs(moved) > DIVERGED_US + LOCAL_DRIFT * (at - this.#gapAt) ? moved : 0
  }

  /** A sample has explained any divergence: from now on it is counted from this gap between the two clocks. */
  rebase(gap: number, at: number): void {
    this.#gap = gap
    this.#gapAt = at
    this.#diverged = false
  }

  /** @param keep  whether later readings must not be earlier than this one. */
  read(keep = true): Reading {
    const { at, growth, spread, measuredAt, source, falsetickers, trusted } = this.#state
    let { lo, hi, best, status } = this.#state
    const mono = this.#clock.mono()
    const wall = this.#clock.wall()
    const passed = mono - at
    let divergence = this.divergence(wall - mono, mono)
    // This process may have waited for the processor between the two readings.
    if (divergence !== 0) divergence = this.divergence(gapOf(this.#clock), mono)
    if ((status === 'synchronized' || status === 'trusted') && mono - measuredAt > SYNCHRONIZED_US)
      status = 'free-running'
    lo -= growth * passed
    hi += growth * passed
    if (divergence !== 0) this.#diverged = true
    if (divergence > 0) {
      hi += divergence + SLEEP_SLACK_US + LOCAL_DRIFT * divergence
      if (status !== 'unsynchronized') status = 'disrupted'
    }
    if (source === 'local') best = wall - mono
    else if (best < lo) best = lo
    else if (best > hi) best = hi
    let timeMs = (mono + best) / 1_000
    if (timeMs < this.#last) timeMs = this.#last
    else if (keep) this.#last = timeMs
    const readDelay = this.#readDelay
    const spreadMs = spread === Infinity ? null : (spread + LOCAL_DRIFT * passed + readDelay) / 1_000
    const known = lo > -Infinity
    const earliestMs = known ? (mono + lo) / 1_000 : null
    const latestMs = known ? (mono + hi + readDelay) / 1_000 : null
    return new Reading(timeMs, earliestMs, latestMs, spreadMs, status, source, falsetickers, trusted)
  }
}
