/**
 * Reads of elections, and the observers of their changes.
 *
 * However many observers an election has in this process, it is read once for all of them: first to begin with, then when
 * its notifications say so, and when the lease that is known would expire, because there is no notification of that. Each
 * observer has a buffer of its own, so that a slow one blocks nobody. When it is too far behind, or when all observers of the
 * process together keep too many changes, the oldest changes are left out, never the latest. Changes have a revision that
 * rises. So no change is shown twice or after a later one, whether it came from a read or from a notification.
 */
import { sql } from 'kysely'
import { BackoffDelays, batched, exact, onAbort, Stopwatch, Waker } from '../base/index.ts'
import { type Database, list } from '../database/index.ts'
import { ELECTIONS } from '../lease/index.ts'
import type { ElectionNotification, ElectionNotifier } from './notifications.ts'
import { ObserverBuffer } from './observer-buffer.ts'
import { type Candidate, type ElectionState, type LeaderRow, leaderOf } from './state.ts'

/** Without notifications. */
const POLL_MS = 1_000
/** With notifications: in case one was missed all the same. */
const LOOK_AGAIN_MS = 30_000
/** After a failure of the database. */
const RETRY = { firstMs: 50, mostMs: 2_000 }

/** `livesMs`: milliseconds until the term ends unless it is renewed, by the database's clock; null without a leader. */
type Reading = ElectionState & { livesMs: number | null }

export class ElectionObservers {
  readonly #database: Database
  readonly #notifier: ElectionNotifier
  readonly #observed = new Map<string, ObservedElection>()
  readonly #filled = new Set<ObserverBuffer>()
  readonly #read: (name: string) => Promise<Reading>

  constructor(database: Database, notifier: ElectionNotifier) {
    this.#database = database
    this.#notifier = notifier
    this.#read = batched(
      (names) => this.#readAll(names),
      (name) => name,
      200,
    )
  }

  /** Reads the leader, and how long its term lasts. One statement; reads at the same time share it. */
  read(name: string): Promise<Reading> {
    return this.#read(name)
  }

  /** Reads the candidates, the next leader first. */
  candidates(name: string): Promise<Candidate[]> {
    return this.#database.control<Candidate>(sql`select * from lockstep.candidates(${ELECTIONS.prefix + name})`)
  }

  /** The latest state first, then every change, until `stop` aborts: then its reason is thrown. */
  async *observe(name: string, stop: AbortSignal): AsyncGenerator<ElectionState, never, void> {
    stop.throwIfAborted()
    const buffer = new ObserverBuffer(this.#filled)
    const election = this.#observed.get(name) ?? this.#open(name)
    // Now, and not at the next read of the buffer: perhaps the caller reads no more.
    const unsubscribe = onAbort(stop, () => {
      buffer.fail(stop.reason)
      election.leave(buffer)
    })
    election.join(buffer)
    try {
      for (;;) yield await buffer.next()
    } finally {
      election.leave(buffer)
      buffer.clear()
      unsubscribe()
    }
  }

  #open(name: string): ObservedElection {
    const election = new ObservedElection(name, this.#read, this.#notifier, () => {
      if (this.#observed.get(name) === election) this.#observed.delete(name)
    })
    this.#observed.set(name, election)
    return election
  }

  async #readAll(names: string[]): Promise<Reading[]> {
    const elections = names.map((name) => ELECTIONS.prefix + name)
    const rows = await this.#database.control<LeaderRow>(
      sql`select * from lockstep.leaders(${list(elections, 'text')})`,
    )
    return rows.map((row, i) => ({
      name: names[i] as string,
      leader: leaderOf(row),
      revision: BigInt(row.revision),
      livesMs: row.lives_ms,
    }))
  }
}

/** One election, for all its observers in this process. */
class ObservedElection {
  readonly #name: string
  readonly #read: (name: string) => Promise<Reading>
  readonly #buffers = new Set<ObserverBuffer>()
  readonly #waker = new Waker()
  readonly #notifier: ElectionNotifier
  readonly #unsubscribe: () => void
  readonly #onEnd: () => void
  #latest: ElectionState | undefined
  /** When the last known lease was read, and how long it lasts from then. */
  #lease: { at: Stopwatch; livesMs: number } | undefined
  #notified = false // since the wait began, by a complete notification
  #mustRead = false // a notification came whose change must be read

  constructor(name: string, read: (name: string) => Promise<Reading>, notifier: ElectionNotifier, onEnd: () => void) {
    this.#name = name
    this.#read = read
    this.#notifier = notifier
    this.#onEnd = onEnd
    this.#unsubscribe = notifier.on(name, (notification) => this.#receive(notification))
  }

  join(buffer: ObserverBuffer): void {
    this.#buffers.add(buffer)
    if (this.#latest) buffer.push(this.#latest)
    else if (this.#buffers.size === 1) void this.#run()
  }

  leave(buffer: ObserverBuffer): void {
    if (this.#buffers.delete(buffer) && this.#buffers.size === 0) this.#end()
  }

  #end(): void {
    this.#onEnd()
    this.#unsubscribe()
    this.#waker.wake()
  }

  async #run(): Promise<void> {
    const delays = new BackoffDelays(RETRY)
    while (this.#buffers.size > 0) {
      this.#mustRead = false
      try {
        const at = new Stopwatch()
        const { livesMs, ...state } = await this.#read(this.#name)
        this.#lease = livesMs === null ? undefined : { at, livesMs }
        this.#publish(exact(state), true)
        delays.reset()
      } catch (error) {
        if (!this.#latest) {
          this.#end() // an observer that comes from now on reads anew
          for (const buffer of this.#buffers) buffer.fail(error)
          return
        }
        await this.#waker.wait(delays.next()) // the observers have the latest that is known
        continue
      }
      do {
        this.#notified = false
        await this.#waker.wait(this.#untilNextRead())
      } while (this.#notified && !this.#mustRead)
    }
  }

  #untilNextRead(): number {
    const lives = this.#lease ? this.#lease.livesMs - this.#lease.at.elapsed() : Number.POSITIVE_INFINITY
    return Math.min(lives, this.#notifier.session ? LOOK_AGAIN_MS : POLL_MS)
  }

  #receive(notification: ElectionNotification | null): void {
    if (notification?.revision === undefined || notification.leader === undefined) {
      this.#mustRead = true
    } else {
      this.#notified = true
      const { leader, revision } = notification
      this.#lease = leader ? { at: new Stopwatch(), livesMs: leader.ttlMs } : undefined
      this.#publish(
        exact({
          name: this.#name,
          revision: BigInt(revision),
          leader:
            leader &&
            exact({
              ...leader,
              token: BigInt(leader.token),
              grantedAt: new Date(leader.grantedAt),
              expiresAt: new Date(leader.expiresAt),
            }),
        }),
        false,
      )
    }
    this.#waker.wake()
  }

  // The same revision again is a change if it was read, and the lease has expired meanwhile.
  #publish(state: ElectionState, wasRead: boolean): void {
    const last = this.#latest
    if (last && state.revision < last.revision) return
    if (last && state.revision === last.revision && !(wasRead && (state.leader === null) !== (last.leader === null)))
      return
    this.#latest = state
    for (const buffer of this.#buffers) buffer.push(state)
  }
}
