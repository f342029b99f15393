/** The simulated server: its clock, its connections, and what is committed. What it answers is in statements.ts. */
import { keyOf } from '../../../lib/database/lock-key.ts'
import type { Process, World } from '../scheduler.ts'
import { Backend, type Fate } from './backend.ts'
import { CandidateTable } from './elections.ts'
import { AdvisoryLocks } from './locks.ts'
import { LeaseTable, type Transaction } from './rows.ts'

export const EPOCH_MS = Date.UTC(2026, 0, 1)
/** PostgreSQL ends a connection whose client has vanished, after tcp_user_timeout. */
const VANISHED_MS = 15_000

/** What happens to statements, connections and notifications. */
export interface Faults {
  /** What befalls a statement. */
  fate(backend: Backend, text: string): Fate
  /** Why a connection is refused; undefined: it is not. */
  refusal(): string | undefined
  /** After how many ms a notification goes off, each time; none: it is lost. */
  notification(): number[]
}

export class Server {
  readonly world: World
  readonly random: () => number
  locks = new AdvisoryLocks()
  readonly leases = new LeaseTable()
  readonly candidates = new CandidateTable()
  readonly backends = new Set<Backend>()
  /** The writes to the fenced table that were committed, in their order. */
  readonly effects: { name: string; token: bigint }[] = []
  /** The advisory locks that their holders lost without having asked for it. */
  readonly takenAway: { key: string; process: Process | undefined; at: number }[] = []
  /** The names that were taken by force. */
  readonly forced: { name: string; at: number }[] = []
  /** When its clock was last set. */
  clockSetAt = -Infinity
  #aheadMs = 0
  /** Whether a transaction pooler stands before it: each transaction has another backend, and nothing of a session stays. */
  pooled = false
  readonly #faults: Faults
  #token = 0n
  #xid = 700
  #pid = 1_000

  constructor(world: World, random: () => number, faults: Faults) {
    this.world = world
    this.random = random
    this.#faults = faults
  }

  /** clock_timestamp(), in ms since 1970. */
  get now(): number {
    return EPOCH_MS + this.world.now + this.#aheadMs
  }

  /** Its clock is set. */
  setClock(byMs: number): void {
    this.#aheadMs += byMs
    this.clockSetAt = this.world.now
  }

  nextToken(): bigint {
    this.#token += 4_096n
    return this.#token
  }

  nextXid(): string {
    return String(++this.#xid)
  }

  /** A backend for a connection, which is there once it is connected. */
  open(): Backend {
    return new Backend(this, ++this.#pid)
  }

  /** The process id in the greeting of a connection: a pooler makes one up. */
  announced(backend: Backend): number {
    return this.pooled ? 1_000_000 + backend.pid : backend.pid
  }

  fate(backend: Backend, text: string): Fate {
    return this.#faults.fate(backend, text)
  }

  refusal(): string | undefined {
    return this.#faults.refusal()
  }

  gone(backend: Backend): void {
    this.backends.delete(backend)
  }

  /** pg_terminate_backend. */
  terminate(backend: Backend): void {
    this.ended(backend)
    backend.end('57P01')
  }

  /** The server ends a connection of its own accord, and what it held with it: its client has to learn of that. */
  ended(backend: Backend): void {
    for (const key of this.locks.keysOf(backend)) {
      this.takenAway.push({ key, process: backend.line?.process, at: this.world.now })
    }
  }

  cancel(pid: number): boolean {
    const backend = [...this.backends].find((each) => each.pid === pid)
    backend?.cancel()
    return backend !== undefined
  }

  /** Everything that is connected ends, and what was not committed is gone. */
  crash(): void {
    for (const backend of [...this.backends]) {
      this.ended(backend)
      backend.end()
    }
    this.candidates.crash()
  }

  /** Ends the connections that have been silent for too long; called once in a while. */
  sweep(): void {
    for (const backend of [...this.backends]) {
      const silent = this.world.now - backend.heardAt
      const limit = backend.silentMs ?? (backend.line?.swallowed ? VANISHED_MS : Infinity)
      const vanished = backend.line?.swallowed === true && silent >= VANISHED_MS
      if (vanished || (backend.waitsFor === undefined && silent >= limit)) backend.end('57P05')
    }
  }

  /** The advisory lock of a name is free, though somebody has it: what no server does. */
  forget(name: string): void {
    const holder = this.locks.holder(keyOf(name))
    if (holder) this.locks.unlock(holder, keyOf(name))
  }

  endTransaction(trx: Transaction, commit: boolean): void {
    this.leases.end(trx, commit)
    if (!commit) for (const undo of trx.undo.reverse()) undo()
    if (commit) {
      this.effects.push(...trx.effects)
      for (const { channel, payload } of trx.notifies.values()) this.#notify(channel, payload)
    }
    for (const backend of this.backends) if (backend.waitsFor === 'row') backend.wake()
  }

  #notify(channel: string, payload: string): void {
    for (const backend of this.backends) {
      if (!backend.channels.has(channel)) continue
      for (const ms of this.#faults.notification()) {
        this.world.after(ms, () => backend.ended || backend.notified(channel, payload), undefined)
      }
    }
  }
}
