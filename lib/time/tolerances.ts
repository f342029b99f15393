/**
 * The assumptions about clocks. While they hold, true time is never outside the interval that `now()` answers.
 *
 * (a) Clocks keep their rates: ours to within 100 ppm of any other, the database's to within 50 ppm of true time, apart from
 *     disturbances of one millisecond in all. (Statements about the database's clock alone, which are `spreadMs` and the
 *     source `database`, do not allow for these disturbances.)
 * (b) Of n NTP servers, at most ⌊(n−1)/2⌋ are wrong by more than they claim.
 * (c) No clock is set, and this machine is not suspended, without a process that sees it. How such an event is seen, and what
 *     follows from it, is described in estimate.ts.
 */
import { ppm } from './interval.ts'

/** The drift of this process's clock against any other. */
export const LOCAL_DRIFT = ppm(100)

/** The drift of the database's clock against true time. chrony's 1 ppm is an estimate; AWS's ClockBound advises 50 as a bound. */
export const DATABASE_DRIFT = ppm(50)

/** Microseconds allowed for disturbances that no sample can see, because they are hidden by its round trip. */
export const SLACK_US = 1_000

/** Our two clocks have diverged if they differ by more microseconds than this (more than both of them tick), plus their drift. */
export const DIVERGED_US = 5_000

/** By how many microseconds, plus their drift, the wall clock and the database may disagree about the length of a sleep. */
export const SLEEP_SLACK_US = 50_000

/** How old, in microseconds, a measurement may be while the status is `synchronized`: eight polls of 64 s, as in ClockBound. */
export const SYNCHRONIZED_US = 512_000_000
