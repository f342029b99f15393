/** The advisory locks of the simulated server: as PostgreSQL's, with their queue. Keys are texts of signed 64-bit numbers. */
import type { Backend } from './backend.ts'

export type Mode = 'exclusive' | 'share'
export type Scope = 'session' | 'transaction'
/** What a statement that has to wait yields. */
export type Blocked = 'lock' | 'row'

interface Waiter {
  backend: Backend
  mode: Mode
  scope: Scope
  granted: boolean
}
interface Lock {
  holders: Map<Backend, Record<Mode, Record<Scope, number>>>
  queue: Waiter[]
}

export class AdvisoryLocks {
  readonly #locks = new Map<string, Lock>()

  /** pg_try_advisory_lock and its kin. A lock for which somebody waits is not given to another. */
  try(backend: Backend, key: string, mode: Mode, scope: Scope): boolean {
    const lock = this.#locks.get(key) ?? { holders: new Map(), queue: [] }
    this.#locks.set(key, lock)
    const own = lock.holders.get(backend)
    const again = own !== undefined && count(own.exclusive) + (mode === 'share' ? count(own.share) : 0) > 0
    const waits = lock.queue.some((waiter) => mode === 'exclusive' || waiter.mode === 'exclusive')
    if (!again && (waits || conflicts(lock, backend, mode))) return false
    this.#grant(lock, backend, mode, scope)
    return true
  }

  /** pg_advisory_lock and its kin. */
  *lock(backend: Backend, key: string, mode: Mode, scope: Scope): Generator<Blocked, void> {
    if (this.try(backend, key, mode, scope)) return
    const lock = this.#locks.get(key) as Lock
    const waiter: Waiter = { backend, mode, scope, granted: false }
    lock.queue.push(waiter)
    try {
      while (!waiter.granted) yield 'lock'
    } finally {
      // A statement that is cancelled leaves the queue; those behind it may have waited for it only.
      const at = lock.queue.indexOf(waiter)
      if (at >= 0) lock.queue.splice(at, 1)
      this.#serve(key, lock)
    }
  }

  /** pg_advisory_unlock. @returns whether the session had it. */
  unlock(backend: Backend, key: string, mode: Mode = 'exclusive'): boolean {
    const lock = this.#locks.get(key)
    const own = lock?.holders.get(backend)
    if (!lock || !own || own[mode].session === 0) return false
    own[mode].session--
    this.#dropped(key, lock, backend)
    return true
  }

  /** The transaction of a backend has ended. */
  endTransaction(backend: Backend): void {
    for (const [key, lock] of this.#locks) {
      const own = lock.holders.get(backend)
      if (!own) continue
      own.exclusive.transaction = 0
      own.share.transaction = 0
      this.#dropped(key, lock, backend)
    }
  }

  /** The backend has ended. */
  endSession(backend: Backend): void {
    for (const [key, lock] of this.#locks) {
      lock.queue = lock.queue.filter((waiter) => waiter.backend !== backend)
      lock.holders.delete(backend)
      this.#serve(key, lock)
    }
  }

  /** The backend that has a lock exclusively. */
  holder(key: string): Backend | undefined {
    for (const [backend, own] of this.#locks.get(key)?.holders ?? []) if (count(own.exclusive) > 0) return backend
    return undefined
  }

  /** The backends that wait for it, in their order. */
  waiting(key: string): Backend[] {
    return this.#locks.get(key)?.queue.map(({ backend }) => backend) ?? []
  }

  /** How often a backend has it for its session. */
  times(backend: Backend, key: string): number {
    return this.#locks.get(key)?.holders.get(backend)?.exclusive.session ?? 0
  }

  /** The keys that a backend has. */
  keysOf(backend: Backend): string[] {
    return [...this.#locks].filter(([, { holders }]) => holders.has(backend)).map(([key]) => key)
  }

  get size(): number {
    return this.#locks.size
  }

  #grant(lock: Lock, backend: Backend, mode: Mode, scope: Scope): void {
    const none = () => ({ session: 0, transaction: 0 })
    const own = lock.holders.get(backend) ?? { exclusive: none(), share: none() }
    own[mode][scope]++
    lock.holders.set(backend, own)
  }

  #dropped(key: string, lock: Lock, backend: Backend): void {
    const own = lock.holders.get(backend)
    if (own && count(own.exclusive) + count(own.share) === 0) lock.holders.delete(backend)
    this.#serve(key, lock)
  }

  #serve(key: string, lock: Lock): void {
    for (let next = lock.queue[0]; next && !conflicts(lock, next.backend, next.mode); next = lock.queue[0]) {
      lock.queue.shift()
      next.granted = true
      this.#grant(lock, next.backend, next.mode, next.scope)
      next.backend.wake()
    }
    if (lock.holders.size + lock.queue.length === 0) this.#locks.delete(key)
  }
}

const count = ({ session, transaction }: Record<Scope, number>): number => session + transaction

const conflicts = (lock: Lock, backend: Backend, mode: Mode): boolean =>
  [...lock.holders].some(
    ([other, own]) => other !== backend && (count(own.exclusive) > 0 || (mode === 'exclusive' && count(own.share) > 0)),
  )
