/** The loop that most leaders need: campaign, work while leading, campaign again. */
import { setTimeout as sleep } from 'node:timers/promises'
import { BackoffDelays, combineSignals, Stopwatch, UnavailableError } from '../base/index.ts'
import type { Term } from './term.ts'

/** The pauses of {@link Leaders.lead} between campaigns. */
export interface Backoff {
  /** The pause before the first new campaign, in milliseconds, ≥ 0; doubled after each further end. @default 500 */
  firstMs?: number | undefined
  /**
   * The longest pause, in milliseconds, ≥ 0. After a term that lasted longer than this the pauses begin at `firstMs` again.
   * @default 30_000
   */
  mostMs?: number | undefined
}

/**
 * The work that is done while leading. When it returns, the term is resigned.
 *
 * @param signal  aborts when the term is lost or the loop is ended: the work must stop then, and return.
 */
export type LeadWork = (term: Term, signal: AbortSignal) => Promise<unknown> | unknown

/**
 * Runs the loop. Never two works at once: the next campaign begins when `work` has ended, however late it reacts to its signal.
 *
 * @param campaign  waits for a term.
 * @param closing   aborts when Lockstep is closed.
 * @param failed    is called with every failure that the loop survives.
 */
export async function lead(
  campaign: () => Promise<Term>,
  work: LeadWork,
  { firstMs = 500, mostMs = 30_000 }: Backoff,
  stop: AbortSignal | undefined,
  closing: AbortSignal,
  failed: (error: unknown) => void,
): Promise<void> {
  const { signal: ending, end } = combineSignals(stop, closing)
  try {
    await loop()
  } finally {
    end()
  }
  if (!stop?.aborted) closing.throwIfAborted()

  async function loop(): Promise<void> {
    const delays = new BackoffDelays({ firstMs, mostMs })
    while (!ending.aborted) {
      let led: Stopwatch | undefined
      try {
        const term = await campaign()
        led = new Stopwatch()
        const stopped = combineSignals(term.signal, ending)
        try {
          await work(term, stopped.signal)
        } finally {
          stopped.end()
          await term[Symbol.asyncDispose]()
        }
      } catch (error) {
        if (ending.aborted && error === ending.reason) break
        if (closing.aborted && error instanceof UnavailableError) break // too late to resign
        failed(error)
      }
      if (led && led.elapsed() > mostMs) delays.reset() // the term lasted for a while
      await sleep(delays.next() * (0.5 + Math.random() / 2), undefined, { signal: ending }).catch(() => {})
    }
  }
}
