/** A wait that ends with its signal: what is waited for goes on, and nobody hears of it any more. */

/** What `work` comes to, or the signal's reason, whichever is first; the reason, if the signal has aborted already. */
export async function heeding<T>(signal: AbortSignal | undefined, work: T | Promise<T>): Promise<T> {
  if (!signal) return work
  const { promise, reject } = Promise.withResolvers<never>()
  const aborted = () => reject(signal.reason)
  if (signal.aborted) aborted()
  signal.addEventListener('abort', aborted)
  return Promise.race([promise, work]).finally(() => signal.removeEventListener('abort', aborted))
}
