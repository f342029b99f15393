/**
 * One direct connection of this process, for session advisory locks, for waiting in their queues, and for LISTEN.
 *
 * A session has its locks until its connection ends. So both sides must learn of the end in time. Often the end is visible at
 * once: the process was killed, the server was stopped, the backend was terminated. A network that goes silent, or a process that
 * is frozen, is not. For these there are two limits. The client gives up {@link TRUST_MS} after the last answer. The server
 * ends the connection {@link SERVER_GIVES_UP_MS} after it last heard from the client; the session asks it to by settings when
 * it opens. The client is always first: so nobody can be granted a name that a client still trusts to hold (except by
 * another server, after a fail-over). And the server always gives up in the end: so a frozen holder cannot keep a name for
 * ever. Every answer counts; a silent session sends a heartbeat every {@link SESSION_HEARTBEAT_MS}, one that only listens less often.
 *
 * Session locks are re-entrant, and they belong to the whole connection. So the server cannot tell two callers of one session
 * apart. lock/locks.ts does that, and never asks for a name twice on one session.
 *
 * Tries and releases are gathered into turns, which also recover from a failed statement (lock-turns.ts).
 */
import type { RawBuilder } from 'kysely'
import type pg from 'pg'
import { endsConnection, fromDatabase, isReadOnly, SQLSTATE, Stopwatch, UnavailableError } from '../base/index.ts'
import { compiled } from './caller-transaction.ts'
import type { Database } from './database.ts'
import type { Dependent } from './dependent.ts'
import { KeepAlive } from './keep-alive.ts'
import { LockTurns } from './lock-turns.ts'
import { PARSERS } from './parsers.ts'
import { announcedPid } from './proxies.ts'
import { Readiness } from './readiness.ts'
import { settingsOfSessions } from './settings.ts'
import { type TakeResult, takeResultOf } from './take-result.ts'

const SESSION_HEARTBEAT_MS = 2_000
/** Before trust ends there is time for one answer. */
const LISTENING_HEARTBEAT_MS = 5_000
const TRUST_MS = 8_000
const SERVER_GIVES_UP_MS = 15_000

export class Session {
  /** The pid of the server's backend. */
  readonly pid: number
  /** Whether it is the shared session; if not, it may wait. */
  readonly shared: boolean
  /** Why this session has ended; undefined while it lives. */
  lost: Error | undefined
  /** What keeps the process alive through this connection. */
  readonly users: KeepAlive

  readonly #client: pg.Client
  readonly #heartbeat: NodeJS.Timeout
  readonly #dependents = new Set<Dependent>()
  readonly #turns: LockTurns
  #answered: Stopwatch
  #queueing = false // blocked in the server's lock queue: no answer is expected
  #beating = false
  #readOnly = false // it has refused to write
  readonly #listeners = new Map<string, (message: string) => void>()
  #witness: Promise<bigint> | undefined
  readonly #readiness: Readiness

  /** Opens a session; `null`: there can be no direct connection. */
  static async open(database: Database, shared: boolean): Promise<Session | null> {
    const opened = new Stopwatch()
    const client = await database.direct()
    if (client === null) return null
    try {
      await client.query(settingsOfSessions(SERVER_GIVES_UP_MS))
    } catch (error) {
      client.end().catch(() => {})
      throw fromDatabase(error)
    }
    return new Session(client, opened, shared)
  }

  private constructor(client: pg.Client, opened: Stopwatch, shared: boolean) {
    this.#client = client
    this.shared = shared
    this.users = new KeepAlive(client)
    this.#answered = opened
    this.pid = announcedPid(client)
    this.#turns = new LockTurns(this.pid, {
      ask: (prepared, text, values) => this.#ask(prepared, text, values),
      witness: async () => this.#witness?.catch(() => undefined),
      end: (why) => this.#lose(why),
    })
    client.on('end', () => this.#lose(new UnavailableError('The connection has ended')))
    client.on('error', (error) => this.#lose(error))
    this.#readiness = new Readiness(client)
    client.on('notification', ({ channel, payload }) => this.#listeners.get(channel)?.(payload ?? ''))
    this.#heartbeat = setInterval(() => this.#checkHeartbeat(), SESSION_HEARTBEAT_MS / 4)
    this.#heartbeat.unref()
  }

  /** Whether the locks of this session may be trusted now: compares clocks when called. */
  isTrusted(): boolean {
    return this.lost === undefined && (this.#queueing || this.#answered.elapsed() < TRUST_MS)
  }

  /** Whether another session should replace it: it has refused to write, as a new one may not (pool.ts), and holds nothing. */
  get outdated(): boolean {
    return this.#readOnly && this.#holdsNothing
  }

  get #holdsNothing(): boolean {
    return this.#turns.idle && ![...this.#dependents].some(({ listens }) => !listens)
  }

  /**
   * Reports the end of the connection to `dependent`; at once, if it has ended: an answer may arrive together with the end.
   * @param alive  whether it keeps the process alive, as a hold does.
   */
  attach(dependent: Dependent, alive = true): void {
    if (this.lost) dependent.connectionLost(this.lost)
    else this.#dependents.add(dependent)
    if (alive && !this.lost) this.users.add(dependent)
  }

  detach(dependent: Dependent): void {
    this.#dependents.delete(dependent)
    this.users.delete(dependent)
  }

  /** Whether another name may be tried without a call of {@link checkCapacity}. */
  get hasCapacity(): boolean {
    return this.#turns.hasCapacity
  }

  /** Asks whether the server's lock table has space for more names of this connection. */
  checkCapacity(): Promise<boolean> {
    return this.#turns.checkCapacity()
  }

  /** Tries to get K of a name that is free. @returns its token; null: it is not free. The caller must not have it already. */
  try(name: string): Promise<bigint | null> {
    return this.#turns.try(name)
  }

  /** Gives up K of a name. It is free when this resolves: in the worst case because the connection has ended. */
  giveUp(name: string): Promise<void> {
    return this.#turns.giveUp(name)
  }

  /** Waits in the server's lock queue for K. @param again  gives K up first, and queues behind all that wait. */
  async queue(name: string, again: boolean): Promise<TakeResult> {
    this.#queueing = true
    try {
      this.#turns.markOwned(name) // until it is given up, as it is after every failure
      const [row] = await this.#ask('lockstep_queue', 'select * from lockstep.queue($1, $2)', [name, again])
      // The answer may be as old as the wait. Ask again before anything is trusted.
      if (this.#answered.elapsed() > TRUST_MS / 2) await this.#ask('lockstep_beat', 'select 1', [])
      return takeResultOf(row)
    } finally {
      this.#queueing = false
    }
  }

  /** Asks whether the name is free now; the session must have K. */
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

  /** Runs any statement on this connection. */
  run<R>(statement: RawBuilder<R>): Promise<R[]> {
    return this.#trusting(async () => (await this.#client.query({ ...compiled(statement), types: PARSERS })).rows)
  }

  /** Calls `wake` each time a lease of this name is released, until {@link unlisten}. */
  async listen(name: string, wake: () => void): Promise<void> {
    const [row] = await this.#ask(undefined, 'select lockstep.listen($1)', [name])
    this.#listeners.set(row?.[0] as string, wake)
  }

  /** Stops listening: each listening backend makes every NOTIFY of the database slower. */
  async unlisten(): Promise<void> {
    if (this.#listeners.size === 0) return
    this.#listeners.clear()
    await this.#ask(undefined, 'unlisten *', [])
  }

  /** Calls `hear` with each message of a channel, until {@link unsubscribe}. */
  async subscribe(channel: string, hear: (message: string) => void): Promise<void> {
    this.#listeners.set(channel, hear)
    await this.#ask(undefined, `listen ${channel}`, [])
  }

  /** Stops listening to a channel. */
  async unsubscribe(channel: string): Promise<void> {
    this.#listeners.delete(channel)
    await this.#ask(undefined, `unlisten ${channel}`, [])
  }

  /**
   * The key of the witness: an advisory lock that this connection takes at the first call and keeps until it ends. Another
   * connection that gets the lock knows that this one has ended.
   */
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
   * Waits until another connection has ended, by its {@link witness}. After a failure (also after a cancel) this session may have
   * that lock, so it must not be used again.
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

  /** Ends the connection. All its locks are free then. */
  async end(): Promise<void> {
    this.#lose(new UnavailableError('The session was closed'))
    await this.#client.end().catch(() => {})
  }

  // Prepared statements with names: the connection is direct, so they work, and they save a third of the server's time.
  async #ask(name: string | undefined, text: string, values: unknown[]): Promise<unknown[][]> {
    const { rows } = await this.#trusting(() =>
      this.#client.query({ ...(name && { name }), text, values, rowMode: 'array', types: PARSERS }),
    )
    return rows
  }

  // An answer proves that the connection and the server lived when the statement was sent.
  async #trusting<R>(ask: () => Promise<R>): Promise<R> {
    if (this.lost) throw this.lost
    const asked = new Stopwatch()
    const ready = this.#readiness.sending()
    this.users.add(asked)
    try {
      const answer = await ask()
      if (this.lost) throw this.lost
      this.#answered = asked
      return answer
    } catch (error) {
      if (endsConnection(error) || (error as { code?: string }).code === SQLSTATE.wrongBackend) this.#lose(error)
      else if (!(await ready())) this.#lose(error)
      if (isReadOnly(error)) this.#readOnly = true
      throw this.lost ?? fromDatabase(error)
    } finally {
      this.users.delete(asked)
    }
  }

  #checkHeartbeat() {
    if (this.#queueing) return
    const silent = this.#answered.elapsed()
    if (silent >= TRUST_MS) {
      this.#lose(new UnavailableError(`No answer from the database for ${Math.round(silent)} ms`))
    } else if (silent >= this.#heartbeatMs && !this.#beating) {
      this.#beating = true
      this.#ask('lockstep_beat', 'select 1', [])
        .catch(() => {}) // the end of the connection is reported separately
        .finally(() => {
          this.#beating = false
        })
    }
  }

  get #heartbeatMs(): number {
    return this.#holdsNothing && !this.#witness ? LISTENING_HEARTBEAT_MS : SESSION_HEARTBEAT_MS
  }

  #lose(why: unknown): Error {
    if (this.lost) return this.lost
    const known = fromDatabase(why)
    const error =
      known instanceof UnavailableError ? known : new UnavailableError('The connection is lost', { cause: why })
    this.lost = error
    this.#readiness.end()
    clearInterval(this.#heartbeat)
    const dependents = [...this.#dependents]
    this.#dependents.clear()
    for (const dependent of dependents) dependent.connectionLost(error)
    // Destroy the socket: a connection that does not answer cannot be ended by the protocol.
    this.#client.connection?.stream?.destroy()
    return error
  }
}
