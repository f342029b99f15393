/**
 * Jobs under faults: a few processes, each with its own network, work and tick, while jobs are sent in transactions that also
 * record the jobs.
 *
 * Then the run is checked. Each job of a transactional handler has its effect exactly once; each job of a plain handler at
 * least once. No job was lost or invented: there are as many as were recorded. Each second of a schedule has one job, from
 * the first to the last, although any tick may have been struck by a fault.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { sql } from 'kysely'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { slotId } from '../../lib/task/schedule/slots.ts'
import { observer } from '../support/observer.ts'
import { Nemesis, type Victim } from './nemesis.ts'
import type { ChaosServer } from './server.ts'

export interface JobsPlan {
  server: ChaosServer
  /** The number of transactional jobs; there are a tenth as many plain jobs in addition. */
  jobs: number
  /** Processes alive at a time. */
  workers: number
  /** How long there are faults; all jobs are sent in that time. After that, the run waits until all jobs are done. */
  seconds: number
  seed: number
}

// The shortest possible heartbeat, so that the jobs of killed workers are retried soon; and enough retries for every fault.
const options = { retryLimit: 1_000, heartbeatMs: 10_000 }
export const QUEUES = {
  transactional: { name: 'chaos/transactional', options },
  plain: { name: 'chaos/plain', options },
  slots: { name: 'chaos/slots', options },
}

const SCHEDULE = 'every second'
const BATCH = 50
const RECOVERS_MS = 180_000

export async function runJobs(plan: JobsPlan) {
  const { url } = plan.server
  const violations: string[] = []
  await using lockstep = createLockstep({ connectionString: url, max: 4, applicationName: 'chaos' })
  await using observed = observer(url)
  const tasks = createTasks(lockstep, { onError: () => {} })
  for (const { name, options } of Object.values(QUEUES)) tasks.define(name, options)
  await sql`drop table if exists sent, effect`.execute(observed)
  await sql`create table sent (n integer primary key, kind text, id uuid)`.execute(observed)
  await sql`create table effect (n integer, kind text, token bigint, worker text, at bigserial)`.execute(observed)
  const began = new Date(Math.floor(Date.now() / 1_000) * 1_000)
  await tasks.counts(QUEUES.slots.name).catch(() => tasks.declare(QUEUES.slots.name, QUEUES.slots.options))
  await tasks.schedule(SCHEDULE, '* * * * * *', { queue: QUEUES.slots.name, missed: 'all' })

  const workers: (Victim & { gone: Promise<unknown> })[] = []
  await using nemesis = await Nemesis.of({
    ...{ server: plan.server, seed: plan.seed, seconds: plan.seconds, networks: plan.workers },
    restMs: (chance) => 100 + chance * 900,
    // Half of the pauses are longer than the heartbeat, so that the worker's jobs go to others in the meantime.
    awayMs: (chance) => (chance < 0.5 ? 500 + chance * 9_000 : 7_000 + chance * 8_000),
    victims: () => workers,
    killed: (victim) => void start(workers.indexOf(victim as (typeof workers)[0])),
  })
  let number = 0
  async function start(slot: number): Promise<void> {
    const id = number++
    const program = fileURLToPath(new URL('jobber.ts', import.meta.url))
    const child = spawn(process.execPath, [program, nemesis.network(slot), String(id)], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, ...nemesis.clock(id) },
    })
    workers[slot] = { child, gone: once(child, 'close'), name: `jobber ${id}` }
    const ready = Promise.withResolvers<void>()
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      if (line === 'ready') ready.resolve()
      else if (line === 'did') nemesis.progress()
      else violations.push(`worker ${id}: ${line}`)
    })
    await Promise.race([ready.promise, workers[slot]?.gone])
  }

  /**
   * Sends in batches, each in a transaction that also records the jobs: all of it commits, or nothing. The batches are spread
   * over the whole time of the faults, so that every fault strikes while jobs run.
   */
  async function send(): Promise<void> {
    const since = performance.now()
    for (let n = 0; n < plan.jobs; ) {
      await sleep(Math.max(since + (n / plan.jobs) * plan.seconds * 1_000 - performance.now(), 0))
      const batch = Array.from({ length: Math.min(BATCH, plan.jobs - n) }, (_, i) => n + i)
      try {
        await lockstep.kysely.transaction().execute(async (trx) => {
          const known = await sql<{ n: number }>`select n from sent where n = ${n} and kind = 'job'`.execute(trx)
          if (known.rows.length > 0) return // the answer to its commit was lost
          const jobs = batch.map((data) => ({ data }))
          const ids = await tasks.sendAll(QUEUES.transactional.name, jobs, { trx })
          for (const [i, id] of ids.entries()) {
            await sql`insert into sent (n, kind, id) values (${n + i}, 'job', ${id})`.execute(trx)
          }
          const plain = await tasks.sendAll(QUEUES.plain.name, jobs.slice(0, BATCH / 10), { trx })
          for (const [i, id] of plain.entries()) {
            await sql`insert into sent (n, kind, id) values (${-1 - n - i}, 'plain', ${id})`.execute(trx)
          }
        })
        n += batch.length
      } catch {
        await sleep(50) // the database is unreachable: try again
      }
    }
  }

  let doneMs = 0
  try {
    await Promise.all(Array.from({ length: plan.workers }, (_, slot) => start(slot)))
    const sending = send()
    await nemesis.rage(() => violations.length > 0)
    await sending

    // There are no more faults: all jobs must be done.
    const since = performance.now()
    for (; violations.length === 0; await sleep(200)) {
      const left = await sql<{ n: string }>`select count(*) as n from lockstep_boss.job
                           where name in (${QUEUES.transactional.name}, ${QUEUES.plain.name}) and state <> 'completed'`
        .execute(observed)
        .catch(() => undefined)
      if (left?.rows[0]?.n === '0') break
      await tasks.tick().catch(() => {})
      if (performance.now() - since > RECOVERS_MS) {
        violations.push(`${left?.rows[0]?.n} jobs were not done within ${RECOVERS_MS} ms after the last fault`)
      }
    }
    doneMs = Math.round(performance.now() - since)
    await tasks.tick() // sends the slots until now
    const [{ missed_slots: missed } = {}] = (
      await sql<{ missed_slots: string }>`select missed_slots from lockstep.schedule where name = ${SCHEDULE}`.execute(
        observed,
      )
    ).rows
    if (String(missed) !== '0') violations.push(`the schedule reports ${missed} missed slots`)
    await tasks.unschedule(SCHEDULE)
  } finally {
    for (const { child } of workers) child.kill('SIGKILL')
    await Promise.all(workers.map(({ gone }) => gone))
  }

  const rows = async <R>(statement: ReturnType<typeof sql<R>>) => (await statement.execute(observed)).rows
  const counted = await rows(sql<{ n: number; kind: string; times: string }>`
    select s.n, s.kind, count(e.n) as times
      from sent s left join effect e on e.kind = s.kind and e.n = case when s.kind = 'job' then s.n else -1 - s.n end
     group by s.n, s.kind`)
  const jobs = counted.filter(({ kind }) => kind === 'job')
  const plain = counted.filter(({ kind }) => kind === 'plain')
  if (jobs.length !== plan.jobs) violations.push(`${jobs.length} jobs were sent of ${plan.jobs}`)
  for (const { n, times } of jobs) if (times !== '1') violations.push(`job ${n} has its effect ${times} times`)
  for (const { n, times } of plain) if (times === '0') violations.push(`plain job ${n} has no effect`)
  const unknown = await rows(sql`select n from effect where kind = 'job' and n not in (select n from sent)`)
  if (unknown.length > 0) violations.push(`${unknown.length} effects belong to jobs that were never sent`)

  // Each second must have the job with its id. A job's own time does not help: a retry changes it.
  const ids = new Set(
    (await rows(sql<{ id: string }>`select id from lockstep_boss.job where name = ${QUEUES.slots.name}`)).map(
      ({ id }) => id,
    ),
  )
  const slots: Date[] = []
  for (let at = began.getTime(); at <= Date.now() + 1_000; at += 1_000) {
    const slot = new Date(at)
    if (!ids.delete(await slotId(SCHEDULE, slot))) continue
    const before = slots.at(-1) ?? began
    if (+slot - +before > (slots.length > 0 ? 1_000 : 3_000)) {
      violations.push(`no slot was sent between ${before.toISOString()} and ${slot.toISOString()}`)
    }
    slots.push(slot)
  }
  if (ids.size > 0) violations.push(`${ids.size} jobs of the schedule belong to no slot: ${[...ids]}`)
  const again = await rows(sql<{ n: string }>`
    select coalesce(sum(retry_count), 0) as n from lockstep_boss.job where name = ${QUEUES.transactional.name}`)
  return {
    ...{ jobs: jobs.length, plain: plain.length, slots: slots.length },
    /** The number of retries of transactional jobs. */
    again: Number(again[0]?.n),
    ...nemesis.summary(),
    /** Milliseconds from the last fault until all jobs were done. */
    doneMs,
    /** The violations; must be empty. */
    violations,
    /** The data for finding the cause of a violation. */
    evidence: { struck: nemesis.struck },
  }
}
