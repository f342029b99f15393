/**
 * What the database tells of elections: one LISTEN on this process's session, for as long as somebody here wants to know.
 *
 * Behind a pooler there is none, and who wants to know asks. Whenever the connection came or went something may have been
 * missed; then everybody is told `null`: look for yourself.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Session } from './session.ts'
import type { Sessions } from './sessions.ts'

/** An election after a change. Without `revision` it did not fit into the message and has to be looked up. */
export interface Told {
  name: string
  revision?: string
  /** The leader was asked to step down. */
  deposed?: boolean
  leader?: {
    holder: string
    token: string
    grantedAt: string
    expiresAt: string
    ttlMs: number
    meta: unknown
  } | null
  /** The candidate whose turn is next. */
  next?: string | null
}
type Ear = (told: Told | null) => void

const CHANNEL = 'lockstep_leader'
// LISTEN makes every NOTIFY of the database dearer, and a campaign often follows another.
const LINGER_MS = 10_000

export class News {
  readonly #sessions: Sessions
  readonly #ears = new Map<string, Set<Ear>>()
  #session: Session | undefined
  #keeping = false
  #linger: NodeJS.Timeout | undefined
  #hush = () => {}

  constructor(sessions: Sessions) {
    this.#sessions = sessions
  }

  /** The session over which news comes now. */
  get session(): Session | undefined {
    return this.#session?.lost ? undefined : this.#session
  }

  /** Hears of one election until the answer is called. */
  on(name: string, ear: Ear): () => void {
    const ears = this.#ears.get(name) ?? new Set()
    this.#ears.set(name, ears.add(ear))
    clearTimeout(this.#linger)
    if (!this.#keeping) void this.#keep()
    return () => {
      ears.delete(ear)
      if (ears.size > 0 || this.#ears.get(name) !== ears) return
      this.#ears.delete(name)
      if (this.#ears.size > 0) return
      clearTimeout(this.#linger)
      this.#linger = setTimeout(() => this.#hush(), LINGER_MS)
      this.#linger.unref()
    }
  }

  // A session, and another when it is lost, while there is somebody to tell.
  async #keep(): Promise<void> {
    this.#keeping = true
    for (let pauseMs = 100; this.#ears.size > 0; pauseMs = Math.min(pauseMs * 2, 2_000)) {
      try {
        const session = await this.#sessions.shared()
        if (session === null) break // behind a pooler: for good
        await session.subscribe(CHANNEL, (message) => this.#tell(message))
        this.#session = session
        this.#tellAll()
        await this.#over(session)
        this.#session = undefined
        this.#tellAll()
        pauseMs = 50
        if (!session.lost) await session.unsubscribe(CHANNEL)
      } catch {
        await sleep(pauseMs, undefined, { ref: false }) // who asks by itself keeps the process alive
      }
    }
    this.#keeping = false
  }

  // Until the session is lost, or nobody has wanted to know for a while.
  async #over(session: Session): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const bell = { connectionLost: () => resolve() }
    session.dependents.add(bell)
    this.#hush = () => {
      if (this.#ears.size === 0) resolve()
    }
    if (!session.lost) await promise
    session.dependents.delete(bell)
  }

  // Whoever may connect may notify: what makes no sense is no reason to fail, but one to look.
  #tell(message: string): void {
    try {
      const told = JSON.parse(message) as Told
      for (const ear of this.#ears.get(told.name) ?? []) ear(told)
    } catch {
      this.#tellAll()
    }
  }

  #tellAll(): void {
    for (const ears of this.#ears.values()) for (const ear of ears) ear(null)
  }
}
