/**
 * Reads that followers share. A thousand followers of one stream that wait at the same position are woken together, and ask for
 * the same page: one statement reads it, and one copy of it is in memory.
 *
 * A follower that was notified must not be answered by a statement that was sent before, which may not have seen what the
 * notification is about. So it joins a read only while that is not sent. While one is under way the next one waits for it, and
 * collects those who ask meanwhile. A page that has events is also given to those who ask for it later, as long as another
 * follower still has it: events do not change.
 *
 * The memory of a page is reserved once, until the last of its followers has taken it. It is idle when all of these are.
 */
import { abortable } from '../../base/index.ts'
import type { ByteBudget, Reservation } from './byte-budget.ts'
import type { TextPage } from './read.ts'

/** What is read. */
export interface TextSource {
  /** Equal keys: the same is read. */
  key: string
  /** @param maxBytes  bytes of JSON at most; an event that is larger is not returned. */
  texts(from: bigint, maxBytes: number): Promise<TextPage>
}

export class SharedReads {
  readonly #budget: ByteBudget
  /** By what is read: the read that is not sent yet. */
  readonly #unsent = new Map<string, Read>()
  /** The read that was sent last, until it is answered; and its page, as long as a follower has it. */
  readonly #sent = new Map<string, Read>()

  constructor(budget: ByteBudget) {
    this.#budget = budget
  }

  /** A page of a source. @throws {UnavailableError}, and the reason of `stop`. */
  async read(source: TextSource, from: bigint, maxBytes: number, stop: AbortSignal): Promise<Share> {
    stop.throwIfAborted()
    const key = `${source.key}\t${from}\t${maxBytes}`
    const sent = this.#sent.get(key)
    const read = sent?.page?.events.length ? sent : (this.#unsent.get(key) ?? this.#begin(key, source, from, maxBytes))
    const share = new Share(read)
    try {
      await abortable(stop, read.answered)
    } catch (error) {
      share.release()
      throw error
    }
    return share
  }

  #begin(key: string, source: TextSource, from: bigint, maxBytes: number): Read {
    const read = new Read(this.#run(key, source, from, maxBytes, () => read))
    this.#unsent.set(key, read)
    read.answered.catch(() => {}) // those who wait get the error
    const abandon = () => this.#unsent.get(key) === read && this.#unsent.delete(key)
    read.left.signal.addEventListener('abort', abandon) // nobody joins a read that will not be sent
    return read
  }

  async #run(key: string, source: TextSource, from: bigint, maxBytes: number, self: () => Read): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve)) // those who were woken together ask in one turn of the event loop
    await this.#sent.get(key)?.answered.catch(() => {})
    const read = self()
    try {
      read.reservation = await this.#budget.reserve(maxBytes, read.left.signal)
      this.#unsent.delete(key)
      this.#sent.set(key, read)
      read.page = await source.texts(from, maxBytes)
      read.settle()
    } catch (error) {
      read.reservation?.release()
      throw error
    } finally {
      if (this.#unsent.get(key) === read) this.#unsent.delete(key)
      const forget = () => this.#sent.get(key) === read && this.#sent.delete(key)
      if (read.page?.events.length && read.shares.size > 0) read.onReleased = forget
      else forget()
    }
  }
}

/** A read, and those who have a share in it. */
class Read {
  readonly answered: Promise<void>
  readonly shares = new Set<Share>()
  readonly idle = new Map<Share, () => void>()
  /** Aborts when nobody waits any more. */
  readonly left = new AbortController()
  page: TextPage | undefined
  reservation: Reservation | undefined
  onReleased = () => {}

  constructor(answered: Promise<void>) {
    this.answered = answered
  }

  /** Keeps the memory that the page needs; none if all have left. */
  settle(): void {
    if (this.shares.size === 0) this.reservation?.release()
    else this.reservation?.shrink((this.page as TextPage).events.reduce((sum, { bytes }) => sum + bytes, 0))
  }
}

/** A follower's share in a read. */
export class Share {
  readonly #read: Read

  constructor(read: Read) {
    this.#read = read
    read.reservation?.resume()
    read.shares.add(this)
  }

  get page(): TextPage {
    return this.#read.page as TextPage
  }

  /** Keeps so many bytes, and returns the rest, unless others have the page too. */
  shrink(bytes: number): void {
    if (bytes === 0) this.release()
    else if (this.#read.shares.size === 1) this.#read.reservation?.shrink(bytes)
  }

  /** Nobody takes what was read; see {@link Reservation.idle}. */
  idle(evict: () => void): void {
    const { idle, shares, reservation } = this.#read
    if (!shares.has(this)) return
    idle.set(this, evict)
    if (idle.size < shares.size) return
    reservation?.idle(() => {
      for (const drop of [...idle.values()]) drop()
      idle.clear()
      shares.clear()
      this.#read.onReleased()
    })
  }

  resume(): void {
    if (this.#read.idle.delete(this)) this.#read.reservation?.resume()
  }

  release(): void {
    const { idle, page, reservation, shares } = this.#read
    idle.delete(this)
    if (!shares.delete(this) || shares.size > 0) return
    if (page) reservation?.release()
    else this.#read.left.abort() // if it was sent, its memory stays reserved until it is answered
    this.#read.onReleased()
  }
}
