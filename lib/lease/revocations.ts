/**
 * The grants that this process has asked to revoke.
 *
 * A holder may acquire a name again while another call of it releases what it has. The two statements run on two connections, and may
 * meet on the server in either order, whatever the order of their answers. If the grant comes first it is answered with the grant that it
 * has, and that is revoked right after: its caller would trust a lease that is not there. So an answer `renewed` counts only if this process has
 * not revoked that token. A token is revoked once, and for ever.
 */
import { LeaseLostError } from '../base/index.ts'

/** How many are remembered at least: far more than can be under way. */
const MOST = 2_048

export class Revocations {
  // Two generations: an entry is not deleted by itself, which would cost more than it. One that is decided is no object any more.
  #recent = new Map<bigint, Promise<boolean> | true>()
  #older = new Map<bigint, Promise<boolean> | true>()

  /** A revocation was asked for. @param outcome  of the call. */
  note(token: bigint, outcome: Promise<unknown>): void {
    if (this.#recent.size >= MOST) {
      this.#older = this.#recent
      this.#recent = new Map()
    }
    const generation = this.#recent
    const revoked = outcome.then(
      () => true,
      (error) => error instanceof LeaseLostError,
    )
    generation.set(token, revoked)
    void revoked.then((known) => {
      if (known) generation.set(token, true)
      else generation.delete(token) // only the database knows
    })
  }

  /** Whether a token is revoked; undefined: this process has not asked for it, or does not know. */
  outcome(token: bigint): Promise<boolean> | true | undefined {
    return this.#recent.get(token) ?? this.#older.get(token)
  }
}
