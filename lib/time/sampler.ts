/**
 * When the database's clock is read, and when NTP servers are asked.
 *
 * A process that runs all the time samples in the background: every 10 s from the first use on, unless another statement has
 * read the clock since then, and every 30 s to read the row. A process that is frozen between requests does nothing in the
 * background: if it were frozen during a statement, the answer would arrive, by its own clock, at the wrong time.
 *
 * A process with NTP servers asks them if the row is older than 64 s, or in doubt, and no other process does. The sample that
 * finds such a row claims the measurement; one statement more offers the result. So the row is written twice in 64 s, however
 * many processes there are. A failure in the background is retried at the next interval; `status` shows it, and the bounds grow.
 */

import { type Closing, onAbort, UnavailableError } from '../base/index.ts'
import type { Database } from '../database/index.ts'
import { Anchors } from './anchor.ts'
import { Estimate, type Fit } from './estimate.ts'
import type { Measurement, Ntp } from './ntp/index.ts'
import type { TimeSource } from './reading.ts'

export const EVERY_MS = 10_000
const READ_ROW_MS = 30_000
const MEASURE_MS = 64_000
/** The shortest time between samples that `now()` starts: the database may be unreachable. */
const RETRY_SAMPLE_MS = 1_000
/** This process does not measure again within this time after a failure. Another process may measure at once. */
const RETRY_MEASURE_MS = 20_000
/** The time between two measurements of which the second decides which one is right. NTP's own bursts have the same interval. */
const CONFIRM_MS = 2_000

export interface SamplerOptions {
  source: TimeSource
  ntp: Ntp | undefined
  background: boolean
}

export class Sampler {
  readonly estimate: Estimate
  readonly #anchors: Anchors
  readonly #source: TimeSource
  readonly #ntp: Ntp | undefined
  readonly #background: boolean
  readonly #closing: Closing
  #timer: NodeJS.Timeout | undefined
  #confirmTimer: NodeJS.Timeout | undefined
  #sampling: Promise<void> | undefined
  #measuring: Promise<void> | undefined
  #isMeasuring = false
  // Milliseconds on our monotonic clock.
  #readAt = -Infinity // the database's clock, by any statement
  #triedAt = -Infinity // to sample
  #sampledAt = -Infinity
  #measuredAt = -Infinity
  #failedAt = -Infinity // to measure

  constructor(database: Database, closing: Closing, { source, ntp, background }: SamplerOptions) {
    this.#closing = closing
    this.#source = source
    this.#ntp = ntp
    this.#background = background
    this.#anchors = new Anchors(database)
    this.estimate = new Estimate(database.clockReader.clock, { source, frozenBetweenRequests: !background })
    if (this.asksDatabase) database.clockReader.onReading = (reading) => this.#react(this.estimate.takeReading(reading))
    onAbort(closing.signal, () => {
      clearInterval(this.#timer)
      clearTimeout(this.#confirmTimer)
      database.clockReader.onReading = undefined
    })
  }

  get asksDatabase(): boolean {
    return this.#source === 'database+ntp' || this.#source === 'database'
  }

  /** The latest measurement; it may have ended. */
  get measuring(): Promise<void> | undefined {
    return this.#measuring
  }

  /** Starts to sample in the background, unless this process is frozen between requests. @returns whether this call started it. */
  begin(): boolean {
    if (this.#timer) {
      if (this.estimate.needsSample && performance.now() - this.#triedAt > RETRY_SAMPLE_MS)
        void this.#sample().catch(() => {})
      return false
    }
    if (!this.#background || this.#closing.closed) return false
    const run = () => void this.#sampleIfDue().catch(() => {})
    this.#timer = setInterval(run, EVERY_MS)
    this.#timer.unref()
    run()
    return true
  }

  /**
   * Takes a sample (for the source `ntp`, a measurement), unless the last one is not older than `maxAgeMs`.
   * @param settles  settles a doubt now, even if this process has just measured.
   * @throws {UnavailableError}
   */
  async fresh(maxAgeMs: number, settles = false): Promise<void> {
    if (this.#source === 'local') return
    this.#closing.check()
    const at = this.#source === 'ntp' ? this.#measuredAt : this.#sampledAt
    if (performance.now() - at <= maxAgeMs && !this.estimate.needsSample) return
    if (this.#source === 'ntp') return this.measure()
    await this.#sampling?.catch(() => {}) // it may have been sent before this process was frozen
    await this.#sample(settles)
  }

  /** Asks the NTP servers, and offers the result to the row. @throws {UnavailableError} */
  measure(): Promise<void> {
    if (this.#isMeasuring) return this.#measuring as Promise<void>
    this.#isMeasuring = true
    this.#measuring = this.#measure().finally(() => {
      this.#isMeasuring = false
    })
    this.#measuring.catch(() => {}) // callers that await it get the error
    return this.#measuring
  }

  async #sampleIfDue(): Promise<void> {
    const now = performance.now()
    if (this.#source === 'ntp') {
      if (now - this.#measuredAt >= MEASURE_MS) await this.measure()
      return
    }
    const old = now - this.#readAt >= EVERY_MS * 0.9 || now - this.#sampledAt >= READ_ROW_MS
    if (old || this.estimate.needsSample) await this.#sample()
  }

  #sample(settles = false): Promise<void> {
    this.#sampling ??= this.#take(settles).finally(() => {
      this.#sampling = undefined
    })
    return this.#sampling
  }

  async #take(requested: boolean): Promise<void> {
    this.#triedAt = performance.now()
    const measures = this.#ntp !== undefined && (requested || this.#triedAt - this.#failedAt >= RETRY_MEASURE_MS)
    const settles = requested || this.#triedAt - this.#measuredAt >= CONFIRM_MS
    for (let tries = 0; tries < 3; tries++) {
      const sample = await this.#anchors.sample(measures, settles, this.estimate.inDoubt)
      const fit = this.estimate.takeSample(sample)
      if (fit !== 'discarded') this.#sampledAt = performance.now()
      this.#react(fit)
      if (sample.claimed) void this.measure()
      else if (fit === 'consistent' && this.#ntp && this.estimate.inDoubt) this.#sampleIn(CONFIRM_MS)
      if (fit !== 'discarded') return
    }
  }

  #react(fit: Fit): void {
    if (fit === 'discarded') return
    this.#readAt = performance.now()
    if (fit === 'consistent') return
    this.#ntp?.forget()
    // A measurement will show which clock was set: ours, or one that another process writes to the row soon.
    this.#sampleIn(0)
  }

  #sampleIn(ms: number): void {
    if (!this.#background || this.#closing.closed) return
    clearTimeout(this.#confirmTimer)
    this.#confirmTimer = setTimeout(() => void this.#sample().catch(() => {}), ms)
    this.#confirmTimer.unref()
  }

  // A measurement during which this machine did not sleep: the answer from before a sleep does not match the clock after it.
  async #measureAwake(): Promise<Measurement> {
    const { signal } = this.#closing
    const ntp = this.#ntp as Ntp
    for (let tries = 0; tries < 3; tries++) {
      // After a sleep the database's clock must be read again, too.
      if (this.estimate.diverged) ntp.forget()
      if (this.#source === 'ntp') this.estimate.checkClocks()
      else if (this.estimate.diverged) {
        this.#react(this.estimate.takeSample(await this.#anchors.sample(false, false, false)))
      }
      const measured = await ntp.measure({ signal })
      if (!this.estimate.diverged) return measured
      ntp.forget()
    }
    throw new UnavailableError('The clock of this machine was set, or stood still, while NTP servers were asked')
  }

  async #measure(): Promise<void> {
    const measured = await this.#measureAwake().catch((error) => {
      this.#failedAt = performance.now()
      if (this.#source !== 'ntp') void this.#anchors.release().catch(() => {}) // if this fails, the claim expires
      throw error
    })
    this.estimate.takeMeasurement(measured)
    this.#measuredAt = performance.now()
    const offer = this.estimate.offerOf(measured)
    if (this.#source === 'ntp' || !offer) return
    const sample = await this.#anchors.offer({ ...offer, servers: measured.servers })
    this.#react(this.estimate.takeSample(sample))
    if (sample.verdict === 'disputed' || this.estimate.inDoubt) this.#sampleIn(CONFIRM_MS)
  }
}
