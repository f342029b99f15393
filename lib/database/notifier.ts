/**
 * What the database tells of one kind of thing: a LISTEN on this process's session, for as long as somebody here wants to
 * know.
 *
 * Behind a pooler there is none, and who wants to know asks. Whenever the connection came or went something may have been
 * missed; then everybody is told `null`: look for yourself.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Session } from './session.ts'
import type { SessionPool } from './session-pool.ts'

type ClockReader<T> = (told: T | null) => void

/** What a session that listens does besides. */
export interface ListenHooks {
  come(session: Session): Promise<unknown>
  go(session: Session): Promise<unknown>
}

// LISTEN makes every NOTIFY of the database dearer, and who wants to know often wants to again.
const LINGER_MS = 10_000

export class Notifier<T> {
  readonly #sessions: SessionPool
  readonly #channel: string
  readonly #read: (message: string) => { name: string; told: T }[]
  readonly #attend: ListenHooks | undefined
  readonly #ears = new Map<string, Set<ClockReader<T>>>()
  readonly #any = new Set<(name: string | null, told: T | null) => void>()
  #session: Session | undefined
  #keeping = false
  #linger: NodeJS.Timeout | undefined
  readonly #closed = new AbortController()
  #unsubscribe = () => {}

  /**
   * @param read    what a message says, of which names; nothing: perhaps of any. May throw.
   * @param attend  so that it is known whether anybody listens.
   */
  constructor(
    sessions: SessionPool,
    channel: string,
    read: (message: string) => { name: string; told: T }[],
    attend?: ListenHooks,
  ) {
    this.#sessions = sessions
    this.#channel = channel
    this.#read = read
    this.#attend = attend
  }

  /** The session over which news comes now. */
  get session(): Session | undefined {
    return this.#session?.lost ? undefined : this.#session
  }

  /** Hears of one name until the answer is called. */
  on(name: string, ear: ClockReader<T>): () => void {
    const ears = this.#ears.get(name) ?? new Set()
    this.#ears.set(name, ears.add(ear))
    this.#begin()
    return () => {
      ears.delete(ear)
      if (ears.size > 0 || this.#ears.get(name) !== ears) return
      this.#ears.delete(name)
      this.#endSoon()
    }
  }

  /** Hears that there was news, and of what name; null: perhaps of any. Until the answer is called. */
  onAny(ear: (name: string | null, told: T | null) => void): () => void {
    this.#any.add(ear)
    this.#begin()
    return () => {
      this.#any.delete(ear)
      this.#endSoon()
    }
  }

  /** Nobody hears anything any more. */
  close(): void {
    this.#closed.abort()
    this.#ears.clear()
    this.#any.clear()
    clearTimeout(this.#linger)
    this.#unsubscribe()
  }

  get #wanted(): boolean {
    return this.#ears.size > 0 || this.#any.size > 0
  }

  #begin(): void {
    clearTimeout(this.#linger)
    if (!this.#keeping && !this.#closed.signal.aborted) void this.#keep()
  }

  #endSoon(): void {
    if (this.#wanted || this.#closed.signal.aborted) return
    clearTimeout(this.#linger)
    this.#linger = setTimeout(() => this.#unsubscribe(), LINGER_MS)
    this.#linger.unref()
  }

  // A session, and another when it is lost, while there is somebody to tell.
  async #keep(): Promise<void> {
    this.#keeping = true
    const { signal } = this.#closed
    for (let pauseMs = 100; this.#wanted && !signal.aborted; pauseMs = Math.min(pauseMs * 2, 2_000)) {
      try {
        const session = await this.#sessions.shared()
        if (session === null) break // behind a pooler: for good
        await session.subscribe(this.#channel, (message) => this.#tell(message))
        await this.#attend?.come(session)
        this.#session = session
        this.#tellAll()
        await this.#over(session)
        this.#session = undefined
        this.#tellAll()
        pauseMs = 50
        if (session.lost) continue
        await this.#attend?.go(session)
        await session.unsubscribe(this.#channel)
      } catch {
        // not kept alive by this: who asks by itself does
        await sleep(pauseMs, undefined, { ref: false, signal }).catch(() => {})
      }
    }
    this.#keeping = false
  }

  // Until the session is lost, or nobody has wanted to know for a while.
  async #over(session: Session): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const bell = { connectionLost: () => resolve() }
    session.attach(bell)
    this.#unsubscribe = () => {
      if (!this.#wanted) resolve()
    }
    await promise
    session.detach(bell)
  }

  // Whoever may connect may notify: what makes no sense is no reason to fail, but one to look.
  #tell(message: string): void {
    try {
      const all = this.#read(message)
      if (all.length === 0) this.#tellAll()
      for (const { name, told } of all) {
        for (const ear of this.#ears.get(name) ?? []) ear(told)
        for (const ear of this.#any) ear(name, told)
      }
    } catch {
      this.#tellAll()
    }
  }

  #tellAll(): void {
    for (const ears of this.#ears.values()) for (const ear of ears) ear(null)
    for (const ear of this.#any) ear(null, null)
  }
}
