/**
 * A pool of connections that gives up those that are broken.
 *
 * Kysely gives a client back to its pool without the error that broke it, so after a network fault one query after another
 * would time out on the same dead client; {@link guarded} discards it. A checked-out client without an 'error' listener
 * ends the process when the server closes it; every client has one.
 */
import { Kysely, PostgresDialect, type RawBuilder, type Transaction } from 'kysely'
import pg from 'pg'
import { fromDatabase, UnavailableError } from './errors.ts'
import { Share, type Source, type Wait } from './share.ts'
import { type Connection, type Hand, Supervisor } from './supervise.ts'
import { volatile } from './volatile.ts'
import { knowXid } from './within.ts'

/** pg's pool, whose clients' errors end nothing. */
export function clients(config: pg.PoolConfig): pg.Pool {
  const pool = new pg.Pool(config)
  pool.on('error', () => {})
  pool.on('connect', (client) => {
    client.on('error', () => {})
  })
  return pool
}

/** A client that asks for its password. pg takes a connection string's, even an empty one, before a function. */
export function clientWith(password: () => string | Promise<string>): typeof pg.Client {
  return class extends pg.Client {
    constructor(config?: string | pg.ClientConfig) {
      super(config)
      Object.assign(this, { password })
    }
  }
}

export interface PoolConfig extends pg.PoolConfig {
  max: number
  /** Statements are made {@link volatile}. */
  volatile?: boolean
  /** What to do if its connections are too few, as in `raise this or that`. */
  remedy?: string
}

/** How a transaction of Lockstep's is had, whose work is a user's. Its connection is waited for as {@link Wait} says. */
export interface Supervision extends Wait {
  /** @default the role's */
  isolation?: 'read committed'
  /** Whether its id is asked for at its beginning; else `hand` is given it. @default true */
  identified?: boolean
  /**
   * Rejects when the work is to be left to itself: then its connection is cut, so that whoever still has `trx` can neither write
   * nor keep anything locked, and the pool has its place back.
   */
  severed?: Promise<never>
}

export class Pool {
  // biome-ignore lint/suspicious/noExplicitAny: ours, pg-boss's and the user's tables
  readonly kysely: Kysely<any>
  readonly #pool: Source
  readonly #query: (text: string, values?: unknown[]) => pg.QueryConfig
  #closed = false

  /** @param from  whose connections it has, at most `max` at a time; left out: its own. */
  constructor({ query_timeout, volatile: marked, remedy, ...config }: PoolConfig, from?: pg.Pool) {
    // Of a client the time limit would be everybody's who shares the connections; pg's types know none of a query.
    this.#query = (text, values) =>
      ({ text: marked ? volatile(text) : text, values, query_timeout }) as unknown as pg.QueryConfig
    this.#pool = new Share(from ?? clients(config), config.max, { owner: from === undefined, remedy })
    this.kysely = over(this.#pool, () => guarded(this.#pool, this.#query))
  }

  /** @throws {UnavailableError} the database cannot be asked; the outcome is unknown. */
  async run<R>(statement: RawBuilder<R>): Promise<R[]> {
    try {
      return (await statement.execute(this.kysely)).rows
    } catch (error) {
      throw this.#explained(error)
    }
  }

  /** Text that may hold several statements. The client that failed is not used again. @throws {UnavailableError} */
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  async query(text: string, values?: unknown[]): Promise<any> {
    try {
      return await this.#pool.query(this.#query(text, values))
    } catch (error) {
      throw this.#explained(error)
    }
  }

  /** READ COMMITTED. @throws {UnavailableError} */
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  async transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T> {
    try {
      return await this.kysely.transaction().setIsolationLevel('read committed').execute(work)
    } catch (error) {
      throw this.#explained(error)
    }
  }

  /**
   * A transaction whose work is a user's, or a part of it: that goes through `hand` (supervise.ts).
   * @throws {UnavailableError} no connection could be had.
   * @throws {TransactionEndedError} the user's part has ended it. And what `work` throws, as it is; and the signal's reason.
   */
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  async supervised<T>(work: (trx: Transaction<any>, hand: Hand) => Promise<T>, how: Supervision = {}): Promise<T> {
    const { isolation, identified = true, severed, ...wait } = how
    if (this.#closed) throw new UnavailableError('Lockstep was closed')
    const client = await guarded(this.#pool, this.#query, wait)
    const supervisor = new Supervisor(client, identified)
    let ended = false
    severed?.catch(() => ended || client.sever())
    try {
      const query: Guarded['query'] = (text, values) => supervisor.query(text, values)
      const kysely = over(this.#pool, async () => ({ ...client, query, release: () => {} }))
      const begun = isolation ? kysely.transaction().setIsolationLevel(isolation) : kysely.transaction()
      return await begun.execute((trx) => {
        if (supervisor.xid !== undefined) knowXid(trx, supervisor.xid)
        const hand: Hand = (theirs, xid) => {
          if (xid !== undefined) knowXid(trx, xid)
          return supervisor.hand(theirs, xid)
        }
        const working = work(trx, hand)
        if (!severed) return working
        working.catch(() => {}) // left to itself, perhaps
        return Promise.race([working, severed])
      })
    } catch (error) {
      throw supervisor.explained(error)
    } finally {
      ended = true
      client.release()
    }
  }

  close(): Promise<void> {
    this.#closed = true
    return this.kysely.destroy()
  }

  // A Kysely that is destroyed while it is used for the first time fails with a TypeError.
  #explained(error: unknown): unknown {
    const known = fromDatabase(error)
    if (!this.#closed || !(known instanceof TypeError)) return known
    return new UnavailableError('Lockstep was closed', { cause: error })
  }
}

/** The pid that the server, or a pooler in its name, announced at login. Not in `pg`'s types. */
export const announcedPid = (client: pg.Client): number => (client as unknown as { processID: number }).processID

interface Guarded extends Connection {
  processID: number
  release(): void
  /** Cuts the connection. */
  sever(): void
}

// A client that failed for any other reason than an answer of the server is not used again.
async function guarded(
  pool: Source,
  query: (text: string, values?: unknown[]) => pg.QueryConfig,
  wait?: Wait,
): Promise<Guarded> {
  const client = await pool.connect(wait).catch((error) => {
    throw wait?.signal?.aborted ? error : unreachable(error)
  })
  let broken: Error | undefined
  return {
    processID: announcedPid(client as unknown as pg.Client),
    async query(text, values, single) {
      try {
        const config = query(text, values as unknown[])
        return await client.query(single ? ({ ...config, queryMode: 'extended' } as pg.QueryConfig) : config)
      } catch (error) {
        if (!(error instanceof pg.DatabaseError)) broken = error as Error
        throw error
      }
    },
    status: () => client.getTransactionStatus(),
    release: () => client.release(broken),
    sever() {
      broken ??= new Error('The transaction was left to itself')
      ;(client as unknown as pg.Client).connection?.stream?.destroy()
    },
  }
}

// Whatever it is that kept a connection from being made: each runtime says it in its own words.
function unreachable(error: unknown): unknown {
  const known = fromDatabase(error)
  if (known instanceof UnavailableError || known instanceof pg.DatabaseError) return known
  return new UnavailableError('The database cannot be reached', { cause: error })
}

function over(pool: Source, connect: () => Promise<Guarded>) {
  const { options } = pool
  // biome-ignore lint/suspicious/noExplicitAny: Kysely takes the structural subset that it uses
  const subset: any = { options, connect, end: () => pool.end() }
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  return new Kysely<any>({ dialect: new PostgresDialect({ pool: subset }) })
}
