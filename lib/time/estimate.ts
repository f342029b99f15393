/**
 * What a process knows of time: θ, φ, and what contradicts them.
 *
 *     m  this process's monotonic clock     D  the database's clock     T  true time
 *
 *     θ = D − m   from the bracketed statements of this process
 *     ψ = T − D   from the row lockstep.time_anchor, whoever measured it
 *     φ = T − m   from θ + ψ, at each sample, and from this process's own NTP measurements
 *
 * All three are intervals (interval.ts), and `now()` is m + φ: arithmetic on two clocks read, no round trip. φ does not
 * need the database any more once it is known: while that is away, or restarted, or another one after a fail-over, φ only grows,
 * by 100 millionths of the time that passes.
 *
 * What is assumed is told in tolerances.ts. A clock that was set, and a machine that slept, are *seen* by who was there, since a
 * sample then does not meet what was known. (Who comes fresh to a clock that was set since it was measured believes the row,
 * until it is measured again.)
 *
 * - The database's clock was set, or ours stood still, and no clock here can tell which. Both stories are kept, and the
 *   answer is their hull, `disrupted`, until the row has a revision later than the one that came with the sample in which
 *   this was seen, or until a measurement of our own. (A revision and not a time: after a clock was set back, an
 *   old measurement looks new. So 169 readings were 5 s wrong in a first attempt.) Either *replaces* what was in doubt, and
 *   does not narrow it: a step of 30 ms is seen, since θ is narrow; but what was known before it, to ± 20 ms as NTP is over
 *   the internet, still meets what is true after it. To intersect the two is narrow, and wrong, and lasts.
 * - The wall clock agrees with the database that time passed which the monotonic clock did not see. In a process that is
 *   frozen between requests (a Lambda) this is the usual thing: it slept; θ is taken anew, φ moves with it, and nothing is
 *   in doubt. In one that lives on it may as well be that somebody set the clock of a machine on which both run: two stories.
 * - Between two samples, the wall clock ran further than the monotonic one: we may have slept. Until the next sample
 *   `latest` is later by as much.
 * - The server is another (its identity changed): θ and ψ are dropped, and φ stays.
 *
 * `time` is the middle of the narrowest sample, not of the interval, and never goes back: where the guess was ahead, it
 * stands until true time has caught up. `earliest` and `latest` do not wait for it.
 */

import { type ClockReading, gapOf, type LocalClock } from '../database/index.ts'
import { type Anchor, claims, type Offer, type Sample } from './anchor.ts'
import { Dial } from './clock-face.ts'
import { bracket, hull, type Interval, meet, middle, minus, Offset, plus, widened, width } from './interval.ts'
import type { Reading, TimeSource } from './reading.ts'
import { DATABASE_DRIFT, GAP_US, LOCAL_DRIFT, SLACK_US, WOKEN_US } from './tolerances.ts'

/** What was measured by this process: true time minus its monotonic clock, at `at`. */
export interface Measured extends Interval {
  at: number
  guess: number
  falsetickers: string[]
}

/**
 * How a reading of the database's clock fits what was known. After `slept` and `contradicts`, what else was measured by our
 * clock means nothing. `void`: it says nothing, since we slept while it was under way.
 */
export type Fit = 'fits' | 'slept' | 'contradicts' | 'void'

export interface EstimateOptions {
  source: TimeSource
  /** Whether this process is frozen between requests. */
  freezes: boolean
}

export class Estimate {
  readonly #clock: LocalClock
  readonly #source: TimeSource
  readonly #freezes: boolean
  readonly #dial: Dial
  readonly #theta = new Offset(LOCAL_DRIFT)
  readonly #phi = new Offset(LOCAL_DRIFT)
  #server: string | undefined
  #anchor: Anchor | null = null
  // The row's revision when we began to know this clock, or again after it jumped; Infinity: the row was not seen since.
  // What it said up to there may be from before the clock was set.
  #since = Infinity
  #contradicted = false // a later revision ends it
  #look = 0 // counts them
  #hearsay: number | null = null // φ is from such a row, in that look at the clock
  // A measurement of our own that contradicts φ, and the row's revision then.
  #rival: { known: Interval; at: number; revision: number } | null = null
  #falsetickers: readonly string[] = []
  #measured = -Infinity // when what φ is from was measured, by our clock

  constructor(clock: LocalClock, { source, freezes }: EstimateOptions) {
    this.#clock = clock
    this.#source = source
    this.#freezes = freezes
    this.#dial = new Dial(clock)
  }

  /** Whether a clock was found to have been set, or to have stood still, and which is not known yet. */
  get doubts(): boolean {
    return this.#contradicted || this.#rival !== null
  }

  /** Whether something was noticed that only a sample can explain. */
  get wonders(): boolean {
    return this.#dial.gapped || (this.#server !== undefined && this.#since === Infinity)
  }

  now(): Reading {
    return this.#dial.read()
  }

  /** As {@link now}, for ourselves: nobody was told, so a later reading may be earlier. */
  peek(): Reading {
    return this.#dial.read(false)
  }

  /** Whether our two clocks have moved apart since the last sample. */
  get apart(): boolean {
    return this.#dial.ran(gapOf(this.#clock), this.#clock.mono()) !== 0
  }

  /** Learns from a reading of the database's clock. */
  hear(heard: ClockReading): Fit {
    if (Math.abs(heard.gap - heard.gapBefore) > GAP_US) return 'void'
    const { before, after, us, server } = heard
    const slept = this.#dial.ran(heard.gap, after)
    let fit: Fit = 'fits'
    if (server !== this.#server) {
      // The stories that the old clock told are lost with it.
      if (this.#disputed) {
        const known = this.#known(after)
        if (known) this.#keep(known, 0, after)
        this.#contradicted = true
      }
      // How long we slept cannot be told from a clock that was not known before.
      this.#mayHaveSlept(slept, after)
      if (slept > 0 && this.#phi.known) this.#contradicted = true
      this.#server = server
      this.#theta.forget()
      this.#anchor = null
      this.#since = Infinity
      this.#look += 1
    }
    const theta = this.#theta.at(after)
    const known = this.#known(after)
    const sample = bracket(before, after, us, us + 1, LOCAL_DRIFT)
    const jump = this.#theta.learn(sample, after)
    const slack = WOKEN_US + (LOCAL_DRIFT + DATABASE_DRIFT) * slept
    if (jump !== null && this.#freezes && slept > 0 && Math.abs(jump - slept) < slack) {
      fit = 'slept'
      const missed = minus(this.#theta.at(after), theta)
      if (this.#phi.known) this.#shift(widened(missed, DATABASE_DRIFT * slept), after)
      this.#hearsay = this.#look // φ rests on the database's clock, which may have been set by a little meanwhile
    } else if (jump !== null) {
      fit = 'contradicts'
      if (known) this.#keep(known, Math.max(0, minus(this.#theta.at(after), theta).hi), after)
      this.#mayHaveSlept(slept, after)
      this.#contradicted = true
      this.#since = Infinity
      this.#look += 1
    } else if (slept > 0 && theta.lo > -Infinity) {
      // It can only have been so short a sleep as hides in what the two say; or it was the wall clock that was set.
      this.#mayHaveSlept(Math.min(slept, width(theta) + width(sample)), after, 0)
      this.#theta.forget()
      this.#theta.learn(sample, after)
    }
    this.#dial.regard(heard.gap, after)
    this.#show(after)
    return fit
  }

  /** Learns from a sample: the clock, and the row as it is now. */
  take({ heard, anchor }: Sample): Fit {
    const fit = this.hear(heard)
    if (fit === 'void') return fit
    this.#anchor = anchor
    if (anchor) this.#falsetickers = anchor.falsetickers
    if (this.#since === Infinity) this.#since = anchor?.revision ?? 0
    this.#reconcile(heard.after)
    this.#show(heard.after)
    return fit
  }

  /** Learns from a measurement of our own. */
  measured({ at, lo, hi, guess, falsetickers }: Measured): void {
    const known = { lo, hi }
    this.#falsetickers = falsetickers
    if (this.#phi.known && !this.#contradicted && !meet(this.#phi.at(at), known)) {
      const rival = this.#rivalAt(at)
      if (!rival || !meet(rival, known)) {
        this.#rival = { known, at, revision: this.#anchor?.revision ?? 0 }
        this.#show(at)
        return
      }
    }
    // What is in doubt is replaced, not narrowed: it may agree and be wrong.
    if (this.doubts || this.#hearsay !== null) this.#phi.forget()
    this.#rival = null
    this.#contradicted = false
    this.#hearsay = null
    this.#phi.learn(known, at, guess)
    this.#measured = at
    this.#show(at)
  }

  /** Without a database: our two clocks were looked at, and what they tell is known. */
  regard(): void {
    const mono = this.#clock.mono()
    const gap = gapOf(this.#clock)
    const slept = this.#dial.ran(gap, mono)
    this.#mayHaveSlept(slept, mono)
    if (slept > 0 && this.#phi.known) this.#contradicted = true
    this.#dial.regard(gap, mono)
    this.#show(mono)
  }

  /** A measurement as it is offered to the row; null: the database's clock is not known. */
  offered({ at, lo, hi, guess, falsetickers }: Measured): Omit<Offer, 'servers'> | null {
    if (this.#server === undefined || !this.#theta.known) return null
    const now = this.#clock.mono()
    const theta = this.#theta.at(now)
    const phi = widened({ lo, hi }, LOCAL_DRIFT * (now - at))
    return {
      server: this.#server,
      shows: { lo: now + theta.lo, hi: now + theta.hi + this.#clock.granularity },
      ...minus(phi, theta),
      guess: guess - this.#theta.guess(now),
      doubts: !this.#anchor || this.#anchor.revision <= this.#since,
      falsetickers,
    }
  }

  // For at most so long, as the wall clock has it: the database's is no witness. The guess stays on the old line.
  #mayHaveSlept(slept: number, at: number, slack = WOKEN_US + LOCAL_DRIFT * slept): void {
    if (slept > 0 && this.#phi.known) this.#shift({ lo: 0, hi: slept + slack }, at, 0)
  }

  // Every story of φ, and that our clock missed so much besides: φ is one of them.
  #keep({ lo, hi }: Interval, missed: number, at: number): void {
    const guess = this.#guess(at)
    this.#phi.forget()
    this.#phi.learn({ lo, hi: hi + missed }, at, guess)
  }

  // Our clock missed as much.
  #shift(by: Interval, at: number, likely = middle(by)): void {
    const { lo, hi } = plus(this.#phi.at(at), by)
    const guess = this.#phi.guess(at) + likely
    this.#phi.forget()
    this.#phi.learn({ lo, hi }, at, guess)
    this.#measured -= by.hi
    const rival = this.#rivalAt(at)
    if (this.#rival && rival) this.#rival = { ...this.#rival, known: plus(rival, by), at }
  }

  #claims(at: number) {
    if (!this.#anchor || !this.#theta.known) return { story: null, rival: null }
    return claims(this.#anchor, this.#theta.at(at), at)
  }

  #reconcile(at: number): void {
    const anchor = this.#anchor
    const { story } = this.#claims(at)
    if (!anchor || !story || anchor.rival) return
    const known = this.#phi.known && this.#phi.at(at)
    const agrees = !known || meet(known, story) !== null
    const later = anchor.revision > this.#since
    const rival = this.#rivalAt(at)
    if (later && (this.#contradicted || this.#hearsay !== null)) {
      // Measured after what we have seen: then it is we who were wrong, or believed one that was. What is in doubt is
      // replaced, not narrowed: it may agree and be wrong.
      this.#phi.forget()
      this.#rival = null
      this.#contradicted = false
      this.#hearsay = null
    } else if (!agrees) {
      // The clock may have been set since it was measured.
      this.#contradicted = true
      this.#since = Math.max(this.#since, anchor.revision)
      return
    } else if (later) {
      // A second witness.
      if (this.#rival && rival && anchor.revision > this.#rival.revision && !meet(rival, story)) this.#rival = null
    } else if (this.#contradicted || (known && this.#hearsay !== this.#look)) return
    else this.#hearsay = this.#look
    this.#phi.learn(story, at, this.#theta.guess(at) + anchor.guess)
    this.#measured = Math.max(this.#measured, anchor.at - middle(this.#theta.at(at)))
  }

  // What now() answers from `at` on.
  #show(at: number): void {
    const spread = this.#theta.known ? width(this.#theta.at(at)) / 2 : Infinity
    const face = { at, spread, measured: this.#measured, falsetickers: this.#falsetickers }
    if (this.#source === 'database') {
      if (this.#theta.known) this.#dial.show({ ...face, ...this.#database(at), status: 'synchronized', measured: at })
      return
    }
    const source = this.#source
    const disputed = this.#disputed
    const known = this.#known(at)
    if (known) {
      const status = disputed ? 'disrupted' : 'synchronized'
      const guess = this.#guess(at)
      this.#dial.show({ ...face, ...widened(known, SLACK_US), growth: growth(disputed), guess, status, source })
    } else if (this.#theta.known) {
      this.#dial.show({ ...face, ...this.#database(at), lo: -Infinity, hi: Infinity, status: 'unsynchronized' })
    }
  }

  // Time as the database's clock shows it.
  #database(at: number) {
    return { ...this.#theta.at(at), growth: LOCAL_DRIFT, guess: this.#theta.guess(at), source: 'database' as const }
  }

  get #disputed(): boolean {
    return this.doubts || this.#anchor?.rival != null
  }

  // What is known of φ; if that is disputed, with every story of it.
  #known(at: number): Interval | null {
    const phi = this.#phi.known ? this.#phi.at(at) : null
    if (!this.#disputed) return phi
    const { story, rival } = this.#claims(at)
    if (!phi && !rival) return null
    return [phi, story, rival, this.#rivalAt(at)].filter((each) => each !== null).reduce(hull)
  }

  #guess(at: number): number {
    return this.#phi.known ? this.#phi.guess(at) : this.#theta.guess(at) + (this.#anchor?.guess ?? 0)
  }

  // φ as our own measurement has it that contradicts it.
  #rivalAt(at: number): Interval | null {
    return this.#rival && widened(this.#rival.known, LOCAL_DRIFT * Math.abs(at - this.#rival.at))
  }
}

const growth = (disputed: unknown) => (disputed ? LOCAL_DRIFT + DATABASE_DRIFT : LOCAL_DRIFT)
