/**
 * The clients of a pg pool. Each is known as soon as it is made, so that `end` ends every one, also one that is being
 * connected, and one whose server has stopped answering. A client without an 'error' listener would end the process when the
 * server closes its connection; so every client has one.
 */
import pg from 'pg'
import { greet, hasOddSettings } from './settings.ts'
import type { LentPool, PoolSource } from './shared-pool.ts'

// How long the server may take to close a connection that was asked to end.
const POLITE_MS = 500

/** A pg pool. An error of a client does not end the process, and `end` ends every client. */
export class PoolClients implements LentPool {
  readonly #pool: pg.Pool
  readonly #open = new Set<pg.Client>()
  #live = 0

  /** @param by  whose statements run on the clients: Lockstep's own, the user's, or both (also: those of other clients of a pooler). */
  constructor({ Client = pg.Client, ...config }: pg.PoolConfig, by: 'own' | 'users' | 'both') {
    this.#pool = new pg.Pool({
      ...config,
      Client: counted(Client as typeof pg.Client, this.#open),
      ...(by !== 'users' && {
        onConnect: async (client: pg.ClientBase) => {
          const own = by === 'own' && (await greet(client as pg.Client))
          if (own ? own.odd : await hasOddSettings(client as pg.Client, config.connectionString ?? '')) ODD.add(client)
          if (own !== false && own.direct) DIRECT.add(client)
        },
      }),
    })
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

const ODD = new WeakSet<object>()
/** Whether Lockstep's statements on this client must bring their settings along (settings.ts). */
export const isOdd = (client: pg.PoolClient): boolean => ODD.has(client)

const DIRECT = new WeakSet<object>()
/** Whether the names of prepared statements last on this client: it is direct, and only Lockstep's statements run on it. */
export const keepsNames = (client: pg.PoolClient): boolean => DIRECT.has(client)

/** A client class whose clients are in `open` for as long as they are open or being opened. */
function counted(Client: typeof pg.Client, open: Set<pg.Client>): typeof pg.Client {
  return class extends Client {
    constructor(config?: string | pg.ClientConfig) {
      super(config)
      open.add(this)
      this.once('end', () => open.delete(this))
    }
  }
}

/** Waits until connections that were asked to end have ended; after a while the sockets of the rest are destroyed. */
async function ended(clients: pg.Client[]): Promise<void> {
  if (clients.length === 0) return
  const cut = setTimeout(() => clients.forEach(destroyConnection), POLITE_MS)
  await Promise.all(clients.map((client) => new Promise((resolve) => client.once('end', resolve))))
  clearTimeout(cut)
}

/** Closes the socket of a connection at once, whatever the connection does. */
export function destroyConnection(client: pg.Client | pg.PoolClient): void {
  ;(client as pg.Client).connection?.stream?.destroy()
}

/**
 * A client class that calls a function for its password. Without it pg would prefer the password of the connection string, even
 * an empty one, to a function.
 */
export function clientWith(password: () => string | Promise<string>): typeof pg.Client {
  return class extends pg.Client {
    constructor(config?: string | pg.ClientConfig) {
      super(config)
      Object.assign(this, { password })
    }
  }
}
