/**
 * Following: all events from a position on, then new ones as they are appended (notifier.ts says when to read); as
 * events, or as their JSON.
 *
 * MEMORY. Nothing is read before the consumer asks for it. A page is 256 KiB, or one event if that is larger, and the
 * JSON of an event is not parsed before its turn. All followers of this process share 32 MiB; a follower that finds
 * none free waits. A follower that has a page and does not ask for more keeps that page only as long as no other
 * follower needs the memory (byte-budget.ts), and reads it again later: an event does not change. It may have been
 * removed meanwhile; if the follower had taken a part of it, it gets an error. Followers that ask for the same page share it
 * (shared-reads.ts).
 */

import type { Closing } from '../../base/index.ts'
import { abortable, BackoffDelays, combineSignals, exact, onAbort, UnavailableError } from '../../base/index.ts'
import { ByteBudget } from './byte-budget.ts'
import type { StreamFilter, StreamNotifier } from './notifier.ts'
import { type EventText, type StoredEvent, storedOf } from './read.ts'
import { type Share, SharedReads, type TextSource } from './shared-reads.ts'

/** A piece of the JSON of an event, as `subscribe({ as: 'json' })` gives it. */
export interface EventPiece {
  /** Where its event is: the position, or, when all streams are followed, the cursor. */
  place: bigint
  /** The text in UTF-8; a character is never divided between two pieces. At most 64 Ki characters. */
  bytes: Uint8Array
  /** Whether this is the event's last piece. */
  last: boolean
}

/** What is followed: how it is read, and which notifications concern it. */
export interface Source extends TextSource {
  end(): Promise<bigint>
  filter: StreamFilter
}

const PAGE_BYTES = 262_144
const ALL_BYTES = 33_554_432
const PIECE_CHARACTERS = 65_536
const OUTAGE_MS = { firstMs: 100, mostMs: 5_000 }

/** Makes what is yielded of an event's text, from a character on; `end`: the character it ends before. */
type Make<T> = (text: { position: bigint; json: string }, from: number) => { value: T; end: number }

export class Follow {
  readonly #notifier: StreamNotifier
  readonly #closing: Closing
  readonly #reads = new SharedReads(new ByteBudget(ALL_BYTES))

  constructor(notifier: StreamNotifier, closing: Closing) {
    this.#notifier = notifier
    this.#closing = closing
  }

  events(source: Source, from: bigint | 'end', signal?: AbortSignal): AsyncGenerator<StoredEvent, never, void> {
    return this.#follow(source, from, signal, ({ json }) => ({ value: storedOf(json), end: json.length }))
  }

  pieces(source: Source, from: bigint | 'end', signal?: AbortSignal): AsyncGenerator<EventPiece, never, void> {
    return this.#follow(source, from, signal, pieceOf)
  }

  async *#follow<T>(
    source: Source,
    from: bigint | 'end',
    signal: AbortSignal | undefined,
    make: Make<T>,
  ): AsyncGenerator<T, never, void> {
    const stop = combineSignals(signal, this.#closing.signal)
    stop.signal.throwIfAborted()
    const watch = this.#notifier.watch(source.filter)
    const off = onAbort(stop.signal, () => watch.end())
    const reading = new Reading(source, this.#reads, stop.signal)
    const delays = new BackoffDelays(OUTAGE_MS)
    try {
      reading.position = from === 'end' ? await abortable(stop.signal, source.end()) : from
      for (let first = true; ; ) {
        stop.signal.throwIfAborted()
        try {
          await reading.read()
        } catch (error) {
          stop.signal.throwIfAborted()
          if (first || !(error instanceof UnavailableError)) throw error
          await watch.pause(delays.next())
          continue
        }
        delays.reset()
        first = false
        if (reading.hasText) watch.reset()
        while (reading.hasText) {
          yield reading.take(make)
          reading.resume()
          stop.signal.throwIfAborted()
        }
        if (!reading.more) await watch.wait(reading.undecided)
      }
    } finally {
      reading.close()
      off()
      stop.end()
      watch.close()
    }
  }
}

/**
 * A follower's position, and the page that was read there. An object of its own: a paused generator keeps its local
 * variables alive.
 */
class Reading {
  /** Of the next event: a position of the stream, or a cursor. */
  position = 1n
  /** There may be more to read at once. */
  more = false
  /** An append to these streams is in an open transaction, and may still commit. */
  undecided = false
  readonly #source: Source
  readonly #reads: SharedReads
  readonly #stop: AbortSignal
  #texts: EventText[] = []
  #next = 1n
  #share: Share | undefined
  #maxBytes = PAGE_BYTES
  /** Characters of the event at `position` that were taken. */
  #taken = 0

  constructor(source: Source, reads: SharedReads, stop: AbortSignal) {
    this.#source = source
    this.#reads = reads
    this.#stop = stop
  }

  /** Whether there is something to take. */
  get hasText(): boolean {
    return this.#texts.length > 0
  }

  /** Reads the next page. @throws {UnavailableError} */
  async read(): Promise<void> {
    const share = await this.#reads.read(this.#source, this.position, this.#maxBytes, this.#stop)
    const { events, next, more, undecided, neededBytes } = share.page
    const [first] = events
    if (this.#taken > 0 && first?.position !== this.position && neededBytes === undefined) {
      share.release()
      throw new Error('The event was removed while it was read')
    }
    const bytes = events.reduce((sum, each) => sum + each.bytes, 0)
    this.#maxBytes = Math.max(PAGE_BYTES, neededBytes ?? (bytes > PAGE_BYTES ? this.#maxBytes : 0))
    this.#texts = [...events]
    this.#next = next
    this.more = more
    this.undecided = undecided
    this.#share = share
    share.shrink(bytes)
    if (first) this.position = first.position
    else if (this.#taken === 0) this.position = next
  }

  /** The next piece. The rest of the page may be dropped until `resume` is called. */
  take<T>(make: Make<T>): T {
    const [text] = this.#texts as [EventText]
    const { value, end } = make(text, this.#taken)
    this.#taken = end
    if (end === text.json.length) {
      this.#texts.shift()
      this.#taken = 0
      this.position = this.#texts[0]?.position ?? this.#next
      this.#share?.shrink(this.#texts.reduce((sum, { bytes }) => sum + bytes, 0))
    }
    if (this.hasText) this.#share?.idle(() => this.#drop())
    return value
  }

  resume(): void {
    this.#share?.resume()
  }

  close(): void {
    this.#texts = []
    this.#share?.release()
  }

  #drop(): void {
    this.#texts = []
    this.more = true
  }
}

const encoder = new TextEncoder()

// Bytes and not a string: a part of a string would keep the whole string in memory.
function pieceOf({ position, json }: { position: bigint; json: string }, from: number) {
  let end = Math.min(from + PIECE_CHARACTERS, json.length)
  if (end < json.length && isHighSurrogate(json.charCodeAt(end - 1))) end -= 1
  const bytes = encoder.encode(json.slice(from, end))
  return { value: exact({ place: position, bytes, last: end === json.length }), end }
}

const isHighSurrogate = (unit: number): boolean => unit >= 0xd800 && unit < 0xdc00
