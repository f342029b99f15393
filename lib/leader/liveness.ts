/**
 * Liveness checks: each waits until the connection of another process has ended.
 *
 * A connection has an advisory lock, its witness, for as long as it lives. A liveness check asks for that lock too, and gets it
 * at the moment when the server ends the connection. So the end of a process is known within milliseconds, and there is no
 * polling. Each process that is watched needs one waiting connection here, however many elections it leads. Where
 * no connection can be opened, its end is not detected: the term then ends by its ttl.
 */
import type { Database, Session, SessionPool } from '../database/index.ts'

export class LivenessChecks {
  readonly #database: Database
  readonly #sessions: SessionPool
  readonly #checks = new Map<bigint, LivenessCheck>()

  constructor(database: Database, sessions: SessionPool) {
    this.#database = database
    this.#sessions = sessions
  }

  /**
   * Calls `onEnd` once, when that connection has ended or is not watched any more.
   * @returns a function that ends the check; `onEnd` is not called after it.
   */
  start(witness: bigint, onEnd: () => void): () => void {
    let started = this.#checks.get(witness)
    if (!started) {
      started = { listeners: new Set(), waiting: false }
      this.#checks.set(witness, started)
      void this.#wait(witness, started)
    }
    const check = started
    check.listeners.add(onEnd)
    return () => {
      if (!check.listeners.delete(onEnd) || check.listeners.size > 0) return
      this.#forget(witness, check)
      this.#cancel(check)
    }
  }

  async #wait(witness: bigint, check: LivenessCheck): Promise<void> {
    const session = await this.#sessions.borrow().catch(() => null)
    if (!session) {
      this.#forget(witness, check) // its term ends by the ttl
      return
    }
    check.session = session
    let clean = true
    if (check.listeners.size > 0) {
      check.waiting = true
      await session.waitForEnd(witness).catch(() => {
        clean = false // cancelled, or our own connection has ended: nothing is known about the other
      })
      check.waiting = false
      await check.cancelled
    }
    this.#forget(witness, check)
    for (const onEnd of check.listeners) onEnd()
    await (clean ? this.#sessions.giveBack(session) : this.#sessions.discard(session))
  }

  #forget(witness: bigint, check: LivenessCheck): void {
    if (this.#checks.get(witness) === check) this.#checks.delete(witness)
  }

  #cancel(check: LivenessCheck): void {
    if (!check.waiting || !check.session) return
    check.cancelled ??= this.#database.cancel(check.session.pid, () => !check.waiting)
  }
}

interface LivenessCheck {
  listeners: Set<() => void>
  session?: Session
  /** Whether its session is blocked. */
  waiting: boolean
  cancelled?: Promise<void>
}
