/** Polls until a condition is true. If that takes too long, it fails with a message that says what it waited for. */
export async function until(what: string, condition: () => unknown): Promise<void> {
  const stop = AbortSignal.timeout(25_000)
  while (!(await condition())) {
    if (stop.aborted) throw new Error(`Never happened: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
