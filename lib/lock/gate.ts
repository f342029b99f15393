/**
 * K of one name for this process: the session that has K, or that waits for it in the database's queue.
 *
 * One session of a process waits in that queue, however many callers want the name. Waiting blocks a session, and what it gains
 * there it keeps itself, so it cannot be the session that all attempts of the process share: sessions that may wait are borrowed
 * from the session pool. When K moves from the shared session to a borrowed one, the borrowed one is in the queue before the
 * shared one gives K up.
 *
 * At the front of the queue K is ours, but a lease may still live. Then we listen for its release (a release notifies if K is
 * taken), and look again when it expires, and once a second in case no notification came.
 */
import { Waker } from '../base/index.ts'
import type { Database, Session, SessionPool, TakeResult } from '../database/index.ts'

const LOOK_AGAIN_MS = 1_000

export class Gate {
  /** Woken when a wait may be over: a notification, a caller that left, a session that is lost. */
  readonly waker = new Waker()
  readonly #name: string
  readonly #database: Database
  readonly #sessions: SessionPool
  #session: Session | undefined
  #spent = false
  #inQueue = false
  #cancelled: Promise<void> | undefined
  #listening = false

  constructor(name: string, { database, sessions }: { database: Database; sessions: SessionPool }) {
    this.#name = name
    this.#database = database
    this.#sessions = sessions
  }

  /** The session that has K for us, or waits for it. */
  get session(): Session | undefined {
    return this.#session
  }

  /** This session has gained K. */
  hold(session: Session): void {
    this.#session = session
  }

  /** K has served its turn: before the next grant it goes to the back of the database's queue. */
  spend(): void {
    this.#spent = true
  }

  /** A session that is lost has nothing any more. */
  dropLost(): void {
    if (this.#session?.lost) this.#session = undefined
  }

  /** To be called before a lease is granted. `last`: K is given up right behind the grant. Else K goes to the back of the queue before the next one. */
  prepareGrant(last: boolean): void {
    this.#spent = !last
    if (!last) return
    this.#session = undefined
    this.#listening = false
  }

  /** Leaves the database's queue, so that we are not served there. */
  leaveQueue(): void {
    if (this.#inQueue && this.#session) {
      this.#cancelled ??= this.#database.cancel(this.#session.pid, () => !this.#inQueue)
    }
  }

  async giveUp(): Promise<void> {
    const session = this.#session
    if (!session) return
    this.#session = undefined
    this.#spent = false
    this.#listening = false
    await session.giveUp(this.#name)
    if (!session.shared) await this.#sessions.giveBack(session)
  }

  /**
   * Gains K, and asks whether the name is free.
   * @returns `undefined`: we have left the queue; `'none'`: there is no session to wait on, or a transaction pooler is between.
   */
  async reach(): Promise<TakeResult | 'none' | undefined> {
    const session = this.#session
    if (session && !this.#spent) return session.take(this.#name)
    this.#spent = false
    if (session && !session.shared) return this.#queueOn(session, true)
    const waiting = await this.#sessions.borrow()
    if (!waiting) {
      await this.giveUp()
      return 'none'
    }
    const [place] = await Promise.all([this.#queueOn(waiting, false), session?.giveUp(this.#name)])
    return place
  }

  async #queueOn(session: Session, again: boolean): Promise<TakeResult | undefined> {
    this.#session = session
    this.#inQueue = true
    try {
      return await session.queue(this.#name, again)
    } catch (error) {
      this.#inQueue = false
      const cancelled = this.#cancelled
      await cancelled // or the cancel would meet the next statement
      if (!session.lost) await this.giveUp() // the cancel may have come after K was gained
      this.#session = undefined
      if (!cancelled && error !== session.lost) throw error
      return undefined
    } finally {
      this.#inQueue = false
      await this.#cancelled
      this.#cancelled = undefined
    }
  }

  /** K is ours and a lease lives: waits until it is released or expires. */
  async waitForRelease(session: Session, waitMs: number): Promise<void> {
    if (!this.#listening) {
      await session.listen(this.#name, () => this.waker.wake())
      this.#listening = this.#session === session
      return // the caller looks once more: the lease may have been released before we listened
    }
    await this.pause(Math.min(waitMs, LOOK_AGAIN_MS), session)
  }

  /** Until the time has passed, the waker is woken, or the session is lost. */
  async pause(ms: number, session?: Session): Promise<void> {
    const dependent = { connectionLost: () => this.waker.wake() }
    session?.attach(dependent)
    await this.waker.wait(ms)
    session?.detach(dependent)
  }
}
