/**
 * What the database tells of one kind of thing: a LISTEN on this process's session, for as long as somebody here wants to
 * know.
 *
 * Behind a pooler there is none, and who wants to know asks. Whenever the connection came or went something may have been
 * missed; then everybody is payload `null`: look for yourself.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Session } from './session.ts'
import type { SessionPool } from './session-pool.ts'

type Listener<T> = (payload: T | null) => void

/** What a session that listens does besides. */
export interface ListenHooks {
  afterListen(session: Session): Promise<unknown>
  beforeUnlisten(session: Session): Promise<unknown>
}

// LISTEN makes every NOTIFY of the database dearer, and who wants to know often wants to again.
const LINGER_MS = 10_000

export class Notifier<T> {
  readonly #sessions: SessionPool
  readonly #channel: string
  readonly #parse: (message: string) => { name: string; payload: T }[]
  readonly #hooks: ListenHooks | undefined
  readonly #listeners = new Map<string, Set<Listener<T>>>()
  readonly #anyListeners = new Set<(name: string | null, payload: T | null) => void>()
  #session: Session | undefined
  #subscribing = false
  #lingerTimer: NodeJS.Timeout | undefined
  readonly #closed = new AbortController()
  #unsubscribe = () => {}

  /**
   * @param parse   what a message says, of which names; nothing: perhaps of any. May throw.
   * @param hooks  so that it is known whether anybody listens.
   */
  constructor(
    sessions: SessionPool,
    channel: string,
    parse: (message: string) => { name: string; payload: T }[],
    hooks?: ListenHooks,
  ) {
    this.#sessions = sessions
    this.#channel = channel
    this.#parse = parse
    this.#hooks = hooks
  }

  /** The session over which news comes now. */
  get session(): Session | undefined {
    return this.#session?.lost ? undefined : this.#session
  }

  /** Hears of one name until the answer is called. */
  on(name: string, listener: Listener<T>): () => void {
    const listeners = this.#listeners.get(name) ?? new Set()
    this.#listeners.set(name, listeners.add(listener))
    this.#begin()
    return () => {
      listeners.delete(listener)
      if (listeners.size > 0 || this.#listeners.get(name) !== listeners) return
      this.#listeners.delete(name)
      this.#endSoon()
    }
  }

  /** Hears that there was news, and of what name; null: perhaps of any. Until the answer is called. */
  onAny(listener: (name: string | null, payload: T | null) => void): () => void {
    this.#anyListeners.add(listener)
    this.#begin()
    return () => {
      this.#anyListeners.delete(listener)
      this.#endSoon()
    }
  }

  /** Nobody hears anything any more. */
  close(): void {
    this.#closed.abort()
    this.#listeners.clear()
    this.#anyListeners.clear()
    clearTimeout(this.#lingerTimer)
    this.#unsubscribe()
  }

  get #wanted(): boolean {
    return this.#listeners.size > 0 || this.#anyListeners.size > 0
  }

  #begin(): void {
    clearTimeout(this.#lingerTimer)
    if (!this.#subscribing && !this.#closed.signal.aborted) void this.#subscribe()
  }

  #endSoon(): void {
    if (this.#wanted || this.#closed.signal.aborted) return
    clearTimeout(this.#lingerTimer)
    this.#lingerTimer = setTimeout(() => this.#unsubscribe(), LINGER_MS)
    this.#lingerTimer.unref()
  }

  // A session, and another when it is lost, while there is somebody to tell.
  async #subscribe(): Promise<void> {
    this.#subscribing = true
    const { signal } = this.#closed
    for (let pauseMs = 100; this.#wanted && !signal.aborted; pauseMs = Math.min(pauseMs * 2, 2_000)) {
      try {
        const session = await this.#sessions.shared()
        if (session === null) break // behind a pooler: for good
        await session.subscribe(this.#channel, (message) => this.#deliver(message))
        await this.#hooks?.afterListen(session)
        this.#session = session
        this.#notifyAll()
        await this.#untilUnneeded(session)
        this.#session = undefined
        this.#notifyAll()
        pauseMs = 50
        if (session.lost) continue
        await this.#hooks?.beforeUnlisten(session)
        await session.unsubscribe(this.#channel)
      } catch {
        // not kept alive by this: who asks by itself does
        await sleep(pauseMs, undefined, { ref: false, signal }).catch(() => {})
      }
    }
    this.#subscribing = false
  }

  // Until the session is lost, or nobody has wanted to know for a while.
  async #untilUnneeded(session: Session): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const dependent = { connectionLost: () => resolve() }
    session.attach(dependent)
    this.#unsubscribe = () => {
      if (!this.#wanted) resolve()
    }
    await promise
    session.detach(dependent)
  }

  // Whoever may connect may notify: what makes no sense is no reason to fail, but one to look.
  #deliver(message: string): void {
    try {
      const all = this.#parse(message)
      if (all.length === 0) this.#notifyAll()
      for (const { name, payload } of all) {
        for (const listener of this.#listeners.get(name) ?? []) listener(payload)
        for (const listener of this.#anyListeners) listener(name, payload)
      }
    } catch {
      this.#notifyAll()
    }
  }

  #notifyAll(): void {
    for (const listeners of this.#listeners.values()) for (const listener of listeners) listener(null)
    for (const listener of this.#anyListeners) listener(null, null)
  }
}
