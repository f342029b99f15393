/** What others use of this room. */

export { type Appended, Appender, type AppendOptions, WAITERS } from './append.ts'
export type { NewEvent } from './append-statement.ts'
export type { EventPiece } from './follow.ts'
export { StreamNotifier } from './notifier.ts'
export {
  attemptsOf,
  checkLimit,
  checkPlace,
  type EventPage,
  LIMIT,
  MOST_PLACE,
  Reader,
  type StoredEvent,
  type StreamState,
} from './read.ts'
export {
  type ArchiveOptions,
  Retention,
  type RetentionRule,
  type Swept,
  type Truncated,
  type TruncateOptions,
} from './retention.ts'
export { type AllOptions, Followers, type ReadOptions, type SubscribeOptions } from './subscribe.ts'
