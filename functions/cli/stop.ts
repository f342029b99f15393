/** How the command is stopped. */

/** Aborts at the first SIGINT or SIGTERM; the second ends the process. */
export function stopSignal(): AbortSignal {
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => (stop.signal.aborted ? process.exit(1) : stop.abort()))
  }
  return stop.signal
}
