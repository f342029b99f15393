/** What others use of this room. */

export { fromBoss, inside, makeBoss, noQueue } from './adapter.ts'
export { keepBoss } from './boss-of.ts'
export type { Engine, EngineJob, EngineQueue, EngineRetries, FetchedJob } from './engine.ts'
