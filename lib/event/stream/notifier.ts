/**
 * Notifications of new events: they say that a stream may have new events, and not which. The reader reads to find out.
 *
 * This process knows at once what it appends itself. What other processes append it learns by NOTIFY, where there is a
 * direct connection. A NOTIFY is expensive, so the process that appends asks first whether anybody listens: each
 * listener holds an advisory lock in shared mode for as long as it listens.
 *
 * A watch also polls. The first polls come soon, since a process that appended just before we began to listen may have
 * found no listener; then less and less often. Watches poll at the same instants, so that those of one stream share a read.
 */
import { sql } from 'kysely'
import { Stopwatch, Waker } from '../../base/index.ts'
import type { SessionPool } from '../../database/index.ts'
import { Notifier } from '../../database/index.ts'

/** Whether a watch is for events of this stream, in this bucket; `stream` null: of any stream; `bucket` null: not known. */
export type StreamFilter = (stream: string | null, bucket: number | null) => boolean

// Milliseconds between polls: the first pause, then twice as long each time up to this, with notifications and without.
const FIRST_MS = 50
const POLL_MS = { notified: 5_000, alone: 500 }
// While an append is undecided, that is, its transaction is open: there is no notification of a rollback.
const UNDECIDED_MS = { first: 5, most: 250 }

export class StreamNotifier {
  readonly #notifier: Notifier<number>
  /** Listeners to what this process appends. */
  readonly #local = new Set<(stream: string) => void>()

  constructor(sessions: SessionPool) {
    this.#notifier = new Notifier(
      sessions,
      'lockstep_event',
      (message) => (JSON.parse(message) as [string, number][]).map(([name, payload]) => ({ name, payload })),
      {
        afterListen: (session) => session.run(sql`select pg_advisory_lock_shared(lockstep.events_key())`),
        beforeUnlisten: (session) => session.run(sql`select pg_advisory_unlock_shared(lockstep.events_key())`),
      },
    )
  }

  /** This process has appended to these streams. */
  announce(streams: string[]): void {
    for (const listener of this.#local) for (const stream of streams) listener(stream)
  }

  /** Removes all listeners. */
  close(): void {
    this.#local.clear()
    this.#notifier.close()
  }

  /** Watches for new events, until `close` of the watch. */
  watch(filter: StreamFilter): StreamWatch {
    const waker = new Waker()
    const local = (stream: string) => {
      if (filter(stream, null)) waker.wake()
    }
    this.#local.add(local)
    const unsubscribe = this.#notifier.onAny((stream, bucket) => {
      if (filter(stream, bucket)) waker.wake()
    })
    const close = () => {
      this.#local.delete(local)
      unsubscribe()
    }
    return new StreamWatch(waker, close, () => (this.#notifier.session ? POLL_MS.notified : POLL_MS.alone))
  }
}

/** The waits of a loop that reads new events again and again. */
export class StreamWatch {
  /** Takes its listeners off. */
  readonly close: () => void
  readonly #waker: Waker
  readonly #mostMs: () => number
  #ended = false
  #pauseMs = FIRST_MS
  #undecidedMs = UNDECIDED_MS.first

  constructor(waker: Waker, close: () => void, mostMs: () => number) {
    this.#waker = waker
    this.close = close
    this.#mostMs = mostMs
  }

  /** Ends the wait, and every pause from now on. */
  end(): void {
    this.#ended = true
    this.#waker.wake()
  }

  /** Events were found: without notifications, polls begin with short pauses again. */
  reset(): void {
    if (this.#mostMs() === POLL_MS.alone) this.#pauseMs = FIRST_MS
    this.#undecidedMs = UNDECIDED_MS.first
  }

  /** The pause after an error: notifications do not shorten it, `end` does. */
  async pause(ms: number): Promise<void> {
    const since = new Stopwatch()
    while (!this.#ended && since.elapsed() < ms) await this.#waker.wait(ms - since.elapsed())
  }

  /**
   * Waits for a notification, or until the next poll.
   * @param undecided  the transaction of an append is open, and may still commit.
   * @param atMost     milliseconds.
   */
  async wait(undecided: boolean, atMost = Infinity): Promise<void> {
    const pauseMs = undecided ? this.#undecidedMs : Math.min(this.#pauseMs, this.#mostMs())
    // After half the pause to all of it: all watches at the same instants, so that those of one stream share a read.
    const sharedMs = pauseMs - (performance.now() % (pauseMs / 2))
    if (await this.#waker.wait(Math.min(sharedMs, atMost))) return
    if (undecided) this.#undecidedMs = Math.min(this.#undecidedMs * 1.5, UNDECIDED_MS.most)
    else this.#pauseMs = Math.min(this.#pauseMs * 2, this.#mostMs())
  }
}
