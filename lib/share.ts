/**
 * One pool of connections for all rooms of a process that does one thing at a time: a Lambda, a Worker.
 *
 * Pools of their own (db.ts) keep one room from starving another, and each keeps a connection of its own. Where a process
 * serves one request at a time and there are a thousand such processes, connections are what is scarce; and in a Worker each
 * request opens its own. A {@link Share} keeps the promise without the price: it has its places, which nobody else can take,
 * but the connection comes from what all have in common. So statements one after another, of whichever rooms, need one
 * connection, and as many as before can be had at once.
 */
import type pg from 'pg'

/** What is needed of a pool of pg. */
export interface Source {
  readonly options: { connectionTimeoutMillis?: number | undefined }
  connect(): Promise<pg.PoolClient>
  /** Whether it has connections, and not only asks for them. */
  readonly live?: boolean
  /** Ends what it has made, or turns those away who wait for it. */
  end(): Promise<void>
}

export class Share implements Source {
  readonly #pool: Source
  readonly #line: { enter: () => void; refuse: (error: unknown) => void }[] = []
  #free: number

  /** @param places  connections of this share at a time. */
  constructor(pool: Source, places: number) {
    this.#pool = pool
    this.#free = places
  }

  get options(): Source['options'] {
    return this.#pool.options
  }

  get live(): boolean {
    return this.#pool.live ?? true
  }

  async connect(): Promise<pg.PoolClient> {
    await this.#enter()
    try {
      const client = await this.#pool.connect()
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

  /** The connections are not its own to end. */
  async end(): Promise<void> {
    for (const { refuse } of this.#line.splice(0)) refuse(new Error('Cannot use a pool after calling end on the pool'))
  }

  async #enter(): Promise<void> {
    if (this.#free > 0) {
      this.#free -= 1
      return
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { enter: resolve, refuse: reject }
    this.#line.push(waiter)
    const { connectionTimeoutMillis: ms = 0 } = this.options
    const late = setTimeout(() => {
      this.#line.splice(this.#line.indexOf(waiter), 1)
      reject(new Error('timeout exceeded when trying to connect')) // pg's words
    }, ms)
    await promise.finally(() => clearTimeout(late))
  }

  #leave(): void {
    const next = this.#line.shift()
    if (next) next.enter()
    else this.#free += 1
  }
}
