/**
 * One direct connection of this process, and what it is for: session advisory locks, queueing for one, LISTEN.
 *
 * What a session has, it has until its connection ends; so everything turns on knowing the end in time. The end that
 * announces itself (process killed, server stopped, pid terminated) is known at once. A network that just goes silent
 * is not, nor is a process that is frozen: the client gives up after {@link TRUST_MS} without an answer, and the
 * server, told so at the start, {@link SERVER_GIVES_UP_MS} after the client was last heard of: the client always
 * first, so that nobody can be granted what a client still believes to hold (but by another server, after a fail-over),
 * and always at last, so that a frozen holder cannot keep a name for ever. Any answer counts; an idle session asks every
 * {@link HEARTBEAT_MS}.
 *
 * Session locks are re-entrant and belong to the whole connection. Who of this process has a name is therefore told
 * apart in lock/locks.ts, which never asks for a name twice on one session.
 *
 * Tries and releases are gathered into turns, which also set right what a failed statement left behind (lock-turns.ts).
 */
import type { RawBuilder } from 'kysely'
import type pg from 'pg'
import { fromDatabase, Stopwatch, UnavailableError } from '../base/index.ts'
import { announcedPid, type Database, run } from './database.ts'
import { LockTurns } from './lock-turns.ts'

const HEARTBEAT_MS = 2_000
const TRUST_MS = 8_000
const SERVER_GIVES_UP_MS = 15_000

/** What asking for a name with K in hand answers: the token, or how long until it is worth asking again. */
export type TakeResult = { token: bigint; waitMs: null } | { token: null; waitMs: number }

/** SQLSTATE of lockstep.check_backend. */
const ANOTHER_BACKEND = 'LS004'

/** What depends on a session. */
export interface Dependent {
  /** Called once, when the connection has ended or is no longer trusted. */
  connectionLost(error: Error): void
}

export class Session {
  /** The backend's pid. */
  readonly pid: number
  /** Whether everybody's tries go here; if not, it may wait. */
  readonly shared: boolean
  /** Why this session is over; undefined while it lives. */
  lost: Error | undefined

  readonly #client: pg.Client
  readonly #heartbeat: NodeJS.Timeout
  readonly #dependents = new Set<Dependent>()
  readonly #turns: LockTurns
  #answered: Stopwatch
  #queueing = false // blocked in the server's queue: no answer is due
  #beating = false
  readonly #listeners = new Map<string, (message: string) => void>()
  #witness: Promise<bigint> | undefined

  /** Opens a session, or answers `null` where a connection of one's own cannot be had. */
  static async open(database: Database, shared: boolean): Promise<Session | null> {
    const opened = new Stopwatch()
    const client = await database.direct()
    if (client === null) return null
    try {
      // tcp_user_timeout bounds unanswered data and keepalives alike, idle_session_timeout a process that stands still
      // (its kernel goes on answering); the check interval ends a queue place whose process has died.
      // The search path is a pinned one: what a tenant has put into `public` is not taken for a function of ours.
      // The planner's settings are those of the functions on leases (0001_lease.sql), set once instead of at every call.
      await client.query(
        `set search_path = pg_catalog, pg_temp; set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off;` +
          `set plan_cache_mode = force_generic_plan; set tcp_user_timeout = ${SERVER_GIVES_UP_MS}; set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5;` +
          `set client_connection_check_interval = 2000; set idle_session_timeout = ${SERVER_GIVES_UP_MS}; set statement_timeout = 0; set lock_timeout = 0`,
      )
    } catch (error) {
      client.end().catch(() => {})
      throw fromDatabase(error)
    }
    return new Session(client, opened, shared)
  }

  private constructor(client: pg.Client, opened: Stopwatch, shared: boolean) {
    this.#client = client
    this.shared = shared
    this.#answered = opened
    this.pid = announcedPid(client)
    this.#turns = new LockTurns(this.pid, {
      ask: (prepared, text, values) => this.#ask(prepared, text, values),
      witness: async () => this.#witness?.catch(() => undefined),
      end: (why) => this.#lose(why),
    })
    client.on('end', () => this.#lose(new UnavailableError('The connection has ended')))
    client.on('error', (error) => this.#lose(error))
    client.on('notification', ({ channel, payload }) => this.#listeners.get(channel)?.(payload ?? ''))
    this.#heartbeat = setInterval(() => this.#checkHeartbeat(), HEARTBEAT_MS / 4)
    this.#heartbeat.unref()
  }

  /** Whether what this session has may be believed now: compares clocks when called. */
  isTrusted(): boolean {
    return this.lost === undefined && (this.#queueing || this.#answered.elapsed() < TRUST_MS)
  }

  /** Tells this one of the end of the connection, at once if it is over already: an answer may arrive with its end. */
  attach(dependent: Dependent): void {
    if (this.lost) dependent.connectionLost(this.lost)
    else this.#dependents.add(dependent)
  }

  detach(dependent: Dependent): void {
    this.#dependents.delete(dependent)
  }

  /** Whether one more name may be tried without asking for {@link checkCapacity}. */
  get hasCapacity(): boolean {
    return this.#turns.hasCapacity
  }

  /** Whether there is room in the server's lock table for more names of this connection. */
  checkCapacity(): Promise<boolean> {
    return this.#turns.checkCapacity()
  }

  /** Tries to get K of a name and the name free: its token, or null. The caller does not have it yet. */
  try(name: string): Promise<bigint | null> {
    return this.#turns.try(name)
  }

  /** Gives up K of a name. When this resolves it is given up: in the worst case the connection was. */
  giveUp(name: string): Promise<void> {
    return this.#turns.giveUp(name)
  }

  /** Waits in the server's queue for K; `again`: gives it up first, and stands behind those who wait. */
  async queue(name: string, again: boolean): Promise<TakeResult> {
    this.#queueing = true
    try {
      this.#turns.markOwned(name) // until it is given up, which follows every failure
      const [row] = await this.#ask('lockstep_queue', 'select * from lockstep.queue($1, $2)', [name, again])
      // The answer may be as old as the wait. Ask once more before anything is believed.
      if (this.#answered.elapsed() > TRUST_MS / 2) await this.#ask('lockstep_beat', 'select 1', [])
      return takeResultOf(row)
    } finally {
      this.#queueing = false
    }
  }

  /** With K in hand: whether the name is free now. */
  async take(name: string): Promise<TakeResult> {
    const [row] = await this.#ask('lockstep_take', 'select * from lockstep.take($1)', [name])
    return takeResultOf(row)
  }

  /** Writes the row of a hold of this session, so that it can be fenced. */
  async register(name: string, holder: string, token: bigint, meta: unknown): Promise<void> {
    await this.#ask('lockstep_register', 'select lockstep.register($1, $2, $3, $4, $5)', [
      name,
      holder,
      token,
      meta === undefined ? null : JSON.stringify(meta),
      this.pid,
    ])
  }

  /** Any statement, on this connection. */
  run<R>(statement: RawBuilder<R>): Promise<R[]> {
    return this.#trusting(() => run(this.#client, statement))
  }

  /** Calls `wake` whenever a lease of this name is released, until {@link unlisten}. */
  async listen(name: string, wake: () => void): Promise<void> {
    const [row] = await this.#ask(undefined, 'select lockstep.listen($1)', [name])
    this.#listeners.set(row?.[0] as string, wake)
  }

  /** Stops listening. Each listening backend makes every NOTIFY of the database dearer. */
  async unlisten(): Promise<void> {
    if (this.#listeners.size === 0) return
    this.#listeners.clear()
    await this.#ask(undefined, 'unlisten *', [])
  }

  /** Hears of everything that is told on a channel. */
  async subscribe(channel: string, hear: (message: string) => void): Promise<void> {
    this.#listeners.set(channel, hear)
    await this.#ask(undefined, `listen ${channel}`, [])
  }

  async unsubscribe(channel: string): Promise<void> {
    this.#listeners.delete(channel)
    await this.#ask(undefined, `unlisten ${channel}`, [])
  }

  /** The key of an advisory lock that this connection has: it is free when the connection has ended, and not before. */
  witness(): Promise<bigint> {
    if (!this.#witness) {
      const key = crypto.getRandomValues(new BigInt64Array(1))[0] as bigint
      this.#witness = this.#ask(undefined, 'select pg_advisory_lock($1)', [key]).then(() => key)
      this.#witness.catch(() => {
        this.#witness = undefined
      })
    }
    return this.#witness
  }

  /**
   * Waits until another connection has ended, by its {@link witness}. After a failure, a cancel too, this session may have
   * the lock: it is not to be used again.
   */
  async waitForEnd(witness: bigint): Promise<void> {
    this.#queueing = true
    try {
      await this.#ask(undefined, 'select pg_advisory_lock_shared($1), pg_advisory_unlock_shared($1)', [witness])
    } finally {
      if (!this.lost) await this.#ask('lockstep_beat', 'select 1', []).catch(() => {}) // its last answer may be old
      this.#queueing = false
    }
  }

  /** Ends the connection; whatever it had is free. */
  async end(): Promise<void> {
    this.#lose(new UnavailableError('The session was closed'))
    await this.#client.end().catch(() => {})
  }

  // Named prepared statements: this connection is direct, and they save a third of the server's time.
  async #ask(name: string | undefined, text: string, values: unknown[]): Promise<unknown[][]> {
    const { rows } = await this.#trusting(() =>
      this.#client.query({ ...(name && { name }), text, values, rowMode: 'array' }),
    )
    return rows
  }

  // An answer proves that the connection lived, and the server with it, when the question was asked.
  async #trusting<R>(ask: () => Promise<R>): Promise<R> {
    if (this.lost) throw this.lost
    const asked = new Stopwatch()
    try {
      const answer = await ask()
      if (this.lost) throw this.lost
      this.#answered = asked
      return answer
    } catch (error) {
      // What the server did not answer the network did; and a FATAL answer is its last. Either way this connection is
      // over, whether we have heard of its end yet or not.
      const { severity, code } = error as { severity?: string; code?: string }
      const over = severity === undefined || severity === 'FATAL' || severity === 'PANIC'
      if (over || code === ANOTHER_BACKEND) this.#lose(error)
      throw this.lost ?? fromDatabase(error)
    }
  }

  #checkHeartbeat() {
    if (this.#queueing) return
    const silent = this.#answered.elapsed()
    if (silent >= TRUST_MS) {
      this.#lose(new UnavailableError(`No answer from the database for ${Math.round(silent)} ms`))
    } else if (silent >= HEARTBEAT_MS && !this.#beating) {
      this.#beating = true
      this.#ask('lockstep_beat', 'select 1', [])
        .catch(() => {}) // its connection's end says the same
        .finally(() => {
          this.#beating = false
        })
    }
  }

  #lose(why: unknown): Error {
    if (this.lost) return this.lost
    const known = fromDatabase(why)
    const error =
      known instanceof UnavailableError ? known : new UnavailableError('The connection is lost', { cause: why })
    this.lost = error
    clearInterval(this.#heartbeat)
    const dependents = [...this.#dependents]
    this.#dependents.clear()
    for (const dependent of dependents) dependent.connectionLost(error)
    // the socket: a connection that no longer answers cannot be ended politely
    this.#client.connection?.stream?.destroy()
    return error
  }
}

function takeResultOf(row: unknown[] | undefined): TakeResult {
  const [token, waitMs] = row as [string | null, number | null]
  return token === null ? { token, waitMs: waitMs ?? 0 } : { token: BigInt(token), waitMs: null }
}
