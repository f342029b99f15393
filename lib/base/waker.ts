/** A wait that ends when its time has passed or somebody rings. A ring before the wait is not lost. */
export class Bell {
  #rang = false
  #wake: (() => void) | undefined

  ring(): void {
    this.#rang = true
    this.#wake?.()
  }

  /** @param ms  any number; a timer's longest is 24 days. @returns whether somebody rang. */
  async wait(ms: number): Promise<boolean> {
    if (!this.#rang) {
      const { promise, resolve } = Promise.withResolvers<void>()
      const timer = setTimeout(resolve, Math.min(Math.max(ms, 0), 2 ** 31 - 1))
      this.#wake = resolve
      await promise
      this.#wake = undefined
      clearTimeout(timer)
    }
    const rang = this.#rang
    this.#rang = false
    return rang
  }
}
