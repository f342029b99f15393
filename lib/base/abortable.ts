/** Waits that end with a signal, and the one way to listen to a signal. */

/**
 * Calls `listener` when the signal aborts; at once, if it has aborted already.
 * @returns a function that takes the listener off. A signal may live as long as the process: what is left on it is kept for as long.
 */
export function onAbort(signal: AbortSignal | undefined, listener: () => void): () => void {
  if (!signal) return () => {}
  if (signal.aborted) listener()
  else signal.addEventListener('abort', listener)
  return () => signal.removeEventListener('abort', listener)
}

/**
 * The result of `work`, or the signal's reason, whichever is first; the reason, if the signal has aborted already. The work itself
 * goes on, and nobody hears of it any more.
 */
export async function abortable<T>(signal: AbortSignal | undefined, work: T | Promise<T>): Promise<T> {
  if (!signal) return work
  const { promise, reject } = Promise.withResolvers<never>()
  const off = onAbort(signal, () => reject(signal.reason))
  return Promise.race([promise, work]).finally(off)
}

/**
 * A signal that aborts with the first of several, until `end` takes it off them. Not AbortSignal.any: what is left on such a signal
 * is kept for as long as its sources live, and one of them may live as long as the process.
 */
export function combineSignals(...signals: (AbortSignal | undefined)[]): { signal: AbortSignal; end: () => void } {
  const own = new AbortController()
  const off: (() => void)[] = []
  const end = () => {
    for (const each of off) each()
  }
  for (const source of signals) {
    if (own.signal.aborted) break
    off.push(
      onAbort(source, () => {
        end()
        own.abort(source?.reason)
      }),
    )
  }
  return { signal: own.signal, end }
}
