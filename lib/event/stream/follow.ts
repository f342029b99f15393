/**
 * Following: everything from a place on, then what comes (notifier.ts tells when to look); as events, or as their JSON.
 *
 * MEMORY. Nothing is read before somebody asks for it. A page is 256 KiB, or one event if that is larger, and its JSON is not
 * parsed before its turn; for all who follow in this process together there are 32 MiB, and who finds none left waits. Who
 * follows and does not ask keeps its page only as long as nobody else needs the memory (byte-budget.ts), and reads it again later:
 * an event does not change. It may have been removed meanwhile; then whoever had a part of it hears that it cannot go on.
 */

import type { Closing } from '../../base/index.ts'
import { abortable, combineSignals, UnavailableError } from '../../base/index.ts'
import { ByteBudget, type Reservation } from './byte-budget.ts'
import type { StreamNotifier, Wants } from './notifier.ts'
import { type StoredEvent, storedOf, type Texts } from './read.ts'

/** A piece of the JSON of an event, as `subscribe({ as: 'json' })` gives it. */
export interface EventPiece {
  /** Of its event: the position, or the cursor where all streams are followed. */
  place: bigint
  /** UTF-8, of whole characters. */
  bytes: Uint8Array
  /** Whether the event ends with it. */
  last: boolean
}

/** What is followed: how it is read, and which news concern it. */
export interface Source {
  /** @param room  bytes of JSON at most; one that wants more is not given. */
  texts(from: bigint, room: number): Promise<Texts>
  end(): Promise<bigint>
  wants: Wants
}

const PAGE_BYTES = 262_144
const ALL_BYTES = 33_554_432
const PIECE_CHARACTERS = 65_536
const OUTAGE_MS = { first: 100, most: 5_000 }

/** What is made of a text, from a character on; `upto`: how far that reaches. */
type Make<T> = (text: { place: bigint; json: string }, from: number) => { value: T; upto: number }

export class Follow {
  readonly #notifier: StreamNotifier
  readonly #closing: Closing
  readonly #budget = new ByteBudget(ALL_BYTES)

  constructor(tidings: StreamNotifier, closing: Closing) {
    this.#notifier = tidings
    this.#closing = closing
  }

  events(source: Source, from: bigint | 'end', signal?: AbortSignal): AsyncGenerator<StoredEvent, never, void> {
    return this.#follow(source, from, signal, ({ json }) => ({ value: storedOf(json), upto: json.length }))
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
    const { signal: stop, end } = combineSignals(signal, this.#closing.signal)
    stop.throwIfAborted()
    const lookout = this.#notifier.watch(source.wants)
    const wake = () => lookout.end()
    stop.addEventListener('abort', wake)
    const reading = new Reading(source, this.#budget, stop)
    let outageMs: number = OUTAGE_MS.first
    try {
      reading.place = from === 'end' ? await abortable(stop, source.end()) : from
      for (let first = true; ; ) {
        stop.throwIfAborted()
        try {
          await reading.read()
        } catch (error) {
          stop.throwIfAborted()
          if (first || !(error instanceof UnavailableError)) throw error
          await lookout.pause(outageMs)
          outageMs = Math.min(outageMs * 2, OUTAGE_MS.most)
          continue
        }
        outageMs = OUTAGE_MS.first
        first = false
        if (reading.there) lookout.found()
        while (reading.there) {
          yield reading.take(make)
          reading.resume()
          stop.throwIfAborted()
        }
        if (!reading.more) await lookout.wait(reading.waits)
      }
    } finally {
      reading.close()
      stop.removeEventListener('abort', wake)
      end()
      lookout.leave()
    }
  }
}

/** Where somebody is who follows, and what of it has been read. In an object: a generator that rests keeps what it has named. */
class Reading {
  /** Of the next event. */
  place = 1n
  /** There may be more at once. */
  more = false
  /** What has been appended may still commit. */
  waits = false
  readonly #source: Source
  readonly #budget: ByteBudget
  readonly #stop: AbortSignal
  #texts: Texts['events'] = []
  #next = 1n
  #reservation: Reservation | undefined
  #room = PAGE_BYTES
  /** Characters of the event at `place` that were taken. */
  #taken = 0

  constructor(source: Source, budget: ByteBudget, stop: AbortSignal) {
    this.#source = source
    this.#budget = budget
    this.#stop = stop
  }

  /** Whether there is something to take. */
  get there(): boolean {
    return this.#texts.length > 0
  }

  /** Reads on. @throws {UnavailableError} */
  async read(): Promise<void> {
    const reservation = await this.#budget.reserve(this.#room, this.#stop)
    try {
      // Where the answer is not waited for any more, its memory is not used by others before it has come.
      const reading = this.#source.texts(this.place, this.#room)
      reading.finally(() => this.#stop.aborted && reservation.release()).catch(() => {})
      const { events, next, more, waits, wants } = await abortable(this.#stop, reading)
      const [first] = events
      if (this.#taken > 0 && first?.place !== this.place && wants === undefined) {
        throw new Error('The event was removed while it was read')
      }
      const bytes = events.reduce((sum, each) => sum + each.bytes, 0)
      this.#room = Math.max(PAGE_BYTES, wants ?? (bytes > PAGE_BYTES ? this.#room : 0))
      this.#texts = events
      this.#next = next
      this.more = more
      this.waits = waits
      this.#reservation = reservation
      reservation.shrink(bytes)
      if (first) this.place = first.place
      else if (this.#taken === 0) this.place = next
    } catch (error) {
      if (!this.#stop.aborted) reservation.release()
      throw error
    }
  }

  /** The next piece; until the next call it may be that the rest is taken away. */
  take<T>(make: Make<T>): T {
    const [text] = this.#texts as [Texts['events'][number]]
    const { value, upto } = make(text, this.#taken)
    this.#taken = upto
    if (upto === text.json.length) {
      this.#texts.shift()
      this.#taken = 0
      this.place = this.#texts[0]?.place ?? this.#next
      this.#reservation?.shrink(this.#texts.reduce((sum, { bytes }) => sum + bytes, 0))
    }
    if (this.there) this.#reservation?.rest(() => this.#drop())
    return value
  }

  resume(): void {
    this.#reservation?.resume()
  }

  close(): void {
    this.#texts = []
    this.#reservation?.release()
  }

  #drop(): void {
    this.#texts = []
    this.more = true
  }
}

const encoder = new TextEncoder()

// Bytes and not characters: a part of a string would keep the whole of it.
function pieceOf({ place, json }: { place: bigint; json: string }, from: number): { value: EventPiece; upto: number } {
  let upto = Math.min(from + PIECE_CHARACTERS, json.length)
  if (upto < json.length && isHighSurrogate(json.charCodeAt(upto - 1))) upto -= 1
  const bytes = encoder.encode(json.slice(from, upto))
  return { value: { place, bytes, last: upto === json.length }, upto }
}

const isHighSurrogate = (unit: number): boolean => unit >= 0xd800 && unit < 0xdc00
