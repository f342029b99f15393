/**
 * Waits for other processes' connections to end.
 *
 * Each has an advisory lock, its witness, for as long as it lives; who asks for that lock too is served the moment the
 * server ends the connection. So the end of a process is known within milliseconds, and nothing is asked meanwhile. One
 * waiting connection for each process that is waited for, whatever it leads; where none can be had nobody is told.
 */
import type { Database, Session, SessionPool } from '../database/index.ts'

export class LivenessChecks {
  readonly #database: Database
  readonly #sessions: SessionPool
  readonly #kept = new Map<bigint, LivenessCheck>()

  constructor(database: Database, sessions: SessionPool) {
    this.#database = database
    this.#sessions = sessions
  }

  /** Calls `over` once, when that connection has ended or is not watched any more; not after the answer was called. */
  keep(witness: bigint, over: () => void): () => void {
    let vigil = this.#kept.get(witness)
    if (!vigil) {
      vigil = { ears: new Set(), waiting: false }
      this.#kept.set(witness, vigil)
      void this.#wait(witness, vigil)
    }
    const kept = vigil
    kept.ears.add(over)
    return () => {
      if (!kept.ears.delete(over) || kept.ears.size > 0) return
      this.#forget(witness, kept)
      this.#cancel(kept)
    }
  }

  async #wait(witness: bigint, vigil: LivenessCheck): Promise<void> {
    const session = await this.#sessions.borrow().catch(() => null)
    if (!session) {
      this.#forget(witness, vigil) // its term ends by the ttl
      return
    }
    vigil.session = session
    let clean = true
    if (vigil.ears.size > 0) {
      vigil.waiting = true
      await session.waitForEnd(witness).catch(() => {
        clean = false // cancelled, or our own connection has ended: no more is known
      })
      vigil.waiting = false
      await vigil.cancelled
    }
    this.#forget(witness, vigil)
    for (const over of vigil.ears) over()
    await (clean ? this.#sessions.giveBack(session) : this.#sessions.discard(session))
  }

  #forget(witness: bigint, vigil: LivenessCheck): void {
    if (this.#kept.get(witness) === vigil) this.#kept.delete(witness)
  }

  #cancel(vigil: LivenessCheck): void {
    if (!vigil.waiting || !vigil.session) return
    vigil.cancelled ??= this.#database.cancel(vigil.session.pid, () => !vigil.waiting)
  }
}

interface LivenessCheck {
  ears: Set<() => void>
  session?: Session
  /** Whether its session is blocked. */
  waiting: boolean
  cancelled?: Promise<void>
}
