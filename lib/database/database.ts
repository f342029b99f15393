/**
 * The database connections of a Lockstep: four kinds, kept apart so that none can starve another.
 *
 * - **control** (at most 2): the verbs on leases. Their statements never wait for a lock, so a renewal or a release
 *   never waits behind a statement that does. Calls that arrive while a statement is in flight share the next one
 *   (base/batch.ts): 64 callers cost one commit, not 64.
 * - **direct**: connections outside of any pool, for session advisory locks and LISTEN (session.ts). Behind a transaction
 *   pooler both fail silently, and two holders would get one lock (PgBouncer 1.18: the second `pg_try_advisory_lock` also
 *   answers true). So {@link Database.direct} first tests the connection, and answers `null` behind a pooler. The test is one
 *   comparison: on a direct connection, the pid that the server announced at login is the pid of the backend that runs the
 *   statement. A pooler announces numbers of its own, because it must route cancel requests itself. (To compare the backends of
 *   two statements would prove nothing: an idle PgBouncer uses the same backend again.)
 * - **the users' pool** (`kysely`): the user's own transactions.
 * - **pools of the rooms** ({@link Database.pool}): statements of tasks and events, which may wait for each other.
 *
 * With `shared` (a Lambda, a Worker), where connections are scarce, each kind keeps its limit but all use the same connections
 * (shared-pool.ts).
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import pg from 'pg'
import { CLOSE_MS, Closing, Deadline, fromDatabase, notConnected, UnavailableError } from '../base/index.ts'
import { type Clocked, ClockReader, type ClockReading } from './clock.ts'
import { type ConnectOptions, checkedConnectOptions } from './connect-options.ts'
import { allSettled, Pool, type PoolConfig } from './pool.ts'
import { clientWith, destroyConnection, PoolClients } from './pool-clients.ts'
import { probeOf, whyUnfit } from './proxies.ts'
import { type ServerFacts, whyReadOnly, whyUnsupported } from './server-facts.ts'
import { greet } from './settings.ts'

/** The last migration that this code needs. */
export const SCHEMA = '0016_growth'

const CONTROL_CONNECTIONS = 2
const CONNECT_TIMEOUT_MS = 5_000
// Control statements never wait for a lock, so one without an answer for this long is on a dead connection.
const CONTROL_TIMEOUT_MS = 5_000
// Longer than the default ttl: a process that renews or polls should not open a new connection each time.
const CONTROL_IDLE_MS = 60_000
// Maintenance of a large table takes long; but a dead connection must be detected too.
const POOL_TIMEOUT_MS = 30_000
// The size of a shared pool: each pool that uses it has its own limit.
const SHARED_POOL_SIZE = 1_000

/** All connections of a Lockstep to its database. */
export class Database {
  /** A Kysely for the user's own transactions. */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  readonly kysely: Kysely<any>
  /** The pool of {@link kysely}. */
  readonly users: Pool
  /** How many connections may wait in the database's lock queues. */
  readonly maxWaiting: number
  /** Gets every reading of the database's clock. */
  readonly clockReader = new ClockReader()
  readonly #control: Pool
  readonly #Client: typeof pg.Client
  readonly #client: pg.ClientConfig
  readonly #common: Omit<PoolConfig, 'max'>
  readonly #shared: PoolClients | undefined
  readonly #closing: Closing
  readonly #pools = new Set<Pool>()
  readonly #cancels = new Set<Promise<void>>()
  /** The open connections of {@link direct}. */
  readonly #direct = new Set<pg.Client>()
  #pooled: boolean
  #proved = false

  /** @param closing  after it is closed no user's transaction begins, and no direct connection is opened. */
  constructor(options: ConnectOptions, closing = new Closing()) {
    const { connectionString, directConnectionString, max, maxWaiting } = checkedConnectOptions(options)
    this.#Client = options.password ? clientWith(options.password) : pg.Client
    const common = {
      connectionString,
      Client: this.#Client,
      volatile: options.volatile ?? false,
      pooled: directConnectionString === null,
      application_name: options.applicationName ?? 'lockstep',
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      allowExitOnIdle: true, // a program that forgets `close()` can end
      keepAlive: true,
      keepAliveInitialDelayMillis: 5_000, // Node sends 10 probes a second apart: so a dead peer is detected after 15 s
    }
    this.maxWaiting = maxWaiting
    this.#closing = closing
    closing.signal.addEventListener('abort', () => {
      this.users.refuse()
      for (const pool of [this.#control, ...this.#pools]) pool.closing()
    })
    this.#pooled = directConnectionString === null
    this.#common = common
    this.#shared = options.shared
      ? new PoolClients({ ...common, max: SHARED_POOL_SIZE, idleTimeoutMillis: CONTROL_IDLE_MS }, 'both')
      : undefined
    this.#client = { ...common, connectionString: directConnectionString ?? connectionString, pipeline: true }
    const remedy = 'raise `max`, or let transactions end sooner'
    this.users = new Pool({ ...common, max, users: true, remedy }, this.#shared)
    this.kysely = this.users.kysely
    const control = { query_timeout: CONTROL_TIMEOUT_MS, idleTimeoutMillis: CONTROL_IDLE_MS }
    // With `shared`, a short wait is cheaper than a second connection.
    const controls = options.shared ? 1 : CONTROL_CONNECTIONS
    this.#control = new Pool({ ...common, ...control, max: controls }, this.#shared)
  }

  /**
   * Runs a statement that never waits for a lock.
   * @throws {UnavailableError} the database did not answer; the outcome is unknown.
   */
  control<R>(statement: RawBuilder<R>): Promise<R[]> {
    return this.#control.run(statement)
  }

  /** The same as {@link control}, for a statement that also selects CLOCK. The reading goes to {@link clockReader}. */
  async controlWithClock<R>(statement: RawBuilder<unknown>): Promise<R[]> {
    const close = this.clockReader.observe()
    const rows = await this.control(statement as RawBuilder<R & Clocked>)
    close(rows[0])
    return rows
  }

  /**
   * Runs a control statement that reads the database's clock in its one row. The local clocks are read when the connection is
   * there, so that the time until then does not count.
   */
  async readClock<R extends Clocked>(statement: RawBuilder<R>): Promise<{ row: R; reading: ClockReading }> {
    try {
      return await this.#control.kysely.connection().execute(async (connection) => {
        const close = this.clockReader.open()
        const row = (await statement.execute(connection)).rows[0] as R
        return { row, reading: close(row) as ClockReading }
      })
    } catch (error) {
      throw fromDatabase(error)
    }
  }

  /**
   * A separate pool for statements that may wait or take long: no lease depends on them. {@link drop} or {@link close} ends it.
   * @param remedy  the advice of the error when all its connections are in use.
   */
  pool(max: number, remedy?: string): Pool {
    const config = { ...this.#common, max, query_timeout: POOL_TIMEOUT_MS }
    const pool = new Pool(remedy === undefined ? config : { ...config, remedy }, this.#shared)
    this.#pools.add(pool)
    return pool
  }

  /** Ends pools of {@link pool} when no statement is under way in them, at the latest when `late` resolves. */
  async drop(pools: Pool[], late: Promise<unknown>): Promise<void> {
    await Promise.all(pools.map((pool) => pool.close(late)))
    for (const pool of pools) this.#pools.delete(pool)
  }

  /**
   * Cancels the statement of a backend, again and again until `ended`: a cancel that arrives before the statement is lost. When
   * this resolves no cancel is under way any more.
   */
  cancel(pid: number, ended: () => boolean): Promise<void> {
    const cancelling = this.#cancelUntil(pid, ended).finally(() => this.#cancels.delete(cancelling))
    this.#cancels.add(cancelling)
    return cancelling
  }

  async #cancelUntil(pid: number, ended: () => boolean): Promise<void> {
    while (!ended()) {
      await this.control(sql`select pg_cancel_backend(${pid})`).catch(() => {})
      if (!ended()) await sleep(20)
    }
  }

  /** Whether it is known that there can be no direct connection: the database is behind a pooler, or the options say so. */
  get pooled(): boolean {
    return this.#pooled
  }

  /**
   * Opens a direct connection; `null`: the database is behind a transaction pooler.
   * @throws {UnavailableError} the database cannot be reached, or what is in front of it is not supported (proxies.ts).
   */
  async direct(): Promise<pg.Client | null> {
    if (this.#pooled) return null
    this.#closing.check()
    const client = new this.#Client(this.#client)
    client.on('error', () => {}) // 'end' follows, and is handled
    this.#direct.add(client)
    client.once('end', () => this.#direct.delete(client))
    try {
      await client.connect()
      const facts = await greet(client)
      const { why } = await whyUnfit(probeOf(client), { facts })
      if (why !== undefined) throw new UnavailableError(why)
      if (facts.direct) return client
      this.#pooled = true
      await client.end()
      return null
    } catch (error) {
      client.end().catch(() => {})
      this.#closing.check() // the close has destroyed it
      throw notConnected(error)
    }
  }

  /**
   * Checks the database, by one statement: it answers, its server is supported (server-facts.ts), and its schema fits this code:
   * neither older than this code needs, nor so new that it does not support this code any more (lockstep.oldest_code). Whether the
   * server shows advisory locks, and what is in front of it (proxies.ts), is checked once.
   *
   * @throws {UnavailableError} one sentence that says what is wrong.
   */
  async ready(): Promise<void> {
    if (!this.#proved) {
      const unfit = await this.#control.whyUnfit()
      if (unfit !== undefined) throw new UnavailableError(unfit)
    }
    // A connection that can only be read, or leads to another server, may be an old one: the next call asks on a new one.
    await this.#control.check(sql<Engine>`select * from lockstep.engine(${!this.#proved})`, ([engine]) => {
      const why = engine ? whyNotReady(engine) : 'The database did not answer'
      return why === undefined ? undefined : new UnavailableError(why)
    })
    this.#proved = true
  }

  /**
   * Ends every connection. Sessions must be ended before: then the connections left of {@link direct} are those that are still being
   * opened. Statements and transactions that are under way, and statements that follow from them, are waited for until `late`
   * resolves; then their connections are destroyed.
   */
  async close(late?: Promise<unknown>): Promise<void> {
    const deadline = new Deadline(CLOSE_MS)
    this.users.refuse()
    for (const client of this.#direct) destroyConnection(client)
    const pools = [this.users, this.#control, ...this.#pools]
    let over = false
    // The statements to cancel have ended with their sessions; the cancels notice that within 20 ms.
    const all = [...this.#cancels, allSettled(pools, () => over)]
    await Promise.race([Promise.all(all), late ?? deadline.over])
    over = true
    await Promise.all(pools.map((pool) => pool.end()))
    await this.#shared?.end()
    deadline.clear()
  }
}

type Engine = ServerFacts & { current: string | null; oldest: string }

/** Why the database does not fit this code, in one sentence; undefined: it does. */
function whyNotReady(engine: Engine): string | undefined {
  const { current, oldest } = engine
  const why = whyUnsupported(engine) ?? whyReadOnly(engine)
  if (why !== undefined) return why
  if (current === null || current < SCHEMA) {
    return `The database has an older schema than ${SCHEMA}: run the migrations`
  }
  if (oldest > SCHEMA) {
    return `The database has the schema ${current}, which supports code of ${oldest} and later, and this code is of ${SCHEMA}: deploy the newer version`
  }
  return undefined
}
