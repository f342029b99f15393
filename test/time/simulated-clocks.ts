/**
 * A world of clocks that a test decides: true time, a database's clock, and processes whose own clocks drift, stand still and
 * are set; delays between them, a row that all share, and NTP servers that are as good as they say.
 *
 * Time passes only when the test says so, so an hour takes a millisecond, and the same seed is the same hour. The processes are
 * the real ClockReader and Estimate. The row is written here after the SQL (0006_time.sql), whose own behaviour is in time.suite.ts.
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
  row: (Anchor & { server: string; rivalWriter: string; rivalSince: number; width: number }) | null = null
  revision = 0

  constructor(seed: number) {
    this.seed = seed
    this.next = seeded(seed)
    this.database = { offset: 3.25 * S, rate: 30, server: 'first', steppedAt: BEGIN }
  }

  /** What the database's clock shows. */
  get d(): number {
    const { offset, rate } = this.database
    return Math.floor(this.t + offset + (this.t - BEGIN) * ppm(rate))
  }

  /** Sets it. */
  step(seconds: number): void {
    this.database.offset += seconds * S
  }

  /** Another server takes over, with another clock. */
  failOver(server: string, offset: number): void {
    this.database = { ...this.database, server, offset: offset * S }
  }

  /** Passes; an exponential delay if none is given. */
  pass(us = -Math.log(1 - this.next()) * 2_000): void {
    this.t += us
  }

  anchorFor(server: string): Anchor | null {
    return this.row?.server === server ? this.row : null
  }

  /** As lockstep.offer_time. */
  offer(offer: NonNullable<ReturnType<Estimate['offered']>>, doubts: boolean, writer: string): string {
    const now = this.d
    if (offer.server !== this.database.server) return 'another clock'
    const from = Math.floor(offer.shows.lo)
    const to = Math.ceil(offer.shows.hi)
    if (now - from > 2 * S || now < from - 1_000 || to - now > 2 * S) return 'late'
    let lo = Math.floor(offer.lo) - Math.max(0, now - from) - 1
    let hi = Math.ceil(offer.hi) + Math.max(0, to - now) + 1
    let guess = Math.round(offer.guess)
    let given = hi - lo
    const { row } = this
    this.revision += 1
    const grown = (it: Correction) => widened(it, Math.ceil(Math.abs(now - it.at) * 0.00005) + 1)
    let said = 'agreed'
    if (row?.server !== offer.server) {
      said = 'begun'
    } else {
      const stale = grown(row)
      const both = meet(stale, { lo, hi }) && {
        lo: Math.max(stale.lo - Math.max(0, now - from), lo),
        hi: Math.min(stale.hi + Math.max(0, to - now), hi),
      }
      const rival = row.rival
      const second = rival && meet(grown(rival), { lo, hi })
      if (both) {
        const drift = Math.ceil(Math.abs(now - row.at) * 0.00005) + 1
        if (now - from <= 20_000 && !rival && !doubts) {
          ;({ lo, hi } = both)
          if (given > row.width + 2 * drift) [guess, given] = [row.guess, row.width + 2 * drift]
        }
      } else if (rival && second) {
        if (writer === row.rivalWriter && Math.abs(now - row.rivalSince) <= 0.5 * S) {
          this.row = { ...row, revision: this.revision }
          return 'disputed'
        }
        said = 'begun'
      } else {
        const stands = { at: now, lo, hi }
        this.row = { ...row, revision: this.revision, rival: stands, rivalWriter: writer, rivalSince: now }
        return 'disputed'
      }
    }
    this.row = {
      ...{ server: offer.server, at: now, lo, hi, guess: Math.min(hi, Math.max(lo, guess)), width: given },
      ...{ revision: this.revision, rival: null, rivalWriter: '', rivalSince: 0, falsetickers: [] },
    }
    return said
  }
}

export interface Kind extends Partial<EstimateOptions> {
  /** Parts in a million that its monotonic clock is fast. */
  rate?: number
  granularity?: number
  lag?: number
}

/** A process in it. */
export class Simulated {
  readonly world: World
  readonly name: string
  readonly estimate: Estimate
  /** Of its wall clock. */
  wallOffset = 0
  /** Microseconds for which it is kept from the processor, once, just before it reads its wall clock. */
  kept = 0
  #stoodStill = 0
  #began: number
  #last = -Infinity
  readonly #clock: LocalClock

  constructor(world: World, name: string, kind: Kind = {}) {
    const { rate = 0, granularity = 0, lag = 0, source = 'database+ntp', freezes = false } = kind
    this.world = world
    this.name = name
    this.#began = world.t
    const exact = () => 5 * S + (world.t - this.#began - this.#stoodStill) * (1 + ppm(rate))
    const coarse = (x: number) => (granularity > 0 ? Math.floor(x / granularity) * granularity : x)
    this.#clock = {
      mono: () => coarse(exact()),
      wall: () => {
        world.pass(this.kept)
        this.kept = 0
        return Math.floor((world.t + this.wallOffset) / 1_000) * 1_000
      },
      granularity,
      lag,
    }
    this.estimate = new Estimate(this.#clock, { source, freezes })
  }

  /** The machine sleeps: the world goes on, the monotonic clock does not. */
  sleep(seconds: number): void {
    this.world.t += seconds * S
    this.#stoodStill += seconds * S
  }

  /** Reads the database's clock, in a bracket. */
  hear({ during = () => {}, back = () => {} }: { during?: () => void; back?: () => void } = {}): ClockReading {
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

  /** Takes a sample: the clock, and the row. */
  sample(): Fit {
    const { world } = this
    let anchor: Anchor | null = null
    const heard = this.hear({
      during: () => {
        anchor = world.anchorFor(world.database.server)
      },
    })
    return this.estimate.take({ heard, anchor, claimed: false })
  }

  /** Asks NTP servers that know true time to within `bound` µs and are off by less, and offers what they said. */
  measure({ bound = 2_000, wrong = 0, offers = true } = {}): string {
    const { world } = this
    const clock = this.#clock
    if (!offers) this.estimate.regard() // as Sampler does where there is no database
    const before = clock.mono()
    world.pass()
    const said = world.t + wrong + (world.next() * 2 - 1) * bound
    world.pass()
    const at = clock.mono() + clock.granularity
    const known = widened(bracket(before, at, said, said, ppm(100)), bound)
    const measured = { ...known, at, guess: middle(known), falsetickers: [] }
    this.estimate.measured(measured)
    const offer = offers && this.estimate.offered(measured)
    if (!offer) return 'not offered'
    world.pass()
    const verdict = world.offer(offer, offer.doubts, this.name)
    this.sample()
    return verdict
  }

  /** Throws unless what is read now contains the truth, is as near as it says, and has not gone back. */
  check(what = ''): ReturnType<Estimate['now']> {
    const { world } = this
    const truth = world.t / 1_000 // when it is asked
    const reading = this.estimate.now()
    const { earliestMs, latestMs, timeMs, boundMs, spreadMs, status } = reading
    const tell = (problem: string) =>
      new Error(
        `${problem}: seed ${world.seed}, ${this.name}, ${((world.t - BEGIN) / S).toFixed(6)} s ${what}: ` +
          JSON.stringify({ timeMs: timeMs - truth, latestMs: Number(latestMs) - truth, boundMs, spreadMs, status }),
      )
    if (timeMs < this.#last) throw tell('It went back')
    this.#last = timeMs
    if (earliestMs === null || latestMs === null) return reading
    if (earliestMs > truth || latestMs < truth) throw tell('Missed')
    if (Math.abs(timeMs - truth) > Number(boundMs) + 0.001) throw tell('Farther off than it says')
    return reading
  }
}

export { BEGIN, S, width }
