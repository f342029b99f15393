/** What others use of this folder. */

export { type ConsumeOptions, type Consumer, GroupConsumer } from './consumer.ts'
export { type Group, type GroupOptions, Groups } from './groups.ts'
export { type GroupLag, type Holdup, type Horizon, Lags, type PartitionLag, type StreamLag } from './lag.ts'
export type { EventContext, EventHandler } from './partition.ts'
export { type Batch, type BatchEnd, type FailOptions, type Parked, type PollOptions, Polls } from './polls.ts'
