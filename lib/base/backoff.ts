/** Growing pauses between attempts, for work that failed or whose result is not there yet. */

export interface DelayOptions {
  /** The first pause, in milliseconds. */
  firstMs: number
  /** The longest pause, in milliseconds, before `spread` is applied. */
  mostMs: number
  /** Each pause is the one before multiplied by this. @default 2 */
  factor?: number
  /**
   * Random variation, 0–1: each pause is shorter or longer by at most this part of itself. Callers that failed together then
   * come back at different times.
   * @default 0
   */
  spread?: number
}

/** Pauses that grow from the first to the longest. */
export class BackoffDelays {
  readonly #options: Required<DelayOptions>
  #nextMs: number

  constructor({ firstMs, mostMs, factor = 2, spread = 0 }: DelayOptions) {
    this.#options = { firstMs, mostMs, factor, spread }
    this.#nextMs = firstMs
  }

  /** Milliseconds of the next pause. */
  next(): number {
    const { mostMs, factor, spread } = this.#options
    const ms = this.#nextMs
    this.#nextMs = Math.min(ms * factor, mostMs)
    return ms * (1 - spread + 2 * spread * Math.random())
  }

  /** The attempt succeeded: the next pause is `firstMs` again. */
  reset(): void {
    this.#nextMs = this.#options.firstMs
  }
}
