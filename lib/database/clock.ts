/**
 * The clocks of this process, and the readings of the database's clock that its statements bring back.
 *
 * The monotonic clock is what everything is measured by: nobody sets it. But it stands still while a machine sleeps (Node's
 * on Linux does, nodejs/node #47724), and then the wall clock, which does not, shows a gap between the two.
 *
 * A Cloudflare Worker has no monotonic clock. `performance.now()` is `Date.now()` there, in whole milliseconds, and both
 * stand still between two waits for I/O: what they show is how late it *was*. So an instant read in a Worker may lie
 * up to `lag` further on; {@link WORKER} allows 50 ms of computing. Code that computes longer before it looks at the clock
 * must not trust `latest` and `before()` there: `earliest` and `after()` stay right.
 */
import { sql } from 'kysely'

/** Microseconds, all of it. */
export interface LocalClock {
  /** That nobody sets. From an arbitrary beginning. */
  mono(): number
  /** Since 1970. */
  wall(): number
  /** Between two readings of `mono` that differ. */
  readonly granularity: number
  /** By how much `mono` may be late. */
  readonly lag: number
}

/** Microseconds between two readings that are as good as one. */
const NEAR_US = 1_000

const mono = () => performance.now() * 1_000
const wall = () => Date.now() * 1_000

const PLAIN: LocalClock = { mono, wall, granularity: 0, lag: 0 }
const WORKER: LocalClock = { mono, wall, granularity: 1_000, lag: 50_000 }

export function localClock(): LocalClock {
  const { navigator } = globalThis as { navigator?: { userAgent?: string } }
  return navigator?.userAgent === 'Cloudflare-Workers' ? WORKER : PLAIN
}

/**
 * The wall clock less the monotonic one. Who is kept from the processor between the two readings, or collects garbage, would take
 * that for a sleep: then they are read again.
 */
export function gapOf(clock: LocalClock): number {
  for (let tries = 1; ; tries++) {
    const before = clock.mono()
    const gap = clock.wall() - before
    if (clock.mono() - before <= NEAR_US + clock.granularity || tries === 4) return gap
  }
}

/** What a statement selects besides, to bring back the database's clock, and whose it is. Evaluated once, not once a row. */
export const CLOCK = sql`(select (extract(epoch from clock_timestamp()) * 1000000)::bigint) as clock_us,
  (select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint) as clock_server`

/** Of a row that has {@link CLOCK} in it. */
export interface Clocked {
  clock_us: string
  clock_server: string
}

/** The database's clock was read between two instants of ours. */
export interface ClockReading {
  /** `mono` before the statement was sent. */
  before: number
  /** `mono` when it was answered, the latest that it can have been. */
  after: number
  /** The wall clock less the monotonic one: before, and when it was answered. */
  gapBefore: number
  gap: number
  /** Microseconds since 1970, rounded. */
  us: number
  server: string
}

/** Where readings of the database's clock come in. */
export class ClockReader {
  readonly clock: LocalClock
  /** Hears what other statements bring back. */
  onReading: ((reading: ClockReading) => void) | undefined

  constructor(clock = localClock()) {
    this.clock = clock
  }

  /** Call it before a statement is sent; call what it answers with a row of its answer. */
  open(): (row: Clocked) => ClockReading {
    const { clock } = this
    const before = clock.mono()
    const gapBefore = gapOf(clock)
    return ({ clock_us, clock_server }) => {
      const after = clock.mono() + clock.granularity
      return { before, after, gapBefore, gap: gapOf(clock), us: Number(clock_us), server: clock_server }
    }
  }

  /** The same, for a statement that is sent for another reason: who keeps time hears of it. */
  observe(): (row: Clocked | undefined) => void {
    const close = this.open()
    return (row) => {
      if (row) this.onReading?.(close(row))
    }
  }
}
