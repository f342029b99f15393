/** The pauses between attempts of what failed, or is not there yet. */

export interface DelayOptions {
  /** Milliseconds of the first pause. */
  firstMs: number
  /** Milliseconds that no pause exceeds, but for the spread. */
  mostMs: number
  /** Each pause is so many times the one before. @default 2 */
  factor?: number
  /** A part of each pause, 0–1, by which chance makes it shorter or longer: callers that failed together come back apart. @default 0 */
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

  /** The attempt was successful: the next pause is a first one. */
  reset(): void {
    this.#nextMs = this.#options.firstMs
  }
}
