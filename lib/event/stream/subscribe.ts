/**
 * Reading and following for callers: checks the options, and waits for a page. How events are followed is explained in
 * follow.ts.
 */

import type { Closing } from '../../base/index.ts'
import {
  checkMs,
  checkOptions,
  checkText,
  checkWord,
  exact,
  known,
  onAbort,
  Stopwatch,
  WAIT,
  wrongType,
} from '../../base/index.ts'
import { type EventPiece, Follow, type Source } from './follow.ts'
import type { StreamNotifier, StreamWatch } from './notifier.ts'
import {
  type Chunk,
  checkLimit,
  checkPosition,
  type EventPage,
  LIMIT,
  MAX_POSITION,
  type Reader,
  type StoredEvent,
} from './read.ts'

/** Options of `subscribe`. */
export interface SubscribeOptions {
  /**
   * The stream to follow, in the order of its positions. Not together with `prefix`.
   * @default all streams under `prefix`
   */
  stream?: string | undefined
  /**
   * The streams to follow, by what their names begin with, in the order of cursors. Not together with `stream`.
   * @default '', all streams
   */
  prefix?: string | undefined
  /**
   * The first event: a position of the stream or, without `stream`, a cursor, ≥ 1n. `end`: only events that are
   * appended from now on.
   * @default 1n
   */
  from?: bigint | 'end' | undefined
  /** Ends the subscription: it throws `signal.reason`. */
  signal?: AbortSignal | undefined
}

export interface WaitOptions {
  /** The most events to return, 1–1,000. @default 100 */
  limit?: number | undefined
  /** Milliseconds to wait for an event when there is none, ≥ 0. @default 0 */
  waitMs?: number | undefined
  /** Ends the wait: the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined
}

/** Options of `read`. */
export interface ReadOptions extends WaitOptions {
  /** The first position to read, ≥ 1n; `end`: that of the next event to be appended. @default 1n; with `backwards`, the stream's last */
  from?: bigint | 'end' | undefined
  /** Reads from `from` back to the beginning. Not together with `waitMs`. @default false */
  backwards?: boolean | undefined
}

/** Options of `readAll`. */
export interface AllOptions extends WaitOptions {
  /** The streams to read, by what their names begin with. @default '', all streams */
  prefix?: string | undefined
  /** The first cursor to read, ≥ 1n; `end`: that of the next event to be appended. @default 1n */
  from?: bigint | 'end' | undefined
}

const WAIT_NAMES = { limit: true, waitMs: true, signal: true } as const
const READ = known<ReadOptions>({ ...WAIT_NAMES, from: true, backwards: true })
const ALL = known<AllOptions>({ ...WAIT_NAMES, prefix: true, from: true })
const SUBSCRIBE = known<SubscribeOptions & { as?: string }>({
  ...{ stream: true, prefix: true, from: true, signal: true, as: true },
})

/** A source that is read by pages too. */
interface PagedSource extends Source {
  read(from: bigint, limit: number): Promise<Chunk>
}

export class Followers {
  readonly #reader: Reader
  readonly #notifier: StreamNotifier
  readonly #follow: Follow

  constructor(reader: Reader, notifier: StreamNotifier, closing: Closing) {
    this.#reader = reader
    this.#notifier = notifier
    this.#follow = new Follow(notifier, closing)
  }

  async read(stream: string, options: ReadOptions = {}): Promise<EventPage> {
    checkText('stream', stream)
    checkOptions(options, READ)
    const { from, limit = LIMIT.default, backwards = false } = options
    if (from !== undefined && from !== 'end') checkPosition('from', from)
    checkLimit(limit)
    if (!backwards) return this.#page(this.#stream(stream), { ...options, from: from ?? 1n })
    if (options.waitMs) throw wrongType('waitMs', 'left out when reading backwards', options.waitMs)
    return this.#reader.backwards(stream, typeof from === 'bigint' ? from : MAX_POSITION, limit)
  }

  async readAll(options: AllOptions = {}): Promise<EventPage> {
    checkOptions(options, ALL)
    const { prefix = '', from = 1n, limit = LIMIT.default } = options
    checkText('prefix', prefix)
    if (from !== 'end') checkPosition('from', from)
    checkLimit(limit)
    return this.#page(this.#all(prefix), { ...options, from })
  }

  subscribe(
    options: SubscribeOptions & { as?: 'event' | 'json' | undefined } = {},
  ): AsyncGenerator<StoredEvent | EventPiece, never, void> {
    checkOptions(options, SUBSCRIBE)
    const { stream, prefix, from = 1n, as = 'event', signal } = options
    checkWord('as', as, ['event', 'json'])
    if (stream !== undefined) checkText('stream', stream)
    if (prefix !== undefined) checkText('prefix', prefix)
    if (stream !== undefined && prefix !== undefined) {
      throw wrongType('prefix', 'left out when there is a stream', prefix)
    }
    if (from !== 'end') checkPosition('from', from)
    const source = stream === undefined ? this.#all(prefix ?? '') : this.#stream(stream)
    return as === 'json' ? this.#follow.pieces(source, from, signal) : this.#follow.events(source, from, signal)
  }

  // A page; if there is none yet, the first that comes within the wait.
  async #page(source: PagedSource, options: WaitOptions & { from: bigint | 'end' }): Promise<EventPage> {
    const { limit = LIMIT.default, waitMs = 0, signal } = options
    checkMs('waitMs', waitMs, WAIT)
    signal?.throwIfAborted()
    const since = new Stopwatch()
    let watch: StreamWatch | undefined
    const off = onAbort(signal, () => watch?.end())
    // From the end without a wait there is nothing to read: an event that comes meanwhile is on the next page.
    const end = options.from === 'end' ? await source.end() : undefined
    if (end !== undefined && waitMs === 0) return exact({ events: [], next: end })
    try {
      for (let from = end ?? (options.from as bigint); ; ) {
        signal?.throwIfAborted()
        const { events, next, more, undecided } = await source.read(from, limit)
        if (events.length > 0) return exact({ events, next })
        from = next
        if (more) continue // past a stretch without an event of these streams
        const leftMs = waitMs - since.elapsed()
        if (leftMs <= 0) return exact({ events, next })
        if (watch) await watch.wait(undecided, leftMs)
        watch ??= this.#notifier.watch(source.filter) // and read again: an event may have come before the watch began
      }
    } finally {
      off()
      watch?.close()
    }
  }

  #stream(stream: string): PagedSource {
    return {
      key: `stream\t${stream}`,
      texts: (from, maxBytes) => this.#reader.streamTexts(stream, from, maxBytes),
      read: (from, limit) => this.#reader.stream(stream, from, limit),
      end: async () => ((await this.#reader.state(stream))?.position ?? 0n) + 1n,
      filter: (name) => name === null || name === stream,
    }
  }

  #all(prefix: string): PagedSource {
    return {
      key: `prefix\t${prefix}`,
      texts: (from, maxBytes) => this.#reader.allTexts(prefix, from, maxBytes),
      read: (from, limit) => this.#reader.all(prefix, from, limit),
      end: () => this.#reader.end(),
      filter: (name) => name?.startsWith(prefix) ?? true,
    }
  }
}
