/**
 * The row `lockstep.time_anchor`, asked and offered to: by how much the database's clock is wrong. What the two statements
 * do is told in db/migrations/0006_time.sql.
 *
 * A connection is had first and the clock read then, since opening one takes ten times as long as the question. The
 * nonce comes back in the answer: one out of a cache (Hyperdrive keeps answers for a minute) has another, and is refused.
 */
import { type RawBuilder, sql } from 'kysely'
import { UnavailableError } from '../base/index.ts'
import type { Clocked, ClockReading, Database } from '../database/index.ts'
import { type Interval, middle, PAD_US, plus, widened } from './interval.ts'
import { DATABASE_DRIFT } from './tolerances.ts'

/** True time minus the database's clock, in microseconds, when that clock showed `at`. */
export interface Correction extends Interval {
  at: number
}

export interface Anchor extends Correction {
  /** The likeliest, in between. */
  guess: number
  /** One more with each measurement. */
  revision: number
  /** What contradicts it, until another measurement says which is right. */
  rival: Correction | null
  falsetickers: string[]
}

export interface Sample {
  heard: ClockReading
  /** Null: nothing was measured of this server's clock. */
  anchor: Anchor | null
  /** It is this process's turn to measure. */
  claimed: boolean
}

/** A measurement for the row. */
export interface Offer extends Interval {
  /** Whose clock it is of. */
  server: string
  /** What that clock shows now. */
  shows: Interval
  guess: number
  /** Whether what the row says may be from before this process began to know that clock, or saw it set. */
  doubts: boolean
  falsetickers: string[]
  /** What each NTP server said, for who looks. */
  servers: unknown
}

export type Verdict = 'begun' | 'agreed' | 'disputed' | 'late' | 'another clock'

export class Anchors {
  readonly #database: Database
  #writer: string | undefined // in the row. Not made before it is needed: a Worker has no random numbers while it loads

  constructor(database: Database) {
    this.#database = database
  }

  /**
   * @param measures whether this process can ask NTP servers, and would now.
   * @param settles  whether this process would measure now to settle a doubt: the row's, or its own.
   * @param doubts   whether it has one: it found that a clock was set.
   * @throws {UnavailableError}
   */
  async sample(measures: boolean, settles: boolean, doubts: boolean): Promise<Sample> {
    const nonce = crypto.randomUUID()
    return this.#ask(nonce, sql`lockstep.sample_time(${nonce}, ${measures}, ${settles}, ${doubts})`)
  }

  /** Offers a measurement; the answer is a sample too. @throws {UnavailableError} */
  async offer({
    server,
    shows,
    lo,
    hi,
    guess,
    doubts,
    falsetickers,
    servers,
  }: Offer): Promise<Sample & { verdict: Verdict }> {
    const nonce = crypto.randomUUID()
    this.#writer ??= crypto.randomUUID()
    const us = (x: number, rounded: (x: number) => number) => String(rounded(x))
    const offer = sql`lockstep.offer_time(
        ${server}, ${us(shows.lo, Math.floor)}, ${us(shows.hi, Math.ceil)}, ${us(lo, Math.floor)}, ${us(hi, Math.ceil)},
        ${us(guess, Math.round)}, ${doubts}, ${this.#writer}, ${falsetickers}::text[], ${JSON.stringify(servers)}::jsonb)`
    // The sample's argument is the verdict, so that it is taken after it.
    const from = sql`(select ${offer} as verdict) o, lockstep.sample_time(o.verdict || ${nonce}, false, false, false)`
    let verdict: Verdict = 'late'
    const sample = await this.#ask(nonce, from, (row) => {
      verdict = row.nonce_.slice(0, -nonce.length) as Verdict
    })
    return { ...sample, verdict }
  }

  /** Gives a claim back: this process could not measure, and another may. @throws {UnavailableError} */
  async release(): Promise<void> {
    await this.#database.control(sql`update lockstep.time_anchor set claimed_until = null where id = 1`)
  }

  async #ask(nonce: string, from: RawBuilder<unknown>, seen?: (row: Row) => void): Promise<Sample> {
    const { row, reading } = await this.#database.readClock<Row>(
      sql`select *, us as clock_us, server as clock_server from ${from}`,
    )
    if (!row.nonce_.endsWith(nonce)) throw new UnavailableError('The answer came out of a cache: the clock of then')
    seen?.(row)
    return { heard: reading, anchor: anchorIn(row), claimed: row.claimed }
  }
}

/** True time minus our clock `at`, as the row has it, and as its rival has it, where the database's clock minus ours is `theta`. */
export function claims(anchor: Anchor, theta: Interval, at: number): { story: Interval; rival: Interval | null } {
  const shows = at + middle(theta)
  const claim = (correction: Correction) =>
    plus(theta, widened(correction, DATABASE_DRIFT * Math.abs(shows - correction.at) + PAD_US))
  return { story: claim(anchor), rival: anchor.rival && claim(anchor.rival) }
}

interface Row extends Clocked {
  nonce_: string
  revision: string
  at_us: string | null
  lo_us: string
  hi_us: string
  guess_us: string
  rival_at_us: string | null
  rival_lo_us: string
  rival_hi_us: string
  falsetickers: string[]
  claimed: boolean
}

function anchorIn(row: Row): Anchor | null {
  if (row.at_us === null) return null
  const rival =
    row.rival_at_us === null
      ? null
      : { at: Number(row.rival_at_us), lo: Number(row.rival_lo_us), hi: Number(row.rival_hi_us) }
  return {
    at: Number(row.at_us),
    lo: Number(row.lo_us),
    hi: Number(row.hi_us),
    guess: Number(row.guess_us),
    revision: Number(row.revision),
    rival,
    falsetickers: row.falsetickers,
  }
}
