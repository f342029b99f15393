/**
 * The queues that ours is compared with, each set up as its own documentation advises. All get the same requests: take these
 * jobs, work them, count the jobs that are left.
 *
 * - **pg-boss**, on which ours is built, alone. It uses our schema, so that both write the same tables, without its background
 *   maintenance, like ours, and with its default of ten connections.
 * - **graphile-worker**, with ten connections. For working jobs it has the settings that its performance page advises for many
 *   short jobs: it fetches and completes many at a time.
 * - **BullMQ**, on the Redis of servers.ts.
 */

import { Queue } from 'bullmq'
import { Logger, makeWorkerUtils, run, type TaskList, WorkerPreset } from 'graphile-worker'
import type pg from 'pg'
import { PgBoss } from 'pg-boss'
import { BOSS_SCHEMA } from '../../lib/task/pgboss/adapter.ts'

/** The jobs of a queue. */
export interface Store {
  /** The number of jobs that have not ended. */
  left(): Promise<number>
  /** The number of jobs that were completed in the first attempt; undefined where completed jobs are not kept. */
  completed?(): Promise<number>
  /** Removes all jobs: the next turn begins with an empty table. */
  empty(): Promise<void>
}

/** The jobs in the tables of pg-boss, sent by pg-boss or by Lockstep. */
export function bossStore(client: pg.Client, queue: string): Store {
  const count = (which: string) =>
    counted(client, `select count(*)::integer as count from ${BOSS_SCHEMA}.job where name = $1 and ${which}`, [queue])
  return {
    left: () => count(`state < 'completed'`),
    completed: () => count(`state = 'completed' and retry_count = 0`),
    empty: async () => {
      await client.query(`truncate ${BOSS_SCHEMA}.job`)
    },
  }
}

export async function startBoss(databaseUrl: string, useListenNotify = false) {
  const boss = new PgBoss({
    ...{ connectionString: databaseUrl, schema: BOSS_SCHEMA, migrate: false, useListenNotify },
    ...{ supervise: false, schedule: false, registerInstance: false, openTelemetry: { enabled: false } },
  })
  boss.on('error', (error) => console.error(error))
  boss.on('warning', (warning) => console.error(warning))
  await boss.start()
  return Object.assign(boss, { [Symbol.asyncDispose]: () => boss.stop({ graceful: false }) })
}

export function graphileStore(client: pg.Client): Store {
  return {
    left: () => counted(client, 'select count(*)::integer as count from graphile_worker._private_jobs', []),
    empty: async () => {
      await client.query('truncate graphile_worker._private_jobs')
    },
  }
}

/** Makes the schema, and returns a sender of jobs. */
export async function startGraphile(databaseUrl: string) {
  const utils = await makeWorkerUtils({ connectionString: databaseUrl, logger: SILENT })
  await utils.migrate()
  return Object.assign(utils, { [Symbol.asyncDispose]: async () => utils.release() })
}

/** Starts a worker. */
export async function workGraphile(databaseUrl: string, taskList: TaskList) {
  const worker = {
    ...{ connectionString: databaseUrl, logger: SILENT, maxPoolSize: 10, concurrentJobs: 24 },
    ...{ localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 },
  }
  return run({ preset: { extends: [WorkerPreset], worker }, taskList, parsedCronItems: [], noHandleSignals: true })
}

export async function startBull(port: number, name: string) {
  const queue = new Queue(name, { connection: { host: '127.0.0.1', port } })
  queue.on('error', (error) => console.error(error))
  await queue.waitUntilReady()
  const store: Store = {
    left: () => queue.getWaitingCount(),
    empty: () => queue.obliterate({ force: true, count: 10_000 }),
  }
  return Object.assign(queue, { store, [Symbol.asyncDispose]: () => queue.close() })
}

const SILENT = new Logger(() => () => {})

async function counted(client: pg.Client, text: string, values: unknown[]): Promise<number> {
  return (await client.query(text, values)).rows[0].count
}
