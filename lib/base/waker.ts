/** A pause that `wake` ends early. A call of `wake` before `wait` is not lost: the next `wait` returns at once. */
export class Waker {
  #woken = false
  #wake: (() => void) | undefined

  wake(): void {
    this.#woken = true
    this.#wake?.()
  }

  /** @param ms  any number of milliseconds; 24 days, the limit of a timer, at most. @returns whether it was woken. */
  async wait(ms: number): Promise<boolean> {
    if (!this.#woken) {
      const { promise, resolve } = Promise.withResolvers<void>()
      const timer = setTimeout(resolve, Math.min(Math.max(ms, 0), 2 ** 31 - 1))
      this.#wake = resolve
      await promise
      this.#wake = undefined
      clearTimeout(timer)
    }
    const woken = this.#woken
    this.#woken = false
    return woken
  }
}
