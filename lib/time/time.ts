/**
 * Time: what time it is, and how far off that may be.
 *
 *     const { time, earliest, latest, boundMs, status } = lockstep.time.now()
 *
 * `now()` costs no round trip. The database's clock is what all processes share, so each keeps the offset of its own clock from
 * that one, as an interval (interval.ts); the database's clock is corrected by NTP, and the correction is one row that
 * all read (anchor.ts), so that a Worker, which has neither UDP nor a monotonic clock, has NTP-corrected time for one
 * statement. How the two are put together, what is assumed, and what happens when a clock is set or stands still: estimate.ts.
 *
 *     processes with UDP ── time/ntp/ntp.ts: ≥ 3 servers, a vote ──► lockstep.time_anchor ◄── all: one statement, now and then
 *
 * When the database is asked, and the NTP servers: sampler.ts.
 *
 * WHY LEASES DO NOT USE IT. A lease asks one thing: has this much of *one* clock passed? Grant, renewal, fence and takeover all
 * read the database's own `clock_timestamp()`, in the statement that decides. Corrected time may step when a measurement
 * corrects it, or differ between two readers of which one has not seen the new row; a step forward would end leases that
 * their holders still trust, a step back would let none end. Whether that clock is *right* is of no interest to a lease.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import {
  abortable,
  batched,
  type Closing,
  checkMs,
  checkOptions,
  checkWord,
  Deadline,
  outOfRange,
  UnavailableError,
  WAIT,
  wrongType,
} from '../base/index.ts'
import type { Database } from '../database/index.ts'
import type { Ntp } from './ntp/index.ts'
import type { Reading, TimeSource } from './reading.ts'
import { EVERY_MS, Sampler } from './sampler.ts'

export interface TimeOptions {
  /**
   * How time is defined.
   * - `database+ntp`: true time, measured by NTP and shared through the database.
   * - `database`: what the database's clock shows; `earliest` and `latest` are about that.
   * - `ntp`: true time as this process measures it. The database is not asked.
   * - `local`: this machine's clock. Nothing is known of it.
   * @default 'database+ntp'
   */
  source?: TimeSource
  /** Made by `ntp()` of `lockstep/ntp`. Absent: this process asks no NTP server, and reads what others measured. */
  ntp?: Ntp
  /**
   * Whether to sample by itself, from the first use on. Not in a process that is frozen between requests.
   * @default false where `directConnectionString` is null, else true
   */
  background?: boolean
}

export interface ReadyOptions {
  /** How wide the answer may be: `boundMs` is at most so much. Above 0. @default Infinity */
  maxBoundMs?: number
  /** How old the last sample may be, ≥ 0. @default 0: a new one is taken */
  maxAgeMs?: number
  /** How long to try for `maxBoundMs`, ≥ 0. @default 5_000 */
  waitMs?: number
  /** Ends the wait: the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

const MOST_WAIT_MS = 2 ** 31 - 1
/** Of the first `ready` of a process that lives on: among four round trips one is short. */
const FIRST_SAMPLES = 4
const SOURCES: TimeSource[] = ['database+ntp', 'database', 'ntp', 'local']

export class Time {
  /** Whether this process samples by itself. If not, call {@link ready} before {@link now}. */
  readonly background: boolean
  readonly #sampler: Sampler
  readonly #ntp: Ntp | undefined
  readonly #tick: (one: null) => Promise<bigint>
  readonly #closing: Closing

  constructor(database: Database, closing: Closing, options: TimeOptions = {}) {
    checkOptions(options, 'time')
    const { source = 'database+ntp', ntp, background = !database.pooled } = options
    checkWord('time.source', source, SOURCES)
    const measures = typeof ntp?.measure === 'function'
    if (!measures && (ntp !== undefined || source === 'ntp')) throw wrongType('time.ntp', MADE_BY_NTP, ntp)
    this.#ntp = source === 'database+ntp' || source === 'ntp' ? ntp : undefined
    this.background = background && source !== 'local'
    this.#closing = closing
    this.#sampler = new Sampler(database, closing, { source, ntp: this.#ntp, background: this.background })
    this.#tick = batched((calls) => ticks(database, calls.length), freshKey(), MOST_TICKS)
  }

  /**
   * The time now, and how far off it may be. No round trip. Before the first sample it is this machine's clock,
   * `unsynchronized`: call {@link ready} first. After a `close()` it goes on by what was known, as {@link after} and {@link before} do.
   *
   * `time` never goes back within a process.
   * @see J. Corbett et al., "Spanner: Google's Globally-Distributed Database", OSDI 2012, §3 (TrueTime)
   */
  now(): Reading {
    const sampler = this.#sampler
    if (this.background) sampler.begin()
    return sampler.estimate.now()
  }

  /**
   * Samples the database's clock, then answers as {@link now}. In a process that is frozen between requests call it first
   * in each: nothing local shows how long it was frozen.
   *
   * @throws {UnavailableError} the database (or, for the source `ntp`, enough servers) cannot be asked; or time is not known as
   *   well as `maxBoundMs` asks, after `waitMs`.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  async ready(options: ReadyOptions = {}): Promise<Reading> {
    checkOptions(options)
    const { maxBoundMs = Infinity, maxAgeMs = 0, waitMs = 5_000, signal } = options
    checkMs('maxBoundMs', maxBoundMs, WAIT)
    if (maxBoundMs === 0) throw outOfRange('maxBoundMs', 'a number of milliseconds above 0', 0)
    checkMs('maxAgeMs', maxAgeMs, WAIT)
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    return this.#closing.wait(signal, (stop) => abortable(stop, this.#ready(maxBoundMs, maxAgeMs, waitMs, stop)))
  }

  async #ready(maxBoundMs: number, maxAgeMs: number, waitMs: number, signal: AbortSignal): Promise<Reading> {
    const since = performance.now()
    const sampler = this.#sampler
    const unknown = sampler.estimate.peek().boundMs === null
    const first = sampler.begin() && sampler.asksDatabase
    await sampler.fresh(maxAgeMs)
    for (let i = 1; first && i < FIRST_SAMPLES; i++) await sampler.fresh(0)
    const until = new Deadline(Math.min(Math.ceil(waitMs), MOST_WAIT_MS))
    try {
      if (unknown) await until.race(abortable(signal, sampler.measuring)) // to its end: then the row is written, too
      while (maxBoundMs < Infinity) {
        signal.throwIfAborted() // nobody waits any more
        const { boundMs, status } = sampler.estimate.peek()
        if (boundMs !== null && boundMs <= maxBoundMs) break
        if (performance.now() - since >= waitMs) throw tooWide(maxBoundMs, boundMs, status)
        await until.race(abortable(signal, sampler.measuring))
        await pause(Math.min(100, waitMs), signal)
        await sampler.fresh(0)
      }
      return this.now()
    } finally {
      until.clear()
    }
  }

  /** Whether the instant is over, for certain. @param instant  a Date, or milliseconds since 1970. */
  after(instant: Date | number): boolean {
    const ms = milliseconds(instant)
    const { earliestMs } = this.now()
    return earliestMs !== null && ms < earliestMs
  }

  /** Whether the instant is still to come, for certain. @param instant  a Date, or milliseconds since 1970. */
  before(instant: Date | number): boolean {
    const ms = milliseconds(instant)
    const { latestMs } = this.now()
    return latestMs !== null && ms > latestMs
  }

  /**
   * Waits until the instant is over, for certain: the commit-wait. Who takes `latest` as the time of a change, and waits
   * until that is over before telling anybody, has given it a time that is true for all.
   *
   * @returns the reading by which it was over.
   * @throws {UnavailableError} nothing was measured, so that nothing is certain.
   * @throws the `signal`'s reason, when it aborts.
   */
  async waitUntilAfter(instant: Date | number, options: { signal?: AbortSignal } = {}): Promise<Reading> {
    const ms = milliseconds(instant)
    checkOptions(options)
    return this.#closing.wait(options.signal, (stop) => this.#waitUntilAfter(ms, stop))
  }

  async #waitUntilAfter(ms: number, signal: AbortSignal): Promise<Reading> {
    for (;;) {
      signal.throwIfAborted()
      const reading = this.now()
      if (reading.earliestMs !== null && ms < reading.earliestMs) return reading
      if (reading.earliestMs === null) {
        await this.ready({ signal })
        if (this.now().earliestMs === null) throw unmeasured()
        continue
      }
      // What is measured meanwhile may make it sooner.
      await pause(Math.min(ms - reading.earliestMs + 0.1, EVERY_MS), signal)
      if (!this.background) await this.#sampler.fresh(EVERY_MS).catch(() => {})
    }
  }

  /**
   * Microseconds since 1970, given once, and greater than every tick that was given before to anybody: a total order. Not
   * before the corrected time. Calls of one moment share a statement.
   * @throws {UnavailableError}
   */
  tick(): Promise<bigint> {
    return this.#closing.verb(() => this.#tick(null))
  }

  /**
   * Asks the NTP servers and writes the answer down for everybody, if that is due and nobody else does. It happens by
   * itself in a process that lives on.
   *
   * @returns whether this call did; false also where there is no `ntp`.
   * @param options.signal  ends the wait: the call rejects with its reason, and the measurement goes on.
   * @throws {UnavailableError} the database cannot be asked, or not enough servers gave a time: which, and why.
   */
  async synchronize(options: { signal?: AbortSignal } = {}): Promise<boolean> {
    checkOptions(options)
    this.#closing.check()
    if (!this.#ntp) return false
    options.signal?.throwIfAborted()
    return this.#closing.wait(options.signal, async (stop) => {
      const sampler = this.#sampler
      const before = sampler.measuring
      await abortable(stop, sampler.fresh(0, true))
      if (sampler.measuring === before) return false
      await abortable(stop, sampler.measuring)
      return true
    })
  }
}

const MADE_BY_NTP = 'what ntp() of lockstep/ntp makes'
const MOST_TICKS = 1_000

async function ticks(database: Database, n: number): Promise<bigint[]> {
  const [row] = await database.control<{ first: string }>(sql`select lockstep.tick(${n}) as first`)
  const first = BigInt(row?.first ?? 0)
  return Array.from({ length: n }, (_, i) => first + BigInt(i))
}

function milliseconds(instant: Date | number): number {
  const ms = instant instanceof Date ? instant.getTime() : instant
  if (typeof ms === 'number' && !Number.isNaN(ms)) return ms
  throw wrongType('instant', 'a valid Date, or milliseconds since 1970', instant)
}

// timers/promises rejects with an error of its own.
async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await sleep(Math.max(1, ms), undefined, signal && { signal })
  } catch {
    signal?.throwIfAborted()
  }
}

// No call waits for another.
function freshKey(): () => string {
  let n = 0
  return () => String(n++)
}

const tooWide = (maxBoundMs: number, boundMs: number | null, status: string) =>
  new UnavailableError(
    boundMs === null
      ? 'True time is not known: nobody has measured it by NTP for this database'
      : `True time is known to within ${boundMs.toFixed(3)} ms (${status}), and ${maxBoundMs} ms are asked for`,
  )
const unmeasured = () => tooWide(0, null, '')
