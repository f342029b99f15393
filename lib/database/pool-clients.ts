/**
 * The clients of a pool of pg's: all of them are known from the moment they are made, so that an end ends each, also one that is
 * being connected, or whose server has stopped answering. A client without an 'error' listener ends the process when the server
 * closes it; every client has one.
 */
import pg from 'pg'
import type { LentPool, PoolSource } from './shared-pool.ts'

// For a server to end a connection that was ended politely.
const POLITE_MS = 500

/** pg's pool, whose clients' errors end nothing, and whose end ends all of them. */
export class PoolClients implements LentPool {
  readonly #pool: pg.Pool
  readonly #open = new Set<pg.Client>()
  #live = 0

  constructor({ Client = pg.Client, ...config }: pg.PoolConfig) {
    this.#pool = new pg.Pool({ ...config, Client: counted(Client as typeof pg.Client, this.#open) })
    this.#pool.on('error', () => {})
    this.#pool.on('connect', (client) => {
      client.on('error', () => {})
      this.#live += 1
      client.once('end', () => {
        this.#live -= 1
      })
    })
  }

  get options(): PoolSource['options'] {
    return this.#pool.options
  }

  get live(): boolean {
    return this.#live > 0
  }

  get idle(): boolean {
    return this.#pool.idleCount > 0
  }

  connect(): Promise<pg.PoolClient> {
    return this.#pool.connect()
  }

  async end(): Promise<void> {
    if (!this.#pool.ending) void this.#pool.end()
    await ended([...this.#open])
  }
}

/** A client that is in a set for as long as it is open, or being opened. */
function counted(Client: typeof pg.Client, open: Set<pg.Client>): typeof pg.Client {
  return class extends Client {
    constructor(config?: string | pg.ClientConfig) {
      super(config)
      open.add(this)
      this.once('end', () => open.delete(this))
    }
  }
}

/** Ends connections: those that a server does not end when it is asked to are cut. */
async function ended(clients: pg.Client[]): Promise<void> {
  if (clients.length === 0) return
  const cut = setTimeout(() => clients.forEach(destroyConnection), POLITE_MS)
  await Promise.all(clients.map((client) => new Promise((resolve) => client.once('end', resolve))))
  clearTimeout(cut)
}

/** Cuts a connection, whatever it does. */
export function destroyConnection(client: pg.Client | pg.PoolClient): void {
  ;(client as pg.Client).connection?.stream?.destroy()
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
