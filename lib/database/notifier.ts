/**
 * NOTIFY messages of one channel, delivered to listeners in this process. Each kind of thing has its own channel. Every role that may
 * connect may notify on a channel whose name it knows: so a message is only a reason to look, unless the channel's name is a secret
 * (lockstep.secret_channel). The shared session
 * does the LISTEN, as long as anybody in this process listens.
 *
 * Behind a pooler there is no LISTEN; there a caller has to poll. When the connection is made or lost, a message may have been
 * missed. Then every listener is called with `null`, which means: read the state from the database.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { BackoffDelays } from '../base/index.ts'
import type { Session } from './session.ts'
import type { SessionPool } from './session-pool.ts'

type Listener<T> = (payload: T | null) => void
type AnyListener<T> = (name: string | null, payload: T | null) => void
/** The name of a channel; or a statement that answers it, for a channel whose name is a secret. */
export type Channel = string | ((session: Session) => Promise<string>)
/** Which names a message is about, and what it says of each; an empty array: perhaps about any. May throw. */
type Parse<T> = (message: string) => { name: string; payload: T }[]

/** Statements on the session that listens. With an advisory lock others can see whether anybody listens. */
export interface ListenHooks {
  /** Called after LISTEN. */
  afterListen(session: Session): Promise<unknown>
  /** Called before UNLISTEN. */
  beforeUnlisten(session: Session): Promise<unknown>
}

// LISTEN makes every NOTIFY of the database slower. But a new listener often follows soon after the last one has left.
const LINGER_MS = 10_000

export class Notifier<T> {
  readonly #sessions: SessionPool
  readonly #channel: Channel
  readonly #parse: Parse<T>
  readonly #hooks: ListenHooks | undefined
  readonly #listeners = new Map<string, Set<Listener<T>>>()
  readonly #anyListeners = new Set<AnyListener<T>>()
  #session: Session | undefined
  #subscribing = false
  #lingerTimer: NodeJS.Timeout | undefined
  readonly #closed = new AbortController()
  #endIfUnneeded = () => {}

  /** @param channel  its name, or how to ask for it. */
  constructor(sessions: SessionPool, channel: Channel, parse: Parse<T>, hooks?: ListenHooks) {
    this.#sessions = sessions
    this.#channel = channel
    this.#parse = parse
    this.#hooks = hooks
  }

  /** The session that listens now. */
  get session(): Session | undefined {
    return this.#session?.lost ? undefined : this.#session
  }

  /** Calls `listener` for each message about one name. @returns a function that unsubscribes it. */
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

  /** Calls `listener` for each message, with its name; null: perhaps about any. @returns a function that unsubscribes it. */
  onAny(listener: AnyListener<T>): () => void {
    this.#anyListeners.add(listener)
    this.#begin()
    return () => {
      this.#anyListeners.delete(listener)
      this.#endSoon()
    }
  }

  /** Removes all listeners, and stops listening. */
  close(): void {
    this.#closed.abort()
    this.#listeners.clear()
    this.#anyListeners.clear()
    clearTimeout(this.#lingerTimer)
    this.#endIfUnneeded()
  }

  get #wanted(): boolean {
    return this.#listeners.size > 0 || this.#anyListeners.size > 0
  }

  #begin(): void {
    clearTimeout(this.#lingerTimer)
    this.#session?.users.add(this)
    if (!this.#subscribing && !this.#closed.signal.aborted) void this.#subscribe()
  }

  #endSoon(): void {
    if (this.#wanted || this.#closed.signal.aborted) return
    this.#session?.users.delete(this)
    clearTimeout(this.#lingerTimer)
    this.#lingerTimer = setTimeout(() => this.#endIfUnneeded(), LINGER_MS)
    this.#lingerTimer.unref()
  }

  // Listens on a session, and on the next one when it is lost, as long as there are listeners.
  async #subscribe(): Promise<void> {
    this.#subscribing = true
    const { signal } = this.#closed
    const delays = new BackoffDelays({ firstMs: 100, mostMs: 2_000 })
    while (this.#wanted && !signal.aborted) {
      try {
        const session = await this.#sessions.shared()
        if (session === null) break // behind a pooler, which does not change
        const channel = typeof this.#channel === 'string' ? this.#channel : await this.#channel(session)
        await session.subscribe(channel, (message) => this.#deliver(message))
        await this.#hooks?.afterListen(session)
        this.#session = session
        this.#notifyAll()
        await this.#untilUnneeded(session)
        this.#session = undefined
        this.#notifyAll()
        delays.reset()
        if (session.lost) continue
        await this.#hooks?.beforeUnlisten(session)
        await session.unsubscribe(channel)
      } catch {
        // The timer does not keep the process alive: callers that poll have timers of their own.
        await sleep(delays.next(), undefined, { ref: false, signal }).catch(() => {})
      }
    }
    this.#subscribing = false
  }

  // Resolves when the session is lost, or when there has been no listener for a while.
  async #untilUnneeded(session: Session): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const dependent = { connectionLost: () => resolve(), listens: true }
    session.attach(dependent, false)
    if (this.#wanted) session.users.add(this)
    this.#endIfUnneeded = () => {
      if (!this.#wanted) resolve()
    }
    await promise
    session.detach(dependent)
    session.users.delete(this)
  }

  // Every role that may connect may NOTIFY. A message that makes no sense is not an error: the listeners read the state instead.
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
