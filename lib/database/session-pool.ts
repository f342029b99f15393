/**
 * The sessions of one process: a shared one for attempts that do not wait, and a few waiting sessions.
 *
 * A session that waits in the database's lock queue is blocked, and the lock that it gets there is its own. So waiting needs
 * separate sessions. They are few: a caller that finds none free polls instead (lock/wait-queue.ts). Two idle ones are kept for the
 * next waits.
 */

import { noConnectionLeft, UnavailableError } from '../base/index.ts'
import type { Database } from './database.ts'
import { Session } from './session.ts'

const KEPT_IDLE = 2
// How long no waiting session is opened after the server has refused a connection because it has too many.
const FULL_MS = 1_000

export class SessionPool {
  readonly #database: Database
  #shared: Promise<Session | null> | undefined
  #current: Session | undefined
  #idle: Session[] = []
  #waiting = new Set<Session>()
  readonly #ending = new Set<Promise<void>>()
  #opening = 0
  #fullUntil = 0
  #closed = false

  constructor(database: Database) {
    this.#database = database
  }

  /** The shared session, if it is open. */
  get current(): Session | undefined {
    return this.#current?.lost || this.#current?.outdated ? undefined : this.#current
  }

  /** The shared session; `null` behind a pooler. It is opened at first use, and again after it was lost. */
  async shared(): Promise<Session | null> {
    for (;;) {
      if (this.#closed) throw new UnavailableError('Lockstep was closed')
      this.#shared ??= Session.open(this.#database, true)
      const opening = this.#shared
      // Each caller forgets only the session that it waited for. Of many callers that waited for a session which is lost, the first
      // opens the next one, and all of them share it.
      const forget = () => {
        if (this.#shared === opening) this.#shared = undefined
      }
      const session = await opening.catch((error) => {
        forget()
        throw error
      })
      if (!session?.lost && !session?.outdated) {
        this.#current = session ?? undefined
        return session
      }
      forget()
      if (!session.lost) await this.discard(session)
    }
  }

  /**
   * Borrows a session to wait on. Give it back by {@link giveBack} or {@link discard}.
   * @returns null: all are in use, the server has no connection left, or the database is behind a pooler.
   */
  async borrow(): Promise<Session | null> {
    if (this.#closed) throw new UnavailableError('Lockstep was closed')
    let session: Session | null | undefined
    do {
      session = this.#idle.pop()
    } while (session?.lost)
    if (!session) {
      if (this.#waiting.size + this.#opening >= this.#database.maxWaiting) return null
      if (performance.now() < this.#fullUntil) return null
      this.#opening += 1
      try {
        session = await Session.open(this.#database, false)
      } catch (error) {
        if (!noConnectionLeft(error)) throw error
        this.#fullUntil = performance.now() + FULL_MS
        return null
      } finally {
        this.#opening -= 1
      }
      if (session === null) return null
      const opened = session
      opened.attach({ connectionLost: () => this.#waiting.delete(opened) }, false)
    }
    if (this.#closed) {
      await session.end()
      throw new UnavailableError('Lockstep was closed')
    }
    if (!session.lost) this.#waiting.add(session)
    return session
  }

  /** Takes back a session that holds nothing. */
  async giveBack(session: Session): Promise<void> {
    try {
      await session.unlisten()
    } catch {
      return this.discard(session)
    }
    if (this.#closed || session.outdated || this.#idle.length >= KEPT_IDLE) return this.discard(session)
    this.#waiting.delete(session)
    if (!session.lost) this.#idle.push(session)
  }

  /** Takes back a session that may hold something, and ends it. */
  async discard(session: Session): Promise<void> {
    this.#waiting.delete(session)
    const ending = session.end()
    this.#ending.add(ending)
    await ending.finally(() => this.#ending.delete(ending))
  }

  /** The pids of this process's sessions that wait in lock queues, or hold what they have waited for. */
  get waitingPids(): number[] {
    return [...this.#waiting].map((session) => session.pid)
  }

  /** Ends all sessions. Those that are still being opened end with their connections (Database.close). */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([this.#current, ...this.#idle, ...this.#waiting].map((session) => session?.end()))
    await Promise.all(this.#ending)
  }
}
