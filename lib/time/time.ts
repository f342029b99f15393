/**
 * Time: the current time, and its uncertainty.
 *
 *     const { time, earliest, latest, boundMs, status } = lockstep.time.now()
 *
 * `now()` costs no round trip. All processes share the database's clock, so each process keeps the offset of its own clock from
 * that one, as an interval (interval.ts). NTP corrects the database's clock. The correction is one row that all processes
 * read (anchor.ts). So a Worker, which has neither UDP nor a monotonic clock, gets NTP-corrected time for the price of one
 * statement. estimate.ts describes how the two are combined, and what happens when a clock is set or stands still.
 *
 *     processes with UDP ── ntp/ntp.ts: ≥ 3 servers, a vote ──► lockstep.time_anchor ◄── all: one statement, now and then
 *
 * sampler.ts decides when to read the database's clock, and when to ask the NTP servers. tolerances.ts lists the assumptions.
 *
 * WHY LEASES DO NOT USE IT. A lease asks one question: has this much of *one* clock passed? Grant, renewal, fence and takeover
 * all read the database's own `clock_timestamp()`, in the statement that decides. Corrected time may step when a measurement
 * corrects it, and may differ between two processes of which one has not read the new row. A step forward would end leases that
 * their holders still trust; a step back would keep leases from ending. A lease does not need that clock to be *right*.
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
  known,
  outOfRange,
  SIGNAL,
  UnavailableError,
  WAIT,
  wrongType,
} from '../base/index.ts'
import type { Database } from '../database/index.ts'
import type { Ntp } from './ntp/index.ts'
import type { Reading, TimeSource } from './reading.ts'
import { EVERY_MS, Sampler } from './sampler.ts'

/** The `time` option of `createLockstep`. */
export interface TimeOptions {
  /**
   * The clock that defines time.
   * - `database+ntp`: true time, measured by NTP and shared through the database.
   * - `database`: the database's clock; `earliest` and `latest` are bounds of what that clock shows.
   * - `ntp`: true time as this process measures it. The database is not used. Requires `ntp`.
   * - `local`: this machine's wall clock, without bounds.
   * @default 'database+ntp'
   */
  source?: TimeSource | undefined
  /** NTP servers, made by `ntp()` of `lockstep/ntp`. Without it this process asks none, and uses the measurements of others. */
  ntp?: Ntp | undefined
  /**
   * Whether this process samples in the background, from the first use on. Set false in a process that is frozen between
   * requests (a Lambda, a Worker).
   * @default false where `directConnectionString` is null, else true
   */
  background?: boolean | undefined
}

/** The options of {@link Time.ready}. */
export interface ReadyOptions {
  /** The largest acceptable `boundMs` of the answer: milliseconds, > 0. @default Infinity */
  maxBoundMs?: number | undefined
  /** The largest acceptable age of the last sample: milliseconds, ≥ 0. 0: a new sample is taken. @default 0 */
  maxAgeMs?: number | undefined
  /** How long to wait until `boundMs` is at most `maxBoundMs`: milliseconds, ≥ 0. @default 5_000 */
  waitMs?: number | undefined
  /** Ends the wait: the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined
}

const TIME = known<TimeOptions>({ source: true, ntp: true, background: true })
const READY = known<ReadyOptions>({ maxBoundMs: true, maxAgeMs: true, waitMs: true, signal: true })
const MOST_WAIT_MS = 2 ** 31 - 1
/** How many samples the first `ready` of a process with a background takes: one of four round trips is short. */
const FIRST_SAMPLES = 4
const SOURCES: TimeSource[] = ['database+ntp', 'database', 'ntp', 'local']
/** The current time with its uncertainty, and ticks in a total order: `lockstep.time`. */
export class Time {
  /** Whether this process samples in the background. If not, call {@link ready} before {@link now}. */
  readonly background: boolean
  readonly #sampler: Sampler
  readonly #ntp: Ntp | undefined
  readonly #tick: (one: null) => Promise<bigint>
  readonly #closing: Closing

  constructor(database: Database, closing: Closing, options: TimeOptions = {}) {
    checkOptions(options, TIME, 'time')
    const { source = 'database+ntp', ntp, background = !database.pooled } = options
    checkWord('time.source', source, SOURCES)
    const measures = typeof ntp?.measure === 'function'
    const lacks = !measures && (ntp !== undefined || source === 'ntp')
    if (lacks) throw wrongType('time.ntp', 'the result of ntp() of lockstep/ntp', ntp)
    this.#ntp = source === 'database+ntp' || source === 'ntp' ? ntp : undefined
    this.background = background && source !== 'local'
    this.#closing = closing
    this.#sampler = new Sampler(database, closing, { source, ntp: this.#ntp, background: this.background })
    this.#tick = batched((calls) => ticks(database, calls.length), freshKey(), MOST_TICKS)
  }

  /**
   * Returns the current time and its uncertainty, without a round trip.
   *
   * Before the first sample it is this machine's clock, `unsynchronized`: call {@link ready} first. After a `close()` this method,
   * {@link after} and {@link before} continue with what was known. `time` never goes back within a process.
   *
   * @returns the reading; all its bounds are null while there is no measurement.
   * @see J. Corbett et al., "Spanner: Google's Globally-Distributed Database", OSDI 2012, §3 (TrueTime)
   */
  now(): Reading {
    const sampler = this.#sampler
    if (this.background) sampler.begin()
    return sampler.estimate.now()
  }

  /**
   * Samples the database's clock, then answers as {@link now}.
   *
   * In a process that is frozen between requests, call it at the start of each request: no local clock shows how long the
   * process was frozen.
   *
   * @param options  how exact and how fresh the answer must be, and how long to wait for it.
   * @throws {UnavailableError} the database (for the source `ntp`, too many of the servers) cannot be reached; or `boundMs` is
   *   still above `maxBoundMs` after `waitMs`.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   * @throws the `signal`'s reason, when it aborts.
   */
  async ready(options: ReadyOptions = {}): Promise<Reading> {
    checkOptions(options, READY)
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
      if (unknown) await until.race(abortable(signal, sampler.measuring)) // until it has ended: then the row is written, too
      while (maxBoundMs < Infinity) {
        signal.throwIfAborted() // the caller has left
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

  /**
   * Whether the instant has certainly passed: it is before `earliest`. No round trip.
   *
   * @param instant  a valid Date, or milliseconds since 1970.
   * @returns false also while there is no measurement.
   * @throws {TypeError} `code` INVALID_ARGUMENT, `field` instant.
   */
  after(instant: Date | number): boolean {
    const ms = milliseconds(instant)
    const { earliestMs } = this.now()
    return earliestMs !== null && ms < earliestMs
  }

  /**
   * Whether the instant is certainly in the future: it is after `latest`. No round trip.
   *
   * @param instant  a valid Date, or milliseconds since 1970.
   * @returns false also while there is no measurement.
   * @throws {TypeError} `code` INVALID_ARGUMENT, `field` instant.
   */
  before(instant: Date | number): boolean {
    const ms = milliseconds(instant)
    const { latestMs } = this.now()
    return latestMs !== null && ms > latestMs
  }

  /**
   * Waits until the instant has certainly passed (Spanner's commit-wait).
   *
   * Take `latest` as the timestamp of a change, and wait until it has passed before you publish the change: then the timestamps
   * of all changes are in the order of true time.
   *
   * @param instant         a valid Date, or milliseconds since 1970.
   * @param options.signal  ends the wait: the call rejects with its reason.
   * @returns the reading by which the instant had passed.
   * @throws {UnavailableError} there is no measurement, so nothing is certain.
   * @throws {TypeError} `code` INVALID_ARGUMENT, `field`.
   * @throws the `signal`'s reason, when it aborts.
   */
  async waitUntilAfter(instant: Date | number, options: { signal?: AbortSignal | undefined } = {}): Promise<Reading> {
    const ms = milliseconds(instant)
    checkOptions(options, SIGNAL)
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
      // A measurement in the meantime may shorten the wait.
      await pause(Math.min(ms - reading.earliestMs + 0.1, EVERY_MS), signal)
      if (!this.background) await this.#sampler.fresh(EVERY_MS).catch(() => {})
    }
  }

  /**
   * Returns a unique timestamp, greater than every tick that was returned before, in all processes: a total order.
   *
   * Ticks are microseconds since 1970, and never before the corrected time. Calls at the same time share one statement.
   *
   * @returns microseconds since 1970.
   * @throws {UnavailableError} the database cannot be reached.
   */
  tick(): Promise<bigint> {
    return this.#closing.verb(() => this.#tick(null))
  }

  /**
   * Asks the NTP servers and shares the result with all processes, if a measurement is due and no other process makes it. A
   * process that samples in the background does this without a call.
   *
   * @param options.signal  ends the wait: the call rejects with its reason, and the measurement continues.
   * @returns whether this call measured; false also without the option `ntp`.
   * @throws {UnavailableError} the database cannot be reached, or too few servers gave a time: the text names each, with its reason.
   * @throws the `signal`'s reason, when it aborts.
   */
  async synchronize(options: { signal?: AbortSignal | undefined } = {}): Promise<boolean> {
    checkOptions(options, SIGNAL)
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

// timers/promises rejects with its own error, not with the signal's reason.
async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await sleep(Math.max(1, ms), undefined, signal && { signal })
  } catch {
    signal?.throwIfAborted()
  }
}

// Each call has another key, so that no call waits for an earlier one.
function freshKey(): () => string {
  let n = 0
  return () => String(n++)
}

const tooWide = (maxBoundMs: number, boundMs: number | null, status: string) =>
  new UnavailableError(
    boundMs === null
      ? 'True time is not known: no process has measured it by NTP for this database'
      : `True time is known to within ${boundMs.toFixed(3)} ms (${status}), but maxBoundMs is ${maxBoundMs}`,
  )
const unmeasured = () => tooWide(0, null, '')
