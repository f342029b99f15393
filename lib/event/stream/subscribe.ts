/**
 * What is asked of reading and following: checked, and put together. How pages are waited for; how it is followed is told in
 * follow.ts.
 */

import type { Closing } from '../../base/index.ts'
import { checkMs, checkOptions, checkText, checkWord, Stopwatch, WAIT, wrongType } from '../../base/index.ts'
import { type EventPiece, Follow, type Source } from './follow.ts'
import type { Lookout, StreamNotifier } from './notifier.ts'
import { type Chunk, checkLimit, checkPlace, type EventPage, LIMIT, type Reader, type StoredEvent } from './read.ts'

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

const LAST = 2n ** 63n - 1n

/** What is read, by pages too. */
interface Paged extends Source {
  read(from: bigint, limit: number): Promise<Chunk>
}

export class Followers {
  readonly #reader: Reader
  readonly #notifier: StreamNotifier
  readonly #follow: Follow

  constructor(reader: Reader, tidings: StreamNotifier, closing: Closing) {
    this.#reader = reader
    this.#notifier = tidings
    this.#follow = new Follow(tidings, closing)
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

  subscribe(
    options: SubscribeOptions & { as?: 'event' | 'json' } = {},
  ): AsyncGenerator<StoredEvent | EventPiece, never, void> {
    checkOptions(options)
    const { stream, prefix, from = 1n, as = 'event', signal } = options
    checkWord('as', as, ['event', 'json'])
    if (stream !== undefined) checkText('stream', stream)
    if (prefix !== undefined) checkText('prefix', prefix)
    if (stream !== undefined && prefix !== undefined) {
      throw wrongType('prefix', 'left out when there is a stream', prefix)
    }
    if (from !== 'end') checkPlace('from', from)
    const source = stream === undefined ? this.#all(prefix ?? '') : this.#stream(stream)
    return as === 'json' ? this.#follow.pieces(source, from, signal) : this.#follow.events(source, from, signal)
  }

  // A page; if there is nothing, what comes within the wait.
  async #page(source: Paged, options: WaitOptions & { from: bigint }): Promise<EventPage> {
    const { limit = LIMIT.default, waitMs = 0, signal } = options
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    const since = new Stopwatch()
    let lookout: Lookout | undefined
    const wake = () => lookout?.end()
    signal?.addEventListener('abort', wake)
    try {
      for (let place = options.from; ; ) {
        signal?.throwIfAborted()
        const { events, next, more, waits } = await source.read(place, limit)
        if (events.length > 0) return { events, next }
        place = next
        if (more) continue // past a stretch without an event of these streams
        const leftMs = waitMs - since.elapsed()
        if (leftMs <= 0) return { events, next }
        if (lookout) await lookout.wait(waits, leftMs)
        lookout ??= this.#notifier.watch(source.wants) // and look once more: it may have come before
      }
    } finally {
      signal?.removeEventListener('abort', wake)
      lookout?.leave()
    }
  }

  #stream(stream: string): Paged {
    return {
      texts: (from, room) => this.#reader.streamTexts(stream, from, room),
      read: (from, limit) => this.#reader.stream(stream, from, limit),
      end: async () => ((await this.#reader.state(stream))?.position ?? 0n) + 1n,
      wants: (told) => told === null || told === stream,
    }
  }

  #all(prefix: string): Paged {
    return {
      texts: (from, room) => this.#reader.allTexts(prefix, from, room),
      read: (from, limit) => this.#reader.all(prefix, from, limit),
      end: () => this.#reader.end(),
      wants: (told) => told?.startsWith(prefix) ?? true,
    }
  }
}
