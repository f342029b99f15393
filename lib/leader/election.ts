/**
 * How one of many candidates becomes the leader.
 *
 * PROMISE. A term is a lease (lease/leases.ts): one at a time, with rising tokens, fenced by its row. Its signal aborts
 * before anybody else can be granted the election. Candidates are served by priority, and within a priority in the order of
 * arrival, whatever process they wait in. A higher priority goes to the front of the queue; it does not depose the leader.
 *
 *   campaign ─► in the queue (lockstep.candidate) ─► notified that it is next, or the lease has expired ─► request ─► term
 *                      ▲                                                                                     │
 *                      └───────────────── refused: how long until it is useful to ask again ◄────────────────┘
 *
 * THE QUEUE is a table and not Postgres' lock queue, because it has an order of its own and shows the candidates with their
 * meta. Everything is one statement, `campaign`: it enters the queue, looks whether the election is free and which candidate is
 * next, and grants. The queue decides which candidate *asks first*, never which one leads: a candidate that is dead or
 * frozen, and still in the queue, delays the others by one second and no more. A candidate stays in the queue as long as its
 * process's connection lives. (The connection has an advisory lock, its witness; every reader of the queue tries that lock.)
 * A candidate without a connection stays if it asks again within 15 s.
 *
 * WAKING. Every change is sent by NOTIFY to the processes that take part (database/notifier.ts), with the name of the next
 * candidate. Only that candidate asks, so that a thousand candidates cost one statement. There is no notification when a lease
 * expires. So each candidate asks again when the lease that it knows of would expire: the first of the queue at that time,
 * the others a second later. Behind a pooler there is no NOTIFY: the first asks four times a second, the others a little
 * more than once. Requests that this process makes at the same time share one statement.
 *
 * THE LEASE OF A DEAD LEADER expires on the database's clock. If that clock was set forward, it expires too early: the leader's
 * own clock is right to trust it still. So an expired lease (not one that was given up) is taken only by a candidate that has
 * watched the database's clock run evenly for that ttl (clock-step.ts). A candidate that has not, because its process has just
 * started, waits until it has, or until the lease has been seen expired for another ttl. The first rule depends on no clock but
 * the candidate's own; the second cannot be wrong by one step of the clock.
 *
 * `failover: 'connection'`. The leader's row names the witness of its connection; when that lock is free, the term has ended. The
 * first of the queue waits for that very lock (liveness.ts) and takes over within milliseconds. But the end of a connection does
 * not prove that its process has stopped; the process may notice a little later. That is safe for fenced work, and for nothing
 * else.
 *
 * FAILURES. A candidate dies: its connection ends, and with it its position. The server crashes: the queue is empty (the
 * table is unlogged), and every living candidate enters it again at the position that it had. A response is lost: the candidate
 * asks again as the same holder, and is granted the same term. A candidate leaves while it is being granted the term: the
 * term is given up. Two candidates of one election with the same holder are one holder: one position, one term, one token.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Closing } from '../base/index.ts'
import {
  abortable,
  BackoffDelays,
  combineSignals,
  exact,
  noConnectionLeft,
  onAbort,
  Stopwatch,
  UnavailableError,
  Waker,
} from '../base/index.ts'
import type { Database, Session, SessionPool } from '../database/index.ts'
import type { Grant, Leases } from '../lease/index.ts'
import { CampaignRequests, type CampaignResponse, type Candidacy, candidateKey } from './campaign.ts'
import { LivenessChecks } from './liveness.ts'
import { type ElectionNotifier, electionNotifier } from './notifications.ts'

/** Without notifications: how often the first of the queue asks, and the others, which must learn in time that they are first. */
const POLL_MS = { first: 250, others: 750 }
/** With notifications: in case one was missed all the same. */
const LOOK_AGAIN_MS = 30_000
/** For how long the candidates before have the first right to a free election: as in the database, and 10 ms. */
const GRACE_MS = 1_010
/** After a failure of the database. */
const RETRY = { firstMs: 50, mostMs: 2_000 }
/** How often a candidate that has left is taken out of the queue while the database is away: for three minutes and a half. */
const WITHDRAW = { attempts: 12, firstMs: 50, mostMs: 120_000 }

export interface Elected {
  grant: Grant
  /** When the grant was requested. */
  attempted: Stopwatch
  /** The session that the term ends with. */
  session: Session | null
}

export class Elections {
  readonly notifier: ElectionNotifier
  readonly #requests: CampaignRequests
  readonly #leases: Leases
  readonly #sessions: SessionPool
  readonly #liveness: LivenessChecks
  readonly #closing: Closing
  /** The number of candidates here, by election and holder. */
  readonly #waiting = new Map<string, number>()
  readonly #running = new Set<Promise<unknown>>()

  constructor(database: Database, sessions: SessionPool, leases: Leases, closing: Closing) {
    this.#leases = leases
    this.#closing = closing
    this.#sessions = sessions
    this.notifier = electionNotifier(sessions)
    this.#liveness = new LivenessChecks(database, sessions)
    this.#requests = new CampaignRequests(database)
  }

  /**
   * Waits at most `waitMs` to be elected; `null`: it was not.
   * @throws {UnavailableError} the first request found no database. Later requests wait for it.
   */
  async campaign(candidacy: Candidacy, waitMs: number, signal: AbortSignal | undefined): Promise<Elected | null> {
    signal?.throwIfAborted()
    this.#closing.check()
    const { signal: stop, end } = combineSignals(signal, this.#closing.signal)
    const waker = new Waker()
    const unsubscribe = onAbort(stop, () => waker.wake())
    // An aborted call rejects at once. Its request may be under way: that is awaited here, and its grant is revoked.
    const running = this.#run(candidacy, waitMs, stop, waker)
    this.#running.add(running)
    const done = () => {
      end()
      this.#running.delete(running)
    }
    running.then(done, done)
    return await abortable(stop, running).finally(unsubscribe)
  }

  /** Takes the candidates of this process out of the queue, as far as that is done when `late` resolves. */
  async close(late: Promise<void>): Promise<void> {
    await Promise.race([Promise.allSettled(this.#running), late])
    this.notifier.close()
  }

  async #run(candidacy: Candidacy, waitMs: number, stop: AbortSignal, waker: Waker): Promise<Elected | null> {
    const { name } = candidacy
    const since = new Stopwatch()
    const waits = waitMs > 0
    let position: string | undefined
    let expiredToken: string | undefined
    let queued = false
    let check: { witness: string; end: () => void } | undefined
    const delays = new BackoffDelays(RETRY)
    // Before the first request, so that no notification after it is missed.
    const unsubscribe = waits ? this.#wakeWhenNext(candidacy, waker) : undefined
    if (waits) this.#count(candidacy, 1)
    try {
      for (;;) {
        let session: Session | null = null
        let response: CampaignResponse
        const attempted = new Stopwatch()
        try {
          session = candidacy.failover ? await this.#sessions.shared() : (this.notifier.session ?? null)
          const witness = waits || candidacy.failover ? await session?.witness() : undefined
          queued = waits // assumed from here on: the response may be lost
          response = await this.#requests.send({ ...candidacy, position, waits, witness, expiredToken })
        } catch (error) {
          if (stop.aborted) return null
          const left = waitMs - since.elapsed()
          const passes = error instanceof UnavailableError && (position !== undefined || noConnectionLeft(error))
          if (!passes || left <= 0) throw error
          await waker.wait(Math.min(left, delays.next()))
          continue
        }
        delays.reset()
        position = response.place
        if (response.outcome !== 'waiting') {
          queued = false
          const grant = grantOf(candidacy, response)
          if (!stop.aborted) return { grant, attempted, session: candidacy.failover ? session : null }
          // The caller has left. A term that its holder had before is kept, and another candidate of the same holder here
          // asks for the new one.
          const another = (this.#waiting.get(candidateKey(candidacy)) ?? 0) > 1
          if (!grant.renewed && !another) await this.#leases.revoke(name, grant.token).catch(() => {})
          return null
        }
        expiredToken = undefined
        if (response.over !== null && this.#requests.clockSteps.remaining(response.ttl_ms) === 0) {
          expiredToken = response.over // by our own clock too
          continue
        }
        const left = waitMs - since.elapsed()
        if (left <= 0 || stop.aborted) return null
        if (response.first && response.leader_witness !== null && check?.witness !== response.leader_witness) {
          check?.end()
          const witness = response.leader_witness
          const end = this.#liveness.start(BigInt(witness), () => {
            check = undefined
            waker.wake()
          })
          check = { witness, end }
        }
        await waker.wait(Math.min(left, this.#untilNextRequest(response)))
        if (stop.aborted) return null
      }
    } finally {
      unsubscribe?.()
      check?.end()
      if (waits) this.#count(candidacy, -1)
      if (queued && !this.#waiting.has(candidateKey(candidacy))) {
        await this.#requests.withdraw(candidacy).catch(() => void this.#withdrawLater(candidacy))
      }
    }
  }

  // Wakes when there is a reason to ask: this candidate is next, or nobody is, or the next one does not take the election; or
  // the notification does not say.
  #wakeWhenNext({ name, holder }: Candidacy, waker: Waker): () => void {
    let later: NodeJS.Timeout | undefined
    const unsubscribe = this.notifier.on(name, (notification) => {
      if (!notification?.next || notification.next === holder) waker.wake()
      else if (notification.leader === null) later ??= setTimeout(() => waker.wake(), GRACE_MS)
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

  // Milliseconds until a refused candidate asks again, unless it is woken.
  #untilNextRequest({ wait_ms, first, over, ttl_ms }: CampaignResponse): number {
    const expiredMs = over === null ? Number.POSITIVE_INFINITY : this.#requests.clockSteps.remaining(ttl_ms) + 1
    const waitMs = Math.max(Math.min(wait_ms, expiredMs), 5)
    if (this.notifier.session) return Math.min(waitMs, LOOK_AGAIN_MS)
    return Math.min(waitMs, first ? POLL_MS.first : POLL_MS.others) * (0.9 + Math.random() / 5)
  }

  #count(candidacy: Candidacy, by: 1 | -1): void {
    const key = candidateKey(candidacy)
    const count = (this.#waiting.get(key) ?? 0) + by
    if (count === 0) this.#waiting.delete(key)
    else this.#waiting.set(key, count)
  }

  // The database is away. A position that is not given up delays the others for as long as this process's connection lives.
  async #withdrawLater(candidacy: Candidacy): Promise<void> {
    const { signal } = this.#closing
    const delays = new BackoffDelays(WITHDRAW)
    for (let attempt = 0; attempt < WITHDRAW.attempts && !signal.aborted; attempt++) {
      await sleep(delays.next(), undefined, { ref: false, signal }).catch(() => {})
      if (this.#waiting.has(candidateKey(candidacy))) return
      try {
        return await this.#requests.withdraw(candidacy)
      } catch {}
    }
  }
}

function grantOf({ name, holder }: Candidacy, response: CampaignResponse): Grant {
  return exact({
    name,
    holder,
    token: BigInt(response.token ?? 0),
    grantedAt: response.granted_at,
    expiresAt: response.expires_at,
    renewed: response.outcome === 'kept',
  })
}
