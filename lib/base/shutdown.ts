/**
 * The end of a Lockstep, or of a room of it: from then on every verb rejects, at once and without asking anything, and so does
 * every wait that is under way. What such a wait had begun is seen to its end behind it, so that nothing is granted to nobody.
 */

import { abortable, combineSignals } from './abortable.ts'
import { UnavailableError } from './errors.ts'

/** For what is under way. */
export const CLOSE_MS = 5_000
/** For handlers that run, as when a worker or a consumer stops. */
export const GRACE_MS = 1_000

export class Closing {
  readonly #controller = new AbortController()
  readonly #calls = new Set<Promise<unknown>>()

  /** @param of  closes with it. */
  constructor(of?: Closing) {
    const close = () => this.close()
    if (of?.closed) close()
    of?.signal.addEventListener('abort', close, { signal: this.signal })
  }

  /** Aborts when it is closed; the reason is what verbs reject with. */
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

  /** A verb that is one question: after the close it rejects; one that was asked before gets its answer. */
  verb<T>(run: () => Promise<T>): Promise<T> {
    return this.closed ? Promise.reject(this.signal.reason) : run()
  }

  /** What `work` comes to, or the end of it all, whichever is first. */
  abortable<T>(work: T | Promise<T>): Promise<T> {
    return abortable(this.signal, work)
  }

  /**
   * A verb that may wait.
   * @param signal  of the caller.
   * @param run     heeds `stop`, which aborts with the caller's signal and with the close; once it calls `begun` it is no wait
   *   any more, and the caller gets what it comes to.
   */
  async wait<T>(
    signal: AbortSignal | undefined,
    run: (stop: AbortSignal, begun: () => void) => Promise<T>,
  ): Promise<T> {
    this.check()
    const stop = combineSignals(signal, this.signal)
    const closed = Promise.withResolvers<never>()
    closed.promise.catch(() => {})
    const onClose = () => closed.reject(this.signal.reason)
    this.signal.addEventListener('abort', onClose)
    const begun = () => this.signal.removeEventListener('abort', onClose)
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

  /** Resolves when nothing runs any more that {@link wait} had begun. */
  async settled(): Promise<void> {
    while (this.#calls.size > 0) await Promise.allSettled(this.#calls)
  }
}

/** How a room ends with its Lockstep (index.ts). */
export interface Shutdown {
  /** Begins nothing new. Handlers that run may go on for a second, with all that there is; undefined: none runs. */
  drain(): Promise<void> | undefined
  /** Rejects every verb and every wait, gives up what it has, and ends what it has made: at the latest when `late` resolves. */
  end(late: Promise<void>): Promise<void>
}

/** The end of a room that was made after its Lockstep, and may end before it. */
export class RoomShutdown implements Shutdown {
  readonly #closing: Closing
  readonly #rooms: Set<Shutdown>
  readonly #how: Shutdown
  #ended: Promise<void> | undefined

  /** @param how  what there is to do, once. */
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

  /** Ends the room alone. */
  async now(): Promise<void> {
    const draining = this.drain()
    if (draining) await draining
    const deadline = new Deadline(CLOSE_MS)
    await this.end(deadline.over)
    deadline.clear()
  }
}

/** A time that may be waited for beside something else, and is given back. */
export class Deadline {
  readonly over: Promise<void>
  readonly #timer: NodeJS.Timeout

  constructor(ms: number) {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.over = promise
    this.#timer = setTimeout(resolve, ms)
  }

  /** Waits for `work`, or until it is over; how it ends is of no interest. */
  async race(work: Promise<unknown>): Promise<void> {
    await Promise.race([work.catch(() => {}), this.over])
  }

  clear(): void {
    clearTimeout(this.#timer)
  }
}
