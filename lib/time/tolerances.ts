/**
 * What is assumed of clocks. While it is true, true time is never outside of what is answered.
 *
 * (a) Clocks keep their rates: ours to within 100 ppm of any other, the database's to within 50 ppm of true time, apart from
 *     disturbances of a millisecond in all. (What is said of the database's clock alone, `spreadMs` and the source
 *     `database`, does not allow for these.)
 * (b) Of n NTP servers at most ⌊(n−1)/2⌋ are wrong by more than they say.
 * (c) Nobody sets a clock, or suspends this machine, unseen. What is seen, by whom, and what comes of it: estimate.ts.
 */
import { ppm } from './interval.ts'

/** Of this process's clock against any other. */
export const LOCAL_DRIFT = ppm(100)

/** Of the database's clock against true time. chrony's own 1 ppm is an estimate; AWS's ClockBound advises 50 for a bound. */
export const DATABASE_DRIFT = ppm(50)

/** Microseconds for disturbances that no sample can see: they hide in its round trip. */
export const SLACK_US = 1_000

/** Our two clocks have moved apart: by more microseconds than both of them tick, besides what they may drift. */
export const GAP_US = 5_000

/** By how many microseconds the wall clock and the database may disagree about how long we slept, besides what they drift. */
export const WOKEN_US = 50_000

/** How old a measurement may be, in microseconds, to be called one: eight polls of 64 s, as ClockBound has it. */
export const HOLD_US = 512_000_000
