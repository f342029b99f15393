/**
 * The ways to hold that are put beside each other: each system as it is mostly used, in the form that its own documentation
 * recommends, and with a token at the resource where it has one. In all of them the lease, the session or the key lasts for TTL_MS.
 *
 * - `bare`: the holder takes the lock, reads, works, writes.
 * - `looks`: before it writes, it asks its client whether it still holds: redlock's `signal`, the lease of etcd3, the state of the session
 *   of ZooKeeper, `isTrusted()`.
 * - `token`: and the resource refuses a write whose token is smaller than one that it has seen in a write: etcd's revision of the key,
 *   ZooKeeper's czxid of the node, Lockstep's token. redlock has none.
 * - `token, read too`: and the resource sees the token already in the read.
 * - `fenced` (Lockstep only): the row is in the database of the lock, and its write commits only if the writer holds.
 *
 * redlock is on one Redis, etcd and ZooKeeper are one node each: the faults here are of processes and networks, and none of them
 * makes a server lose what it had acknowledged.
 */
import { createRequire } from 'node:module'
import { setTimeout as sleep } from 'node:timers/promises'
import { createLockstep } from '../../../lib/index.ts'

export const TTL_MS = 2_000

/** A lock that is held. */
export interface Held {
  /** What the client says of it now. */
  holds(): boolean
  token?: string | undefined
}
/** Runs `work` under the lock. */
export type Locker = (name: string, work: (held: Held) => Promise<void>) => Promise<void>

export const LOCK_FORMS = {
  redlock: ['bare', 'looks'],
  etcd: ['bare', 'looks', 'token', 'token, read too'],
  zookeeper: ['bare', 'looks', 'token', 'token, read too'],
  lockstep: ['bare', 'looks', 'token', 'token, read too', 'fenced'],
} as const
export type LockSystem = keyof typeof LOCK_FORMS

export function lockstepLocker(url: string, worker: string) {
  const lockstep = createLockstep({ connectionString: url, applicationName: worker })
  const lock: Locker = (name, work) =>
    lockstep.locks.using(name, { ttlMs: TTL_MS }, (held) =>
      work({ holds: () => held.isTrusted(), token: String(held.token) }),
    )
  return { lockstep, lock }
}

/** The client of a peer. Its packages are loaded only here: a process needs those of one peer. */
export async function lockerOf(peer: Exclude<LockSystem, 'lockstep'>, url: string): Promise<Locker> {
  const port = Number(new URL(url).port)
  if (peer === 'redlock') return redlock(port)
  return peer === 'etcd' ? etcd(port) : zookeeper(port)
}

async function redlock(port: number): Promise<Locker> {
  const { connectRedis } = await import('../servers.ts')
  // @ts-expect-error its types are there, but its "exports" hide them from TypeScript
  const { default: Redlock } = await import('redlock')
  const client = new Redlock([connectRedis(port)]) // its defaults: ten attempts, 200 ms apart
  client.on('error', () => {}) // every refused attempt is an error
  return (name, work) => client.using([name], TTL_MS, (signal: AbortSignal) => work({ holds: () => !signal.aborted }))
}

/** As the Lock of etcd3 does it: a key that is there as long as its lease. That Lock hides its lease, and so when it is lost. */
async function etcd(port: number): Promise<Locker> {
  const { connectEtcd } = await import('../servers.ts')
  const client = connectEtcd(port)
  return async (name, work) => {
    for (;;) {
      let lost = false
      const lease = client.lease(TTL_MS / 1_000)
      lease.on('lost', () => {
        lost = true
      })
      try {
        const put = lease.put(name).value('')
        const { succeeded, header } = await client.if(name, 'Create', '==', 0).then(put).commit()
        if (succeeded) return await work({ holds: () => !lost && !lease.revoked(), token: String(header.revision) })
      } finally {
        await lease.revoke()
      }
      await sleep(50)
    }
  }
}

/**
 * The recipe of ZooKeeper's documentation: sequential nodes that end with their session; the first one holds. After an error
 * nobody knows which nodes are there: the session is closed, and its nodes end with it.
 */
async function zookeeper(port: number): Promise<Locker> {
  const sessions = new Sessions(port)
  return async (name, work) => {
    const session = await sessions.current()
    try {
      const parent = `/${name.replaceAll(/[ /]/g, '-')}`
      await session.make(parent, 'PERSISTENT').catch(ignoreExists)
      const node = await session.make(`${parent}/n-`, 'EPHEMERAL_SEQUENTIAL')
      for (;;) {
        const children = (await session.children(parent)).sort(bySequence)
        const place = children.indexOf(node.slice(parent.length + 1))
        if (place < 0) throw new Error('The session is over')
        if (place === 0) break
        await session.changed(`${parent}/${children[place - 1]}`)
      }
      await work({ holds: () => session.connected(), token: await session.czxid(node) })
      await session.remove(node)
    } catch (error) {
      sessions.drop(session)
      throw error
    }
  }
}
const bySequence = (a: string, b: string) => Number(a.slice(-10)) - Number(b.slice(-10))
const ignoreExists = (error: Error) => {
  if (error.name !== 'NODE_EXISTS') throw error
}

/** One session at a time. */
class Sessions {
  readonly #port: number
  #session: Session | undefined

  constructor(port: number) {
    this.#port = port
  }

  async current(): Promise<Session> {
    this.#session ??= new Session(this.#port)
    try {
      await this.#session.ready()
    } catch (error) {
      this.drop(this.#session)
      throw error
    }
    return this.#session
  }

  drop(session: Session | undefined): void {
    if (session !== this.#session) return
    session?.close()
    this.#session = undefined
  }
}

/** What a call may take: then its session has expired. */
const MOST_MS = 3 * TTL_MS

class Session {
  // biome-ignore lint/suspicious/noExplicitAny: a client of callbacks, without types
  readonly #client: any
  readonly #library = createRequire(import.meta.url)('node-zookeeper-client')

  constructor(port: number) {
    const settings = { sessionTimeout: TTL_MS, spinDelay: 100, retries: 0 }
    this.#client = this.#library.createClient(`127.0.0.1:${port}`, settings)
    this.#client.connect()
  }

  async ready(): Promise<void> {
    if (!this.connected()) await within(new Promise<void>((resolve) => this.#client.once('connected', resolve)))
  }
  connected(): boolean {
    return this.#client.getState() === this.#library.State.SYNC_CONNECTED
  }
  make(path: string, mode: 'PERSISTENT' | 'EPHEMERAL_SEQUENTIAL'): Promise<string> {
    return call((done) => this.#client.create(path, Buffer.alloc(0), this.#library.CreateMode[mode], done))
  }
  remove(path: string): Promise<void> {
    return call((done) => this.#client.remove(path, -1, done))
  }
  children(path: string): Promise<string[]> {
    return call((done) => this.#client.getChildren(path, done))
  }
  /** Resolves when a node changes or is gone. */
  async changed(path: string): Promise<void> {
    const change = Promise.withResolvers<void>()
    const stat = await call<object | null>((done) => this.#client.exists(path, () => change.resolve(), done))
    if (stat) await Promise.race([change.promise, sleep(TTL_MS)]) // then it looks again, also if the watch was lost
  }
  async czxid(path: string): Promise<string> {
    const stat = await call<{ czxid: Buffer } | null>((done) => this.#client.exists(path, done))
    if (!stat) throw new Error('The node is gone')
    return String(stat.czxid.readBigInt64BE())
  }
  close(): void {
    this.#client.close()
  }
}

const call = <T>(begin: (done: (error: Error | null, result: T) => void) => void): Promise<T> =>
  within(new Promise<T>((resolve, reject) => begin((error, result) => (error ? reject(error) : resolve(result)))))

async function within<T>(answer: Promise<T>): Promise<T> {
  const late = Symbol()
  const first = await Promise.race([answer, sleep(MOST_MS, late, { ref: false })])
  if (first === late) throw new Error('ZooKeeper does not answer')
  return first as T
}
