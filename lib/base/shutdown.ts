/**
 * Closing a Lockstep, or one room of it. After the close every verb rejects at once, without a statement, and so does every wait
 * that is under way. The statement of such a wait still runs to its end in the background: if it is granted something, that is
 * given back, so no hold is left without an owner.
 */

import { abortable, combineSignals, onAbort } from './abortable.ts'
import { UnavailableError } from './errors.ts'

/** How long a close waits for statements and transactions that are under way. */
export const CLOSE_MS = 5_000
/** How long a close waits for running handlers, as when a worker or a consumer stops. */
export const GRACE_MS = 1_000

/** Whether something is closed, and how its verbs and waits end with it. */
export class Closing {
  readonly #controller = new AbortController()
  readonly #calls = new Set<Promise<unknown>>()

  /** @param parent  when it closes, this one closes too. */
  constructor(parent?: Closing) {
    const close = () => this.close()
    if (parent?.closed) close()
    parent?.signal.addEventListener('abort', close, { signal: this.signal }) // removed again when this one closes
  }

  /** Aborts at the close. Verbs reject with its reason. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get closed(): boolean {
    return this.signal.aborted
  }

  close(): void {
    if (!this.closed) this.#controller.abort(new UnavailableError('Lockstep was closed'))
  }

  /** @throws {UnavailableError} it is closed. */
  check(): void {
    if (this.closed) throw this.signal.reason
  }

  /** Runs a verb that is one statement. After the close it rejects; a statement that was sent before gets its answer. */
  verb<T>(run: () => Promise<T>): Promise<T> {
    return this.closed ? Promise.reject(this.signal.reason) : run()
  }

  /** Waits for `work`, or rejects at the close, whichever is first. */
  abortable<T>(work: T | Promise<T>): Promise<T> {
    return abortable(this.signal, work)
  }

  /**
   * Runs a verb that may wait.
   * @param signal  the caller's signal.
   * @param run     the verb. It ends when `stop` aborts, which happens with the caller's signal and with the close. It calls
   *   `begun` when its wait is over: from then on the close does not reject the call, and the caller gets its result.
   */
  async wait<T>(
    signal: AbortSignal | undefined,
    run: (stop: AbortSignal, begun: () => void) => Promise<T>,
  ): Promise<T> {
    this.check()
    const stop = combineSignals(signal, this.signal)
    const closed = Promise.withResolvers<never>()
    closed.promise.catch(() => {})
    const begun = onAbort(this.signal, () => closed.reject(this.signal.reason))
    const work = run(stop.signal, begun)
    this.#calls.add(work)
    const over = () => {
      begun()
      stop.end()
      this.#calls.delete(work)
    }
    work.then(over, over)
    return Promise.race([work, closed.promise])
  }

  /** Resolves when every call of {@link wait} has ended. */
  async settled(): Promise<void> {
    while (this.#calls.size > 0) await Promise.allSettled(this.#calls)
  }
}

/** How a room is closed together with its Lockstep (index.ts). */
export interface Shutdown {
  /** Begins nothing new. Running handlers may go on for a second, and everything still works for them; undefined: none runs. */
  drain(): Promise<void> | undefined
  /** Rejects every verb and every wait, releases every hold, and ends every connection and timer: at the latest when `late` resolves. */
  end(late: Promise<void>): Promise<void>
}

/** The shutdown of a room that was made after its Lockstep, and may be closed before it. */
export class RoomShutdown implements Shutdown {
  readonly #closing: Closing
  readonly #rooms: Set<Shutdown>
  readonly #how: Shutdown
  #ended: Promise<void> | undefined

  /** @param how  the shutdown of the room, which runs once. */
  constructor(closing: Closing, rooms: Set<Shutdown>, how: Shutdown) {
    this.#closing = closing
    this.#how = how
    this.#rooms = rooms.add(this)
  }

  drain(): Promise<void> | undefined {
    return this.#how.drain()
  }

  end(late: Promise<void>): Promise<void> {
    this.#closing.close()
    this.#ended ??= this.#how.end(late).finally(() => this.#rooms.delete(this))
    return this.#ended
  }

  /** Closes this room only. */
  async now(): Promise<void> {
    const draining = this.drain()
    if (draining) await draining
    const deadline = new Deadline(CLOSE_MS)
    await this.end(deadline.over)
    deadline.clear()
  }
}

/** A time limit with a timer; `clear` ends the timer. */
export class Deadline {
  readonly over: Promise<void>
  readonly #timer: NodeJS.Timeout

  constructor(ms: number) {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.over = promise
    this.#timer = setTimeout(resolve, ms)
  }

  /** Waits for `work`, at most until the deadline. It ignores errors of `work`. */
  async race(work: Promise<unknown>): Promise<void> {
    await Promise.race([work.catch(() => {}), this.over])
  }

  clear(): void {
    clearTimeout(this.#timer)
  }
}
