/**
 * One direct connection of this process, and what it is for: session advisory locks, queueing for one, LISTEN.
 *
 * What a session has, it has until its connection ends; so everything turns on knowing the end in time. The end that
 * announces itself (process killed, server stopped, pid terminated) is known at once. A network that just goes silent
 * is not, nor is a process that is frozen: the client gives up after {@link TRUST_MS} without an answer, and the
 * server, told so at the start, {@link SERVER_GIVES_UP_MS} after the client was last heard of: the client always
 * first, so that nobody can be granted what a client still believes to hold (but by another server, after a fail-over),
 * and always at last, so that a frozen holder cannot keep a name for ever. Any answer counts; an idle session asks every
 * {@link BEAT_MS}.
 *
 * Session locks are re-entrant and belong to the whole connection. Who of this process has a name is therefore told
 * apart in lock.ts, which never asks for a name twice on one session.
 *
 * Tries and releases are gathered into turns: one statement each way for all that came while the last was under way.
 */
import type { RawBuilder } from 'kysely'
import type pg from 'pg'
import { announcedPid, type Database, within } from './db.ts'
import { fromDatabase, UnavailableError } from './errors.ts'
import { Moment } from './trust.ts'

const BEAT_MS = 2_000
const TRUST_MS = 8_000
const SERVER_GIVES_UP_MS = 15_000

/** What asking for a name with K in hand answers: the token, or how long until it is worth asking again. */
export type Place = { token: bigint; waitMs: null } | { token: null; waitMs: number }

type Try = { name: string; resolve: (token: bigint | null) => void; reject: (error: unknown) => void }
/** What lockstep.turn answers. */
type Turn = [base: string | null, refused: number[] | null, taken: number[] | null, tokens: string[]]
/** Names in one turn: as many as share a block of tokens. */
const TURN = 32

/** SQLSTATE of lockstep.check_backend. */
const ANOTHER_BACKEND = 'LS004'

type Release = { name: string; resolve: () => void }

export class Session {
  /** The backend's pid. */
  readonly pid: number
  /** Whether everybody's tries go here; if not, it may wait. */
  readonly shared: boolean
  /** Told once, when the connection has ended or is no longer trusted. */
  readonly dependents = new Set<{ connectionLost(error: Error): void }>()
  /** Why this session is over; undefined while it lives. */
  lost: Error | undefined

  readonly #client: pg.Client
  readonly #beat: NodeJS.Timeout
  #answered: Moment
  #queueing = false // blocked in the server's queue: no answer is due
  #tries: Try[] = []
  #releases: Release[] = []
  #turns = 0 // under way
  #soon = false
  #beating = false
  readonly #ears = new Map<string, (message: string) => void>()
  #witness: Promise<bigint> | undefined

  /** Opens a session, or answers `null` where a connection of one's own cannot be had. */
  static async open(database: Database, shared: boolean): Promise<Session | null> {
    const opened = new Moment()
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

  private constructor(client: pg.Client, opened: Moment, shared: boolean) {
    this.#client = client
    this.shared = shared
    this.#answered = opened
    this.pid = announcedPid(client)
    client.on('end', () => this.#lose(new UnavailableError('The connection has ended')))
    client.on('error', (error) => this.#lose(error))
    client.on('notification', ({ channel, payload }) => this.#ears.get(channel)?.(payload ?? ''))
    this.#beat = setInterval(() => this.#keepUp(), BEAT_MS / 4)
    this.#beat.unref()
  }

  /** Whether what this session has may be believed now: compares clocks when called. */
  isTrusted(): boolean {
    return this.lost === undefined && (this.#queueing || this.#answered.elapsed() < TRUST_MS)
  }

  /** Tries to get K of a name and the name free: its token, or null. The caller does not have it yet. */
  try(name: string): Promise<bigint | null> {
    return new Promise((resolve, reject) => {
      this.#tries.push({ name, resolve, reject })
      this.#turnSoon()
    })
  }

  /** Gives up K of a name. A lost session has none: then this is done already. */
  giveUp(name: string): Promise<void> {
    return new Promise((resolve) => {
      this.#releases.push({ name, resolve })
      this.#turnSoon()
    })
  }

  /** Waits in the server's queue for K; `again`: gives it up first, and stands behind those who wait. */
  async queue(name: string, again: boolean): Promise<Place> {
    this.#queueing = true
    try {
      const [row] = await this.#ask('lockstep_queue', 'select * from lockstep.queue($1, $2)', [name, again])
      // The answer may be as old as the wait. Ask once more before anything is believed.
      if (this.#answered.elapsed() > TRUST_MS / 2) await this.#ask('lockstep_beat', 'select 1', [])
      return placeOf(row)
    } finally {
      this.#queueing = false
    }
  }

  /** With K in hand: whether the name is free now. */
  async take(name: string): Promise<Place> {
    const [row] = await this.#ask('lockstep_take', 'select * from lockstep.take($1)', [name])
    return placeOf(row)
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
    return this.#trusting(() => within(this.#client, statement))
  }

  /** Calls `wake` whenever a lease of this name is released, until {@link unlisten}. */
  async listen(name: string, wake: () => void): Promise<void> {
    const [row] = await this.#ask(undefined, 'select lockstep.listen($1)', [name])
    this.#ears.set(row?.[0] as string, wake)
  }

  /** Stops listening. Each listening backend makes every NOTIFY of the database dearer. */
  async unlisten(): Promise<void> {
    if (this.#ears.size === 0) return
    this.#ears.clear()
    await this.#ask(undefined, 'unlisten *', [])
  }

  /** Hears of everything that is told on a channel. */
  async subscribe(channel: string, hear: (message: string) => void): Promise<void> {
    this.#ears.set(channel, hear)
    await this.#ask(undefined, `listen ${channel}`, [])
  }

  async unsubscribe(channel: string): Promise<void> {
    this.#ears.delete(channel)
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

  /** Waits until another connection has ended, by its {@link witness}. */
  async outlive(witness: bigint): Promise<void> {
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

  // A turn goes when none is under way; a second one beside it when it is worth its while, so that the server works on
  // one while we work on the other.
  #turnSoon() {
    const many = this.#tries.length + this.#releases.length >= TURN / 4
    if (this.#soon || this.#turns >= (many ? 2 : 1)) return
    this.#soon = true
    queueMicrotask(() => {
      this.#soon = false
      void this.#turn()
    })
  }

  async #turn() {
    this.#turns++
    const tries = this.#tries.splice(0, TURN)
    const releases = this.#releases.splice(0, TURN)
    const names = tries.map((t) => t.name)
    try {
      const [first] = tries
      if (first && tries.length === 1 && releases.length === 0) {
        const [row] = await this.#ask('lockstep_try', 'select lockstep.try($1, $2)', [first.name, this.pid])
        first.resolve(row?.[0] == null ? null : BigInt(row[0] as string))
      } else if (tries.length === 0 && releases.length === 1) {
        await this.#ask('lockstep_give_up', 'select pg_advisory_unlock(lockstep.key($1))', [releases[0]?.name])
        releases[0]?.resolve()
      } else {
        await this.#turnOf(tries, releases)
      }
    } catch (error) {
      // Of a failed turn some tries may have K: session locks outlive the statement. Unlocking too much only warns.
      if (!this.lost) {
        const all = [...names, ...releases.map((r) => r.name)]
        await this.#ask(undefined, 'select lockstep.turn($1, $2, $3)', [all, [], this.pid]).catch((e) => this.#lose(e))
      }
      for (const { reject } of tries) reject(error)
      for (const release of releases) release.resolve() // a lost session has nothing either
    }
    this.#turns--
    if (this.#tries.length + this.#releases.length > 0) this.#turnSoon()
  }

  async #turnOf(tries: Try[], releases: Release[]) {
    const names = (calls: { name: string }[]) => calls.map((call) => call.name)
    const text = 'select * from lockstep.turn($1, $2, $3)'
    const [row] = await this.#ask('lockstep_turn', text, [names(releases), names(tries), this.pid])
    const [base, refused, taken, tokens] = row as Turn
    for (const release of releases) release.resolve()
    let token = BigInt(base ?? 0)
    for (const [k, { resolve }] of tries.entries()) {
      if (refused?.includes(k + 1)) resolve(null)
      else resolve(taken?.includes(k + 1) ? BigInt(tokens[taken.indexOf(k + 1)] as string) : token)
      token += 64n
    }
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
    const asked = new Moment()
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

  #keepUp() {
    if (this.#queueing) return
    const silent = this.#answered.elapsed()
    if (silent >= TRUST_MS) {
      this.#lose(new UnavailableError(`No answer from the database for ${Math.round(silent)} ms`))
    } else if (silent >= BEAT_MS && !this.#beating) {
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
    clearInterval(this.#beat)
    for (const dependent of this.dependents) dependent.connectionLost(error)
    this.dependents.clear()
    // the socket: a connection that no longer answers cannot be ended politely
    this.#client.connection?.stream?.destroy()
    return error
  }
}

function placeOf(row: unknown[] | undefined): Place {
  const [token, waitMs] = row as [string | null, number | null]
  return token === null ? { token, waitMs: waitMs ?? 0 } : { token: BigInt(token), waitMs: null }
}
