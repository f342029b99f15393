/** The exports of this folder. */

export { type Claimed, type ClaimOptions, Claims } from './claims.ts'
export { FetchLoop, type WorkerParts } from './fetch-loop.ts'
export { ReadyJobs } from './ready-jobs.ts'
export { RunningAttempts } from './running-attempts.ts'
export { type Worker, WorkerHandle, WorkerRegistry } from './workers.ts'
