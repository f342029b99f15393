/** A wait that ends with its signal: what is waited for goes on, and nobody hears of it any more. */

/** What `work` comes to, or the signal's reason, whichever is first; the reason, if the signal has aborted already. */
export async function abortable<T>(signal: AbortSignal | undefined, work: T | Promise<T>): Promise<T> {
  if (!signal) return work
  const { promise, reject } = Promise.withResolvers<never>()
  const aborted = () => reject(signal.reason)
  if (signal.aborted) aborted()
  signal.addEventListener('abort', aborted)
  return Promise.race([promise, work]).finally(() => signal.removeEventListener('abort', aborted))
}

/**
 * A signal that aborts with the first of several, until `end` takes it off them. Not AbortSignal.any: what somebody leaves on
 * such a one is kept for as long as the others live, and one of them may live as long as the process.
 */
export function combineSignals(...signals: (AbortSignal | undefined)[]): { signal: AbortSignal; end: () => void } {
  const own = new AbortController()
  const sources = signals.filter((source) => source !== undefined)
  const end = () => {
    for (const source of sources) source.removeEventListener('abort', pass)
  }
  const pass = () => {
    end()
    own.abort(sources.find(({ aborted }) => aborted)?.reason)
  }
  for (const source of sources) source.addEventListener('abort', pass)
  if (sources.some(({ aborted }) => aborted)) pass()
  return { signal: own.signal, end }
}
