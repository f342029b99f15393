/** Guards against hanging, for tests that make things fail. */

/** Far more than a ttl, a trust window, or the wait for a fenced transaction. */
export const SETTLES_MS = 25_000

/** Waits for `promise`; if it takes too long, throws an error that says what did not settle. */
export async function settles<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`This did not settle: ${what}`)), SETTLES_MS)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}
