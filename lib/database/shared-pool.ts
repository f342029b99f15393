/**
 * A limited share of a pool: at most so many connections at a time, and a queue of callers that wait for one.
 *
 * WAITING. pg's pool has one time limit for all callers, and its error is the same when no connection came free and when the
 * server does not answer. So callers wait here, before pg's pool is asked; pg's pool then always has a free connection or may open
 * one. A wait ends with its signal or with its time limit, and the error says which. Callers are served first come, first
 * served. A caller may leave while its connection is being opened: it is rejected at once, and the connection goes back to the
 * pool. A connection that the server refuses because it has too many (53300) is waited for too: by a caller that gave a
 * time limit, and by a caller of this process that can get a connection when another of the process comes free.
 *
 * SHARING. Separate pools (database.ts) keep one room from starving another, but each keeps a connection open. Where each process
 * serves one request at a time and there are a thousand processes, connections are scarce; and in a Worker each request opens
 * its own. There each room has its own limit, but the connections come from one common pool. So statements that run one after
 * another need one connection, whichever rooms they belong to; and each room may still have as many at once as before.
 */
import type pg from 'pg'
import { abortable, BackoffDelays, noConnectionLeft, onAbort, Stopwatch, UnavailableError } from '../base/index.ts'

/** How long a caller waits for a connection. */
export interface Wait {
  /** Ends the wait: the call rejects with the signal's reason. */
  signal?: AbortSignal | undefined
  /** How long to wait for a connection that is in use, in milliseconds ≥ 0. @default the pool's connectionTimeoutMillis */
  ms?: number | undefined
}

/** A source of connections: a part of the interface of pg's pool. */
export interface PoolSource {
  readonly options: { connectionTimeoutMillis?: number | undefined }
  /** Gets a connection. @throws {UnavailableError} all are in use. @throws the signal's reason; the errors of pg. */
  connect(wait?: Wait): Promise<pg.PoolClient>
  /** Whether it has an open connection, and not only attempts to connect. */
  readonly live: boolean
  /** Rejects callers that wait, and ends the connections that it owns. */
  end(): Promise<void>
}

/** A pool whose connections several shares use. */
export interface LentPool extends PoolSource {
  /** Whether it has a connection that is not in use. */
  readonly idle: boolean
}

export interface SharedPoolOptions {
  /** Whether `end` ends the pool too. @default false */
  owner?: boolean | undefined
  /** The advice of the error when all connections are in use: a part of a sentence. */
  remedy?: string | undefined
}

const RETRY = { firstMs: 25, mostMs: 250, factor: 1.5, spread: 0.25 }
// The longest time of a timer.
const LONGEST_MS = 2 ** 31 - 1

export class SharedPool implements PoolSource {
  readonly #pool: LentPool
  readonly #size: number
  readonly #owner: boolean
  readonly #remedy: string | undefined
  readonly #waitQueue: { resolve(): void; reject(error: unknown): void }[] = []
  #free: number
  #open = 0 // connections of this share that are in use; the others that are not free are being opened
  #ended = false

  /** @param size  how many connections this share may have at a time. */
  constructor(pool: LentPool, size: number, { owner = false, remedy }: SharedPoolOptions = {}) {
    this.#pool = pool
    this.#size = size
    this.#free = size
    this.#owner = owner
    this.#remedy = remedy
  }

  get options(): PoolSource['options'] {
    return this.#pool.options
  }

  get live(): boolean {
    return this.#pool.live
  }

  async connect({ signal, ms }: Wait = {}): Promise<pg.PoolClient> {
    signal?.throwIfAborted()
    const since = new Stopwatch()
    const limit = this.options.connectionTimeoutMillis ?? Infinity
    await this.#enter(signal, ms ?? limit)
    // Without a time limit of the caller, a refused connection is waited for only if one of this process can come free, or is free.
    const others = () => this.#open > 0 || this.#pool.idle
    const patience = () => ms ?? (others() ? limit : 0)
    try {
      const client = await this.#opened(signal, () => patience() - since.elapsed())
      this.#open += 1
      const release = client.release // pg makes a new one at each checkout
      client.release = (error) => {
        release.call(client, error)
        this.#open -= 1
        this.#leave()
      }
      return client
    } catch (error) {
      this.#leave()
      throw error
    }
  }

  async end(): Promise<void> {
    this.#ended = true
    for (const { reject } of this.#waitQueue.splice(0)) reject(new Error(ENDED))
    if (this.#owner) await this.#pool.end()
  }

  async #enter(signal: AbortSignal | undefined, ms: number): Promise<void> {
    if (this.#ended) throw new Error(ENDED)
    if (this.#free > 0) {
      this.#free -= 1
      return
    }
    if (ms <= 0) throw this.#busy(0)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { resolve, reject }
    this.#waitQueue.push(waiter)
    const leave = (error: unknown) => {
      const at = this.#waitQueue.indexOf(waiter)
      if (at >= 0) this.#waitQueue.splice(at, 1)
      reject(error)
    }
    const late = ms > LONGEST_MS ? undefined : setTimeout(() => leave(this.#busy(ms)), ms)
    const off = onAbort(signal, () => leave(signal?.reason))
    await promise.finally(() => {
      clearTimeout(late)
      off()
    })
  }

  // After #enter: the pool has a free connection, or may open one. `left`: for how many more milliseconds to ask again after the
  // server has refused one.
  async #opened(signal: AbortSignal | undefined, left: () => number): Promise<pg.PoolClient> {
    const delays = new BackoffDelays(RETRY)
    for (;;) {
      signal?.throwIfAborted()
      if (this.#ended) throw new Error(ENDED)
      const opening = this.#pool.connect()
      try {
        return await abortable(signal, opening)
      } catch (error) {
        // The caller has left: when the connection is open, it goes back to the pool. It does not count in this share any more; for a
        // short time the pool may have one connection more than the shares allow.
        if (signal?.aborted) void opening.then((client) => client.release()).catch(() => {})
        if (signal?.aborted || !noConnectionLeft(error) || left() <= 0) throw error
        await abortable(signal, pause(Math.min(delays.next(), left())))
      }
    }
  }

  #leave(): void {
    const next = this.#waitQueue.shift()
    if (next) next.resolve()
    else this.#free += 1
  }

  #busy(ms: number): UnavailableError {
    const all = this.#size === 1 ? 'The only connection' : `All ${this.#size} connections`
    const what = `${all} of this pool ${this.#size === 1 ? 'is' : 'are'} in use`
    const how = ms > 0 ? `${what}, and none came free within ${Math.round(ms)} ms` : what
    return new UnavailableError(this.#remedy === undefined ? how : `${how}: ${this.#remedy}`)
  }
}

const ENDED = 'Cannot use a pool after calling end on the pool' // the message of pg
const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, Math.max(ms, 0)))
