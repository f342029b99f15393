/** Warnings of the process, for failures in the background that no caller waits for. */

/** Emits a warning, where the runtime has such. @param what  what failed, as the beginning of a sentence. */
export function warn(what: string, error: unknown): void {
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
  globalThis.process?.emitWarning?.(`${what}: ${text}`, 'LockstepWarning')
}
