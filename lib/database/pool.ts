/**
 * A connection pool that discards broken connections, and that can be ended.
 *
 * Kysely returns a client to its pool without the error that broke it. After a network fault one query after another would
 * time out on the same dead client; here it is discarded.
 *
 * ENDING is more than Kysely and pg can do. Kysely's `destroy` does nothing unless the Kysely was used. pg's `end` waits for
 * ever for a client in use; callers that wait for a client stay until their time limit; and a connection whose server has
 * stopped answering stays open. So this pool rejects new callers and waiting callers, destroys the connections in use, and
 * {@link PoolClients} knows each socket.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Kysely, PostgresDialect, type RawBuilder, type Transaction } from 'kysely'
import type pg from 'pg'
import { fromDatabase, notConnected } from '../base/index.ts'
import { rememberXid } from './caller-transaction.ts'
import { closed, type GuardedClient, guarded, metOldConnection } from './guarded-client.ts'
import { PARSERS } from './parsers.ts'
import { destroyConnection, PoolClients } from './pool-clients.ts'
import { PreparedNames } from './prepared.ts'
import { beginOnce, whyUnfit } from './proxies.ts'
import { type PoolSource, SharedPool, type Wait } from './shared-pool.ts'
import { type HowToQuery, type RunWork, SupervisedTransaction } from './supervised-transaction.ts'
import { uncached } from './uncached.ts'

export interface PoolConfig extends pg.PoolConfig {
  max: number
  /** Whether each statement is changed so that no proxy answers it from a cache (uncached.ts). @default false */
  volatile?: boolean
  /** Whether it is for the user's own statements: these have the user's parsers, and the settings of the role. @default false */
  users?: boolean
  /** Whether it is known that the database is behind a pooler. @default false: it is tested */
  pooled?: boolean
  /** The advice of the error when all connections are in use, as in `raise this or that`. */
  remedy?: string
}

/** Options of {@link Pool.supervised}. It waits for a connection as {@link Wait} says. */
export interface SupervisedOptions extends Wait {
  /** The isolation level. @default the default of the role */
  isolation?: 'read committed'
  /** Whether the transaction's id is read when it begins; if not, the work passes it to `runWork`. @default true */
  identified?: boolean
  /**
   * Rejects when the work is abandoned. Then its connection is destroyed: code that still has `trx` can neither write with it nor
   * keep anything locked, and the pool may open another connection.
   */
  abandoned?: Promise<never>
}

/** The work of a supervised transaction: the part of it that is the user's goes through `runWork`. */
// biome-ignore lint/suspicious/noExplicitAny: in any schema
export type SupervisedWork<T> = (trx: Transaction<any>, runWork: RunWork) => Promise<T>

export class Pool {
  // biome-ignore lint/suspicious/noExplicitAny: ours, pg-boss's and the user's tables
  readonly kysely: Kysely<any>
  readonly #source: PoolSource
  readonly #query: (text: string, values: unknown[] | undefined, how: HowToQuery) => pg.QueryConfig
  readonly #users: boolean
  readonly #cached: boolean
  readonly #names = new PreparedNames()
  /** The clients in use. */
  readonly #out = new Set<pg.PoolClient>()
  /** How to reject each caller that waits for a client. */
  readonly #asking = new Set<(error: unknown) => void>()
  #quiet = Promise.withResolvers<void>()
  #closing = false
  #refusing = false

  /** @param from  the clients that it shares with other pools, at most `max` at a time. @default clients of its own */
  constructor(
    { query_timeout, volatile: marked, users = false, pooled = false, remedy, ...config }: PoolConfig,
    from?: PoolClients,
  ) {
    // A time limit on a client would apply to every pool that shares it. pg has one for a query too; its types do not know it.
    this.#query = (text, values, { single, theirs }) =>
      ({
        ...{ text: marked ? uncached(text) : text, values, query_timeout },
        ...(single && { queryMode: 'extended' }),
        ...(!theirs && { types: PARSERS }),
      }) as unknown as pg.QueryConfig
    this.#users = users
    this.#cached = marked ?? false
    const source = from ?? new PoolClients(config, users ? 'users' : pooled ? 'both' : 'own')
    this.#source = new SharedPool(source, config.max, { owner: from === undefined, remedy })
    this.kysely = this.#over(() => this.#guarded())
  }

  /** Runs one statement. @throws {UnavailableError} the database did not answer; the outcome is unknown. */
  async run<R>(statement: RawBuilder<R>): Promise<R[]> {
    for (;;) {
      try {
        return (await statement.execute(this.kysely)).rows
      } catch (error) {
        if (!metOldConnection(error)) throw fromDatabase(error)
      }
    }
  }

  /** Runs one statement. If its rows show that the connection is of no use (`why`), it is not used again. @throws what `why` returns. */
  async check<R>(statement: RawBuilder<R>, why: (rows: R[]) => Error | undefined): Promise<void> {
    const compiled = statement.compile(this.kysely)
    const client = await this.#guarded()
    let refused: Error | undefined
    try {
      refused = why((await client.query(compiled.sql, compiled.parameters)).rows)
    } catch (error) {
      throw fromDatabase(error)
    } finally {
      if (refused) client.discard(refused)
      else client.release()
    }
    if (refused) throw refused
  }

  /** Runs SQL text, which may hold several statements. After an error the client is not used again. @throws {UnavailableError} */
  // biome-ignore lint/suspicious/noExplicitAny: rows of any statement
  async query(text: string, values?: unknown[]): Promise<any> {
    const client = await this.#guarded()
    try {
      const result = await client.query(text, values)
      client.release()
      return result
    } catch (error) {
      client.discard(error as Error) // it may have left a failed transaction open
      throw fromDatabase(error)
    }
  }

  /** Why Lockstep does not work through these connections, in one sentence; undefined: it does. @throws {UnavailableError} */
  async whyUnfit(): Promise<string | undefined> {
    const client = await this.#guarded()
    try {
      const { direct, why } = await whyUnfit(client, { cached: this.#cached })
      if (!direct && why === undefined) await beginOnce(client)
      client.release()
      return why
    } catch (error) {
      client.discard(error as Error)
      throw fromDatabase(error)
    }
  }

  /** Runs `work` in a READ COMMITTED transaction. @throws {UnavailableError} */
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  async transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T> {
    try {
      return await this.kysely.transaction().setIsolationLevel('read committed').execute(work)
    } catch (error) {
      throw fromDatabase(error)
    }
  }

  /**
   * Runs a transaction whose work is the user's, or partly: the user's part runs through `runWork` (supervised-transaction.ts).
   * @throws {UnavailableError} there was no connection for it.
   * @throws {TransactionEndedError} the user's part has ended the transaction.
   * @throws the error of `work`, unchanged; the signal's reason.
   */
  async supervised<T>(work: SupervisedWork<T>, how: SupervisedOptions = {}): Promise<T> {
    const { isolation, identified = true, abandoned, ...wait } = how
    const client = await this.#guarded(wait)
    const supervisor = new SupervisedTransaction(client, identified)
    let [begun, ended] = [false, false]
    abandoned?.catch(() => ended || client.destroy())
    try {
      const query: GuardedClient['query'] = (text, values) => supervisor.query(text, values)
      const kysely = this.#over(async () => ({ ...client, query, release: () => {} }))
      const builder = isolation ? kysely.transaction().setIsolationLevel(isolation) : kysely.transaction()
      return await builder.execute((trx) => {
        begun = true
        if (supervisor.xid !== undefined) rememberXid(trx, supervisor.xid)
        const runWork: RunWork = (theirs, xid) => {
          if (xid !== undefined) rememberXid(trx, xid)
          return supervisor.runWork(theirs, xid)
        }
        const working = work(trx, runWork)
        if (!abandoned) return working
        working.catch(() => {}) // if it is abandoned, nothing else handles its error
        return Promise.race([working, abandoned])
      })
    } catch (error) {
      const { cause } = error as { cause?: unknown }
      if (begun || !metOldConnection(cause)) throw begun ? supervisor.explained(error) : fromDatabase(error)
    } finally {
      ended = true
      client.release()
    }
    return this.supervised(work, how) // on another connection: that one had ended before
  }

  /** The pool will end soon. Callers that wait for the first connection are rejected; other statements still get their answers. */
  closing(): void {
    this.#closing = true
    if (!this.#source.live) this.#rejectWaiting()
  }

  /** Rejects new callers and callers that wait for a connection. Connections in use go on. */
  refuse(): void {
    this.#closing = true
    this.#refusing = true
    this.#rejectWaiting()
  }

  #rejectWaiting(): void {
    for (const refuse of this.#asking) refuse(closed())
    this.#asking.clear()
    this.#signalIfQuiet()
  }

  /** Whether no connection is in use, and no caller waits for one. */
  get quiet(): boolean {
    return this.#out.size + this.#asking.size === 0
  }

  /** Resolves when it is {@link quiet}. */
  async settled(): Promise<void> {
    while (!this.quiet) await this.#quiet.promise
  }

  /** Ends the pool at once: connections in use are destroyed. */
  async end(): Promise<void> {
    this.refuse()
    for (const client of this.#out) destroyConnection(client)
    await this.#source.end()
  }

  /** Ends the pool when it is {@link quiet}, at the latest when `late` resolves: then connections in use are destroyed. */
  async close(late: Promise<unknown> = Promise.resolve()): Promise<void> {
    await Promise.race([this.settled(), late])
    await this.end()
  }

  #signalIfQuiet(): void {
    if (!this.quiet) return
    this.#quiet.resolve()
    this.#quiet = Promise.withResolvers()
  }

  // Once the pool refuses, it gives out no client, not even one that was being opened before.
  #connect(wait?: Wait): Promise<pg.PoolClient> {
    if (this.#refusing) return Promise.reject(closed())
    return new Promise((resolve, reject) => {
      this.#asking.add(reject)
      this.#source.connect(wait).then(
        (client) => {
          if (!this.#asking.delete(reject)) return client.release() // its caller was rejected meanwhile
          this.#out.add(client)
          const release = client.release // pg makes a new one at each checkout
          client.release = (error) => {
            this.#out.delete(client)
            release.call(client, error)
            this.#signalIfQuiet()
          }
          resolve(client)
        },
        (error) => {
          if (this.#asking.delete(reject)) reject(error)
          this.#signalIfQuiet()
        },
      )
    })
  }

  async #guarded(wait?: Wait): Promise<GuardedClient> {
    const client = await this.#connect(wait).catch((error) => {
      if (wait?.signal?.aborted) throw error
      throw this.#closing ? closed(error) : notConnected(error)
    })
    return guarded(client, {
      ...{ users: this.#users, query: this.#query, names: this.#names },
      closing: () => this.#closing,
    })
  }

  #over(connect: () => Promise<GuardedClient>) {
    const { options } = this.#source
    // biome-ignore lint/suspicious/noExplicitAny: Kysely takes the structural subset that it uses
    const subset: any = { options, connect, end: () => this.end() }
    // biome-ignore lint/suspicious/noExplicitAny: in any schema
    return new Kysely<any>({ dialect: new PostgresDialect({ pool: subset }) })
  }
}

/**
 * Resolves when no statement is under way in any of the pools and none follows from an answer; or soon after `over` becomes true.
 * An answer may lead to another statement: when a lease was granted to a caller that has left, it is given back.
 */
export async function allSettled(pools: Pool[], over: () => boolean): Promise<void> {
  while (pools.some((pool) => !pool.quiet)) {
    await Promise.all(pools.map((pool) => pool.settled()))
    if (over()) return
    await sleep(0)
  }
}
