/**
 * Time, processes and everything that runs, in one real process and from one seed.
 *
 * TIME is virtual: it is a number, and it moves only from one event to the next. So a minute of a world takes milliseconds, nothing sleeps,
 * and the order of all that happens is that of a list. Events of one moment run in the order in which they were planned.
 *
 * A STEP is one event, and everything that follows from it without waiting: all promises that it settles, all callbacks of the current
 * turn. Then the invariants are checked, and the next event is taken. Since a step belongs to one process, each timer and each clock
 * knows whose it is.
 *
 * PROCESSES are parts of this one. Each has a monotonic clock and a wall clock, which may be set. One that is paused runs no step: its
 * events wait, its clocks go on. One that was killed never runs again.
 *
 * The code of lib/ and of pg runs unchanged. It talks to the outside through timers, clocks, random numbers and sockets; while a world
 * runs, those of Node are replaced ({@link World.run}).
 */
import { syncBuiltinESMExports } from 'node:module'
import net from 'node:net'
import timersPromises from 'node:timers/promises'
import { seeded } from '../chaos/random.ts'

const real = { setImmediate }
/** The wall clock of a world at its beginning. */
const EPOCH_MS = Date.UTC(2026, 0, 1)

interface Event {
  at: number
  nth: number
  process: Process | undefined
  run: () => void
}

/** One of the simulated processes. */
export class Process {
  readonly name: string
  paused = false
  dead = false
  /** How far its wall clock is ahead, in ms. */
  wallMs = 0
  /** What came while it was paused. */
  readonly late: Event[] = []
  /** Its timers that have not fired. */
  readonly timers = new Set<Timer>()
  /** Called when it dies: its sockets. */
  readonly dies = new Set<() => void>()

  constructor(name: string) {
    this.name = name
  }
}

/** What setTimeout and setInterval return. */
class Timer {
  readonly #world: World
  readonly #process: Process | undefined
  readonly #every: number | undefined
  readonly #callback: () => void
  #ms: number
  #over = false
  #nth = 0

  constructor(world: World, callback: () => void, ms: number, repeats: boolean) {
    this.#world = world
    this.#process = world.current
    this.#callback = callback
    this.#ms = Math.max(1, Math.min(Number.isFinite(ms) ? ms : 1, 2 ** 31 - 1))
    this.#every = repeats ? this.#ms : undefined
    this.#process?.timers.add(this)
    this.#plan()
  }

  #plan(): void {
    const nth = ++this.#nth
    this.#world.after(
      this.#ms,
      () => {
        if (this.#over || nth !== this.#nth) return
        if (this.#every === undefined) this.close()
        this.#callback()
        if (this.#every !== undefined && !this.#over) this.#plan()
      },
      this.#process,
    )
  }

  close(): this {
    this.#over = true
    this.#process?.timers.delete(this)
    return this
  }
  refresh(): this {
    this.#plan()
    return this
  }
  ref(): this {
    return this
  }
  unref(): this {
    return this
  }
  hasRef(): boolean {
    return true
  }
  [Symbol.toPrimitive](): number {
    return 0
  }
}

export class World {
  now = 0
  /** The process whose step it is; undefined: the server's, or nobody's. */
  current: Process | undefined
  /** How many steps there have been. */
  steps = 0
  readonly #events: Event[] = []
  #nth = 0
  #failure: unknown

  /** Plans an event, of `process`, in `ms` milliseconds. */
  after(ms: number, run: () => void, process: Process | undefined): void {
    this.at(this.now + ms, run, process)
  }

  /** Plans an event at a time of this world. What must keep an order is planned so: a sum of differences is rounded. */
  at(time: number, run: () => void, process: Process | undefined): void {
    const event = { at: time, nth: this.#nth++, process, run }
    let at = this.#events.length
    this.#events.push(event)
    while (at > 0) {
      const parent = (at - 1) >> 1
      const above = this.#events[parent] as Event
      if (!before(event, above)) break
      this.#events[at] = above
      at = parent
    }
    this.#events[at] = event
  }

  #next(): Event | undefined {
    const [first] = this.#events
    const last = this.#events.pop()
    if (last === undefined || last === first) return first
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= this.#events.length) break
      const other = this.#events[child + 1]
      if (other && before(other, this.#events[child] as Event)) child++
      if (!before(this.#events[child] as Event, last)) break
      this.#events[at] = this.#events[child] as Event
      at = child
    }
    this.#events[at] = last
    return first
  }

  pause(process: Process): void {
    process.paused = true
  }

  resume(process: Process): void {
    process.paused = false
    for (const { run } of process.late.splice(0)) this.after(0, run, process)
  }

  kill(process: Process): void {
    process.dead = true
    process.late.length = 0
    process.timers.clear()
    for (const die of [...process.dies]) die()
  }

  /** Ends the run with an error. */
  fail(error: unknown): void {
    this.#failure ??= error
  }

  /**
   * Runs events until `until` says so or nothing is planned. While it runs, the timers, clocks, random numbers and sockets of Node are those of
   * this world.
   * @param check  called after each step; it throws if the world has broken a promise.
   */
  async run(seed: number, socket: () => object, until: () => boolean, check: () => void): Promise<void> {
    const restore = this.#replace(seeded(seed), seeded(~seed), socket)
    try {
      while (!until()) {
        const event = this.#next()
        if (event === undefined) return
        this.now = Math.max(this.now, event.at)
        const { process } = event
        if (process?.dead) continue
        if (process?.paused) {
          process.late.push(event)
          continue
        }
        this.current = process
        this.steps++
        event.run()
        await new Promise((resolve) => real.setImmediate(resolve)) // all promises and all of nextTick come before it
        this.current = undefined
        if (this.#failure !== undefined) throw this.#failure
        check()
      }
    } finally {
      restore()
    }
  }

  /** Runs code as if it were the step of a process. */
  as<T>(process: Process, code: () => T): T {
    const before = this.current
    this.current = process
    try {
      return code()
    } finally {
      this.current = before
    }
  }

  #replace(random: () => number, ids: () => number, socket: () => object): () => void {
    const undo: (() => void)[] = []
    const put = (owner: object, name: string, value: unknown) => {
      const own = Object.getOwnPropertyDescriptor(owner, name)
      Object.defineProperty(owner, name, { value, configurable: true, writable: true })
      undo.push(() => (own ? Object.defineProperty(owner, name, own) : Reflect.deleteProperty(owner, name)))
    }
    const clear = (timer: unknown) => void (timer instanceof Timer && timer.close())
    put(
      globalThis,
      'setTimeout',
      (f: (...a: unknown[]) => void, ms = 1, ...a: unknown[]) => new Timer(this, () => f(...a), ms, false),
    )
    put(
      globalThis,
      'setInterval',
      (f: (...a: unknown[]) => void, ms = 1, ...a: unknown[]) => new Timer(this, () => f(...a), ms, true),
    )
    put(globalThis, 'setImmediate', (f: (...a: unknown[]) => void, ...a: unknown[]) =>
      this.after(0, () => f(...a), this.current),
    )
    for (const name of ['clearTimeout', 'clearInterval', 'clearImmediate']) put(globalThis, name, clear)
    put(performance, 'now', () => this.now)
    put(Date, 'now', () => Math.floor(EPOCH_MS + this.now + (this.current?.wallMs ?? 0)))
    put(Math, 'random', random)
    // From numbers of their own: some are drawn once in a process, and not in each world.
    put(crypto, 'randomUUID', () => uuid(ids))
    put(crypto, 'getRandomValues', (array: BigInt64Array) => array.fill(BigInt(Math.floor(random() * 2 ** 52))))
    put(timersPromises, 'setTimeout', (ms: number, value: unknown, { signal }: { signal?: AbortSignal } = {}) =>
      sleep(ms, value, signal),
    )
    void [process.stdout, process.stderr] // made at first use, perhaps as sockets
    put(net, 'Socket', function Socket() {
      return socket()
    })
    syncBuiltinESMExports()
    return () => {
      for (const each of undo.reverse()) each()
      syncBuiltinESMExports()
    }
  }
}

const before = (a: Event, b: Event): boolean => a.at < b.at || (a.at === b.at && a.nth < b.nth)

const uuid = (random: () => number): string => {
  const digits = Array.from({ length: 32 }, () => Math.floor(random() * 16).toString(16)).join('')
  return digits.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, '$1-$2-$3-$4-$5')
}

function sleep(ms: number, value: unknown, signal?: AbortSignal): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const aborted = () => {
      clearTimeout(timer)
      reject(Object.assign(new Error('The operation was aborted', { cause: signal?.reason }), { name: 'AbortError' }))
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', aborted)
      resolve(value)
    }, ms)
    if (signal?.aborted) aborted()
    else signal?.addEventListener('abort', aborted, { once: true })
  })
}
