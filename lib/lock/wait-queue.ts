/**
 * One name in this process: the caller that has it here, and the callers that wait for it.
 *
 * Callers of one process wait here, first come, first served; one session of the process waits in the database's queue for K of
 * the name. So 1,000 waiting callers cost one waiting connection, and the database's queue is a queue of processes.
 *
 *   callers ─► wait queue (FIFO) ─► one session in the queue of K(name) (gate.ts) ─► K is ours: wait for the row ─► granted
 *
 * COHORTS. A connection hold passes from one caller of a process to the next without the database, at most 32 times or for 20 ms,
 * whichever ends first; then K goes to the back of the database's queue, so that processes are served in turn. Each hold of a
 * cohort has its own token, of the 64 that belong to the grant. A hold that was registered for fences is freed in the database
 * first, so that its token is dead before the next holder works.
 *
 * WITHOUT A SESSION TO WAIT ON (all are in use, or a transaction pooler is between) the first caller asks again and again, 25 to
 * 250 ms apart: still first come, first served within the process, but not between processes.
 */
import {
  BackoffDelays,
  fromDatabase,
  LeaseHeldError,
  noConnectionLeft,
  Stopwatch,
  UnavailableError,
} from '../base/index.ts'
import type { Session, TakeResult } from '../database/index.ts'
import { type Grant, grantAll } from '../lease/index.ts'
import { Cohort } from './cohort.ts'
import { ConnectionHold } from './connection-hold.ts'
import { type Contender, type ContenderOf, wantsConnection, wantsLease, wantsTransaction } from './contender.ts'
import type { LockContext } from './context.ts'
import { Gate } from './gate.ts'

const POLL_MS = { firstMs: 25, mostMs: 250, factor: 1.5, spread: 0.25 }
const OVERTAKEN_MS = 20 // a lease was granted to somebody else between our look and our grant

export class WaitQueue {
  readonly name: string
  readonly #context: LockContext
  readonly #contenders: Contender[] = []
  readonly #closed: () => void
  /** `held`: a caller has the connection hold; when it is released, the next caller is served. */
  #state: 'first attempt' | 'held' | 'serving' | 'closed' = 'serving'
  #firstAttempt: Promise<void> = done
  readonly #gate: Gate
  /** Of a transaction. */
  #turn: { polls: boolean } | undefined

  /** The connection hold of this process. */
  #hold: ConnectionHold | undefined
  #cohort: Cohort | undefined
  readonly #polls = new BackoffDelays(POLL_MS)

  /**
   * A queue with its first caller, which asks at once: on the session that all attempts of the process share, or for a lease. Callers
   * that come meanwhile stand behind it. A transaction does not ask first: it waits in the database's queue by itself.
   * @param closed  called when nobody waits and nobody holds; a caller that comes later makes a new queue.
   */
  constructor(context: LockContext, name: string, first: Contender, session: Session | undefined, closed: () => void) {
    this.#context = context
    this.name = name
    this.#closed = closed
    this.#gate = new Gate(name, context)
    this.#contenders.push(first)
    if (wantsTransaction(first)) {
      void this.#serve()
      return
    }
    this.#state = 'first attempt'
    this.#firstAttempt = wantsLease(first) ? this.#tryLease(first) : this.#tryConnection(first, session as Session)
  }

  /** Settles when it is known whether the first attempt had success; undefined: it is known. */
  get firstAttempt(): Promise<void> | undefined {
    return this.#state === 'first attempt' ? this.#firstAttempt : undefined
  }

  /** How many callers wait here. */
  get length(): number {
    return this.#contenders.length + (this.#turn?.polls ? 1 : 0)
  }

  /** What a holder has here by connection. */
  heldBy(holder: string): ConnectionHold | undefined {
    return this.#hold?.holder === holder && this.#hold.isTrusted() ? this.#hold : undefined
  }

  join(contender: Contender): void {
    this.#contenders.push(contender)
  }

  /** The caller goes away without having been served. */
  leave(contender: Contender): void {
    if (this.#remove(contender)) this.#left()
  }

  /** Refuses all callers. */
  refuseAll(why: unknown): void {
    for (const contender of this.#contenders.splice(0)) contender.refuse(why)
    this.#left()
  }

  #left(): void {
    this.#gate.waker.wake()
    if (this.#contenders.length === 0) this.#gate.leaveQueue()
  }

  #remove(contender: Contender): boolean {
    const at = this.#contenders.indexOf(contender)
    if (at >= 0) this.#contenders.splice(at, 1)
    return at >= 0
  }

  #refuse(contender: Contender, error: unknown): void {
    if (this.#remove(contender)) contender.refuse(error)
  }

  /**
   * A connection hold of this name is over: K passes on.
   * @param dead  its token is known to be dead. If not, the next hold is granted by the database, which frees what is left.
   */
  passOn(dead: boolean): Promise<void> {
    const next = this.#contenders[0]
    const { session } = this.#gate
    if (!session || session.lost) return this.#goOn()
    if (dead && next && wantsConnection(next) && this.#cohort?.pass()) {
      this.#serveConnection(session, this.#cohort.token, next)
      return done
    }
    return next ? this.#goOn() : this.#close()
  }

  // The next caller is served by the database. K stays with this process until we are in the database's queue again.
  #goOn(): Promise<void> {
    this.#gate.spend()
    this.#state = 'serving'
    const served = this.#serve()
    return this.#contenders.length > 0 ? done : served
  }

  // A caller that comes from now on makes a new queue; on the same session its attempt comes after this release.
  #close(): Promise<void> {
    this.#state = 'closed'
    this.#closed()
    return this.#gate.giveUp()
  }

  async #tryConnection(first: Contender, session: Session): Promise<void> {
    try {
      const token = await session.try(this.name)
      if (session.lost) throw session.lost // the answer arrived with the end of its connection
      if (token !== null) this.#gate.hold(session)
      if (token !== null && this.#contenders[0] === first && wantsConnection(first)) {
        return this.#startCohort(session, token, first)
      }
      if (token === null && !first.patient) this.#refuse(first, new LeaseHeldError(this.name, 0))
    } catch (error) {
      // A lost connection is no answer: a caller that waits stands in the queue anew.
      if (error !== session.lost || !first.patient) this.#refuse(first, error)
    }
    this.#gate.spend()
    this.#state = 'serving'
    void this.#serve()
  }

  async #tryLease(first: ContenderOf<'lease'>): Promise<void> {
    try {
      const attempted = new Stopwatch()
      const answer = await this.#context.leases.grant(first.want.request)
      if ('token' in answer) this.#serveGrant(first, answer, attempted)
      else if (!first.patient) this.#refuse(first, new LeaseHeldError(this.name, 0, answer.waitMs))
    } catch (error) {
      if (!first.patient || !noConnectionLeft(error)) this.#refuse(first, error)
    }
    this.#state = 'serving'
    void this.#serve()
  }

  // Serves the first caller, and the next, until a caller has a connection hold or nobody waits.
  async #serve(): Promise<void> {
    while (this.#contenders.length > 0) {
      const first = this.#contenders[0] as Contender
      try {
        this.#gate.dropLost()
        if (wantsTransaction(first)) await this.#serveTransaction(first)
        else if (await this.#serveNext()) return
      } catch (error) {
        if (this.#gate.session?.lost === error) await this.#gate.pause(POLL_MS.firstMs)
        else if (noConnectionLeft(error))
          await this.#gate.pause(POLL_MS.mostMs) // a wait as any other
        else this.#refuse(first, fromDatabase(error))
      }
    }
    await this.#close().catch(() => {})
  }

  // @returns whether a caller has a connection hold now.
  async #serveNext(): Promise<boolean> {
    const reached = await this.#gate.reach()
    const place = reached === 'none' ? await this.#poll() : reached
    const { session } = this.#gate
    if (session?.lost) throw session.lost
    const first = this.#contenders[0] // callers may have left meanwhile
    if (!place || !session || !first || wantsTransaction(first)) return false
    if (place.token === null) await this.#gate.waitForRelease(session, place.waitMs)
    else if (wantsLease(first)) await this.#serveLease(session, first)
    else if (wantsConnection(first)) {
      this.#startCohort(session, place.token, first)
      return true
    }
    return false
  }

  #startCohort(session: Session, token: bigint, first: ContenderOf<'connection'>): void {
    this.#state = 'held'
    this.#cohort = new Cohort(token)
    this.#serveConnection(session, token, first)
  }

  #serveConnection(session: Session, token: bigint, first: ContenderOf<'connection'>): void {
    this.#contenders.shift()
    const { holder, named } = first.want
    const hold = new ConnectionHold(this, this.#context, session, token, first.want)
    this.#hold = hold
    first.serve(hold)
    if (!named) return // nobody else has this holder
    for (const other of this.#contenders.filter(wantsConnection)) {
      if (other.want.holder === holder && this.#remove(other)) other.serve(hold.again())
    }
  }

  // The transaction's own connection waits in the database's queue; until it is over it is this process's turn.
  async #serveTransaction(first: ContenderOf<'transaction'>): Promise<void> {
    await this.#gate.giveUp()
    if (!this.#remove(first)) return
    const { promise, resolve: end } = Promise.withResolvers<void>()
    const turn = { end, polls: false }
    this.#turn = turn
    first.serve(turn)
    await promise
    this.#turn = undefined
  }

  // The last caller gives K up right behind the grant (pipelined: no time is lost), so that when it releases nobody is kept out
  // by us.
  async #serveLease(session: Session, contender: ContenderOf<'lease'>): Promise<void> {
    const attempted = new Stopwatch()
    const last = this.#contenders.length === 1
    this.#gate.prepareGrant(last)
    try {
      const granting = grantAll([contender.want.request], (statement) => session.run(statement))
      const [[answer]] = await Promise.all([granting, last ? session.giveUp(this.name) : undefined])
      if (answer && 'token' in answer) this.#serveGrant(contender, answer, attempted)
      else await this.#gate.pause(OVERTAKEN_MS)
    } catch (error) {
      if (error !== session.lost) throw error
      await this.#gate.pause(POLL_MS.firstMs) // a lost connection is no answer: the caller stands in the queue anew
    } finally {
      if (last && !session.shared) void this.#context.sessions.giveBack(session)
    }
  }

  #serveGrant(contender: ContenderOf<'lease'>, grant: Grant, attempted: Stopwatch): void {
    if (this.#remove(contender)) contender.serve({ grant, attempted })
    // The caller left while we asked. What it had before it keeps; a new grant is given back, or the ttl would free it.
    else if (!grant.renewed) this.#context.leases.revoke(grant.name, grant.token).catch(() => {})
  }

  // There is no session to wait on: one attempt for the first caller, and a pause if it had no success.
  async #poll(): Promise<TakeResult | undefined> {
    const first = this.#contenders[0]
    if (first && wantsConnection(first)) {
      const session = await this.#context.sessions.shared()
      if (!session) throw new UnavailableError('The database is now reached through a pooler: no connection can hold')
      const token = await session.try(this.name).catch((error) => {
        if (error !== session.lost) throw error
        return null // a lost connection is no answer
      })
      if (token !== null) {
        this.#gate.hold(session)
        this.#polls.reset()
        return { token, waitMs: null }
      }
    } else if (first && wantsLease(first)) {
      const attempted = new Stopwatch()
      const answer = await this.#context.leases.grant(first.want.request)
      if ('token' in answer) {
        this.#polls.reset()
        this.#serveGrant(first, answer, attempted)
        return undefined
      }
    }
    await this.#gate.pause(this.#polls.next())
    return undefined
  }
}
const done = Promise.resolve()
