/**
 * How one of many becomes the leader.
 *
 * PROMISE. A term is a lease (lease/leases.ts): one at a time, rising tokens, fenced by its row. Its signal aborts before
 * anybody else can be granted the election. Who waits is served by priority, and within a priority in the order of
 * arrival, whatever process it waits in. A higher priority comes first in line; it does not depose who leads.
 *
 *   campaign ─► in line (lockstep.candidate) ─► told that it is next, or the lease has run out ─► ask ─► term
 *                      ▲                                                                          │
 *                      └──────────────── refused: how long until it is worth asking again ◄───────┘
 *
 * THE LINE is a table and not Postgres' lock queue, for it has an order of its own and shows who waits, with what meta.
 * Everything is one statement, `campaign`: it enters the line, looks whether the election is free and whose turn it is,
 * and grants. The line decides who is *asked first*, never who leads: a candidate that is dead or frozen, and still in
 * line, delays the others by one second and no more. A candidate is in line as long as its process's connection lives (it
 * has an advisory lock, its witness; whoever looks tries that lock) or, without a connection, asks again within 15 s.
 *
 * WAKING. Every change is told by NOTIFY to the processes that take part (database/notifier.ts), with the name of the next in line: it
 * alone asks, so that a thousand candidates cost one statement. Nobody tells when a lease runs out; so each candidate
 * asks again when the lease it knows of would, the first in line at that moment and the others a second later. Behind a
 * pooler there is no NOTIFY: the first asks four times a second, the others a little more than once. What this process
 * asks at a time goes in one statement.
 *
 * A DEAD LEADER'S lease runs out on the database's clock. If that clock was set forward it runs out too early: the
 * leader's own clock is right to trust it still. So an expired lease (not one that was given up) is taken only by who has
 * watched the database's clock run evenly for that ttl (clock-step.ts); who has not, because its process has just come, waits
 * until it has, or until the lease has been seen expired for another ttl. The first rule needs nobody's clock but one's
 * own; the second cannot be wrong by one step of the clock.
 *
 * `failover: 'connection'`. The leader's row names the witness of its connection; free, the term is over. The first in line
 * waits for that very lock (liveness.ts) and takes over within milliseconds. But the end of a connection does not prove that
 * its process has stopped; it may be a moment behind. That is safe for fenced work, and for nothing else.
 *
 * FAILURES. A candidate dies: its connection ends, and its place with it. The server crashes: the line is empty (the table
 * is unlogged), and everybody who lives enters it again at the place it had. An answer is lost: the candidate asks again
 * under its name, and is granted the same term. A candidate leaves while it is being granted the term: the term is given
 * up. Two candidates of one election with the same holder are one holder: one place, one term, one token.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Closing } from '../base/index.ts'
import { combineSignals, noConnectionLeft, Stopwatch, UnavailableError, Waker } from '../base/index.ts'
import type { Database, Session, SessionPool } from '../database/index.ts'
import type { Grant, Leases } from '../lease/index.ts'
import { type Answer, Ballot, type Candidacy, identity } from './campaign.ts'
import { LivenessChecks } from './liveness.ts'
import { type ElectionNotifier, electionNotifier } from './notifications.ts'

/** Without news: how often the first in line asks, and the others, who must learn in time that they are first. */
const POLL_MS = { first: 250, others: 750 }
/** With news: in case something was missed all the same. */
const LOOK_AGAIN_MS = 30_000
/** For how long those before have the first right to a free election: as in the database, and a little. */
const GRACE_MS = 1_010
/** After a failure of the database. */
const PAUSE_MS = { first: 50, most: 2_000 }

export interface Elected {
  grant: Grant
  /** When the grant was asked for. */
  attempted: Stopwatch
  /** With which the term ends. */
  session: Session | null
}

export class Elections {
  readonly news: ElectionNotifier
  readonly #ballot: Ballot
  readonly #leases: Leases
  readonly #sessions: SessionPool
  readonly #vigils: LivenessChecks
  readonly #closing: Closing
  /** Candidates here, by election and holder: how many. */
  readonly #waiting = new Map<string, number>()
  readonly #running = new Set<Promise<unknown>>()

  constructor(database: Database, sessions: SessionPool, leases: Leases, closing: Closing) {
    this.#leases = leases
    this.#closing = closing
    this.#sessions = sessions
    this.news = electionNotifier(sessions)
    this.#vigils = new LivenessChecks(database, sessions)
    this.#ballot = new Ballot(database)
  }

  /**
   * Waits at most `waitMs` to be elected; `null`: it was not.
   * @throws {UnavailableError} the first question found no database. Later it is waited for.
   */
  async campaign(candidacy: Candidacy, waitMs: number, signal: AbortSignal | undefined): Promise<Elected | null> {
    signal?.throwIfAborted()
    this.#closing.check()
    const { signal: stop, end } = combineSignals(signal, this.#closing.signal)
    const waker = new Waker()
    const stopped = Promise.withResolvers<never>()
    const onStop = () => {
      stopped.reject(stop.reason)
      waker.wake()
    }
    stop.addEventListener('abort', onStop)
    // Who is told to stop is answered at once; the question under way is seen to its end, and taken back.
    const running = this.#run(candidacy, waitMs, stop, waker)
    this.#running.add(running)
    const done = () => {
      end()
      this.#running.delete(running)
    }
    running.then(done, done)
    try {
      return await Promise.race([stopped.promise, running])
    } finally {
      stop.removeEventListener('abort', onStop)
    }
  }

  /** Takes who waited here out of the line, as far as that is done when `late` resolves. */
  async close(late: Promise<void>): Promise<void> {
    await Promise.race([Promise.allSettled(this.#running), late])
    this.news.close()
  }

  async #run(candidacy: Candidacy, waitMs: number, stop: AbortSignal, waker: Waker): Promise<Elected | null> {
    const { name } = candidacy
    const since = new Stopwatch()
    const waits = waitMs > 0
    let place: string | undefined
    let over: string | undefined
    let inLine = false
    let vigil: { witness: string; end: () => void } | undefined
    let pauseMs = PAUSE_MS.first
    // Before the first question, so that nothing is missed after it.
    const unsubscribe = waits ? this.#hear(candidacy, waker) : undefined
    if (waits) this.#count(candidacy, 1)
    try {
      for (;;) {
        let session: Session | null = null
        let answer: Answer
        const attempted = new Stopwatch()
        try {
          session = candidacy.failover ? await this.#sessions.shared() : (this.news.session ?? null)
          const witness = waits || candidacy.failover ? await session?.witness() : undefined
          inLine = waits // perhaps: an answer may be lost
          answer = await this.#ballot.ask({ ...candidacy, place, waits, witness, over })
        } catch (error) {
          if (stop.aborted) return null
          const left = waitMs - since.elapsed()
          const passes = error instanceof UnavailableError && (place !== undefined || noConnectionLeft(error))
          if (!passes || left <= 0) throw error
          await waker.wait(Math.min(left, pauseMs))
          pauseMs = Math.min(pauseMs * 2, PAUSE_MS.most)
          continue
        }
        pauseMs = PAUSE_MS.first
        place = answer.place
        if (answer.outcome !== 'waiting') {
          inLine = false
          const grant = grantOf(candidacy, answer)
          if (!stop.aborted) return { grant, attempted, session: candidacy.failover ? session : null }
          // Nobody is there to lead. What the holder had before it keeps, and a twin that waits here asks for it.
          const twin = (this.#waiting.get(identity(candidacy)) ?? 0) > 1
          if (!grant.renewed && !twin) await this.#leases.revoke(name, grant.token).catch(() => {})
          return null
        }
        over = undefined
        if (answer.over !== null && this.#ballot.steady.left(answer.ttl_ms) === 0) {
          over = answer.over // by our own clock too
          continue
        }
        const left = waitMs - since.elapsed()
        if (left <= 0 || stop.aborted) return null
        if (answer.first && answer.leader_witness !== null && vigil?.witness !== answer.leader_witness) {
          vigil?.end()
          const witness = answer.leader_witness
          const end = this.#vigils.keep(BigInt(witness), () => {
            vigil = undefined
            waker.wake()
          })
          vigil = { witness, end }
        }
        await waker.wait(Math.min(left, this.#patience(answer)))
        if (stop.aborted) return null
      }
    } finally {
      unsubscribe?.()
      vigil?.end()
      if (waits) this.#count(candidacy, -1)
      if (inLine && !this.#waiting.has(identity(candidacy))) {
        await this.#ballot.withdraw(candidacy).catch(() => void this.#withdrawLater(candidacy))
      }
    }
  }

  // Rings when there is reason to ask: it is our turn, or nobody's, or somebody's who does not take it; or all is open.
  #hear({ name, holder }: Candidacy, waker: Waker): () => void {
    let later: NodeJS.Timeout | undefined
    const unsubscribe = this.news.on(name, (told) => {
      if (!told?.next || told.next === holder) waker.wake()
      else if (told.leader === null) later ??= setTimeout(() => waker.wake(), GRACE_MS)
      else {
        clearTimeout(later)
        later = undefined
      }
    })
    return () => {
      clearTimeout(later)
      unsubscribe()
    }
  }

  // How long a refused candidate need not ask again, unless somebody rings.
  #patience({ wait_ms, first, over, ttl_ms }: Answer): number {
    const waitMs = Math.max(over === null ? wait_ms : Math.min(wait_ms, this.#ballot.steady.left(ttl_ms) + 1), 5)
    if (this.news.session) return Math.min(waitMs, LOOK_AGAIN_MS)
    return Math.min(waitMs, first ? POLL_MS.first : POLL_MS.others) * (0.9 + Math.random() / 5)
  }

  #count(candidacy: Candidacy, by: 1 | -1): void {
    const key = identity(candidacy)
    const count = (this.#waiting.get(key) ?? 0) + by
    if (count === 0) this.#waiting.delete(key)
    else this.#waiting.set(key, count)
  }

  // The database is away. A place that is not given up would be waited for as long as this process's connection lives.
  async #withdrawLater(candidacy: Candidacy): Promise<void> {
    const { signal } = this.#closing
    for (let pauseMs = PAUSE_MS.first; pauseMs < 120_000 && !signal.aborted; pauseMs *= 2) {
      await sleep(pauseMs, undefined, { ref: false, signal }).catch(() => {})
      if (this.#waiting.has(identity(candidacy))) return
      try {
        return await this.#ballot.withdraw(candidacy)
      } catch {}
    }
  }
}

function grantOf({ name, holder }: Candidacy, answer: Answer): Grant {
  return {
    name,
    holder,
    token: BigInt(answer.token ?? 0),
    grantedAt: answer.granted_at,
    expiresAt: answer.expires_at,
    renewed: answer.outcome === 'kept',
  }
}
