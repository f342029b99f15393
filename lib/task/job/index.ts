/** The exports of this folder. */

export { type AttemptKey, AttemptStore, JOB_CHANNEL, leaseLost, QUEUE_CHANNEL, TICKS, tokenOf } from './attempts.ts'
export { type Counts, type Job, type JobState, Jobs } from './jobs.ts'
export { type Outcome, Outcomes } from './outcomes.ts'
export { type Pooled, type RunOptions, Runs } from './run.ts'
