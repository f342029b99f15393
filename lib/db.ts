/**
 * The database as Lockstep uses it: three kinds of connections, kept apart so that none can starve another.
 *
 * - **control** (at most 2): the verbs on leases. Their statements never wait for a lock, so a renewal or a release
 *   is never behind anything that waits. What arrives while a statement is in flight goes together in the next one
 *   (batch.ts): 64 callers cost one commit, not 64.
 * - **direct**: connections of one's own for session advisory locks and LISTEN (session.ts). Behind a transaction
 *   pooler both fail silently and let two holders in (PgBouncer 1.18: the second `pg_try_advisory_lock` also answers
 *   true), so {@link Database.direct} finds out first and answers `null` there. The proof is one comparison: the pid
 *   that the server announced when this connection was opened is the pid of the backend that answers. A pooler
 *   announces numbers of its own, because it must route cancel requests itself. (Asking twice whether two statements
 *   meet two backends proves nothing: an idle PgBouncer gives the same one again.)
 * - **the pool** (`kysely`): the user's own transactions.
 *
 * Kysely gives a client back to its pool without the error that broke it, so after a network fault one query after
 * another would time out on the same dead client; {@link guarded} discards it. A checked-out client without an
 * 'error' listener ends the process when the server closes it; every client has one.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Kysely, PostgresDialect, type RawBuilder, sql, type Transaction } from 'kysely'
import pg from 'pg'
import { fromDatabase, outOfRange, UnavailableError, wrongType } from './errors.ts'

/** Our tables, for a Kysely of your own: `Kysely<YourTables & Tables>`. */
export interface Tables {
  'lockstep.lease': {
    name: string
    holder: string | null
    token: string
    granted_at: Date
    expires_at: Date
    ttl_ms: number | null
    meta: unknown
    revision: string | null
    witness: string | null
    deposed: boolean
    over_at: Date | null
  }
  'lockstep.candidate': {
    name: string
    holder: string
    priority: number
    place: string
    since: Date
    meta: unknown
    witness: string | null
    expires_at: Date
  }
}

/** An open transaction of yours: Kysely's, or a `pg` client between BEGIN and COMMIT. */
// biome-ignore lint/suspicious/noExplicitAny: a transaction over any tables will do
export type AnyTransaction = Transaction<any> | { query(text: string, values: unknown[]): Promise<{ rows: any[] }> }

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
  /** Seen in pg_stat_activity, and as the holder of a connection hold in `query`. @default 'lockstep' */
  applicationName?: string
}

/** The last migration that this code needs. */
export const SCHEMA = '0002_election'

const CONTROL_CONNECTIONS = 2
const CONNECT_TIMEOUT_MS = 5_000
// Control statements never wait, so one without an answer for this long is on a dead connection.
const CONTROL_TIMEOUT_MS = 5_000
// Longer than the default ttl: what renews or waits should not connect anew each time.
const CONTROL_IDLE_MS = 60_000

export class Database {
  /** The pool for your own transactions. */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  readonly kysely: Kysely<any>
  readonly maxWaiting: number
  readonly #control: Kysely<Tables>
  readonly #client: pg.ClientConfig
  #pooled: boolean

  constructor(options: ConnectOptions) {
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
    const common = {
      application_name: options.applicationName ?? 'lockstep',
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      keepAliveInitialDelayMillis: 5_000, // with Node's 10 probes a second apart: a dead peer is known after 15 s
    }
    this.maxWaiting = maxWaiting
    this.#pooled = directConnectionString === null
    this.#client = { ...common, connectionString: directConnectionString ?? connectionString, pipeline: true }
    this.kysely = over(new pg.Pool({ ...common, connectionString, max }))
    this.#control = over(
      new pg.Pool({
        ...common,
        connectionString,
        max: CONTROL_CONNECTIONS,
        query_timeout: CONTROL_TIMEOUT_MS,
        idleTimeoutMillis: CONTROL_IDLE_MS,
      }),
    )
  }

  /**
   * Runs a statement that never waits for a lock.
   * @throws {UnavailableError} the database cannot be asked; the outcome is unknown.
   */
  async control<R>(statement: RawBuilder<R>): Promise<R[]> {
    try {
      return (await statement.execute(this.#control)).rows
    } catch (error) {
      throw fromDatabase(error)
    }
  }

  /**
   * Cancels what a backend waits for. Again and again until `ended`: a cancel that arrives before the statement does
   * is lost. When this resolves no cancel is under way any more.
   */
  async cancel(pid: number, ended: () => boolean): Promise<void> {
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
    const client = new pg.Client(this.#client)
    client.on('error', () => {}) // 'end' follows and is what counts
    try {
      await client.connect()
      const { rows } = await client.query('select pg_backend_pid() as pid')
      if (rows[0].pid === announcedPid(client)) return client
      this.#pooled = true
      await client.end()
      return null
    } catch (error) {
      client.end().catch(() => {})
      throw fromDatabase(error)
    }
  }

  /** One statement: the database answers, and has at least the schema that this code needs. @throws {UnavailableError} */
  async ready(): Promise<void> {
    const [row] = await this.control<{ ready: boolean }>(
      sql`select exists (select from lockstep.migration where name >= ${SCHEMA}) as ready`,
    )
    if (!row?.ready) throw new UnavailableError(`The database has an older schema than ${SCHEMA}: run the migrations`)
  }

  /** Ends the pools. Connections from {@link direct} are their owners' to end. */
  async close(): Promise<void> {
    await Promise.all([this.kysely.destroy(), this.#control.destroy()])
  }
}

/** The pid that the server, or a pooler in its name, announced at login. Not in `pg`'s types. */
export const announcedPid = (client: pg.Client): number => (client as unknown as { processID: number }).processID

function over<T>(pool: pg.Pool): Kysely<T> {
  pool.on('error', () => {})
  pool.on('connect', (client) => {
    client.on('error', () => {})
  })
  return new Kysely<T>({ dialect: new PostgresDialect({ pool: guarded(pool) }) })
}

// A client that failed for any other reason than an answer of the server is not used again.
function guarded(pool: pg.Pool) {
  return {
    options: pool.options,
    end: () => pool.end(),
    async connect() {
      const client = await pool.connect()
      let broken: Error | undefined
      return {
        processID: announcedPid(client as unknown as pg.Client),
        // biome-ignore lint/suspicious/noExplicitAny: pg's overloads, passed through
        async query(...args: any[]) {
          try {
            // biome-ignore lint/suspicious/noExplicitAny: as above
            return await (client.query as any)(...args)
          } catch (error) {
            if (!(error instanceof pg.DatabaseError)) broken = error as Error
            throw error
          }
        },
        release: () => client.release(broken),
        // biome-ignore lint/suspicious/noExplicitAny: Kysely takes the structural subset that it uses
      } as any
    },
  }
}

/** Runs one statement inside a transaction of the user's, whoever's client it is. */
export async function within<R>(trx: AnyTransaction, statement: RawBuilder<R>): Promise<R[]> {
  if ('isTransaction' in trx) return (await statement.execute(trx)).rows
  const compiled = statement.compile(compiler)
  return (await trx.query(compiled.sql, [...compiled.parameters])).rows
}
const compiler = new Kysely<unknown>({ dialect: new PostgresDialect({ pool: async () => Promise.reject() }) })

/** An array parameter with its type, as our functions take them. */
export const list = (values: readonly unknown[], type: 'text' | 'integer' | 'bigint') =>
  sql`${values}::${sql.raw(type)}[]`

/** One property of many items, as an array parameter. */
export const column = <T>(items: readonly T[], type: 'text' | 'integer' | 'bigint', of: (item: T) => unknown) =>
  list(items.map(of), type)
