/**
 * When the database's clock is asked, and the NTP servers.
 *
 * A process that lives on samples by itself: every 10 s from the first use on, unless another statement has brought the
 * clock back meanwhile, and every 30 s to see the row. In one that is frozen between requests nothing goes on in the
 * background: a statement that was under way when it was frozen would be answered, for it, at the wrong time.
 *
 * Who can ask NTP servers does so when the row is older than 64 s, or in doubt, and nobody else does: the sample that sees this
 * takes the claim, and the offer is one statement more. So the row is written twice in 64 s, however many processes
 * there are. What fails in the background is tried again at the next turn; `status` tells, and the bounds grow.
 */

import type { Closing } from '../base/index.ts'
import { UnavailableError } from '../base/index.ts'
import type { Database } from '../database/index.ts'
import { Anchors } from './anchor.ts'
import { Estimate, type Fit } from './estimate.ts'
import type { Measurement, Ntp } from './ntp/index.ts'
import type { TimeSource } from './reading.ts'

export const EVERY_MS = 10_000
const SEE_ROW_MS = 30_000
const MEASURE_MS = 64_000
/** Between samples that `now()` asks for, since the database may be away. */
const WONDERS_MS = 1_000
/** After a measurement that failed. Another process may measure at once. */
const FAILED_MS = 20_000
/** Between two measurements of which the second says which of two stories is right. NTP's own bursts keep as far apart. */
const AGAIN_MS = 2_000

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
  #again: NodeJS.Timeout | undefined
  #sampling: Promise<void> | undefined
  #measuring: Promise<void> | undefined
  #asking = false
  // Milliseconds on our monotonic clock.
  #heardAt = -Infinity
  #triedAt = -Infinity
  #sampledAt = -Infinity
  #measuredAt = -Infinity
  #failedAt = -Infinity

  constructor(database: Database, closing: Closing, { source, ntp, background }: SamplerOptions) {
    this.#closing = closing
    this.#source = source
    this.#ntp = ntp
    this.#background = background
    this.#anchors = new Anchors(database)
    this.estimate = new Estimate(database.clockReader.clock, { source, freezes: !background })
    if (this.asksDatabase) database.clockReader.onReading = (heard) => this.#heard(this.estimate.hear(heard))
    closing.signal.addEventListener('abort', () => {
      clearInterval(this.#timer)
      clearTimeout(this.#again)
      database.clockReader.onReading = undefined
    })
  }

  get asksDatabase(): boolean {
    return this.#source === 'database+ntp' || this.#source === 'database'
  }

  /** The measurement that was begun last; it may be over. */
  get measuring(): Promise<void> | undefined {
    return this.#measuring
  }

  /** Samples by itself from now on, if this process lives on. @returns whether that is new. */
  begin(): boolean {
    if (this.#timer) {
      if (this.estimate.wonders && performance.now() - this.#triedAt > WONDERS_MS) void this.#sample().catch(() => {})
      return false
    }
    if (!this.#background || this.#closing.closed) return false
    const turn = () => void this.#turn().catch(() => {})
    this.#timer = setInterval(turn, EVERY_MS)
    this.#timer.unref()
    turn()
    return true
  }

  /**
   * Takes a sample (for the source `ntp` a measurement) unless the last is younger than this.
   * @param settles  a doubt is settled now, however short ago this process has measured.
   * @throws {UnavailableError}
   */
  async fresh(maxAgeMs: number, settles = false): Promise<void> {
    if (this.#source === 'local') return
    this.#closing.check()
    const at = this.#source === 'ntp' ? this.#measuredAt : this.#sampledAt
    if (performance.now() - at <= maxAgeMs && !this.estimate.wonders) return
    if (this.#source === 'ntp') return this.measure()
    await this.#sampling?.catch(() => {}) // that may have been sent before we were frozen
    await this.#sample(settles)
  }

  /** Asks the NTP servers, and offers the answer. @throws {UnavailableError} */
  measure(): Promise<void> {
    if (this.#asking) return this.#measuring as Promise<void>
    this.#asking = true
    this.#measuring = this.#ask().finally(() => {
      this.#asking = false
    })
    this.#measuring.catch(() => {}) // who waits for it hears of it
    return this.#measuring
  }

  async #turn(): Promise<void> {
    const now = performance.now()
    if (this.#source === 'ntp') {
      if (now - this.#measuredAt >= MEASURE_MS) await this.measure()
      return
    }
    const old = now - this.#heardAt >= EVERY_MS * 0.9 || now - this.#sampledAt >= SEE_ROW_MS
    if (old || this.estimate.wonders) await this.#sample()
  }

  #sample(settles = false): Promise<void> {
    this.#sampling ??= this.#take(settles).finally(() => {
      this.#sampling = undefined
    })
    return this.#sampling
  }

  async #take(asked: boolean): Promise<void> {
    this.#triedAt = performance.now()
    const measures = this.#ntp !== undefined && (asked || this.#triedAt - this.#failedAt >= FAILED_MS)
    const settles = asked || this.#triedAt - this.#measuredAt >= AGAIN_MS
    for (let tries = 0; tries < 3; tries++) {
      const sample = await this.#anchors.sample(measures, settles, this.estimate.doubts)
      const fit = this.estimate.take(sample)
      if (fit !== 'void') this.#sampledAt = performance.now()
      this.#heard(fit)
      if (sample.claimed) void this.measure()
      else if (fit === 'fits' && this.#ntp && this.estimate.doubts) this.#soon(AGAIN_MS)
      if (fit !== 'void') return
    }
  }

  #heard(fit: Fit): void {
    if (fit === 'void') return
    this.#heardAt = performance.now()
    if (fit === 'fits') return
    this.#ntp?.forget()
    // Which story is right is found out by a measurement: ours, or somebody's that is in the row soon.
    this.#soon(0)
  }

  #soon(ms: number): void {
    if (!this.#background || this.#closing.closed) return
    clearTimeout(this.#again)
    this.#again = setTimeout(() => void this.#sample().catch(() => {}), ms)
    this.#again.unref()
  }

  // A measurement during which this machine did not sleep: an answer from before would be held against the clock of after.
  async #awake(): Promise<Measurement> {
    const { signal } = this.#closing
    const ntp = this.#ntp as Ntp
    for (let tries = 0; tries < 3; tries++) {
      // So that the database's clock is known as it is after a sleep, too.
      if (this.estimate.apart) ntp.forget()
      if (this.#source === 'ntp') this.estimate.regard()
      else if (this.estimate.apart) {
        this.#heard(this.estimate.take(await this.#anchors.sample(false, false, false)))
      }
      const measured = await ntp.measure({ signal })
      if (!this.estimate.apart) return measured
      ntp.forget()
    }
    throw new UnavailableError('The clock of this machine was set, or stood still, while NTP servers were asked')
  }

  async #ask(): Promise<void> {
    const measured = await this.#awake().catch((error) => {
      this.#failedAt = performance.now()
      if (this.#source !== 'ntp') void this.#anchors.release().catch(() => {}) // else the claim runs out
      throw error
    })
    this.estimate.measured(measured)
    this.#measuredAt = performance.now()
    const offer = this.estimate.offered(measured)
    if (this.#source === 'ntp' || !offer) return
    const sample = await this.#anchors.offer({ ...offer, servers: measured.servers })
    this.#heard(this.estimate.take(sample))
    if (sample.verdict === 'disputed' || this.estimate.doubts) this.#soon(AGAIN_MS)
  }
}
