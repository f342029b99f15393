/**
 * The loop that everybody writes by hand: campaign, work while leading, campaign again.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { combineSignals, Stopwatch, UnavailableError } from '../base/index.ts'
import type { Term } from './term.ts'

export interface Backoff {
  /** Milliseconds before the first new attempt, ≥ 0; doubled each time. @default 500 */
  firstMs?: number
  /** Milliseconds before any new attempt, at most. @default 30_000 */
  mostMs?: number
}

/**
 * What is done while leading. Returning resigns.
 *
 * @param signal  aborts when the term is lost or the loop shall end: stop then, and return.
 */
export type LeadWork = (term: Term, signal: AbortSignal) => Promise<unknown> | unknown

/**
 * Never two at once: the next campaign begins when `work` has ended, however long it takes to notice its signal.
 *
 * @param campaign  waits for a term.
 * @param closing   aborts when Lockstep is closed.
 * @param failed    hears of every failure that the loop survives.
 */
export async function lead(
  campaign: () => Promise<Term>,
  work: LeadWork,
  { firstMs = 500, mostMs = 30_000 }: Backoff,
  stop: AbortSignal | undefined,
  closing: AbortSignal,
  failed: (error: unknown) => void,
): Promise<void> {
  const { signal: over, end } = combineSignals(stop, closing)
  try {
    await loop()
  } finally {
    end()
  }
  if (!stop?.aborted) closing.throwIfAborted()

  async function loop(): Promise<void> {
    for (let pauseMs = firstMs; !over.aborted; pauseMs = Math.min(pauseMs * 2, mostMs)) {
      let led: Stopwatch | undefined
      try {
        const term = await campaign()
        led = new Stopwatch()
        const stopped = combineSignals(term.signal, over)
        try {
          await work(term, stopped.signal)
        } finally {
          stopped.end()
          await term[Symbol.asyncDispose]()
        }
      } catch (error) {
        if (over.aborted && error === over.reason) break
        if (closing.aborted && error instanceof UnavailableError) break // it could not be resigned any more
        failed(error)
      }
      if (led && led.elapsed() > mostMs) pauseMs = firstMs // it went well for a while
      await sleep(pauseMs * (0.5 + Math.random() / 2), undefined, { signal: over }).catch(() => {})
    }
  }
}
