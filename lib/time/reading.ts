/** The answer of `time.now()`. */

/**
 * The clock that defines time.
 *
 * - `database+ntp`: true time, measured by NTP and shared through the database.
 * - `database`: the database's clock, right or wrong.
 * - `ntp`: true time, measured by this process alone.
 * - `local`: this machine's wall clock.
 */
export type TimeSource = 'database+ntp' | 'database' | 'ntp' | 'local'

/**
 * - `synchronized`: true time lies between `earliest` and `latest`, and was measured within the last 512 s.
 * - `trusted`: the same by the word of one server, which no vote has confirmed: true time lies between them if that server is right.
 * - `free-running`: true time lies between them, but the last measurement is older than 512 s. The interval grows by the
 *   possible drift of the clocks since then.
 * - `disrupted`: a clock was set, a clock stood still, or two measurements contradict each other. The interval is wide enough
 *   for every possible explanation. The next measurements end this state.
 * - `unsynchronized`: there is no measurement; `time` is the database's clock, or this machine's.
 */
export type TimeStatus = 'synchronized' | 'trusted' | 'free-running' | 'disrupted' | 'unsynchronized'

/**
 * The current time as it was known when `now()` was called, with its uncertainty. Numbers are milliseconds since 1970, with
 * fractions. With the source `database`, "true time" means the database's clock.
 */
export class Reading {
  /** The best estimate of the time: milliseconds since 1970. Never less than in an earlier reading of this process. */
  readonly timeMs: number
  /** The lower bound of true time: milliseconds since 1970; null while there is no measurement. */
  readonly earliestMs: number | null
  /** The upper bound of true time: milliseconds since 1970; null while there is no measurement. */
  readonly latestMs: number | null
  /** The largest possible error: |`timeMs` − true time| ≤ `boundMs`. Milliseconds; null while there is no measurement. */
  readonly boundMs: number | null
  /** The uncertainty of the database's clock, ± milliseconds; null before the first sample, and when the source is not the database. */
  readonly spreadMs: number | null
  /** How far the interval can be trusted: see {@link TimeStatus}. */
  readonly status: TimeStatus
  /** Where this `time` comes from: the configured source, or a lesser one while that is not known yet. */
  readonly source: TimeSource
  /** The NTP servers that the last vote found wrong, by the names that the measuring process is configured with. */
  readonly falsetickers: readonly string[]
  /** The one NTP server on whose word this rests, by its configured name, whatever the status; null: a vote, or no measurement. */
  readonly trusted: string | null

  constructor(
    timeMs: number,
    earliestMs: number | null,
    latestMs: number | null,
    spreadMs: number | null,
    status: TimeStatus,
    source: TimeSource,
    falsetickers: readonly string[],
    trusted: string | null = null,
  ) {
    this.timeMs = timeMs
    this.earliestMs = earliestMs
    this.latestMs = latestMs
    this.boundMs = earliestMs === null || latestMs === null ? null : Math.max(timeMs - earliestMs, latestMs - timeMs)
    this.spreadMs = spreadMs
    this.status = status
    this.source = source
    this.falsetickers = falsetickers
    this.trusted = trusted
  }

  /** {@link timeMs} as a Date, cut to the millisecond. */
  get time(): Date {
    return new Date(this.timeMs)
  }

  /** {@link earliestMs} as a Date, rounded down to the millisecond; null while there is no measurement. */
  get earliest(): Date | null {
    return this.earliestMs === null ? null : new Date(Math.floor(this.earliestMs))
  }

  /** {@link latestMs} as a Date, rounded up to the millisecond; null while there is no measurement. */
  get latest(): Date | null {
    return this.latestMs === null ? null : new Date(Math.ceil(this.latestMs))
  }

  /** The reading as `GET /v1/time` answers it. */
  toJSON() {
    const { time, earliest, latest, boundMs, spreadMs, status, source, falsetickers, trusted } = this
    return { time, earliest, latest, boundMs, spreadMs, status, source, falsetickers, trusted }
  }
}
