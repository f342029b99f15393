/** Waits that end with a signal, and the one way to listen to a signal. */

/**
 * Calls `listener` when the signal aborts; at once, if it has aborted already.
 * @returns a function that removes the listener. A signal may live as long as the process, and it keeps every listener that
 *   is not removed.
 */
export function onAbort(signal: AbortSignal | undefined, listener: () => void): () => void {
  if (!signal) return () => {}
  if (signal.aborted) listener()
  else signal.addEventListener('abort', listener)
  return () => signal.removeEventListener('abort', listener)
}

/**
 * Waits for `work`, or until the signal aborts: then it rejects with the signal's reason. If the signal has aborted already, it
 * rejects at once. The work itself goes on; its result is ignored.
 */
export async function abortable<T>(signal: AbortSignal | undefined, work: T | Promise<T>): Promise<T> {
  if (!signal) return work
  const { promise, reject } = Promise.withResolvers<never>()
  const off = onAbort(signal, () => reject(signal.reason))
  return Promise.race([promise, work]).finally(off)
}

/**
 * A signal that aborts when the first of several signals aborts, with its reason. `end` detaches it from them. It is not made by
 * AbortSignal.any: listeners on such a signal are kept for as long as its sources live, and a source may live as long as the
 * process.
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
