/**
 * The ways to work jobs that are put beside each other. The effect of a job is a row in a table. All queues have a heartbeat or a lock
 * of HEARTBEAT_MS, where they have one, and enough retries for every fault.
 *
 * - `plain`: a handler makes the effect, and returns. All of these queues promise that it runs at least once, ours too.
 * - `transactional` (pg-boss, Lockstep): the effect and the completion of the job are one transaction.
 * - `idempotent` (BullMQ, graphile-worker): the handler looks whether the effect is there, as their documentation advises.
 * - `unlocked` (graphile-worker): a job of a worker that dies is locked for four hours; here an operator unlocks it when the worker is killed.
 */
import { EventEmitter } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { CompiledQuery } from 'kysely'
import { createLockstep } from '../../../lib/index.ts'
import { createTasks } from '../../../lib/task/index.ts'

/** The least that pg-boss takes. */
export const HEARTBEAT_MS = 10_000
const CONCURRENCY = 4
/** How long a handler works, before and after its effect. */
const WORK_MS = 100

export const JOB_FORMS = {
  'pg-boss': ['plain', 'transactional'],
  bullmq: ['plain', 'idempotent'],
  graphile: ['plain', 'unlocked', 'idempotent'],
  lockstep: ['plain', 'transactional'],
} as const
export type JobSystem = keyof typeof JOB_FORMS

/** A side of a queue. */
export interface Sender extends AsyncDisposable {
  send(how: string, job: number): Promise<unknown>
  /** A process was killed: what an operator does. @param names  of its workers, as far as it has named them. */
  killed?(names: string[]): Promise<unknown>
}
/** Makes the effect of a job, and records it; `statement`: in a transaction. */
export type Effect = (
  form: string,
  job: number,
  statement?: (text: string, values: unknown[]) => Promise<unknown>,
) => Promise<void>

const working = () => sleep(Math.random() * WORK_MS)
const queueOf = (how: string) => `prove-${how}`

/** Of each system: what sends, and what works in a process. They get the connection strings of PostgreSQL and of the peer. */
export const QUEUES: Record<
  JobSystem,
  {
    sender(databaseUrl: string, peerUrl: string): Promise<Sender>
    work(databaseUrl: string, effect: Effect, peerUrl: string): Promise<void>
  }
> = {
  'pg-boss': { sender: bossSender, work: bossWork },
  bullmq: { sender: bullSender, work: bullWork },
  graphile: { sender: graphileSender, work: graphileWork },
  lockstep: { sender: lockstepSender, work: lockstepWork },
}

// ---- Lockstep ----------------------------------------------------------------------------------------------------

const OURS = { retryLimit: 1_000, heartbeatMs: HEARTBEAT_MS }

async function lockstepSender(url: string): Promise<Sender> {
  const lockstep = createLockstep({ connectionString: url })
  const tasks = createTasks(lockstep, { onError: () => {} })
  for (const how of JOB_FORMS.lockstep) await tasks.declare(queueOf(how), OURS)
  const ticking = setInterval(() => tasks.tick().catch(() => {}), 1_000)
  return {
    send: (how, job) => tasks.send(queueOf(how), job),
    async [Symbol.asyncDispose]() {
      clearInterval(ticking)
      await lockstep.close()
    },
  }
}

async function lockstepWork(url: string, effect: Effect): Promise<void> {
  const lockstep = createLockstep({ connectionString: url, max: 12 })
  const tasks = createTasks(lockstep, { onError: () => {} })
  const options = { ...OURS, concurrency: CONCURRENCY }
  tasks.define(
    queueOf('plain'),
    async (job: number) => {
      await working()
      await effect('lockstep plain', job)
      await working()
    },
    options,
  )
  tasks.define(
    queueOf('transactional'),
    async (job: number, { trx }) => {
      await working()
      await effect('lockstep transactional', job, (text, values) => trx.executeQuery(CompiledQuery.raw(text, values)))
      await working()
    },
    { ...options, transactional: true },
  )
  tasks.work()
}

// ---- pg-boss -----------------------------------------------------------------------------------------------------

const BOSS_SCHEMA = 'prove_boss'

async function bossOn(connectionString: string, supervise: boolean) {
  const { PgBoss } = await import('pg-boss')
  const settings = { superviseIntervalSeconds: 1, maintenanceIntervalSeconds: 1, monitorIntervalSeconds: 1 }
  const boss = new PgBoss({ connectionString, schema: BOSS_SCHEMA, supervise, schedule: false, ...settings })
  boss.on('error', () => {})
  boss.on('warning', () => {})
  await boss.start()
  return boss
}

async function bossSender(url: string): Promise<Sender> {
  const boss = await bossOn(url, true)
  for (const how of JOB_FORMS['pg-boss']) {
    await boss.createQueue(queueOf(how), { retryLimit: 1_000, retryDelay: 0, heartbeatSeconds: HEARTBEAT_MS / 1_000 })
  }
  return {
    send: (how, job) => boss.send(queueOf(how), { job }),
    [Symbol.asyncDispose]: () => boss.stop({ graceful: false }),
  }
}

async function bossWork(url: string, effect: Effect): Promise<void> {
  const boss = await bossOn(url, false)
  const options = { localConcurrency: CONCURRENCY, pollingIntervalSeconds: 0.5 }
  await boss.work<{ job: number }>(queueOf('plain'), options, async ([it]) => {
    await working()
    await effect('pg-boss plain', it?.data.job ?? -1)
    await working()
  })
  await boss.work(queueOf('transactional'), { ...options, transactional: true as const }, async ([it], tx) => {
    await working()
    const data = it?.data as { job: number } | undefined
    await effect('pg-boss transactional', data?.job ?? -1, (text, values) => tx.executeSql(text, values))
    await working()
  })
}

// ---- graphile-worker ---------------------------------------------------------------------------------------------

const schemaOf = (how: string) => `prove_graphile_${how}`

async function graphileSender(url: string): Promise<Sender> {
  const { makeWorkerUtils, Logger } = await import('graphile-worker')
  const logger = new Logger(() => () => {})
  const utils = new Map<string, Awaited<ReturnType<typeof makeWorkerUtils>>>()
  for (const how of JOB_FORMS.graphile) {
    const its = await makeWorkerUtils({ connectionString: url, schema: schemaOf(how), logger })
    await its.migrate()
    utils.set(how, its)
  }
  return {
    send: async (how, job) => utils.get(how)?.addJob('act', { job }, { maxAttempts: 1_000 }),
    async killed(names) {
      for (const how of ['unlocked', 'idempotent']) await utils.get(how)?.forceUnlockWorkers(names)
    },
    async [Symbol.asyncDispose]() {
      for (const its of utils.values()) await its.release()
    },
  }
}

async function graphileWork(url: string, effect: Effect): Promise<void> {
  const { Logger, run } = await import('graphile-worker')
  const logger = new Logger(() => () => {})
  for (const how of JOB_FORMS.graphile) {
    const act = async (payload: unknown) => {
      const { job } = payload as { job: number }
      await working()
      await effect(`graphile ${how}`, job)
      await working()
    }
    const events = new EventEmitter()
    events.on('pool:create', ({ workerPool }) => console.log(`named ${workerPool.id}`)) // it is what locks the jobs
    const settings = { connectionString: url, schema: schemaOf(how), logger, events, concurrency: CONCURRENCY }
    await run({ ...settings, taskList: { act }, parsedCronItems: [], pollInterval: 500, noHandleSignals: true })
  }
}

// ---- BullMQ ------------------------------------------------------------------------------------------------------

const portOf = (url: string) => ({ host: '127.0.0.1', port: Number(new URL(url).port) })

async function bullSender(_url: string, peerUrl: string): Promise<Sender> {
  const { Queue } = await import('bullmq')
  const queues = new Map(
    JOB_FORMS.bullmq.map((how) => [how as string, new Queue(queueOf(how), { connection: portOf(peerUrl) })]),
  )
  for (const queue of queues.values()) queue.on('error', () => {})
  return {
    send: async (how, job) => queues.get(how)?.add('act', { job }, { attempts: 1_000 }),
    async [Symbol.asyncDispose]() {
      for (const queue of queues.values()) await queue.close()
    },
  }
}

async function bullWork(_url: string, effect: Effect, peerUrl: string): Promise<void> {
  const { Worker } = await import('bullmq')
  const connection = { ...portOf(peerUrl), maxRetriesPerRequest: null }
  const settings = {
    concurrency: CONCURRENCY,
    lockDuration: HEARTBEAT_MS,
    stalledInterval: 2_000,
    maxStalledCount: 1_000,
  }
  for (const how of JOB_FORMS.bullmq) {
    const act = async ({ data }: { data: { job: number } }) => {
      await working()
      await effect(`bullmq ${how}`, data.job)
      await working()
    }
    new Worker(queueOf(how), act, { connection, ...settings }).on('error', () => {})
  }
}
