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
 * What is assumed is told in assumed.ts. A clock that was set, and a machine that slept, are *seen* by who was there, since a
 * sample then does not meet what was known. (Who comes fresh to a clock that was set since it was measured believes the row,
 * until it is measured again.)
 *
 * - The database's clock was set, or ours stood still, and no clock here can tell which. Both stories are kept, and the
 *   answer is their hull, `disrupted`, until the row has a revision later than the one that came with the sample in which
 *   this was seen, or until a measurement of our own. (A revision and not a time: after a clock was set back, an
 *   old measurement looks new. So 169 readings were 5 s wrong in a first attempt.)
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
import type { Anchor, Offer, Sample } from './anchor.ts'
import { DATABASE_DRIFT, GAP_US, LOCAL_DRIFT, SLACK_US, WOKEN_US } from './assumed.ts'
import type { Heard, LocalClock } from './clock.ts'
import { Dial } from './dial.ts'
import { bracket, hull, type Interval, meet, middle, minus, Offset, PAD_US, plus, widened, width } from './interval.ts'
import type { Reading, TimeSource } from './reading.ts'

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
  #row: 'seen' | 'unknown' = 'seen' // of the server that was heard last
  #contradicted: number | null = null // the row's revision then; a later one ends it
  #rival: { known: Interval; at: number } | null = null // a measurement of our own that contradicts φ
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
    return this.#contradicted !== null || this.#rival !== null
  }

  /** Whether something was noticed that only a sample can explain. */
  get wonders(): boolean {
    return this.#dial.gapped || this.#contradicted === Infinity || this.#row === 'unknown'
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
    const mono = this.#clock.mono()
    return this.#dial.ran(this.#clock.wall() - mono, mono) !== 0
  }

  /** Learns from a reading of the database's clock. */
  hear(heard: Heard): Fit {
    if (Math.abs(heard.gap - heard.gapBefore) > GAP_US) return 'void'
    const { before, after, us, server } = heard
    const slept = this.#dial.ran(heard.gap, after)
    let fit: Fit = 'fits'
    if (server !== this.#server) {
      // How long we slept cannot be told from a clock that was not known before.
      this.#mayHaveSlept(slept, after)
      this.#server = server
      this.#theta.forget()
      this.#anchor = null
      this.#row = 'unknown'
      // What was measured of this clock may be from before it was set: it takes a measurement from after this look at it.
      if (this.#contradicted !== null) this.#contradicted = Infinity
    }
    const theta = this.#theta.at(after)
    const sample = bracket(before, after, us, us + 1, LOCAL_DRIFT)
    const jump = this.#theta.learn(sample, after)
    const slack = WOKEN_US + (LOCAL_DRIFT + DATABASE_DRIFT) * slept
    if (jump !== null && this.#freezes && slept > 0 && Math.abs(jump - slept) < slack) {
      fit = 'slept'
      const missed = minus(this.#theta.at(after), theta)
      if (this.#phi.known) this.#shift(widened(missed, DATABASE_DRIFT * slept), after)
      this.#rival = null
    } else if (jump !== null) {
      fit = 'contradicts'
      this.#mayHaveSlept(slept, after)
      if (this.#phi.known) this.#contradicted = Infinity
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
    this.#row = 'seen'
    if (anchor) this.#falsetickers = anchor.falsetickers
    if (this.#contradicted === Infinity) this.#contradicted = anchor?.revision ?? 0
    this.#reconcile(heard.after)
    this.#show(heard.after)
    return fit
  }

  /** Learns from a measurement of our own. */
  measured({ at, lo, hi, guess, falsetickers }: Measured): void {
    const known = { lo, hi }
    this.#falsetickers = falsetickers
    if (this.#phi.known && !meet(this.#phi.at(at), known)) {
      const rival = this.#rival
      const twice = rival && meet(widened(rival.known, LOCAL_DRIFT * (at - rival.at)), known)
      if (!twice && this.#contradicted === null) {
        this.#rival = { known, at }
        this.#show(at)
        return
      }
      this.#phi.forget()
    }
    this.#rival = null
    this.#contradicted = null
    this.#phi.learn(known, at, guess)
    this.#measured = at
    this.#show(at)
  }

  /** Without a database: our two clocks were looked at, and what they tell is known. */
  regard(): void {
    const mono = this.#clock.mono()
    this.#dial.regard(this.#clock.wall() - mono, mono)
  }

  /** A measurement as it is offered to the row; null: the database's clock is not known. */
  offered({ at, lo, hi, guess, falsetickers }: Measured): Omit<Offer, 'servers' | 'doubts'> | null {
    if (this.#server === undefined || !this.#theta.known) return null
    const now = this.#clock.mono()
    const theta = this.#theta.at(now)
    const phi = widened({ lo, hi }, LOCAL_DRIFT * (now - at))
    return {
      server: this.#server,
      shows: { lo: now + theta.lo, hi: now + theta.hi + this.#clock.granularity },
      ...minus(phi, theta),
      guess: guess - this.#theta.guess(now),
      falsetickers,
    }
  }

  // For at most so long, as the wall clock has it: the database's is no witness. The guess stays on the old line.
  #mayHaveSlept(slept: number, at: number, slack = WOKEN_US + LOCAL_DRIFT * slept): void {
    if (slept > 0 && this.#phi.known) this.#shift({ lo: 0, hi: slept + slack }, at, 0)
  }

  // Our clock missed as much.
  #shift(by: Interval, at: number, likely = middle(by)): void {
    const { lo, hi } = plus(this.#phi.at(at), by)
    const guess = this.#phi.guess(at) + likely
    this.#phi.forget()
    this.#phi.learn({ lo, hi }, at, guess)
    this.#measured -= by.hi
  }

  // φ as the row and the database's clock have it.
  #claims(at: number): { story: Interval | null; rival: Interval | null } {
    if (!this.#anchor || !this.#theta.known) return { story: null, rival: null }
    const theta = this.#theta.at(at)
    const shows = at + middle(theta)
    const claim = (correction: Interval & { at: number }) =>
      plus(theta, widened(correction, DATABASE_DRIFT * Math.abs(shows - correction.at) + PAD_US))
    const { rival } = this.#anchor
    return { story: claim(this.#anchor), rival: rival && claim(rival) }
  }

  #reconcile(at: number): void {
    const anchor = this.#anchor
    const { story } = this.#claims(at)
    if (!anchor || !story || anchor.rival) return
    const later = this.#contradicted !== null && anchor.revision > this.#contradicted
    if (this.#phi.known && !meet(this.#phi.at(at), story)) {
      // Measured after what we have seen: then it is we who were wrong. Else the clock may have been set since it was measured.
      if (!later) {
        this.#contradicted ??= anchor.revision
        return
      }
      this.#phi.forget()
      this.#rival = null
    } else if (this.#contradicted !== null && !later) return
    this.#contradicted = null
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
    const disputed = this.doubts || this.#anchor?.rival
    const stories = this.#stories(at)
    if (this.#phi.known) {
      const known = this.#phi.at(at)
      const guess = this.#phi.guess(at)
      const all = disputed ? stories.reduce(hull, known) : known
      const status = disputed ? 'disrupted' : 'synchronized'
      this.#dial.show({ ...face, ...widened(all, SLACK_US), growth: growth(disputed), guess, status, source })
    } else if (this.#anchor?.rival) {
      // Two measurements that contradict each other, and nothing of our own.
      const all = stories.reduce(hull)
      const guess = this.#theta.guess(at) + this.#anchor.guess
      this.#dial.show({ ...face, ...widened(all, SLACK_US), growth: growth(true), guess, status: 'disrupted', source })
    } else if (this.#theta.known) {
      this.#dial.show({ ...face, ...this.#database(at), lo: -Infinity, hi: Infinity, status: 'unsynchronized' })
    }
  }

  // Time as the database's clock shows it.
  #database(at: number) {
    return { ...this.#theta.at(at), growth: LOCAL_DRIFT, guess: this.#theta.guess(at), source: 'database' as const }
  }

  // φ as the row has it, with its rival, and as our own measurement has it that contradicts φ.
  #stories(at: number): Interval[] {
    const { story, rival } = this.#claims(at)
    return [story, rival, this.#rival?.known].filter((each) => each != null)
  }
}

const growth = (disputed: unknown) => (disputed ? LOCAL_DRIFT + DATABASE_DRIFT : LOCAL_DRIFT)
