/**
 * A simulation of clocks under the control of a test: true time, a database's clock, and processes whose own clocks drift, stand
 * still and are set; delays between them, a row that all share, and NTP servers that are as exact as they claim.
 *
 * Time passes only when the test lets it pass, so an hour takes a millisecond, and the same seed gives the same hour. The
 * processes run the real ClockReader and Estimate. The row is rewritten here after the SQL (0006_time.sql); time.suite.ts tests
 * the SQL itself.
 */

import { ClockReader, type ClockReading, type LocalClock } from '../../lib/database/clock.ts'
import type { Anchor, Correction } from '../../lib/time/anchor.ts'
import { Estimate, type EstimateOptions, type Fit } from '../../lib/time/estimate.ts'
import { bracket, meet, middle, ppm, widened, width } from '../../lib/time/interval.ts'
import { seeded } from '../chaos/random.ts'

const S = 1e6
const BEGIN = 1.79e15 // microseconds since 1970

export class World {
  /** True time. */
  t = BEGIN
  readonly next: () => number
  readonly seed: number
  database: { offset: number; rate: number; server: string; steppedAt: number }
  row: (Anchor & { server: string; conflictWriter: string; conflictSince: number; width: number }) | null = null
  revision = 0

  constructor(seed: number) {
    this.seed = seed
    this.next = seeded(seed)
    this.database = { offset: 3.25 * S, rate: 30, server: 'first', steppedAt: BEGIN }
  }

  /** The time that the database's clock shows. */
  get d(): number {
    const { offset, rate } = this.database
    return Math.floor(this.t + offset + (this.t - BEGIN) * ppm(rate))
  }

  /** Sets the database's clock. */
  step(seconds: number): void {
    this.database.offset += seconds * S
  }

  /** Another server takes over, with another clock. */
  failOver(server: string, offset: number): void {
    this.database = { ...this.database, server, offset: offset * S }
  }

  /** Lets time pass; by default an exponential delay. */
  pass(us = -Math.log(1 - this.next()) * 2_000): void {
    this.t += us
  }

  anchorFor(server: string): Anchor | null {
    return this.row?.server === server ? this.row : null
  }

  /** The same as lockstep.offer_time. */
  offer(offer: NonNullable<ReturnType<Estimate['offerOf']>>, inDoubt: boolean, writer: string): string {
    const now = this.d
    if (offer.server !== this.database.server) return 'another clock'
    const from = Math.floor(offer.shows.lo)
    const to = Math.ceil(offer.shows.hi)
    if (now - from > 2 * S || now < from - 1_000 || to - now > 2 * S) return 'late'
    let lo = Math.floor(offer.lo) - Math.max(0, now - from) - 1
    let hi = Math.ceil(offer.hi) + Math.max(0, to - now) + 1
    let best = Math.round(offer.best)
    let bestWidth = hi - lo
    const { row } = this
    this.revision += 1
    const grown = (it: Correction) => widened(it, Math.ceil(Math.abs(now - it.at) * 0.00005) + 1)
    let verdict = 'agreed'
    if (row?.server !== offer.server) {
      verdict = 'begun'
    } else {
      const stale = grown(row)
      const both = meet(stale, { lo, hi }) && {
        lo: Math.max(stale.lo - Math.max(0, now - from), lo),
        hi: Math.min(stale.hi + Math.max(0, to - now), hi),
      }
      const conflict = row.conflict
      const second = conflict && meet(grown(conflict), { lo, hi })
      if (both) {
        const drift = Math.ceil(Math.abs(now - row.at) * 0.00005) + 1
        if (now - from <= 20_000 && !conflict && !inDoubt) {
          ;({ lo, hi } = both)
          if (bestWidth > row.width + 2 * drift) [best, bestWidth] = [row.best, row.width + 2 * drift]
        }
      } else if (conflict && second) {
        if (writer === row.conflictWriter && Math.abs(now - row.conflictSince) <= 0.5 * S) {
          this.row = { ...row, revision: this.revision }
          return 'disputed'
        }
        verdict = 'begun'
      } else {
        const contradicting = { at: now, lo, hi }
        this.row = {
          ...row,
          revision: this.revision,
          conflict: contradicting,
          conflictWriter: writer,
          conflictSince: now,
        }
        return 'disputed'
      }
    }
    this.row = {
      ...{ server: offer.server, at: now, lo, hi, best: Math.min(hi, Math.max(lo, best)), width: bestWidth },
      ...{
        revision: this.revision,
        conflict: null,
        conflictWriter: '',
        conflictSince: 0,
        falsetickers: [],
        trusted: null,
      },
    }
    return verdict
  }
}

export interface Kind extends Partial<EstimateOptions> {
  /** By how many parts in a million its monotonic clock is fast. */
  rate?: number
  granularity?: number
  lag?: number
}

/** A process in the simulation. */
export class Simulated {
  readonly world: World
  readonly name: string
  readonly estimate: Estimate
  /** The error of its wall clock, in microseconds. */
  wallOffset = 0
  /** For how many microseconds it waits for the processor, once, just before it reads its wall clock. */
  stalledUs = 0
  #stoodStill = 0
  #began: number
  #last = -Infinity
  readonly #clock: LocalClock

  constructor(world: World, name: string, kind: Kind = {}) {
    const { rate = 0, granularity = 0, lag = 0, source = 'database+ntp', frozenBetweenRequests = false } = kind
    this.world = world
    this.name = name
    this.#began = world.t
    const exact = () => 5 * S + (world.t - this.#began - this.#stoodStill) * (1 + ppm(rate))
    const coarse = (x: number) => (granularity > 0 ? Math.floor(x / granularity) * granularity : x)
    this.#clock = {
      mono: () => coarse(exact()),
      wall: () => {
        world.pass(this.stalledUs)
        this.stalledUs = 0
        return Math.floor((world.t + this.wallOffset) / 1_000) * 1_000
      },
      granularity,
      lag,
    }
    this.estimate = new Estimate(this.#clock, { source, frozenBetweenRequests })
  }

  /** The machine sleeps: time passes, but its monotonic clock stands still. */
  sleep(seconds: number): void {
    this.world.t += seconds * S
    this.#stoodStill += seconds * S
  }

  /** Reads the database's clock, between two readings of its own. */
  readDatabase({ during = () => {}, back = () => {} }: { during?: () => void; back?: () => void } = {}): ClockReading {
    const { world } = this
    const close = new ClockReader(this.#clock).open()
    world.pass()
    during()
    const us = world.d
    const { server } = world.database
    world.pass()
    back()
    return close({ clock_us: String(us), clock_server: server })
  }

  /** Takes a sample: the database's clock and the row. */
  sample(): Fit {
    const { world } = this
    let anchor: Anchor | null = null
    const reading = this.readDatabase({
      during: () => {
        anchor = world.anchorFor(world.database.server)
      },
    })
    return this.estimate.takeSample({ reading, anchor, claimed: false })
  }

  /** Asks NTP servers that claim an error of at most `bound` µs, and are off by less, plus `wrong`; offers the result to the row. */
  measure({ bound = 2_000, wrong = 0, offers = true } = {}): string {
    const { world } = this
    const clock = this.#clock
    if (!offers) this.estimate.checkClocks() // as Sampler does where there is no database
    const before = clock.mono()
    world.pass()
    const answer = world.t + wrong + (world.next() * 2 - 1) * bound
    world.pass()
    const at = clock.mono() + clock.granularity
    const known = widened(bracket(before, at, answer, answer, ppm(100)), bound)
    const measured = { ...known, at, guess: middle(known), falsetickers: [] }
    this.estimate.takeMeasurement(measured)
    const offer = offers && this.estimate.offerOf(measured)
    if (!offer) return 'not offered'
    world.pass()
    const verdict = world.offer(offer, offer.inDoubt, this.name)
    this.sample()
    return verdict
  }

  /** Throws unless the current reading contains true time, is within `boundMs` of it, and has not gone back. */
  check(what = ''): ReturnType<Estimate['now']> {
    const { world } = this
    const truth = world.t / 1_000 // at the time of the reading
    const reading = this.estimate.now()
    const { earliestMs, latestMs, timeMs, boundMs, spreadMs, status } = reading
    const failure = (problem: string) =>
      new Error(
        `${problem}: seed ${world.seed}, ${this.name}, ${((world.t - BEGIN) / S).toFixed(6)} s ${what}: ` +
          JSON.stringify({ timeMs: timeMs - truth, latestMs: Number(latestMs) - truth, boundMs, spreadMs, status }),
      )
    if (timeMs < this.#last) throw failure('It went back')
    this.#last = timeMs
    if (earliestMs === null || latestMs === null) return reading
    if (earliestMs > truth || latestMs < truth) throw failure('Missed')
    if (Math.abs(timeMs - truth) > Number(boundMs) + 0.001) throw failure('Farther off than boundMs')
    return reading
  }
}

export { BEGIN, S, width }
