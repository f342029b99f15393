/**
 * A memory budget that many readers share. A reader reserves bytes before it uses them, and waits its turn when none
 * are free.
 *
 * A reservation is idle while nobody takes what was read into it. An idle reservation is evicted after a second if
 * another reader waits; its owner reads again when it is asked again. So readers whose clients do not read keep no
 * memory from the others.
 */

import { onAbort } from '../../base/index.ts'

// How long a reservation may be idle before it is evicted: a client that reads at all comes back sooner.
const IDLE_MS = 1_000

interface Waiter {
  bytes: number
  enter(): void
}

export class ByteBudget {
  readonly #bytes: number
  #free: number
  readonly #waitQueue: Waiter[] = []
  /** The idle reservations, the longest idle first. */
  readonly #idle = new Map<Reservation, { since: number; evict: () => void }>()
  #timer: NodeJS.Timeout | undefined

  constructor(bytes: number) {
    this.#bytes = bytes
    this.#free = bytes
  }

  /** Bytes that are reserved now. */
  get used(): number {
    return this.#bytes - this.#free
  }

  /** Reserves bytes, never more than the whole budget; first come, first served. @throws the signal's reason. */
  async reserve(wanted: number, signal: AbortSignal): Promise<Reservation> {
    signal.throwIfAborted()
    const bytes = Math.min(wanted, this.#bytes)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { bytes, enter: resolve }
    this.#waitQueue.push(waiter)
    const off = onAbort(signal, () => {
      const index = this.#waitQueue.indexOf(waiter)
      if (index < 0) return
      this.#waitQueue.splice(index, 1)
      this.#serve()
      reject(signal.reason)
    })
    this.#serve()
    await promise.finally(off)
    return new Reservation(this, bytes)
  }

  /** @internal  Returns bytes to the budget. */
  release(bytes: number): void {
    this.#free += bytes
    this.#serve()
  }

  /** @internal  Marks a reservation as idle, with the function that evicts it; undefined: it is in use. */
  setIdle(reservation: Reservation, evict: (() => void) | undefined): void {
    this.#idle.delete(reservation)
    if (evict) this.#idle.set(reservation, { since: performance.now(), evict })
    if (this.#waitQueue.length > 0) this.#serve()
  }

  #serve(): void {
    for (let [first] = this.#waitQueue; first; [first] = this.#waitQueue) {
      if (first.bytes > this.#free) break
      this.#waitQueue.shift()
      this.#free -= first.bytes
      first.enter()
    }
    clearTimeout(this.#timer)
    if (this.#waitQueue.length === 0) return
    const [longest] = this.#idle
    if (!longest) return // the next release, or the next idle reservation, calls this again
    const [reservation, { since, evict }] = longest
    const leftMs = IDLE_MS - (performance.now() - since)
    if (leftMs > 0) {
      this.#timer = setTimeout(() => this.#serve(), leftMs)
      return
    }
    this.#idle.delete(reservation)
    evict()
    reservation.release() // calls this again
  }
}

export class Reservation {
  readonly #budget: ByteBudget
  #bytes: number

  constructor(budget: ByteBudget, bytes: number) {
    this.#budget = budget
    this.#bytes = bytes
  }

  /** Keeps so many bytes, and returns the rest. */
  shrink(bytes: number): void {
    const less = this.#bytes - Math.min(bytes, this.#bytes)
    if (less === 0) return
    this.#bytes -= less
    this.#budget.release(less)
  }

  /** Nobody takes what was read. `evict` is called when the memory is taken away; it drops what was read. */
  idle(evict: () => void): void {
    this.#budget.setIdle(this, evict)
  }

  /** What was read is taken again. */
  resume(): void {
    this.#budget.setIdle(this, undefined)
  }

  release(): void {
    this.resume()
    this.shrink(0)
  }
}
