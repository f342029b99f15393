/** The options of `createTasks`, and those of the verbs that concern all queues, by name. */
import { known } from '../base/index.ts'
import type { AnyQueue } from './api.ts'

/** Options of `createTasks`. */
export interface TasksOptions {
  /** Connections of the pool for jobs, 1–100. @default 4 */
  connections?: number | undefined
  /** Gets the errors that no caller gets: of workers, of ticks. @default a warning of the process */
  onError?: ((error: unknown) => void) | undefined
}

export const TASKS = known<TasksOptions>({ connections: true, onError: true })
export const TICK = known<{ budgetMs?: number; signal?: AbortSignal }>({ budgetMs: true, signal: true })
export const DRAIN = known<{ budgetMs?: number; queues?: AnyQueue[]; signal?: AbortSignal }>({
  ...{ budgetMs: true, queues: true, signal: true },
})
