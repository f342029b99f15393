/**
 * The clocks of this process, and readings of the database's clock.
 *
 * Everything is measured by the monotonic clock, because it cannot be set. But it stands still while the machine sleeps (Node's
 * on Linux does, nodejs/node #47724). The wall clock does not, so a sleep changes the gap between the two clocks.
 *
 * A Cloudflare Worker has no monotonic clock. `performance.now()` is `Date.now()` there, in whole milliseconds, and both
 * stand still between two waits for I/O: they show the time of the last I/O. So the true instant may be up to `lag` later than
 * the clock says; {@link WORKER} allows 50 ms of computing. Code that computes for longer before it reads the clock must not
 * trust `latest` and `before()` there; `earliest` and `after()` stay right.
 */
import { sql } from 'kysely'

/** The clocks of this process, in microseconds. */
export interface LocalClock {
  /** The monotonic clock, in microseconds since an arbitrary start. */
  mono(): number
  /** The wall clock, in microseconds since 1970. */
  wall(): number
  /** The smallest step of `mono`, in microseconds. */
  readonly granularity: number
  /** By how many microseconds `mono` may be late. */
  readonly lag: number
}

/** Two readings that are at most this many microseconds apart count as simultaneous. */
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
 * The wall clock minus the monotonic clock. If the process was preempted or collected garbage between the two readings, the
 * difference would look like a sleep of the machine: then both clocks are read again, four times at most.
 */
export function gapOf(clock: LocalClock): number {
  for (let tries = 1; ; tries++) {
    const before = clock.mono()
    const gap = clock.wall() - before
    if (clock.mono() - before <= NEAR_US + clock.granularity || tries === 4) return gap
  }
}

/** Columns for a statement that also reads the database's clock, and which server's clock it is. Evaluated once, not once a row. */
export const CLOCK = sql`(select (extract(epoch from clock_timestamp()) * 1000000)::bigint) as clock_us,
  (select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint) as clock_server`

/** A row of a statement that selects {@link CLOCK}. */
export interface Clocked {
  clock_us: string
  clock_server: string
}

/** One reading of the database's clock, and the local clocks before and after it. */
export interface ClockReading {
  /** `mono` before the statement was sent. */
  before: number
  /** `mono` when the answer had arrived, rounded up by the clock's granularity. */
  after: number
  /** The wall clock minus the monotonic clock, before the statement was sent. */
  gapBefore: number
  /** The wall clock minus the monotonic clock, when the answer had arrived. */
  gap: number
  /** The database's clock: microseconds since 1970, rounded. */
  us: number
  /** Which server it was: the time of its start. */
  server: string
}

/** Takes readings of the database's clock. */
export class ClockReader {
  readonly clock: LocalClock
  /** Called with each reading of {@link observe}. */
  onReading: ((reading: ClockReading) => void) | undefined

  constructor(clock = localClock()) {
    this.clock = clock
  }

  /** Begins a reading; call it before a statement is sent. @returns a function that takes a row of the answer and completes it. */
  open(): (row: Clocked) => ClockReading {
    const { clock } = this
    const before = clock.mono()
    const gapBefore = gapOf(clock)
    return ({ clock_us, clock_server }) => {
      const after = clock.mono() + clock.granularity
      return { before, after, gapBefore, gap: gapOf(clock), us: Number(clock_us), server: clock_server }
    }
  }

  /** The same, for a statement that is sent for another reason. The reading goes to {@link onReading}. */
  observe(): (row: Clocked | undefined) => void {
    const close = this.open()
    return (row) => {
      if (row) this.onReading?.(close(row))
    }
  }
}
