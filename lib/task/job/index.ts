/** What others use of this room. */

export { type AttemptOf, JOB_CHANNEL, lost, QUEUE_CHANNEL, Settle, tokenOf } from './attempts.ts'
export { type Counts, type Job, type JobState, Jobs } from './jobs.ts'
export { type Outcome, Results } from './outcomes.ts'
export { type Pooled, type RunOptions, Runs } from './run.ts'
