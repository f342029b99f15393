/** The exports of this folder. */

export { fromBoss, inside, isQueueMissing, makeBoss, noQueue } from './adapter.ts'
export { keepBoss } from './boss-of.ts'
export { byPlace, fetching } from './fetch.ts'
