/**
 * The attempts that run in this process. Once a second each of them is checked: so their heartbeats share statements, and a job
 * that takes no time costs no timer. When a job's id is notified (somebody cancelled it), its attempt sends a heartbeat at once.
 */
import { Deadline } from '../../base/index.ts'
import type { Notifier } from '../../database/index.ts'

/** The part of an attempt that is used here. */
interface Attempt {
  /** Settles when the attempt is over. */
  readonly result: Promise<unknown>
  /** Called once a second. */
  check(): void
  /** Asks the database whether the attempt still is the job's. */
  heartbeat(): void
  /** Gives the attempt up. */
  end(how: 'lost', why: string): void
}

const CHECK_MS = 1_000

export class RunningAttempts {
  readonly #notifier: Notifier<null>
  readonly #all = new Map<string, Attempt>()
  #closed = false
  #timer: NodeJS.Timeout | undefined
  #unsubscribe = () => {}

  constructor(notifier: Notifier<null>) {
    this.#notifier = notifier
  }

  add(id: string, attempt: Attempt): void {
    this.#all.set(id, attempt)
    if (this.#timer || this.#closed) return
    this.#timer = setInterval(() => {
      for (const each of this.#all.values()) each.check()
    }, CHECK_MS).unref()
    this.#unsubscribe = this.#notifier.onAny((id) => {
      if (id !== null) this.#all.get(id)?.heartbeat()
      else for (const each of this.#all.values()) each.heartbeat()
    })
  }

  remove(id: string, attempt: Attempt): void {
    if (this.#all.get(id) === attempt) this.#all.delete(id) // another attempt of the same job may run here too
    if (this.#all.size === 0) this.#stopChecking()
  }

  /** Resolves when all that run now are over, or `ms` have passed; undefined: none runs. */
  settled(ms: number): Promise<void> | undefined {
    if (this.#all.size === 0) return undefined
    const deadline = new Deadline(ms)
    const all = [...this.#all.values()].map(({ result }) => result)
    return deadline.race(Promise.all(all)).finally(() => deadline.clear())
  }

  /** Stops the checks, and gives up what still runs: its database connection is closed. */
  close(): void {
    this.#closed = true
    this.#stopChecking()
    for (const each of this.#all.values()) each.end('lost', 'Lockstep was closed')
  }

  #stopChecking(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#unsubscribe()
  }
}
