/**
 * The sessions of one process: one that everybody's tries share, and a few that may wait.
 *
 * A session that waits in the database's queue is blocked, and what it gets there it holds itself; so waiting has
 * sessions of its own, few of them. Who finds none free is not turned away (lock/wait-queue.ts polls instead). Two idle ones are
 * kept for the next wait.
 */

import { noConnectionLeft, UnavailableError } from '../base/index.ts'
import type { Database } from './database.ts'
import { Session } from './session.ts'

const KEPT_IDLE = 2
// After the server has refused a connection because it has too many, before it is asked for one to wait on.
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
    return this.#current?.lost ? undefined : this.#current
  }

  /** The session that everybody's tries share; `null` behind a pooler. Opened at first use, and anew after a loss. */
  async shared(): Promise<Session | null> {
    for (;;) {
      if (this.#closed) throw new UnavailableError('Lockstep was closed')
      this.#shared ??= Session.open(this.#database, true)
      const opening = this.#shared
      // Only what was waited for here is forgotten: of a crowd that waited for a session which is lost, the first opens the
      // next, and that is everybody's.
      const forget = () => {
        if (this.#shared === opening) this.#shared = undefined
      }
      const session = await opening.catch((error) => {
        forget()
        throw error
      })
      if (!session?.lost) {
        this.#current = session ?? undefined
        return session
      }
      forget()
    }
  }

  /** A session to wait on, to be given back; `null` when none is left, here or at the server, or there can be none. */
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
      opened.attach({ connectionLost: () => this.#waiting.delete(opened) })
    }
    if (this.#closed) {
      await session.end()
      throw new UnavailableError('Lockstep was closed')
    }
    if (!session.lost) this.#waiting.add(session)
    return session
  }

  /** Back from waiting, with nothing held. */
  async giveBack(session: Session): Promise<void> {
    try {
      await session.unlisten()
    } catch {
      return this.discard(session)
    }
    if (this.#closed || this.#idle.length >= KEPT_IDLE) return this.discard(session)
    this.#waiting.delete(session)
    if (!session.lost) this.#idle.push(session)
  }

  /** Back from waiting, with something held perhaps: it is ended. */
  async discard(session: Session): Promise<void> {
    this.#waiting.delete(session)
    const ending = session.end()
    this.#ending.add(ending)
    await ending.finally(() => this.#ending.delete(ending))
  }

  /** The pids of sessions that wait or hold after waiting: this process's own places in queues. */
  get waitingPids(): number[] {
    return [...this.#waiting].map((session) => session.pid)
  }

  /** Ends all of them, but for those that are being opened: these end with their connection (Database.close). */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([this.#current, ...this.#idle, ...this.#waiting].map((session) => session?.end()))
    await Promise.all(this.#ending)
  }
}
