/**
 * What is heard of new events: that there may be some, of which streams. What they are has to be read.
 *
 * What this process appends it knows at once; the rest comes by NOTIFY where there is a direct connection. A NOTIFY is dear, so
 * whoever appends asks first whether anybody listens: whoever does has an advisory lock for as long.
 *
 * A look in time, for whoever waits, is told here too: soon at first, since who appended in the moment when we began to listen may
 * have found nobody to tell; then less and less often.
 */
import { sql } from 'kysely'
import { Stopwatch, Waker } from '../../base/index.ts'
import type { SessionPool } from '../../database/index.ts'
import { Notifier } from '../../database/index.ts'

/** Which events somebody waits for; null: it is not known which there are. */
export type Wants = (stream: string | null, bucket: number | null) => boolean

// Milliseconds between looks: at first, then twice as long each time up to this, where there is news and where there is none.
const FIRST_MS = 50
const POLL_MS = { news: 5_000, none: 500 }
// While something that was appended may still commit, for nobody tells that it was rolled back.
const UNDECIDED_MS = { first: 5, most: 250 }

export class StreamNotifier {
  readonly #notifier: Notifier<number>
  readonly #here = new Set<(stream: string) => void>()

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
    for (const ear of this.#here) for (const stream of streams) ear(stream)
  }

  /** Nobody hears anything any more. */
  close(): void {
    this.#here.clear()
    this.#notifier.close()
  }

  /** To wait for events, until it is left. */
  watch(wants: Wants): Lookout {
    const waker = new Waker()
    const here = (stream: string) => {
      if (wants(stream, null)) waker.wake()
    }
    this.#here.add(here)
    const unsubscribe = this.#notifier.onAny((stream, bucket) => {
      if (wants(stream, bucket)) waker.wake()
    })
    const leave = () => {
      this.#here.delete(here)
      unsubscribe()
    }
    return new Lookout(waker, leave, () => (this.#notifier.session ? POLL_MS.news : POLL_MS.none))
  }
}

/** Whoever looks again and again. */
export class Lookout {
  readonly leave: () => void
  readonly #waker: Waker
  readonly #most: () => number
  #ended = false
  #pauseMs = FIRST_MS
  #undecidedMs = UNDECIDED_MS.first

  constructor(waker: Waker, leave: () => void, most: () => number) {
    this.#waker = waker
    this.leave = leave
    this.#most = most
  }

  /** Ends the wait, and every pause from now on. */
  end(): void {
    this.#ended = true
    this.#waker.wake()
  }

  /** Something was found: looks are soon again. */
  found(): void {
    this.#pauseMs = FIRST_MS
    this.#undecidedMs = UNDECIDED_MS.first
  }

  /** After a fault: for so long, whatever is heard, or until somebody ends it. */
  async pause(ms: number): Promise<void> {
    const since = new Stopwatch()
    while (!this.#ended && since.elapsed() < ms) await this.#waker.wait(ms - since.elapsed())
  }

  /**
   * Until it is worth a look.
   * @param waits   something that was appended may still commit.
   * @param atMost  milliseconds.
   */
  async wait(waits: boolean, atMost = Infinity): Promise<void> {
    const pauseMs = waits ? this.#undecidedMs : Math.min(this.#pauseMs, this.#most())
    if (await this.#waker.wait(Math.min(pauseMs, atMost))) return
    if (waits) this.#undecidedMs = Math.min(this.#undecidedMs * 1.5, UNDECIDED_MS.most)
    else this.#pauseMs = Math.min(this.#pauseMs * 2, this.#most())
  }
}
