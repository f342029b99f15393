/**
 * Who leads, and who wants to know.
 *
 * However many observe an election in this process, it is looked at once: first to begin with, then when its news says
 * so, and when the lease that is known would run out, for nobody tells that. Each observer has a backlog of its own, so a
 * slow one blocks nobody; when it is too far behind, the oldest changes are left out, never the latest: so it is, too, where all
 * observers of the process together keep too many. Changes have a revision that rises, so that none is shown twice or after a
 * later one, whichever way it came.
 */
import { sql } from 'kysely'
import { batched, Stopwatch, Waker } from '../base/index.ts'
import { type Database, list } from '../database/index.ts'
import { ELECTIONS } from '../lease/index.ts'
import type { ElectionNotifier, Told } from './notifications.ts'

/** Who leads. */
export interface Leader {
  holder: string
  /** The fencing token of the term. */
  token: bigint
  grantedAt: Date
  /** On the database's clock, as it was when this was read: a leader renews. */
  expiresAt: Date
  ttlMs: number
  /** What the leader last proclaimed. */
  meta: unknown
}

/** An election as it was a moment ago. */
export interface ElectionState {
  name: string
  leader: Leader | null
  /** Rises with every change; 0: nobody ever campaigned. */
  revision: bigint
}

/** Who waits to lead. */
export interface Candidate {
  holder: string
  priority: number
  since: Date
  meta: unknown
}

/** Without news. */
const POLL_MS = 1_000
/** With news: in case something was missed all the same. */
const LOOK_AGAIN_MS = 30_000
const MOST_BEHIND = 64
/** Of all observers together. A state has 4 KiB of meta at most. */
const MOST_KEPT = 1_024

interface Row {
  holder: string | null
  token: string
  granted_at: Date
  expires_at: Date
  ttl_ms: number
  meta: unknown
  revision: string
  lives_ms: number | null
}
/** `livesMs`: by the database's clock, until the term ends unless it is renewed; null without a leader. */
type Seen = ElectionState & { livesMs: number | null }

export class Watches {
  readonly #database: Database
  readonly #notifier: ElectionNotifier
  readonly #watches = new Map<string, Watch>()
  readonly #backlogs = new Set<Backlog>()
  readonly #look: (name: string) => Promise<Seen>

  constructor(database: Database, news: ElectionNotifier) {
    this.#database = database
    this.#notifier = news
    this.#look = batched(
      (names) => this.#lookAll(names),
      (name) => name,
      200,
    )
  }

  /** Who leads, and for how long. One statement; those asked for at a time share it. */
  look(name: string): Promise<Seen> {
    return this.#look(name)
  }

  /** Who waits, in the order of their turns. */
  candidates(name: string): Promise<Candidate[]> {
    return this.#database.control<Candidate>(sql`select * from lockstep.candidates(${ELECTIONS.prefix + name})`)
  }

  /** The latest state first, then every change, until `stop` aborts: then its reason is thrown. */
  async *observe(name: string, stop: AbortSignal): AsyncGenerator<ElectionState, never, void> {
    stop.throwIfAborted()
    const backlog = new Backlog(this.#backlogs)
    const watch = this.#watches.get(name) ?? this.#open(name)
    // Now, and not when somebody asks for the next state: perhaps nobody does any more.
    const onStop = () => {
      backlog.fail(stop.reason)
      watch.leave(backlog)
    }
    stop.addEventListener('abort', onStop)
    watch.join(backlog)
    try {
      for (;;) yield await backlog.next()
    } finally {
      watch.leave(backlog)
      backlog.drop()
      stop.removeEventListener('abort', onStop)
    }
  }

  #open(name: string): Watch {
    const watch = new Watch(name, this.#look, this.#notifier, () => {
      if (this.#watches.get(name) === watch) this.#watches.delete(name)
    })
    this.#watches.set(name, watch)
    return watch
  }

  async #lookAll(names: string[]): Promise<Seen[]> {
    const elections = names.map((name) => ELECTIONS.prefix + name)
    const rows = await this.#database.control<Row>(sql`select * from lockstep.leaders(${list(elections, 'text')})`)
    return rows.map((row, i) => ({
      name: names[i] as string,
      leader: leaderOf(row),
      revision: BigInt(row.revision),
      livesMs: row.lives_ms,
    }))
  }
}

/** One election, for all its observers here. */
class Watch {
  readonly #name: string
  readonly #look: (name: string) => Promise<Seen>
  readonly #backlogs = new Set<Backlog>()
  readonly #waker = new Waker()
  readonly #notifier: ElectionNotifier
  readonly #unsubscribe: () => void
  readonly #over: () => void
  #latest: ElectionState | undefined
  /** When the lease that is known was, and how long it lives from then. */
  #known: { at: Stopwatch; livesMs: number } | undefined
  #told = false // since the wait began, by news that said it all
  #missed = false // there was news, and it has to be looked up

  constructor(name: string, look: (name: string) => Promise<Seen>, news: ElectionNotifier, over: () => void) {
    this.#name = name
    this.#look = look
    this.#notifier = news
    this.#over = over
    this.#unsubscribe = news.on(name, (told) => this.#hear(told))
  }

  join(backlog: Backlog): void {
    this.#backlogs.add(backlog)
    if (this.#latest) backlog.push(this.#latest)
    else if (this.#backlogs.size === 1) void this.#run()
  }

  leave(backlog: Backlog): void {
    if (this.#backlogs.delete(backlog) && this.#backlogs.size === 0) this.#end()
  }

  #end(): void {
    this.#over()
    this.#unsubscribe()
    this.#waker.wake()
  }

  async #run(): Promise<void> {
    for (let pauseMs = 50; this.#backlogs.size > 0; ) {
      this.#missed = false
      try {
        const at = new Stopwatch()
        const { livesMs, ...seen } = await this.#look(this.#name)
        this.#known = livesMs === null ? undefined : { at, livesMs }
        this.#offer(seen, true)
        pauseMs = 50
      } catch (error) {
        if (!this.#latest) {
          this.#end() // who comes from now on looks anew
          for (const backlog of this.#backlogs) backlog.fail(error)
          return
        }
        await this.#waker.wait(pauseMs) // they know the latest that there was
        pauseMs = Math.min(pauseMs * 2, 2_000)
        continue
      }
      do {
        this.#told = false
        await this.#waker.wait(this.#left())
      } while (this.#told && !this.#missed)
    }
  }

  // Until it is time to look again.
  #left(): number {
    const lives = this.#known ? this.#known.livesMs - this.#known.at.elapsed() : Number.POSITIVE_INFINITY
    return Math.min(lives, this.#notifier.session ? LOOK_AGAIN_MS : POLL_MS)
  }

  #hear(told: Told | null): void {
    if (told?.revision === undefined || told.leader === undefined) {
      this.#missed = true
    } else {
      this.#told = true
      const { leader } = told
      this.#known = leader ? { at: new Stopwatch(), livesMs: leader.ttlMs } : undefined
      this.#offer(
        {
          name: this.#name,
          revision: BigInt(told.revision),
          leader: leader && {
            ...leader,
            token: BigInt(leader.token),
            grantedAt: new Date(leader.grantedAt),
            expiresAt: new Date(leader.expiresAt),
          },
        },
        false,
      )
    }
    this.#waker.wake()
  }

  // The same revision again is news when its lease ran out meanwhile.
  #offer(state: ElectionState, looked: boolean): void {
    const last = this.#latest
    if (last && state.revision < last.revision) return
    if (last && state.revision === last.revision && !(looked && (state.leader === null) !== (last.leader === null)))
      return
    this.#latest = state
    for (const backlog of this.#backlogs) backlog.push(state)
  }
}

/** What one observer has not seen yet. */
class Backlog {
  readonly #all: Set<Backlog>
  readonly #states: ElectionState[] = []
  #failure: { error: unknown } | undefined
  #waker = Promise.withResolvers<void>()

  /** @param all  that keep something. */
  constructor(all: Set<Backlog>) {
    this.#all = all
  }

  push(state: ElectionState): void {
    this.#states.push(state)
    this.#all.add(this)
    if (this.#states.length > MOST_BEHIND) this.#states.shift()
    // Where many are behind each keeps fewer, and the latest always.
    if (this.#all.size * MOST_BEHIND > MOST_KEPT) {
      const each = Math.max(1, Math.floor(MOST_KEPT / this.#all.size))
      if (this.#states.length > each) this.#states.splice(0, this.#states.length - each)
    }
    this.#waker.resolve()
  }

  drop(): void {
    this.#states.length = 0
    this.#all.delete(this)
  }

  fail(error: unknown): void {
    this.#failure = { error }
    this.#waker.resolve()
  }

  async next(): Promise<ElectionState> {
    for (;;) {
      if (this.#failure) throw this.#failure.error
      const state = this.#states.shift()
      if (this.#states.length === 0) this.#all.delete(this)
      if (state) return state
      this.#waker = Promise.withResolvers()
      await this.#waker.promise
    }
  }
}

function leaderOf(row: Row): Leader | null {
  if (row.holder === null) return null
  return {
    holder: row.holder,
    token: BigInt(row.token),
    grantedAt: row.granted_at,
    expiresAt: row.expires_at,
    ttlMs: row.ttl_ms,
    meta: row.meta,
  }
}
