/**
 * One name in this process: who has it here, and who stands in line for it.
 *
 * Only one of a process stands in the database's queue for a name; the others wait here, first come first served.
 * So 1,000 waiters cost one waiting connection, and the queue of the database is a queue of processes.
 *
 *   contenders ─► line (FIFO) ─► one session in the queue of K(name) ─► at its front: wait for the row ─► granted
 *
 * COHORTS. A connection hold passes from one contender of a process to the next without the database, at most 32
 * times or for 20 ms, whichever ends first; then K goes back to the database's queue, so that processes are served
 * in turn. Each of them gets its own token from the 64 that belong to the grant. A hold that was registered for
 * fences is freed in the database first, so that its token is dead before the next one works.
 *
 * At the front of the database's queue K is ours, but a lease may still live: we listen for its release (the one who
 * frees a row notifies if K is taken) and look again when it expires, and once a second in case nobody notified.
 *
 * Without a session to wait on (all taken, or a transaction pooler) the first in line asks again and again, 25 to
 * 250 ms apart: still first come first served within the process, but not between processes.
 */

import { fromDatabase, LeaseHeldError, noConnectionLeft, Stopwatch, UnavailableError, Waker } from '../base/index.ts'
import type { Database, Session, SessionPool, TakeResult } from '../database/index.ts'
import { type Grant, grantAll, type Leases } from '../lease/index.ts'
import { ConnectionHold } from './connection-hold.ts'
import type { ByConnection, ByLease, ByTransaction, Contender } from './contender.ts'

const COHORT_PASSES = 32
const COHORT_MS = 20
const LOOK_AGAIN_MS = 1_000
const POLL_MS = { first: 25, most: 250 }

/** What all lines of a process share. */
export interface Desk {
  readonly database: Database
  readonly leases: Leases
  readonly sessions: SessionPool
  readonly lines: Map<string, Line>
}

export class Line {
  readonly name: string
  readonly #desk: Desk
  readonly #contenders: Contender[] = []
  /** `held`: a connection hold is out, and its release goes on with the line. */
  #state: 'opening' | 'held' | 'serving' | 'closed' = 'serving'
  #opened: Promise<void> = done

  // The session that has K for us, or stands in the queue for it.
  #gate: Session | undefined
  #spent = false // K has served its turn: to the back of the database's queue before the next grant
  #inQueue = false
  #cancelled: Promise<void> | undefined

  // The cohort under way.
  #token = 0n
  #passes = 0
  #since: Stopwatch | undefined

  // At the front of the queue, waiting for the row.
  #listening = false
  readonly #waker = new Waker()
  #pollMs = POLL_MS.first

  private constructor(desk: Desk, name: string) {
    this.#desk = desk
    this.name = name
    desk.lines.set(name, this)
  }

  /**
   * A new line, and its first contender's try: on the session that all share, or for a lease. Whoever comes meanwhile
   * stands behind it. A transaction needs no try: it stands in the database's queue by itself.
   */
  static open(desk: Desk, name: string, first: ByLease | ByTransaction): void
  static open(desk: Desk, name: string, first: ByConnection, session: Session): void
  static open(desk: Desk, name: string, first: Contender, session?: Session): void {
    const line = new Line(desk, name)
    line.#contenders.push(first)
    if (first.kind === 'transaction') {
      void line.#serve()
      return
    }
    line.#state = 'opening'
    line.#opened = first.kind === 'lease' ? line.#tryLease(first) : line.#try(first, session as Session)
  }

  /** Settles when it is known whether the first try had success. */
  get opened(): Promise<void> | undefined {
    return this.#state === 'opening' ? this.#opened : undefined
  }

  /** How many stand in line here. */
  get length(): number {
    return this.#contenders.length
  }

  join(contender: Contender): void {
    this.#contenders.push(contender)
  }

  /** Goes away without having been served. */
  leave(contender: Contender): void {
    const at = this.#contenders.indexOf(contender)
    if (at < 0) return
    this.#contenders.splice(at, 1)
    this.#left()
  }

  /** Nobody is served any more. */
  close(why: unknown): void {
    for (const { failed } of this.#contenders.splice(0)) failed(why)
    this.#left()
  }

  #left(): void {
    this.#waker.wake()
    // Nobody of ours waits any more: leave the database's queue too, so that we are not served there.
    if (this.#contenders.length === 0 && this.#inQueue && this.#gate) {
      this.#cancelled ??= this.#desk.database.cancel(this.#gate.pid, () => !this.#inQueue)
    }
  }

  /**
   * A connection hold of this line is over: K passes on.
   * @param dead  its token is known to be dead. If not, the next one is granted by the database, which frees what is left.
   */
  passOn(dead: boolean): Promise<void> {
    const next = this.#contenders[0]
    const gate = this.#gate
    if (!gate || gate.lost) return this.#goOn()
    const within = this.#passes < COHORT_PASSES && (this.#since?.elapsed() ?? 0) < COHORT_MS
    if (dead && next?.kind === 'connection' && within) {
      this.#contenders.shift()
      this.#passes += 1
      this.#token += 1n
      next.granted(new ConnectionHold(this, this.#desk, gate, this.#token, next.holder, next.meta))
      return done
    }
    return next ? this.#goOn() : this.#close()
  }

  // Somebody waits, so K may stay with this process until the queue of the database has been asked.
  #goOn(): Promise<void> {
    this.#spent = true
    this.#state = 'serving'
    const served = this.#serve()
    return this.#contenders.length > 0 ? done : served
  }

  // Whoever comes from now on opens a new line; on the same session its try comes after this release.
  #close(): Promise<void> {
    this.#state = 'closed'
    if (this.#desk.lines.get(this.name) === this) this.#desk.lines.delete(this.name)
    return this.#giveUp()
  }

  async #giveUp(): Promise<void> {
    const gate = this.#gate
    if (!gate) return
    this.#gate = undefined
    this.#spent = false
    this.#listening = false
    await gate.giveUp(this.name)
    if (!gate.shared) await this.#desk.sessions.giveBack(gate)
  }

  async #try(first: ByConnection, session: Session): Promise<void> {
    try {
      const token = await session.try(this.name)
      if (session.lost) throw session.lost // the answer arrived with the end of its connection
      if (token !== null) this.#gate = session
      if (token !== null && this.#contenders[0] === first) return this.#grant(session, token, first)
      if (token === null && !first.patient) this.#dismiss(first, new LeaseHeldError(this.name, 0))
    } catch (error) {
      // A lost connection is no answer: who waits stands in the queue anew.
      if (error !== session.lost || !first.patient) this.#dismiss(first, error)
    }
    this.#spent = true
    this.#state = 'serving'
    void this.#serve()
  }

  async #tryLease(first: ByLease): Promise<void> {
    try {
      const attempted = new Stopwatch()
      const answer = await this.#desk.leases.grant(first.ask)
      if ('token' in answer) this.#handOver(first, answer, attempted)
      else if (!first.patient) this.#dismiss(first, new LeaseHeldError(this.name, 0, answer.waitMs))
    } catch (error) {
      if (!first.patient || !noConnectionLeft(error)) this.#dismiss(first, error)
    }
    this.#state = 'serving'
    void this.#serve()
  }

  #dismiss(contender: Contender, error: unknown): void {
    const at = this.#contenders.indexOf(contender)
    if (at < 0) return
    this.#contenders.splice(at, 1)
    contender.failed(error)
  }

  #grant(gate: Session, token: bigint, first: ByConnection): void {
    this.#contenders.shift()
    this.#state = 'held'
    this.#token = token
    this.#passes = 0
    this.#since = new Stopwatch()
    first.granted(new ConnectionHold(this, this.#desk, gate, token, first.holder, first.meta))
  }

  // Serves the first in line until a connection hold is out or nobody is left.
  async #serve(): Promise<void> {
    while (this.#contenders.length > 0) {
      const first = this.#contenders[0] as Contender
      try {
        if (this.#gate?.lost) this.#gate = undefined
        if (first.kind === 'transaction') {
          await this.#giveUp() // its own connection stands in the queue
          if (this.#contenders[0] !== first) continue
          this.#contenders.shift()
          await first.enter()
          continue
        }
        const place = await this.#reach()
        const gate = this.#gate
        if (gate?.lost) throw gate.lost
        const now = this.#contenders[0] // the line may have moved meanwhile
        if (!place || !gate || !now || now.kind === 'transaction') continue
        if (place.token === null) await this.#waitForRow(gate, place.waitMs)
        else if (now.kind === 'connection') return this.#grant(gate, place.token, now)
        else await this.#serveLease(gate, now)
      } catch (error) {
        if (this.#gate?.lost === error) await this.#pause(this.#pollMs)
        else if (noConnectionLeft(error))
          await this.#pause(POLL_MS.most) // a wait as any other
        else this.#dismiss(first, fromDatabase(error))
      }
    }
    await this.#close().catch(() => {})
  }

  // K in hand, and whether the name is free; undefined: not there yet.
  async #reach(): Promise<TakeResult | undefined> {
    const gate = this.#gate
    if (gate && !this.#spent) return gate.take(this.name)
    this.#spent = false
    if (gate && !gate.shared) return this.#queueOn(gate, true)
    const waiting = await this.#desk.sessions.borrow()
    if (!waiting) {
      await this.#giveUp()
      return this.#poll()
    }
    // From the shared session K moves to one that may wait. It stands in the queue before K is given up.
    const [place] = await Promise.all([this.#queueOn(waiting, false), gate?.giveUp(this.name)])
    return place
  }

  async #queueOn(gate: Session, again: boolean): Promise<TakeResult | undefined> {
    this.#gate = gate
    this.#inQueue = true
    try {
      return await gate.queue(this.name, again)
    } catch (error) {
      this.#inQueue = false
      const cancelled = this.#cancelled
      await cancelled // or it would meet the next statement
      if (!gate.lost) await this.#giveUp() // the cancel may have come after K was gained
      this.#gate = undefined
      if (!cancelled && error !== gate.lost) throw error
      return undefined
    } finally {
      this.#inQueue = false
      await this.#cancelled
      this.#cancelled = undefined
    }
  }

  // K is ours and a lease lives: until it is released or expires.
  async #waitForRow(gate: Session, waitMs: number): Promise<void> {
    if (!this.#listening) {
      await gate.listen(this.name, () => this.#waker.wake())
      this.#listening = this.#gate === gate
      return // look once more: it may have been released before we listened
    }
    await this.#pause(Math.min(waitMs, LOOK_AGAIN_MS), gate)
  }

  // The last in line gives K up right behind the grant (pipelined: no time is lost), so that when it releases nobody is
  // kept out by us.
  async #serveLease(gate: Session, contender: ByLease): Promise<void> {
    const attempted = new Stopwatch()
    const last = this.#contenders.length === 1
    // From here on K is not ours, whatever becomes of the grant: the next must not take it for granted.
    this.#spent = !last
    if (last) {
      this.#gate = undefined
      this.#listening = false
    }
    try {
      const granting = grantAll([contender.ask], (statement) => gate.run(statement))
      const [[answer]] = await Promise.all([granting, last ? gate.giveUp(this.name) : undefined])
      if (answer && 'token' in answer) this.#handOver(contender, answer, attempted)
      else await this.#pause(20)
    } catch (error) {
      if (error !== gate.lost) throw error
      await this.#pause(this.#pollMs) // a lost connection is no answer: it stands in the queue anew
    } finally {
      if (last && !gate.shared) void this.#desk.sessions.giveBack(gate)
    }
  }

  #handOver(contender: ByLease, grant: Grant, attempted: Stopwatch): void {
    const at = this.#contenders.indexOf(contender)
    if (at < 0) {
      // It left while we asked. What it had before it keeps; else the ttl would free it.
      if (!grant.renewed) this.#desk.leases.revoke(grant.name, grant.token).catch(() => {})
      return
    }
    this.#contenders.splice(at, 1)
    contender.granted(grant, attempted)
  }

  async #poll(): Promise<TakeResult | undefined> {
    const first = this.#contenders[0]
    if (first?.kind === 'connection') {
      const session = await this.#desk.sessions.shared()
      if (!session) throw new UnavailableError('The database is now reached through a pooler: no connection can hold')
      const token = await session.try(this.name).catch((error) => {
        if (error !== session.lost) throw error
        return null // a lost connection is no answer
      })
      if (token !== null) {
        this.#gate = session
        this.#pollMs = POLL_MS.first
        return { token, waitMs: null }
      }
    } else if (first?.kind === 'lease') {
      const attempted = new Stopwatch()
      const answer = await this.#desk.leases.grant(first.ask)
      if ('token' in answer) {
        this.#pollMs = POLL_MS.first
        this.#handOver(first, answer, attempted)
        return undefined
      }
    }
    await this.#pause(this.#pollMs * (0.75 + Math.random() / 2))
    this.#pollMs = Math.min(this.#pollMs * 1.5, POLL_MS.most)
    return undefined
  }

  // Until a time has passed, somebody rings, or the session is lost.
  async #pause(ms: number, gate?: Session): Promise<void> {
    const dependent = { connectionLost: () => this.#waker.wake() }
    gate?.attach(dependent)
    await this.#waker.wait(ms)
    gate?.detach(dependent)
  }
}

const done = Promise.resolve()
