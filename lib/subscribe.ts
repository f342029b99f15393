/**
 * Following: everything from a place on, then what comes (tidings.ts tells when to look).
 *
 * The consumer asks for the next event when it is done with the last: two pages are all that is ever in memory, and a consumer that
 * is slow holds up nobody.
 */
import { UnavailableError, wrongType } from './errors.ts'
import { checkMs, checkOptions, checkText, WAIT } from './options.ts'
import { type Chunk, checkLimit, checkPlace, type EventPage, LIMIT, type Reader, type StoredEvent } from './read.ts'
import type { Lookout, Tidings, Wants } from './tidings.ts'
import { Moment } from './trust.ts'

export interface SubscribeOptions {
  /** One stream, in the order of its positions. */
  stream?: string
  /** Or all streams under a prefix, in the order of their cursors. @default '' */
  prefix?: string
  /** The first to read: a position of the stream, or a cursor. `end`: what is appended from now on. @default 1n */
  from?: bigint | 'end'
  signal?: AbortSignal
}

export interface WaitOptions {
  /** Events, 1–1,000. @default 100 */
  limit?: number
  /** Milliseconds to wait for one, ≥ 0. @default 0 */
  waitMs?: number
  /** Ends the wait: the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

export interface ReadOptions extends WaitOptions {
  /** The first position to read. @default 1n; backwards, the last */
  from?: bigint
  /** From there to the beginning. */
  backwards?: boolean
}

export interface AllOptions extends WaitOptions {
  prefix?: string
  /** The first cursor to read. @default 1n */
  from?: bigint
}

// Read at a time.
const PAGE = 1_000
const OUTAGE_MS = { first: 100, most: 5_000 }
const LAST = 2n ** 63n - 1n

type Failed = { failed: unknown }

/** What is followed: how a page of it is read, and which news concern it. */
interface Source {
  read(from: bigint, limit: number): Promise<Chunk>
  end(): Promise<bigint>
  wants: Wants
}

export class Followers {
  readonly #reader: Reader
  readonly #tidings: Tidings
  readonly #closed: AbortSignal

  /** @param closed  ends every wait. */
  constructor(reader: Reader, tidings: Tidings, closed: AbortSignal) {
    this.#reader = reader
    this.#tidings = tidings
    this.#closed = closed
  }

  async read(stream: string, options: ReadOptions = {}): Promise<EventPage> {
    checkText('stream', stream)
    checkOptions(options)
    const { from, limit = LIMIT.default, backwards = false } = options
    if (from !== undefined) checkPlace('from', from)
    checkLimit(limit)
    if (!backwards) return this.#page(this.#stream(stream), { ...options, from: from ?? 1n })
    if (options.waitMs) throw wrongType('waitMs', 'left out when reading backwards', options.waitMs)
    return this.#reader.backwards(stream, from ?? LAST, limit)
  }

  async readAll(options: AllOptions = {}): Promise<EventPage> {
    checkOptions(options)
    const { prefix = '', from = 1n, limit = LIMIT.default } = options
    checkText('prefix', prefix)
    checkPlace('from', from)
    checkLimit(limit)
    return this.#page(this.#all(prefix), { ...options, from })
  }

  subscribe(options: SubscribeOptions = {}): AsyncGenerator<StoredEvent, never, void> {
    checkOptions(options)
    const { stream, prefix, from = 1n, signal } = options
    if (stream !== undefined) checkText('stream', stream)
    if (prefix !== undefined) checkText('prefix', prefix)
    if (stream !== undefined && prefix !== undefined) {
      throw wrongType('prefix', 'left out when there is a stream', prefix)
    }
    if (from !== 'end') checkPlace('from', from)
    return this.#follow(stream === undefined ? this.#all(prefix ?? '') : this.#stream(stream), from, signal)
  }

  async *#follow(source: Source, from: bigint | 'end', signal?: AbortSignal): AsyncGenerator<StoredEvent, never, void> {
    signal?.throwIfAborted()
    const lookout = this.#tidings.watch(source.wants)
    const stops = signal ? [signal, this.#closed] : [this.#closed]
    const check = () => {
      for (const stop of stops) stop.throwIfAborted()
    }
    const end = () => lookout.end()
    for (const stop of stops) stop.addEventListener('abort', end)
    const read = async (place: bigint): Promise<Chunk | Failed> =>
      source.read(place, PAGE).catch((error) => ({ failed: error }))
    let outageMs: number = OUTAGE_MS.first
    let first = true
    try {
      let place = from === 'end' ? await source.end() : from
      for (let coming = read(place); ; ) {
        check()
        const chunk = await coming
        check()
        if ('failed' in chunk) {
          if (first || !(chunk.failed instanceof UnavailableError)) throw chunk.failed
          await lookout.pause(outageMs)
          outageMs = Math.min(outageMs * 2, OUTAGE_MS.most)
          coming = read(place)
          continue
        }
        outageMs = OUTAGE_MS.first
        first = false
        place = chunk.next
        // the next page is read while the consumer is at this one
        if (chunk.more) coming = read(place)
        if (chunk.events.length > 0) lookout.found()
        for (const event of chunk.events) {
          check()
          yield event
        }
        if (chunk.more) continue
        await lookout.wait(chunk.waits)
        coming = read(place)
      }
    } finally {
      for (const stop of stops) stop.removeEventListener('abort', end)
      lookout.leave()
    }
  }

  // A page; if there is nothing, what comes within the wait.
  async #page(source: Source, options: WaitOptions & { from: bigint }): Promise<EventPage> {
    const { limit = LIMIT.default, waitMs = 0, signal } = options
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    const since = new Moment()
    let lookout: Lookout | undefined
    const ring = () => lookout?.end()
    const stops = signal ? [signal, this.#closed] : [this.#closed]
    for (const stop of stops) stop.addEventListener('abort', ring)
    try {
      for (let place = options.from; ; ) {
        for (const stop of stops) stop.throwIfAborted()
        const { events, next, more, waits } = await source.read(place, limit)
        if (events.length > 0) return { events, next }
        place = next
        if (more) continue // past a stretch without an event of these streams
        const leftMs = waitMs - since.elapsed()
        if (leftMs <= 0) return { events, next }
        if (lookout) await lookout.wait(waits, leftMs)
        lookout ??= this.#tidings.watch(source.wants) // and look once more: it may have come before
      }
    } finally {
      for (const stop of stops) stop.removeEventListener('abort', ring)
      lookout?.leave()
    }
  }

  #stream(stream: string): Source {
    return {
      read: (from, limit) => this.#reader.stream(stream, from, limit),
      end: async () => ((await this.#reader.state(stream))?.position ?? 0n) + 1n,
      wants: (told) => told === null || told === stream,
    }
  }

  #all(prefix: string): Source {
    return {
      read: (from, limit) => this.#reader.all(prefix, from, limit),
      end: () => this.#reader.end(),
      wants: (told) => told?.startsWith(prefix) ?? true,
    }
  }
}
