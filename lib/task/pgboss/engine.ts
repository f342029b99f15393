/**
 * What does the queueing, as far as we use it: the subset of pg-boss that our rooms see.
 *
 * Written down because pg-boss's own types do not stand the strict check of whoever uses ours (`skipLibCheck: false` finds
 * five errors in 12.38.0). adapter.ts makes one, and there the compiler compares the two.
 */

/** Where its statements go, other than to our pool. */
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
export type EngineDb = { executeSql(text: string, values?: unknown[]): Promise<{ rows: any[] }> }

/** A job, or a part of its queue's defaults, in pg-boss's words. */
export interface EngineRetries {
  retryLimit?: number
  retryDelay?: number
  retryBackoff?: boolean
  retryDelayMax?: number
  expireInSeconds?: number
  heartbeatSeconds?: number
  deadLetter?: string
  retentionSeconds?: number
  deleteAfterSeconds?: number
}
export interface EngineQueue extends EngineRetries {
  policy?: string
  partition?: boolean
  notify?: boolean
}
export interface EngineJob extends EngineRetries {
  id?: string
  data?: object
  priority?: number
  startAfter?: string
  singletonKey?: string
  singletonSeconds?: number
  group?: { id: string; tier?: string }
}

/** A job as it is fetched. */
export interface FetchedJob {
  id: string
  data: unknown
  retryCount: number
  expireInSeconds: number
  heartbeatSeconds: number | null
  /** These two with `includeMetadata`. */
  priority?: number
  createdOn?: Date
}

export interface Engine {
  getQueue(name: string): Promise<EngineQueue | null>
  createQueue(name: string, options: EngineQueue): Promise<void>
  updateQueue(name: string, options: EngineQueue): Promise<void>
  deleteQueue(name: string): Promise<void>
  send(name: string, data: object | null, options: EngineJob & { db?: EngineDb }): Promise<string | null>
  insert(name: string, jobs: EngineJob[], options: { returnId: boolean; db?: EngineDb }): Promise<string[] | null>
  fetch(
    name: string,
    options: { batchSize: number; groupConcurrency?: number; includeMetadata?: boolean },
  ): Promise<FetchedJob[]>
  fail(name: string, attempt: { id: string; retryCount: number }, error: object): Promise<object>
  cancel(name: string, id: string): Promise<object>
  supervise(name?: string): Promise<void>
  resolveFlow(): Promise<void>
  previewSchedule(cron: string, options: { tz: string; from?: Date; count: number }): Date[]
}
