/**
 * What `now()` reads: two clocks and a few sums, since everything else was reckoned when the last sample came in.
 *
 * Between two samples an interval only grows. And one thing is looked for: that the wall clock has run further than the
 * monotonic one. Then this machine may have slept, unseen by the clock that all is measured by, and `latest` is later by as
 * much, `disrupted`, until a sample tells. (A wall clock that was set back proves nothing: nobody wakes before having slept.)
 */

import { gapOf, type LocalClock } from '../database/index.ts'
import type { Interval } from './interval.ts'
import { Reading, type TimeSource, type TimeStatus } from './reading.ts'
import { GAP_US, HOLD_US, LOCAL_DRIFT, WOKEN_US } from './tolerances.ts'

/** What is shown from `at` on: offsets from the monotonic clock, all in microseconds. */
export interface Face extends Interval {
  at: number
  guess: number
  /** By how much the interval grows at both ends, in a microsecond. */
  growth: number
  /** Of the database's clock, ±. */
  spread: number
  status: TimeStatus
  source: TimeSource
  /** When what is shown was measured. */
  measured: number
  falsetickers: readonly string[]
}

export class Dial {
  readonly #clock: LocalClock
  readonly #ahead: number
  #last = -Infinity // milliseconds
  #gap: number
  #regardedAt: number
  #gapped = false
  #face: Face

  constructor(clock: LocalClock) {
    this.#clock = clock
    this.#ahead = clock.granularity + clock.lag
    this.#regardedAt = clock.mono()
    this.#gap = gapOf(clock)
    this.#face = {
      ...{ at: 0, lo: -Infinity, hi: Infinity, guess: 0, growth: 0, spread: Infinity, measured: -Infinity },
      ...{ status: 'unsynchronized', source: 'local', falsetickers: [] },
    }
  }

  /** Whether the wall clock was seen to run further, or less far, than the monotonic one. */
  get gapped(): boolean {
    return this.#gapped
  }

  show(face: Face): void {
    this.#face = face
  }

  /** By how much the wall clock is further ahead than it was at the last sample; 0: by no more than clocks drift. */
  ran(gap: number, at: number): number {
    const ran = gap - this.#gap
    return Math.abs(ran) > GAP_US + LOCAL_DRIFT * (at - this.#regardedAt) ? ran : 0
  }

  /** A sample has told what there was to tell: the wall clock was `gap` ahead, `at`. */
  regard(gap: number, at: number): void {
    this.#gap = gap
    this.#regardedAt = at
    this.#gapped = false
  }

  /** @param keep  whether what is shown is never gone back from. */
  read(keep = true): Reading {
    const { at, growth, spread, measured, source, falsetickers } = this.#face
    let { lo, hi, guess, status } = this.#face
    const mono = this.#clock.mono()
    const wall = this.#clock.wall()
    const passed = mono - at
    let ran = this.ran(wall - mono, mono)
    if (ran !== 0) ran = this.ran(gapOf(this.#clock), mono) // we may have been kept between the two
    if (status === 'synchronized' && mono - measured > HOLD_US) status = 'free-running'
    lo -= growth * passed
    hi += growth * passed
    if (ran !== 0) this.#gapped = true
    if (ran > 0) {
      hi += ran + WOKEN_US + LOCAL_DRIFT * ran
      if (status !== 'unsynchronized') status = 'disrupted'
    }
    if (source === 'local') guess = wall - mono
    else if (guess < lo) guess = lo
    else if (guess > hi) guess = hi
    let timeMs = (mono + guess) / 1_000
    if (timeMs < this.#last) timeMs = this.#last
    else if (keep) this.#last = timeMs
    const ahead = this.#ahead
    const spreadMs = spread === Infinity ? null : (spread + LOCAL_DRIFT * passed + ahead) / 1_000
    const known = lo > -Infinity
    const earliestMs = known ? (mono + lo) / 1_000 : null
    const latestMs = known ? (mono + hi + ahead) / 1_000 : null
    return new Reading(timeMs, earliestMs, latestMs, spreadMs, status, source, falsetickers)
  }
}
