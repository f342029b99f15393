/**
 * A true time that a test sets: the monotonic clock of this process, and an offset. So it is known to the microsecond, and
 * may be years away from the clocks of this machine.
 */
import { expect } from 'vitest'
import type { Reading } from '../../lib/index.ts'
import type { Measurement, Ntp } from '../../lib/time/ntp/index.ts'

interface Servers {
  boundMs?: number
  wrongMs?: number
  falsetickers?: string[]
  /** It is one server that is believed without a vote. */
  trusted?: string
  /** Called before they answer; if it throws, they do not answer. */
  asked?: () => unknown
}

export class Truth {
  /** Microseconds: true time minus the monotonic clock. */
  offset: number

  /** @param aheadMs  by how much it is ahead of this machine's wall clock. */
  constructor(aheadMs = 0) {
    this.offset = (Date.now() - performance.now() + aheadMs) * 1_000
  }

  /** Milliseconds since 1970, when the monotonic clock shows `mono`. */
  ms(mono = performance.now()): number {
    return mono + this.offset / 1_000
  }

  /** NTP servers that know it to within ± `boundMs`, and are wrong by `wrongMs`. `measured` counts the measurements. */
  ntp({ boundMs = 1, wrongMs = 0, falsetickers = [], trusted, asked = () => {} }: Servers = {}) {
    const offset = () => this.offset
    const ntp = {
      servers: ['a.example', 'b.example', 'c.example'],
      wrongMs,
      measured: 0,
      forget() {},
      async measure(): Promise<Measurement> {
        await asked()
        ntp.measured += 1
        const guess = offset() + ntp.wrongMs * 1_000
        const at = performance.now() * 1_000
        const [lo, hi] = [guess - boundMs * 1_000, guess + boundMs * 1_000]
        return { at, lo, hi, guess, falsetickers, trusted: trusted ?? null, servers: [] }
      },
    }
    return ntp satisfies Ntp
  }

  /** Fails unless the current reading contains true time, and its error is at most `boundMs`. */
  expectWithin(read: () => Reading): Reading {
    const before = this.ms()
    const reading = read()
    const after = this.ms()
    const { earliestMs, latestMs, timeMs, boundMs } = reading
    expect(earliestMs).not.toBeNull()
    expect(earliestMs).toBeLessThanOrEqual(after)
    expect(latestMs).toBeGreaterThanOrEqual(before)
    expect(Math.max(timeMs - after, before - timeMs)).toBeLessThanOrEqual(Number(boundMs))
    return reading
  }
}
