/**
 * The database as Lockstep uses it: three kinds of connections, kept apart so that none can starve another.
 *
 * - **control** (at most 2): the verbs on leases. Their statements never wait for a lock, so a renewal or a release
 *   is never behind anything that waits. What arrives while a statement is in flight goes together in the next one
 *   (base/batch.ts): 64 callers cost one commit, not 64.
 * - **direct**: connections of one's own for session advisory locks and LISTEN (session.ts). Behind a transaction
 *   pooler both fail silently and let two holders in (PgBouncer 1.18: the second `pg_try_advisory_lock` also answers
 *   true), so {@link Database.direct} finds out first and answers `null` there. The proof is one comparison: the pid
 *   that the server announced when this connection was opened is the pid of the backend that answers. A pooler
 *   announces numbers of its own, because it must route cancel requests itself. (Asking twice whether two statements
 *   meet two backends proves nothing: an idle PgBouncer gives the same one again.)
 * - **the pool** (`kysely`): the user's own transactions.
 *
 * - **pools of a room's own** ({@link Database.pool}): statements that may wait for one another, of tasks and events.
 *
 * Where connections are scarcer than time (`shared`: a Lambda, a Worker) the limits stay apart, and the connections do not
 * (shared-pool.ts).
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import pg from 'pg'
import { CLOSE_MS, Closing, Deadline, fromDatabase, outOfRange, UnavailableError, wrongType } from '../base/index.ts'
import { type Clocked, ClockReader, type ClockReading } from './clock.ts'
import { allSettled, announcedPid, Pool, type PoolConfig } from './pool.ts'
import { clientWith, destroyConnection, PoolClients } from './pool-clients.ts'
import { type ServerFacts, whyReadOnly, whyUnsupported } from './server-facts.ts'

export {
  type AnyTransaction,
  type ClientInTransaction,
  checkTransaction,
  run,
  textOn,
  textWithin,
  within,
  XID,
} from './caller-transaction.ts'
export { announcedPid, type Pool } from './pool.ts'
export type { Tables } from './tables.ts'

export interface ConnectOptions {
  /** `postgres://user:password@host:port/database?…`, direct or through a transaction pooler. */
  connectionString: string
  /**
   * A way around the pooler, for session locks and LISTEN. `null`: never try (a Lambda, a Worker).
   * @default connectionString
   */
  directConnectionString?: string | null
  /** Connections for your own transactions, ≥ 1. @default 10 */
  max?: number
  /** Connections that may wait in the database's queues, ≥ 0; who finds none free polls. @default 8 */
  maxWaiting?: number
  /**
   * Asked at each new connection, instead of a password in connectionString: a secret that rotates, a token of IAM.
   * @default the one in connectionString
   */
  password?: () => string | Promise<string>
  /**
   * One pool for all statements of this process, so that they need one connection as long as they come one after another: for
   * a Lambda or a Worker, where each process serves one request. `max` and what the rooms may have besides is as before.
   * @default false: pools of their own
   */
  shared?: boolean
  /**
   * Every statement that reads calls a volatile function, so that no proxy answers it out of a cache (Cloudflare's Hyperdrive).
   * @default false
   */
  volatile?: boolean
  /** Seen in pg_stat_activity, and as the holder of a connection hold in `query`. @default 'lockstep' */
  applicationName?: string
}

/** The last migration that this code needs. */
export const SCHEMA = '0014_read'

const CONTROL_CONNECTIONS = 2
const CONNECT_TIMEOUT_MS = 5_000
// Control statements never wait, so one without an answer for this long is on a dead connection.
const CONTROL_TIMEOUT_MS = 5_000
// Longer than the default ttl: what renews or waits should not connect anew each time.
const CONTROL_IDLE_MS = 60_000
// Upkeep of a large table lasts; a dead connection must be found out all the same.
const POOL_TIMEOUT_MS = 30_000
// Of a shared pool: each share of it has a limit of its own.
const EVERYBODY = 1_000

export class Database {
  /** The pool for your own transactions. */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  readonly kysely: Kysely<any>
  /** The same. */
  readonly users: Pool
  readonly maxWaiting: number
  /** Hears of every reading of the database's clock that a statement brings back. */
  readonly clockReader = new ClockReader()
  readonly #control: Pool
  readonly #Client: typeof pg.Client
  readonly #client: pg.ClientConfig
  readonly #common: Omit<PoolConfig, 'max'>
  readonly #shared: PoolClients | undefined
  readonly #closing: Closing
  readonly #pools = new Set<Pool>()
  readonly #cancels = new Set<Promise<void>>()
  /** Connections of {@link direct} that are open. */
  readonly #direct = new Set<pg.Client>()
  #pooled: boolean
  #proved = false

  /** @param closing  once it is closed there are no transactions for users any more, and no direct connections. */
  constructor(options: ConnectOptions, closing = new Closing()) {
    if (typeof options !== 'object' || options === null) throw wrongType('options', 'an object', options)
    const { connectionString, directConnectionString = connectionString, max = 10, maxWaiting = 8 } = options
    if (typeof connectionString !== 'string' || connectionString === '') {
      throw wrongType('connectionString', 'a Postgres URL', connectionString)
    }
    for (const [field, value, min] of [
      ['max', max, 1],
      ['maxWaiting', maxWaiting, 0],
    ] as const) {
      if (!Number.isInteger(value) || value < min) throw outOfRange(field, `an integer ≥ ${min}`, value)
    }
    this.#Client = options.password ? clientWith(options.password) : pg.Client
    const common = {
      connectionString,
      Client: this.#Client,
      volatile: options.volatile ?? false,
      application_name: options.applicationName ?? 'lockstep',
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      keepAliveInitialDelayMillis: 5_000, // with Node's 10 probes a second apart: a dead peer is known after 15 s
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
      ? new PoolClients({ ...common, max: EVERYBODY, idleTimeoutMillis: CONTROL_IDLE_MS })
      : undefined
    this.#client = { ...common, connectionString: directConnectionString ?? connectionString, pipeline: true }
    this.users = new Pool({ ...common, max, remedy: 'raise `max`, or let transactions end sooner' }, this.#shared)
    this.kysely = this.users.kysely
    const control = { query_timeout: CONTROL_TIMEOUT_MS, idleTimeoutMillis: CONTROL_IDLE_MS }
    // One, where a second would be dearer than a moment's wait.
    const controls = options.shared ? 1 : CONTROL_CONNECTIONS
    this.#control = new Pool({ ...common, ...control, max: controls }, this.#shared)
  }

  /**
   * Runs a statement that never waits for a lock.
   * @throws {UnavailableError} the database cannot be asked; the outcome is unknown.
   */
  control<R>(statement: RawBuilder<R>): Promise<R[]> {
    return this.#control.run(statement)
  }

  /** As {@link control}, of a statement that selects CLOCK besides. */
  async controlWithClock<R>(statement: RawBuilder<unknown>): Promise<R[]> {
    const close = this.clockReader.observe()
    const rows = await this.control(statement as RawBuilder<R & Clocked>)
    close(rows[0])
    return rows
  }

  /** As {@link control}, for one row that brings back the clock. The clocks are read with the connection in hand. */
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
   * Connections of one's own for statements that may wait, or last: no lease depends on them. Ended by {@link drop}, or with all.
   * @param remedy  what to do if they are too few.
   */
  pool(max: number, remedy?: string): Pool {
    const config = { ...this.#common, max, query_timeout: POOL_TIMEOUT_MS }
    const pool = new Pool(remedy === undefined ? config : { ...config, remedy }, this.#shared)
    this.#pools.add(pool)
    return pool
  }

  /** Ends pools of {@link pool} when nothing is under way in them, at the latest when `late` resolves. */
  async drop(pools: Pool[], late: Promise<unknown>): Promise<void> {
    await Promise.all(pools.map((pool) => pool.close(late)))
    for (const pool of pools) this.#pools.delete(pool)
  }

  /**
   * Cancels what a backend waits for. Again and again until `ended`: a cancel that arrives before the statement does
   * is lost. When this resolves no cancel is under way any more.
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

  /** Whether it is known that no connection of one's own can be had here. */
  get pooled(): boolean {
    return this.#pooled
  }

  /**
   * A new connection of one's own, or `null` behind a transaction pooler.
   * @throws {UnavailableError} the database cannot be reached.
   */
  async direct(): Promise<pg.Client | null> {
    if (this.#pooled) return null
    this.#closing.check()
    const client = new this.#Client(this.#client)
    client.on('error', () => {}) // 'end' follows and is what counts
    this.#direct.add(client)
    client.once('end', () => this.#direct.delete(client))
    try {
      await client.connect()
      const { rows } = await client.query('select pg_catalog.pg_backend_pid() as pid')
      if (rows[0].pid === announcedPid(client)) return client
      this.#pooled = true
      await client.end()
      return null
    } catch (error) {
      client.end().catch(() => {})
      this.#closing.check() // we have cut it
      throw fromDatabase(error)
    }
  }

  /**
   * One statement: the database answers, is one that can be trusted (server-facts.ts), and has a schema for this code: not an older one than
   * it needs, nor a newer one that does not serve it any more (lockstep.oldest_code). The engine is proved once.
   *
   * @throws {UnavailableError} one sentence: what is not so.
   */
  async ready(): Promise<void> {
    const [engine] = await this.control<ServerFacts & { current: string | null; oldest: string }>(
      sql`select * from lockstep.engine(${!this.#proved})`,
    )
    if (!engine) throw new UnavailableError('The database did not answer')
    const { current, oldest } = engine
    const why = whyUnsupported(engine) ?? whyReadOnly(engine)
    if (why !== undefined) throw new UnavailableError(why)
    if (current === null || current < SCHEMA) {
      throw new UnavailableError(`The database has an older schema than ${SCHEMA}: run the migrations`)
    }
    if (oldest > SCHEMA) {
      throw new UnavailableError(
        `The database has the schema ${current}, which serves code of ${oldest} and later, and this is of ${SCHEMA}: deploy the newer version`,
      )
    }
    this.#proved = true
  }

  /**
   * Ends every connection. Sessions have to be ended before: what is left of {@link direct} nobody has yet. Statements and
   * transactions that are under way, and what follows from them, are waited for until `late` resolves, and then cut.
   */
  async close(late?: Promise<unknown>): Promise<void> {
    const deadline = new Deadline(CLOSE_MS)
    this.users.refuse()
    for (const client of this.#direct) destroyConnection(client)
    const pools = [this.users, this.#control, ...this.#pools]
    let over = false
    // What they were to cancel has ended with its session; they notice within 20 ms.
    const all = [...this.#cancels, allSettled(pools, () => over)]
    await Promise.race([Promise.all(all), late ?? deadline.over])
    over = true
    await Promise.all(pools.map((pool) => pool.end()))
    await this.#shared?.end()
    deadline.clear()
  }
}

/**
 * The code of an error, or of the cause of an {@link UnavailableError}, which is its SQLSTATE if the database said it; '' of what
 * has none: a handler may throw anything.
 */
export function sqlState(error: unknown): string {
  try {
    const told = error instanceof UnavailableError ? error.cause : error
    return String((told as { code?: unknown } | null | undefined)?.code ?? '')
  } catch {
    return ''
  }
}

type ArrayType = 'text' | 'integer' | 'bigint' | 'boolean' | 'uuid' | 'jsonb' | 'double precision'

/** An array parameter with its type, as our functions take them. Numbers are written here: pg quotes each, which takes longer. */
export const list = (values: readonly unknown[], type: ArrayType) =>
  sql`${PLAIN.has(type) ? `{${values.map((value) => value ?? 'NULL').join(',')}}` : values}::${sql.raw(type)}[]`
const PLAIN = new Set<ArrayType>(['integer', 'bigint', 'boolean', 'double precision'])

/** One property of many items, as an array parameter. */
export const column = <T>(items: readonly T[], type: ArrayType, of: (item: T) => unknown) => list(items.map(of), type)
