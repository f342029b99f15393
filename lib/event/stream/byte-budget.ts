/**
 * An amount of memory that many share: who needs some reserves it before it is used, and waits its turn when there is none.
 *
 * A reservation that rests, because nobody takes what it is for, is taken away after a second when another waits; its owner reads
 * again when it is asked again. So readers that do not read keep no memory from those that do.
 */

// For how long a reservation rests before it may be taken away: who reads at all comes back sooner.
const REST_MS = 1_000

interface Waiter {
  bytes: number
  enter(): void
}

export class ByteBudget {
  readonly #bytes: number
  #free: number
  readonly #line: Waiter[] = []
  /** Those that rest, the longest first. */
  readonly #resting = new Map<Reservation, { since: number; evict: () => void }>()
  #timer: NodeJS.Timeout | undefined

  constructor(bytes: number) {
    this.#bytes = bytes
    this.#free = bytes
  }

  /** How much is reserved now. */
  get used(): number {
    return this.#bytes - this.#free
  }

  /** Reserves so many bytes, of all that there are at most, first come first served. @throws the signal's reason. */
  async reserve(wanted: number, signal: AbortSignal): Promise<Reservation> {
    signal.throwIfAborted()
    const bytes = Math.min(wanted, this.#bytes)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { bytes, enter: resolve }
    const leave = () => {
      const at = this.#line.indexOf(waiter)
      if (at < 0) return
      this.#line.splice(at, 1)
      this.#serve()
      reject(signal.reason)
    }
    this.#line.push(waiter)
    signal.addEventListener('abort', leave)
    this.#serve()
    await promise.finally(() => signal.removeEventListener('abort', leave))
    return new Reservation(this, bytes)
  }

  /** @internal */
  give(bytes: number): void {
    this.#free += bytes
    this.#serve()
  }

  /** @internal  May be taken away from now on; undefined: may not. */
  rest(reservation: Reservation, evict: (() => void) | undefined): void {
    this.#resting.delete(reservation)
    if (evict) this.#resting.set(reservation, { since: performance.now(), evict })
    if (this.#line.length > 0) this.#serve()
  }

  #serve(): void {
    for (let [first] = this.#line; first; [first] = this.#line) {
      if (first.bytes > this.#free) break
      this.#line.shift()
      this.#free -= first.bytes
      first.enter()
    }
    clearTimeout(this.#timer)
    if (this.#line.length === 0) return
    const [longest] = this.#resting
    if (!longest) return // somebody gives back, or rests
    const [reservation, { since, evict }] = longest
    const leftMs = REST_MS - (performance.now() - since)
    if (leftMs > 0) {
      this.#timer = setTimeout(() => this.#serve(), leftMs)
      return
    }
    this.#resting.delete(reservation)
    evict()
    reservation.release() // and on
  }
}

export class Reservation {
  readonly #budget: ByteBudget
  #bytes: number

  constructor(budget: ByteBudget, bytes: number) {
    this.#budget = budget
    this.#bytes = bytes
  }

  /** Gives back what is not needed for so many bytes. */
  shrink(bytes: number): void {
    const less = this.#bytes - Math.min(bytes, this.#bytes)
    if (less === 0) return
    this.#bytes -= less
    this.#budget.give(less)
  }

  /** Nobody takes what it is for now: `evict` is called when it is taken away, and drops what was read. */
  rest(evict: () => void): void {
    this.#budget.rest(this, evict)
  }

  /** Somebody does again. */
  resume(): void {
    this.#budget.rest(this, undefined)
  }

  release(): void {
    this.resume()
    this.shrink(0)
  }
}
