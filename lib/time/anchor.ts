/**
 * The row `lockstep.time_anchor`, read and written: by how much the database's clock is wrong. The two statements are
 * described in db/migrations/0006_time.sql.
 *
 * A connection is obtained first and the local clock is read after that, because opening a connection takes ten times as long
 * as the statement. The answer repeats the nonce of the statement: an answer from a cache (Hyperdrive keeps answers for a
 * minute) has another nonce, and is refused.
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
  /** The best estimate, within the interval. */
  best: number
  /** Counts the measurements. */
  revision: number
  /** A measurement that contradicts this one, until another measurement decides between them. */
  conflict: Correction | null
  falsetickers: string[]
  /** The one server on whose word it rests; null: a vote. */
  trusted: string | null
}

export interface Sample {
  reading: ClockReading
  /** Null: there is no measurement of this server's clock. */
  anchor: Anchor | null
  /** This process has claimed the next measurement, and must make it. */
  claimed: boolean
}

/** A measurement for the row. */
export interface Offer extends Interval {
  /** The server whose clock was measured. */
  server: string
  /** The time that this clock shows now. */
  shows: Interval
  /** The best estimate, within the interval. */
  best: number
  /** Whether the row may be older than this process's first sample of that clock, or than a step that it saw. */
  inDoubt: boolean
  falsetickers: string[]
  /** The one server on whose word it rests; null: a vote. */
  trusted: string | null
  /** The answer of each NTP server, for people who look at the row. */
  servers: unknown
}

export type Verdict = 'begun' | 'agreed' | 'disputed' | 'late' | 'another clock' | 'outvoted'

export class Anchors {
  readonly #database: Database
  #writer: string | undefined // in the row. Not made before it is needed: a Worker has no random numbers while it loads

  constructor(database: Database) {
    this.#database = database
  }

  /**
   * @param measures  whether this process has NTP servers, and would ask them now.
   * @param settles   whether this process would measure now to settle a doubt: the row's, or its own.
   * @param inDoubt   whether this process has a doubt: it found that a clock was set.
   * @throws {UnavailableError}
   */
  async sample(measures: boolean, settles: boolean, inDoubt: boolean): Promise<Sample> {
    const nonce = crypto.randomUUID()
    return this.#ask(nonce, sql`lockstep.sample_time(${nonce}, ${measures}, ${settles}, ${inDoubt})`)
  }

  /** Offers a measurement; the answer is a sample too. @throws {UnavailableError} */
  async offer({
    server,
    shows,
    lo,
    hi,
    best,
    inDoubt,
    falsetickers,
    trusted,
    servers,
  }: Offer): Promise<Sample & { verdict: Verdict }> {
    const nonce = crypto.randomUUID()
    this.#writer ??= crypto.randomUUID()
    const us = (x: number, rounded: (x: number) => number) => String(rounded(x))
    const offer = sql`lockstep.offer_time(
        ${server}, ${us(shows.lo, Math.floor)}, ${us(shows.hi, Math.ceil)}, ${us(lo, Math.floor)}, ${us(hi, Math.ceil)},
        ${us(best, Math.round)}, ${inDoubt}, ${this.#writer}, ${falsetickers}::text[], ${JSON.stringify(trusted === null ? servers : { trusted, servers })}::jsonb)`
    // The sample takes the verdict as an argument, so that the server evaluates the offer first.
    const from = sql`(select ${offer} as verdict) o, lockstep.sample_time(o.verdict || ${nonce}, false, false, false)`
    let verdict: Verdict = 'late'
    const sample = await this.#ask(nonce, from, (row) => {
      verdict = row.nonce_.slice(0, -nonce.length) as Verdict
    })
    return { ...sample, verdict }
  }

  /** Gives a claim back: this process failed to measure, and another may. @throws {UnavailableError} */
  async release(): Promise<void> {
    await this.#database.control(sql`update lockstep.time_anchor set claimed_until = null where id = 1`)
  }

  async #ask(nonce: string, from: RawBuilder<unknown>, onRow?: (row: Row) => void): Promise<Sample> {
    const { row, reading } = await this.#database.readClock<Row>(
      sql`select *, us as clock_us, server as clock_server from ${from}`,
    )
    if (!row.nonce_.endsWith(nonce)) {
      throw new UnavailableError('The answer came out of a cache, with an old reading of the clock')
    }
    onRow?.(row)
    return { reading, anchor: anchorIn(row), claimed: row.claimed }
  }
}

/** True time minus our clock `at`, by the row and by its conflicting measurement; `theta` is the database's clock minus ours. */
export function trueOffsets(
  anchor: Anchor,
  theta: Interval,
  at: number,
): { offset: Interval; conflict: Interval | null } {
  const shows = at + middle(theta)
  const corrected = (correction: Correction) =>
    plus(theta, widened(correction, DATABASE_DRIFT * Math.abs(shows - correction.at) + PAD_US))
  return { offset: corrected(anchor), conflict: anchor.conflict && corrected(anchor.conflict) }
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
  trusted: string | null
}

function anchorIn(row: Row): Anchor | null {
  if (row.at_us === null) return null
  const conflict =
    row.rival_at_us === null
      ? null
      : { at: Number(row.rival_at_us), lo: Number(row.rival_lo_us), hi: Number(row.rival_hi_us) }
  return {
    at: Number(row.at_us),
    lo: Number(row.lo_us),
    hi: Number(row.hi_us),
    best: Number(row.guess_us),
    revision: Number(row.revision),
    conflict,
    falsetickers: row.falsetickers,
    trusted: row.trusted,
  }
}
