/**
 * The sessions of one process: one that everybody's tries share, and a few that may wait.
 *
 * A session that waits in the database's queue is blocked, and what it gets there it holds itself; so waiting has
 * sessions of its own, few of them. Who finds none free is not turned away (line.ts polls instead). Two idle ones are
 * kept for the next wait.
 */
import type { Database } from './db.ts'
import { UnavailableError } from './errors.ts'
import { Session } from './session.ts'

const KEPT_IDLE = 2

export class Sessions {
  readonly #database: Database
  #shared: Promise<Session | null> | undefined
  #current: Session | undefined
  #idle: Session[] = []
  #waiting = new Set<Session>()
  #opening = 0
  #closed = false

  constructor(database: Database) {
    this.#database = database
  }

  /** The shared session, if it is open. */
  get current(): Session | undefined {
    return this.#current?.lost ? undefined : this.#current
  }

  /** The session that everybody's tries share; `null` behind a pooler. Opened at first use, and anew after a loss. */
  async shared(): Promise<Session | null> {
    if (this.#closed) throw new UnavailableError('Lockstep was closed')
    this.#shared ??= Session.open(this.#database, true).catch((error) => {
      this.#shared = undefined
      throw error
    })
    const session = await this.#shared
    this.#current = session ?? undefined
    if (session?.lost) {
      this.#shared = undefined
      return this.shared()
    }
    return session
  }

  /** A session to wait on, to be given back; `null` when none is left or there can be none. */
  async borrow(): Promise<Session | null> {
    if (this.#closed) throw new UnavailableError('Lockstep was closed')
    let session: Session | null | undefined
    do {
      session = this.#idle.pop()
    } while (session?.lost)
    if (!session) {
      if (this.#waiting.size + this.#opening >= this.#database.maxWaiting) return null
      this.#opening += 1
      try {
        session = await Session.open(this.#database, false)
      } finally {
        this.#opening -= 1
      }
      if (session === null) return null
    }
    if (this.#closed) {
      await session.end()
      throw new UnavailableError('Lockstep was closed')
    }
    this.#waiting.add(session)
    session.dependents.add({ connectionLost: () => this.#waiting.delete(session) })
    return session
  }

  /** Back from waiting, with nothing held. */
  async giveBack(session: Session): Promise<void> {
    try {
      if (!session.lost) await session.unlisten()
    } catch {
      return // lost: nothing to give back
    } finally {
      this.#waiting.delete(session)
    }
    if (session.lost) return
    if (this.#closed || this.#idle.length >= KEPT_IDLE) await session.end()
    else this.#idle.push(session)
  }

  /** The pids of sessions that wait or hold after waiting: this process's own places in queues. */
  get waitingPids(): number[] {
    return [...this.#waiting].map((session) => session.pid)
  }

  /** Ends all of them, but for those that are being opened: these end with their connection (Database.close). */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([this.#current, ...this.#idle, ...this.#waiting].map((session) => session?.end()))
  }
}
