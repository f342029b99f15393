/** What others use of this room. */

export type { Page } from '../base/index.ts'
export type { Queue, Tasks } from './api.ts'
export type { Counts, Job, JobState, Outcome, RunOptions } from './job/index.ts'
export type { TasksOptions } from './options.ts'
export type {
  DeclareOptions,
  DefineOptions,
  Handler,
  HandlerContext,
  RetryOptions,
  SendOptions,
  StandardSchema,
  TransactionalContext,
} from './queue/index.ts'
export type { Schedule, ScheduleOptions } from './schedule/index.ts'
export { createTasks } from './tasks.ts'
export type { DrainResult, TickResult } from './tick.ts'
export type { Claimed, ClaimOptions, Worker } from './worker/index.ts'
