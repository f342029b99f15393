/** What others use of this folder. */

export { type Appended, Appender, type AppendOptions, WAIT_CONNECTIONS } from './append.ts'
export type { NewEvent } from './append-statement.ts'
export type { EventPiece } from './follow.ts'
export { StreamNotifier } from './notifier.ts'
export {
  attemptsOf,
  checkLimit,
  checkPosition,
  type EventPage,
  LIMIT,
  MAX_POSITION,
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
