/** What `time.now()` answers. */

/** How time is defined. */
export type TimeSource = 'database+ntp' | 'database' | 'ntp' | 'local'

/**
 * - `synchronized`: true time lies between `earliest` and `latest`, and was measured within the last 512 s.
 * - `free-running`: it still does; the last measurement is older, and the interval grows by what clocks may drift since.
 * - `disrupted`: a clock was set, stood still, or two measurements contradict each other. The interval is wide enough for
 *   every account of it; the next measurements end this.
 * - `unsynchronized`: nothing was measured; `time` is the database's clock, or this machine's.
 */
export type TimeStatus = 'synchronized' | 'free-running' | 'disrupted' | 'unsynchronized'

/** An instant as it was known when `now()` was called. Numbers are milliseconds since 1970, with fractions. */
export class Reading {
  /** The best guess. Never less than in an earlier reading of this process. */
  readonly timeMs: number
  /** True time was not before; null where nothing was measured. */
  readonly earliestMs: number | null
  /** True time was not after; null where nothing was measured. */
  readonly latestMs: number | null
  /** |`time` − true time| ≤ `boundMs`; null where nothing was measured. */
  readonly boundMs: number | null
  /** The database's clock is known to within ± this; null before the first sample, and where it is not asked. */
  readonly spreadMs: number | null
  readonly status: TimeStatus
  /** What `time` is from, now: the configured source, or what there is of it. */
  readonly source: TimeSource
  /** NTP servers that the last vote found wrong, as they are configured where it was held. */
  readonly falsetickers: readonly string[]

  constructor(
    timeMs: number,
    earliestMs: number | null,
    latestMs: number | null,
    spreadMs: number | null,
    status: TimeStatus,
    source: TimeSource,
    falsetickers: readonly string[],
  ) {
    this.timeMs = timeMs
    this.earliestMs = earliestMs
    this.latestMs = latestMs
    this.boundMs = earliestMs === null || latestMs === null ? null : Math.max(timeMs - earliestMs, latestMs - timeMs)
    this.spreadMs = spreadMs
    this.status = status
    this.source = source
    this.falsetickers = falsetickers
  }

  /** {@link timeMs}, to the millisecond. */
  get time(): Date {
    return new Date(this.timeMs)
  }

  /** {@link earliestMs}, rounded down to the millisecond. */
  get earliest(): Date | null {
    return this.earliestMs === null ? null : new Date(Math.floor(this.earliestMs))
  }

  /** {@link latestMs}, rounded up to the millisecond. */
  get latest(): Date | null {
    return this.latestMs === null ? null : new Date(Math.ceil(this.latestMs))
  }

  /** As `GET /v1/time` answers it. */
  toJSON() {
    const { time, earliest, latest, boundMs, spreadMs, status, source, falsetickers } = this
    return { time, earliest, latest, boundMs, spreadMs, status, source, falsetickers }
  }
}
