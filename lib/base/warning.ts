/** What nobody waits for has failed: a warning of the process, where there is one to hear it. */

/** @param what  what failed, as the beginning of a sentence. */
export function warn(what: string, error: unknown): void {
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
  globalThis.process?.emitWarning?.(`${what}: ${text}`, 'LockstepWarning')
}
