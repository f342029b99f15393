/** Callers of one process that pass a connection hold on among themselves: each has a token of its own, of the 64 of a grant. */
import { Stopwatch } from '../base/index.ts'

const PASSES = 32
const MS = 20

export class Cohort {
  /** Of the caller that has the hold now. */
  token: bigint
  #passes = 0
  readonly #since = new Stopwatch()

  constructor(token: bigint) {
    this.token = token
  }

  /** Passes on to the next token. @returns whether it may; if not, it is another process's turn. */
  pass(): boolean {
    if (this.#passes === PASSES || this.#since.elapsed() >= MS) return false
    this.#passes += 1
    this.token += 1n
    return true
  }
}
