/**
 * The queues beside ours, made as their own documents make them, and what all of them are asked: take these jobs, work
 * them off, how many are left.
 *
 * - **pg-boss**: the one that ours is made of, alone. On our schema, so that both write the same tables; with its
 *   clockwork off, as ours is, and ten connections as it comes.
 * - **graphile-worker**: with ten connections, and to work off with what its performance page advises for many quick
 *   jobs: it fetches many at a time and completes many at a time.
 * - **BullMQ**: on the Redis of servers.ts.
 */

import { Queue } from 'bullmq'
import { Logger, makeWorkerUtils, run, type TaskList, WorkerPreset } from 'graphile-worker'
import type pg from 'pg'
import { PgBoss } from 'pg-boss'
import { BOSS_SCHEMA } from '../../lib/task/pgboss/adapter.ts'

/** Where sent jobs are. */
export interface Store {
  /** Not yet over. */
  left(): Promise<number>
  /** Over, in the first attempt; undefined where they are not kept. */
  completed?(): Promise<number>
  /** Removes all of them: the next turn begins on an empty table. */
  empty(): Promise<void>
}

/** What is in the tables of pg-boss, whoever sent it. */
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

/** Sends jobs; its schema is made first. */
export async function startGraphile(databaseUrl: string) {
  const utils = await makeWorkerUtils({ connectionString: databaseUrl, logger: SILENT })
  await utils.migrate()
  return Object.assign(utils, { [Symbol.asyncDispose]: async () => utils.release() })
}

/** Begins to work. */
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
