/**
 * The queueing engine: the part of pg-boss's interface that we use.
 *
 * We write it down because pg-boss's own types fail the strict check of an application that uses ours (`skipLibCheck: false` finds
 * five errors in 12.38.0). pgboss/adapter.ts makes an engine, and there the compiler
 * compares the two. This file is not in pgboss/, whose index.ts reaches those types.
 */

/** Where pg-boss's statements go, if not to our pool. */
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
export type EngineDb = { executeSql(text: string, values?: unknown[]): Promise<{ rows: any[] }> }

/** Retry options of a queue or a job, under pg-boss's names. */
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

/** A job as pg-boss's fetch returns it. */
export interface FetchedJob {
  id: string
  data: unknown
  retryCount: number
  expireInSeconds: number
  heartbeatSeconds: number | null
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
    options: { batchSize: number; groupConcurrency?: number; includeMetadata?: boolean; db?: EngineDb },
  ): Promise<FetchedJob[]>
  fail(name: string, attempt: { id: string; retryCount: number }, error: object): Promise<object>
  cancel(name: string, id: string): Promise<object>
  touch(name: string, attempts: { id: string; retryCount: number }[]): Promise<object>
  getQueues(names: string[]): Promise<EngineQueue[]>
  supervise(name?: string): Promise<void>
  resolveFlow(): Promise<void>
  previewSchedule(cron: string, options: { tz: string; from?: Date; count: number }): Date[]
}
