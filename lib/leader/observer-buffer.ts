/**
 * The changes that one observer has not read yet.
 *
 * Memory is bounded twice: one observer keeps 64 states at most, and all observers of a process together 1,024. A buffer that is
 * full drops its oldest states, never the latest.
 */
import type { ElectionState } from './state.ts'

const MOST_BEHIND = 64
/** Of all observers together. A state has 4 KiB of meta at most. */
const MOST_KEPT = 1_024

export class ObserverBuffer {
  readonly #filled: Set<ObserverBuffer>
  readonly #states: ElectionState[] = []
  #failure: { error: unknown } | undefined
  #waker = Promise.withResolvers<void>()

  /** @param filled  all buffers of the process that are not empty; each keeps itself in it. */
  constructor(filled: Set<ObserverBuffer>) {
    this.#filled = filled
  }

  push(state: ElectionState): void {
    this.#states.push(state)
    this.#filled.add(this)
    if (this.#states.length > MOST_BEHIND) this.#states.shift()
    // Where many are behind, each keeps fewer; the latest is always kept.
    if (this.#filled.size * MOST_BEHIND > MOST_KEPT) {
      const each = Math.max(1, Math.floor(MOST_KEPT / this.#filled.size))
      if (this.#states.length > each) this.#states.splice(0, this.#states.length - each)
    }
    this.#waker.resolve()
  }

  clear(): void {
    this.#states.length = 0
    this.#filled.delete(this)
  }

  fail(error: unknown): void {
    this.#failure = { error }
    this.#waker.resolve()
  }

  /** The oldest state that was not read yet; waits for one. */
  async next(): Promise<ElectionState> {
    for (;;) {
      if (this.#failure) throw this.#failure.error
      const state = this.#states.shift()
      if (this.#states.length === 0) this.#filled.delete(this)
      if (state) return state
      this.#waker = Promise.withResolvers()
      await this.#waker.promise
    }
  }
}
