/** A wait that ends when its time has passed or when it is woken. A call of `wake` before the wait is not lost. */
export class Waker {
  #woken = false
  #wake: (() => void) | undefined

  wake(): void {
    this.#woken = true
    this.#wake?.()
  }

  /** @param ms  any number; a timer's longest is 24 days. @returns whether it was woken. */
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
