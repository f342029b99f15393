/**
 * What a process knows of time: the offsets θ and φ between three clocks, and the doubts about them.
 *
 *     m  this process's monotonic clock     D  the database's clock     T  true time
 *
 *     θ = D − m   from this process's statements, each bracketed by two readings of m
 *     ψ = T − D   from the row lockstep.time_anchor, measured by any process
 *     φ = T − m   from θ + ψ, at each sample, and from this process's own NTP measurements
 *
 * All three are intervals (interval.ts), and `now()` is m + φ: arithmetic on two clock readings, without a round trip. Once φ is
 * known, it does not need the database. While the database is unreachable, or restarts, or another server takes over after
 * a fail-over, φ only grows, by 100 millionths of the time that passes.
 *
 * The assumptions are in tolerances.ts. A process *sees* that a clock was set, or that its machine slept, because the next
 * sample does not overlap the known interval. (A process that starts after the database's clock was set, and before it was
 * measured again, believes the row until the next measurement.)
 *
 * - The database's clock was set, or ours stood still, and no clock here shows which. Both explanations are kept: the answer is
 *   the hull of both, `disrupted`, until the row has a revision later than the one that came with the sample that showed the
 *   step, or until a measurement of our own. (It must be a revision, not a time: after a clock was set back, an old
 *   measurement looks new. A first attempt that compared times gave 169 readings that were 5 s wrong.) The new measurement
 *   *replaces* the doubtful interval, and does not narrow it. A step of 30 ms is seen, because θ is narrow. But NTP over the
 *   internet is known to ± 20 ms, so the interval from before the step still overlaps the one from after it. Their
 *   intersection is narrow, and wrong, and stays wrong.
 * - The wall clock agrees with the database that time passed which the monotonic clock did not count. In a process that is
 *   frozen between requests (a Lambda) this is the usual case: it slept. θ is taken anew, φ moves with it, and nothing is
 *   in doubt. In a process that runs all the time, the cause may also be that the clock was set, on a machine on which the
 *   process and the database both run: two explanations.
 * - Between two samples, the wall clock advanced further than the monotonic clock: this machine may have slept. Until the next
 *   sample `latest` is later by the difference (clock-model.ts).
 * - The database is another server (its identity changed): θ and ψ are dropped, and φ stays.
 *
 * `time` is the middle of the narrowest sample, not of the interval, and never goes back: if the estimate was ahead, it
 * stands still until true time has caught up. `earliest` and `latest` do not wait for it.
 */

import { type ClockReading, gapOf, type LocalClock } from '../database/index.ts'
import { type Anchor, type Offer, type Sample, trueOffsets } from './anchor.ts'
import { ClockModel } from './clock-model.ts'
import { bracket, hull, type Interval, middle, minus, Offset, widened, width } from './interval.ts'
import type { Reading, TimeSource } from './reading.ts'
import { DATABASE_DRIFT, DIVERGED_US, LOCAL_DRIFT, SLACK_US, SLEEP_SLACK_US } from './tolerances.ts'
import { type OwnMeasurement, TrueOffset } from './true-offset.ts'

/**
 * How a reading of the database's clock compares with θ. After `slept` and `inconsistent`, earlier measurements by our clock mean
 * nothing. A reading is `discarded` if this machine slept during the statement: then it says nothing.
 */
export type Fit = 'consistent' | 'slept' | 'inconsistent' | 'discarded'

export interface EstimateOptions {
  source: TimeSource
  frozenBetweenRequests: boolean
}

export class Estimate {
  readonly #clock: LocalClock
  readonly #source: TimeSource
  readonly #frozenBetweenRequests: boolean
  readonly #model: ClockModel
  readonly #theta = new Offset(LOCAL_DRIFT)
  readonly #phi = new TrueOffset()
  #server: string | undefined
  #anchor: Anchor | null = null
  // The row's revision when this process first read the database's clock, or read it again after a step; Infinity: it has not
  // read the row since. A row up to this revision may have been measured before the clock was set.
  #baseRevision = Infinity
  #epoch = 0 // counts the steps of the database's clock against ours
  #falsetickers: readonly string[] = []

  constructor(clock: LocalClock, { source, frozenBetweenRequests }: EstimateOptions) {
    this.#clock = clock
    this.#source = source
    this.#frozenBetweenRequests = frozenBetweenRequests
    this.#model = new ClockModel(clock)
  }

  /** Whether a clock was found to have been set, or to have stood still, and it is not known yet which. */
  get inDoubt(): boolean {
    return this.#phi.inDoubt
  }

  /** Whether there is a finding that only a sample can explain. */
  get needsSample(): boolean {
    return this.#model.diverged || (this.#server !== undefined && this.#baseRevision === Infinity)
  }

  now(): Reading {
    return this.#model.read()
  }

  /** As {@link now}, for internal use: no caller sees the reading, so later ones may be earlier. */
  peek(): Reading {
    return this.#model.read(false)
  }

  /** Whether our two clocks have diverged since the last sample. */
  get diverged(): boolean {
    return this.#model.divergence(gapOf(this.#clock), this.#clock.mono()) !== 0
  }

  /** Takes a reading of the database's clock. */
  takeReading(reading: ClockReading): Fit {
    if (Math.abs(reading.gap - reading.gapBefore) > DIVERGED_US) return 'discarded'
    const { before, after, us, server } = reading
    const slept = this.#model.divergence(reading.gap, after)
    let fit: Fit = 'consistent'
    if (server !== this.#server) {
      // The explanations that rest on the old server's clock are lost with it, so their hull becomes φ.
      if (this.#disputed) {
        const known = this.#known(after)
        if (known) this.#keepAll(known, 0, after)
        this.#phi.markStepped()
      }
      // A clock that was not known before cannot show how long we slept.
      this.#allowForSleep(slept, after)
      if (slept > 0 && this.#phi.known) this.#phi.markStepped()
      this.#server = server
      this.#theta.forget()
      this.#anchor = null
      this.#newEpoch()
    }
    const theta = this.#theta.at(after)
    const known = this.#known(after)
    const sample = bracket(before, after, us, us + 1, LOCAL_DRIFT)
    const jump = this.#theta.add(sample, after)
    const slack = SLEEP_SLACK_US + (LOCAL_DRIFT + DATABASE_DRIFT) * slept
    if (jump !== null && this.#frozenBetweenRequests && slept > 0 && Math.abs(jump - slept) < slack) {
      fit = 'slept'
      const missed = minus(this.#theta.at(after), theta)
      if (this.#phi.known) this.#phi.shift(widened(missed, DATABASE_DRIFT * slept), after)
      this.#phi.markUnverified(this.#epoch) // it rests on the database's clock, which may have been set by a little during the sleep
    } else if (jump !== null) {
      fit = 'inconsistent'
      if (known) this.#keepAll(known, Math.max(0, minus(this.#theta.at(after), theta).hi), after)
      this.#allowForSleep(slept, after)
      this.#phi.markStepped()
      this.#newEpoch()
    } else if (slept > 0 && theta.lo > -Infinity) {
      // Either a sleep so short that it fits into the widths of the two intervals, or the wall clock was set.
      this.#allowForSleep(Math.min(slept, width(theta) + width(sample)), after, 0)
      this.#theta.forget()
      this.#theta.add(sample, after)
    }
    this.#model.rebase(reading.gap, after)
    this.#update(after)
    return fit
  }

  /** Takes a sample: a reading of the database's clock, and the row as it is now. */
  takeSample({ reading, anchor }: Sample): Fit {
    const fit = this.takeReading(reading)
    if (fit === 'discarded') return fit
    this.#anchor = anchor
    if (anchor) this.#falsetickers = anchor.falsetickers
    if (this.#baseRevision === Infinity) this.#baseRevision = anchor?.revision ?? 0
    this.#takeRow(reading.after)
    this.#update(reading.after)
    return fit
  }

  /** Takes a measurement that this process made. */
  takeMeasurement(measurement: OwnMeasurement): void {
    this.#falsetickers = measurement.falsetickers
    this.#phi.takeMeasurement(measurement, this.#anchor?.revision ?? 0)
    this.#update(measurement.at)
  }

  /** Compares our two clocks where there is no database: any sleep that they show is allowed for. */
  checkClocks(): void {
    const mono = this.#clock.mono()
    const gap = gapOf(this.#clock)
    const slept = this.#model.divergence(gap, mono)
    this.#allowForSleep(slept, mono)
    if (slept > 0 && this.#phi.known) this.#phi.markStepped()
    this.#model.rebase(gap, mono)
    this.#update(mono)
  }

  /** The measurement in the form in which it is offered to the row; null: the database's clock is not known. */
  offerOf({ at, lo, hi, guess, falsetickers, trusted = null }: OwnMeasurement): Omit<Offer, 'servers'> | null {
    if (this.#server === undefined || !this.#theta.known) return null
    const now = this.#clock.mono()
    const theta = this.#theta.at(now)
    const phi = widened({ lo, hi }, LOCAL_DRIFT * (now - at))
    return {
      server: this.#server,
      shows: { lo: now + theta.lo, hi: now + theta.hi + this.#clock.granularity },
      ...minus(phi, theta),
      best: guess - this.#theta.best(now),
      inDoubt: !this.#anchor || this.#anchor.revision <= this.#baseRevision,
      falsetickers,
      trusted,
    }
  }

  // The row that this process knows may be older than the clock's last step.
  #newEpoch(): void {
    this.#baseRevision = Infinity
    this.#epoch += 1
  }

  // The wall clock shows the longest possible sleep; the database's clock proves nothing here. The best estimate does not move.
  #allowForSleep(slept: number, at: number, slack = SLEEP_SLACK_US + LOCAL_DRIFT * slept): void {
    if (slept > 0 && this.#phi.known) this.#phi.shift({ lo: 0, hi: slept + slack }, at, 0)
  }

  // φ becomes the hull of all explanations, one of which is that our clock missed so much time.
  #keepAll({ lo, hi }: Interval, missed: number, at: number): void {
    this.#phi.replace({ lo, hi: hi + missed }, at, this.#best(at))
  }

  #takeRow(at: number): void {
    const anchor = this.#anchor
    const { offset } = this.#byRow(at)
    if (!anchor || !offset || anchor.conflict) return
    const { revision, trusted } = anchor
    const best = this.#theta.best(at) + anchor.best
    const measuredAt = anchor.at - middle(this.#theta.at(at))
    const row = { offset, best, at, measuredAt, revision, later: revision > this.#baseRevision, trusted }
    if (!this.#phi.takeRow(row, this.#epoch)) this.#baseRevision = Math.max(this.#baseRevision, revision)
  }

  // Computes what now() answers from `at` on.
  #update(at: number): void {
    const spread = this.#theta.known ? width(this.#theta.at(at)) / 2 : Infinity
    const state = { at, spread, measuredAt: this.#phi.measuredAt, falsetickers: this.#falsetickers, trusted: null }
    if (this.#source === 'database') {
      if (this.#theta.known) {
        this.#model.update({ ...state, ...this.#databaseTime(at), status: 'synchronized', measuredAt: at })
      }
      return
    }
    const source = this.#source
    const disputed = this.#disputed
    const known = this.#known(at)
    if (known) {
      const trusted = this.#phi.trusted ?? (disputed ? (this.#anchor?.trusted ?? null) : null)
      const status = disputed ? 'disrupted' : trusted === null ? 'synchronized' : 'trusted'
      const growth = disputed ? LOCAL_DRIFT + DATABASE_DRIFT : LOCAL_DRIFT
      this.#model.update({
        ...state,
        ...widened(known, SLACK_US),
        growth,
        best: this.#best(at),
        status,
        source,
        trusted,
      })
    } else if (this.#theta.known) {
      const unbounded = { lo: -Infinity, hi: Infinity }
      this.#model.update({ ...state, ...this.#databaseTime(at), ...unbounded, status: 'unsynchronized' })
    }
  }

  // Time by the database's clock.
  #databaseTime(at: number) {
    return { ...this.#theta.at(at), growth: LOCAL_DRIFT, best: this.#theta.best(at), source: 'database' as const }
  }

  get #disputed(): boolean {
    return this.inDoubt || this.#anchor?.conflict != null
  }

  // φ; while it is disputed, the hull of all explanations.
  #known(at: number): Interval | null {
    const phi = this.#phi.at(at)
    if (!this.#disputed) return phi
    const { offset, conflict } = this.#byRow(at)
    if (!phi && !conflict) return null
    return hull([phi, offset, conflict, this.#phi.conflictAt(at)])
  }

  #best(at: number): number {
    return this.#phi.known ? this.#phi.best(at) : this.#theta.best(at) + (this.#anchor?.best ?? 0)
  }

  // φ by the row, and by the measurement that contradicts the row.
  #byRow(at: number) {
    if (!this.#anchor || !this.#theta.known) return { offset: null, conflict: null }
    return trueOffsets(this.#anchor, this.#theta.at(at), at)
  }
}
