/** What others use of this folder. */

export type { Events, EventsOptions } from './api.ts'
export { createEvents } from './events.ts'
export type {
  Batch,
  BatchEnd,
  ConsumeOptions,
  Consumer,
  EventContext,
  EventHandler,
  FailOptions,
  Group,
  GroupLag,
  GroupOptions,
  Holdup,
  Horizon,
  Parked,
  PartitionLag,
  PollOptions,
  StreamLag,
} from './group/index.ts'
export type {
  AllOptions,
  Appended,
  AppendOptions,
  ArchiveOptions,
  EventPage,
  EventPiece,
  NewEvent,
  ReadOptions,
  RetentionRule,
  StoredEvent,
  StreamState,
  SubscribeOptions,
  Swept,
  Truncated,
  TruncateOptions,
} from './stream/index.ts'
