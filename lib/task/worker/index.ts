/** What others use of this room. */

export { Pulse } from './attempt.ts'
export { type Claimed, type ClaimOptions, Claims } from './claims.ts'
export { Lookout, Loop, type WorkerParts } from './fetch-loop.ts'
export { Members, type Worker, Working } from './workers.ts'
