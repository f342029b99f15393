/**
 * A pool of connections that gives up those that are broken, and that ends.
 *
 * Kysely gives a client back to its pool without the error that broke it, so after a network fault one query after another
 * would time out on the same dead client; here it is discarded.
 *
 * TO END is more than Kysely and pg can: Kysely's `destroy` does nothing unless it was used, pg's `end` waits for ever for a
 * client that somebody has, leaves those who stand in line to their time limit, and a connection whose server has stopped
 * answering open. So a pool of ours turns away whoever comes, cuts what is in use, and {@link PoolClients} knows each socket.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Kysely, PostgresDialect, type RawBuilder, type Transaction } from 'kysely'
import pg from 'pg'
import { fromDatabase, UnavailableError } from '../base/index.ts'
import { rememberXid } from './caller-transaction.ts'
import { destroyConnection, PoolClients } from './pool-clients.ts'
import { type PoolSource, SharedPool, type Wait } from './shared-pool.ts'
import { type Connection, type RunWork, SupervisedTransaction } from './supervised-transaction.ts'
import { uncached } from './uncached.ts'

export interface PoolConfig extends pg.PoolConfig {
  max: number
  /** Statements are made {@link volatile}. */
  volatile?: boolean
  /** What to do if its connections are too few, as in `raise this or that`. */
  remedy?: string
}

/** How a transaction of Lockstep's is had, whose work is a user's. Its connection is waited for as {@link Wait} says. */
export interface SupervisedOptions extends Wait {
  /** @default the role's */
  isolation?: 'read committed'
  /** Whether its id is asked for at its beginning; else `runWork` is given it. @default true */
  identified?: boolean
  /**
   * Rejects when the work is to be left to itself: then its connection is cut, so that whoever still has `trx` can neither write
   * nor keep anything locked, and the pool has its place back.
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
  readonly #query: (text: string, values?: unknown[]) => pg.QueryConfig
  /** In use, and asked for. */
  readonly #out = new Set<pg.PoolClient>()
  readonly #asking = new Set<(error: unknown) => void>()
  #quiet = Promise.withResolvers<void>()
  #closing = false
  #refusing = false

  /** @param from  whose connections it has, at most `max` at a time; left out: its own. */
  constructor({ query_timeout, volatile: marked, remedy, ...config }: PoolConfig, from?: PoolClients) {
    // Of a client the time limit would be everybody's who shares the connections; pg's types know none of a query.
    this.#query = (text, values) =>
      ({ text: marked ? uncached(text) : text, values, query_timeout }) as unknown as pg.QueryConfig
    this.#source = new SharedPool(from ?? new PoolClients(config), config.max, { owner: from === undefined, remedy })
    this.kysely = this.#over(() => this.#guarded())
  }

  /** @throws {UnavailableError} the database cannot be asked; the outcome is unknown. */
  async run<R>(statement: RawBuilder<R>): Promise<R[]> {
    try {
      return (await statement.execute(this.kysely)).rows
    } catch (error) {
      throw fromDatabase(error)
    }
  }

  /** Text that may hold several statements. The client that failed is not used again. @throws {UnavailableError} */
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

  /** READ COMMITTED. @throws {UnavailableError} */
  // biome-ignore lint/suspicious/noExplicitAny: in any schema
  async transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T> {
    try {
      return await this.kysely.transaction().setIsolationLevel('read committed').execute(work)
    } catch (error) {
      throw fromDatabase(error)
    }
  }

  /**
   * A transaction whose work is a user's, or a part of it: that goes through `runWork` (supervised-transaction.ts).
   * @throws {UnavailableError} no connection could be had.
   * @throws {TransactionEndedError} the user's part has ended it. And what `work` throws, as it is; and the signal's reason.
   */
  async supervised<T>(work: SupervisedWork<T>, how: SupervisedOptions = {}): Promise<T> {
    const { isolation, identified = true, abandoned, ...wait } = how
    const client = await this.#guarded(wait)
    const supervisor = new SupervisedTransaction(client, identified)
    let ended = false
    abandoned?.catch(() => ended || client.destroy())
    try {
      const query: GuardedClient['query'] = (text, values) => supervisor.query(text, values)
      const kysely = this.#over(async () => ({ ...client, query, release: () => {} }))
      const begun = isolation ? kysely.transaction().setIsolationLevel(isolation) : kysely.transaction()
      return await begun.execute((trx) => {
        if (supervisor.xid !== undefined) rememberXid(trx, supervisor.xid)
        const runWork: RunWork = (theirs, xid) => {
          if (xid !== undefined) rememberXid(trx, xid)
          return supervisor.runWork(theirs, xid)
        }
        const working = work(trx, runWork)
        if (!abandoned) return working
        working.catch(() => {}) // left to itself, perhaps
        return Promise.race([working, abandoned])
      })
    } catch (error) {
      throw supervisor.explained(error)
    } finally {
      ended = true
      client.release()
    }
  }

  /** It will end. Who waits for the first connection waits no more; else what is asked gets its answer. */
  closing(): void {
    this.#closing = true
    if (!this.#source.live) this.#rejectWaiting()
  }

  /** Refuses whoever asks from now on, and who stands in line; what is in use goes on. */
  refuse(): void {
    this.#closing = true
    this.#refusing = true
    this.#rejectWaiting()
  }

  #rejectWaiting(): void {
    for (const refuse of this.#asking) refuse(closed())
    this.#asking.clear()
    this.#told()
  }

  /** Whether nothing is in use or asked for. */
  get quiet(): boolean {
    return this.#out.size + this.#asking.size === 0
  }

  /** Resolves when it is {@link quiet}. */
  async settled(): Promise<void> {
    while (!this.quiet) await this.#quiet.promise
  }

  /** Ends it, at once: what is in use is cut. */
  async end(): Promise<void> {
    this.refuse()
    for (const client of this.#out) destroyConnection(client)
    await this.#source.end()
  }

  /** Ends it when nothing is in use any more, at the latest when `late` resolves: then what is in use is cut. */
  async close(late: Promise<unknown> = Promise.resolve()): Promise<void> {
    await Promise.race([this.settled(), late])
    await this.end()
  }

  #told(): void {
    if (!this.quiet) return
    this.#quiet.resolve()
    this.#quiet = Promise.withResolvers()
  }

  // None any more once it refuses, also for whom one is being opened.
  #connect(wait?: Wait): Promise<pg.PoolClient> {
    if (this.#refusing) return Promise.reject(closed())
    return new Promise((resolve, reject) => {
      this.#asking.add(reject)
      this.#source.connect(wait).then(
        (client) => {
          if (!this.#asking.delete(reject)) return client.release() // nobody is there to have it
          this.#out.add(client)
          const release = client.release // made anew by pg at each checkout
          client.release = (error) => {
            this.#out.delete(client)
            release.call(client, error)
            this.#told()
          }
          resolve(client)
        },
        (error) => {
          if (this.#asking.delete(reject)) reject(error)
          this.#told()
        },
      )
    })
  }

  // A client that failed for any other reason than an answer of the server is not used again.
  async #guarded(wait?: Wait): Promise<GuardedClient> {
    const client = await this.#connect(wait).catch((error) => {
      if (wait?.signal?.aborted) throw error
      throw this.#closing ? closed(error) : unreachable(error)
    })
    let broken: Error | undefined
    return {
      processID: announcedPid(client as unknown as pg.Client),
      query: async (text, values, single) => {
        try {
          const config = this.#query(text, values as unknown[])
          return await client.query(single ? ({ ...config, queryMode: 'extended' } as pg.QueryConfig) : config)
        } catch (error) {
          if (error instanceof pg.DatabaseError) throw error
          broken = error as Error
          throw this.#closing ? closed(error) : error
        }
      },
      status: () => client.getTransactionStatus(),
      release: () => client.release(broken),
      discard: (why) => client.release(broken ?? why),
      destroy() {
        broken ??= new Error('The transaction was left to itself')
        destroyConnection(client)
      },
    }
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
 * Resolves when nothing is under way in any of them, and nothing follows from it; or, soon, once it is `over`. An answer may lead
 * to another statement of nobody who waits for it: a lease that was granted to somebody who has left is given back.
 */
export async function allSettled(pools: Pool[], over: () => boolean): Promise<void> {
  while (pools.some((pool) => !pool.quiet)) {
    await Promise.all(pools.map((pool) => pool.settled()))
    if (over()) return
    await sleep(0)
  }
}

const closed = (cause?: unknown) => new UnavailableError('Lockstep was closed', cause === undefined ? {} : { cause })

/** The pid that the server, or a pooler in its name, announced at login. Not in `pg`'s types. */
export const announcedPid = (client: pg.Client): number => (client as unknown as { processID: number }).processID

interface GuardedClient extends Connection {
  processID: number
  release(): void
  /** As release, and it is not used again. */
  discard(why: Error): void
  /** Cuts the connection. */
  destroy(): void
}

// Whatever it is that kept a connection from being made: each runtime says it in its own words.
function unreachable(error: unknown): unknown {
  const known = fromDatabase(error)
  if (known instanceof UnavailableError || known instanceof pg.DatabaseError) return known
  return new UnavailableError('The database cannot be reached', { cause: error })
}
