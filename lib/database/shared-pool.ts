/**
 * The places of a pool: so many connections at a time, and who waits for one.
 *
 * A WAIT FOR OUR OWN POOL IS A WAIT. pg's pool knows one limit of time for all, and says of a connection that did not come free
 * what it says of a server that does not answer. So the waiting is done here, before pg's pool is asked, which then always has
 * one or may open one: a wait ends with its signal, or its time, and an error tells which of the two it was. Who leaves while
 * a connection is being opened is not held up by that; it goes back to the pool at once. A connection that the server refuses
 * because there are too many (53300) is waited for too, by those who said how long they would wait, and where another of ours
 * will come free.
 *
 * Pools of their own (database.ts) keep one room from starving another, and each keeps a connection of its own. Where a process
 * serves one request at a time and there are a thousand such processes, connections are what is scarce; and in a Worker each
 * request opens its own. There places keep the promise without the price: nobody else can take them, but the connection comes
 * from a pool that all have in common. So statements one after another, of whichever rooms, need one connection, and as many
 * as before can be had at once.
 */
import type pg from 'pg'
import { abortable, noConnectionLeft, Stopwatch, UnavailableError } from '../base/index.ts'

/** How long a connection is waited for. */
export interface Wait {
  /** Ends the wait, with its reason. */
  signal?: AbortSignal | undefined
  /** Milliseconds, ≥ 0, for which connections in use are waited for. @default the pool's connectionTimeoutMillis */
  ms?: number | undefined
}

/** What is needed of a pool of pg. */
export interface PoolSource {
  readonly options: { connectionTimeoutMillis?: number | undefined }
  /** @throws {UnavailableError} all are in use. And the signal's reason; and what pg throws. */
  connect(wait?: Wait): Promise<pg.PoolClient>
  /** Whether it has connections, and not only asks for them. */
  readonly live: boolean
  /** Ends what it has made, or turns away those that wait for it. */
  end(): Promise<void>
}

/** A pool whose connections are shared. */
export interface LentPool extends PoolSource {
  /** Whether it has a connection that nobody uses. */
  readonly idle: boolean
}

export interface SharedPoolOptions {
  /** Whether the pool is ended with it. @default false */
  owner?: boolean | undefined
  /** What to do if there are too few: a part of a sentence. */
  remedy?: string | undefined
}

const RETRY_MS = { first: 25, most: 250 }
// A timer's longest.
const LONGEST_MS = 2 ** 31 - 1

export class SharedPool implements PoolSource {
  readonly #pool: LentPool
  readonly #size: number
  readonly #owner: boolean
  readonly #remedy: string | undefined
  readonly #waitQueue: { enter(): void; leave(error: unknown): void }[] = []
  #free: number
  #ended = false

  /** @param places  connections of this share at a time. */
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
    // Without a time of its own, a refusal of the server is worth waiting for if another connection comes free here, or is.
    const others = () => this.#size - this.#free > 1 || this.#pool.idle
    const patience = () => ms ?? (others() ? limit : 0)
    try {
      const client = await this.#open(signal, () => patience() - since.elapsed())
      const release = client.release // made anew by pg at each checkout
      client.release = (error) => {
        release.call(client, error)
        this.#leave()
      }
      return client
    } catch (error) {
      this.#leave()
      throw error
    }
  }

  /** Those that wait are turned away. */
  async end(): Promise<void> {
    this.#ended = true
    for (const { leave } of this.#waitQueue.splice(0)) leave(new Error(ENDED))
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
    const waiter = { enter: resolve, leave: reject }
    this.#waitQueue.push(waiter)
    const turnAway = (error: unknown) => {
      const at = this.#waitQueue.indexOf(waiter)
      if (at >= 0) this.#waitQueue.splice(at, 1)
      reject(error)
    }
    const late = ms > LONGEST_MS ? undefined : setTimeout(() => turnAway(this.#busy(ms)), ms)
    const aborted = () => turnAway(signal?.reason)
    signal?.addEventListener('abort', aborted)
    await promise.finally(() => {
      clearTimeout(late)
      signal?.removeEventListener('abort', aborted)
    })
  }

  // With a place: there is a connection, or one may be opened. `left`: milliseconds that a refusal is worth asking again.
  async #open(signal: AbortSignal | undefined, left: () => number): Promise<pg.PoolClient> {
    for (let pauseMs = RETRY_MS.first; ; pauseMs = Math.min(pauseMs * 1.5, RETRY_MS.most)) {
      signal?.throwIfAborted()
      if (this.#ended) throw new Error(ENDED)
      const opening = this.#pool.connect()
      try {
        return await abortable(signal, opening)
      } catch (error) {
        // Who has left has no use for it. Its place is free already: the pool counts for itself, and has one more for a moment.
        if (signal?.aborted) void opening.then((client) => client.release()).catch(() => {})
        if (signal?.aborted || !noConnectionLeft(error) || left() <= 0) throw error
        await abortable(signal, pause(Math.min(pauseMs * (0.75 + Math.random() / 2), left())))
      }
    }
  }

  #leave(): void {
    const next = this.#waitQueue.shift()
    if (next) next.enter()
    else this.#free += 1
  }

  #busy(ms: number): UnavailableError {
    const all = this.#size === 1 ? 'The only connection' : `All ${this.#size} connections`
    const what = `${all} of this pool ${this.#size === 1 ? 'is' : 'are'} in use`
    const how = ms > 0 ? `${what}, and none came free within ${Math.round(ms)} ms` : what
    return new UnavailableError(this.#remedy === undefined ? how : `${how}: ${this.#remedy}`)
  }
}

const ENDED = 'Cannot use a pool after calling end on the pool' // pg's words
const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, Math.max(ms, 0)))
