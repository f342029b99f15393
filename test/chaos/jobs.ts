/**
 * Jobs under faults: a few processes work and tick; a nemesis kills and pauses them, ends their connections, and restarts or
 * crashes the database, while jobs are sent in transactions that write down what they sent.
 *
 * Then what was done is checked. Each job of a transactional handler has its effect exactly once; each of a plain one at
 * least once. None was lost, none was made up: there are as many as were written down. Each second of a schedule has one
 * job, from the first to the last, though every tick was in danger.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { sql } from 'kysely'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task.ts'
import { seeded } from './random.ts'

export interface JobsPlan {
  /** A migrated database on a server that keeps what it acknowledged when it crashes. */
  url: string
  restart(how: 'stop' | 'crash'): Promise<void>
  /** Transactional ones; a tenth as many plain ones besides. */
  jobs: number
  /** Processes alive at a time. */
  workers: number
  /** Of faults, at least; they go on until all jobs are sent. After them all is waited for. */
  seconds: number
  seed: number
}
export interface JobsOutcome {
  jobs: number
  plain: number
  slots: number
  /** Attempts of transactional jobs that were not the first. */
  again: number
  kills: number
  pauses: number
  terminations: number
  stops: number
  crashes: number
  /** From the last fault until all was done. */
  recoveredMs: number
  /** What must not be; empty is good. */
  violations: string[]
}

// The shortest heartbeat there is, so that the jobs of the dead come back soon; retries enough for every fault.
const options = { retryLimit: 1_000, heartbeatMs: 10_000 }
export const QUEUES = {
  transactional: { name: 'chaos/transactional', options },
  plain: { name: 'chaos/plain', options },
  slots: { name: 'chaos/slots', options },
}

const BATCH = 50
const RESTART_EVERY_MS = 15_000
const RECOVERS_MS = 180_000

export async function runJobs(plan: JobsPlan): Promise<JobsOutcome> {
  const random = seeded(plan.seed)
  const hits = { kills: 0, pauses: 0, terminations: 0, stops: 0, crashes: 0 }
  const violations: string[] = []
  await using lockstep = createLockstep({ connectionString: plan.url, max: 4, applicationName: 'chaos' })
  const { kysely } = lockstep
  const tasks = createTasks(lockstep, { onError: () => {} })
  for (const { name, options } of Object.values(QUEUES)) tasks.define(name, options)
  await sql`drop table if exists sent, effect`.execute(kysely)
  await sql`create table sent (n integer primary key, kind text, id uuid)`.execute(kysely)
  await sql`create table effect (n integer, kind text, token bigint, worker text, at bigserial)`.execute(kysely)
  const began = new Date(Date.now() - 1_000)
  await tasks.counts(QUEUES.slots.name).catch(() => tasks.declare(QUEUES.slots.name, QUEUES.slots.options))
  await tasks.schedule('every second', '* * * * * *', { queue: QUEUES.slots.name, missed: 'all' })

  const workers: { child: ChildProcess; gone: Promise<unknown>; number: number }[] = []
  let number = 0
  async function start(slot: number): Promise<void> {
    const id = String(number++)
    const program = fileURLToPath(new URL('jobber.ts', import.meta.url))
    const child = spawn(process.execPath, [program, plan.url, id], { stdio: ['ignore', 'pipe', 'inherit'] })
    const gone = once(child, 'close')
    workers[slot] = { child, gone, number: Number(id) }
    const ready = Promise.withResolvers<void>()
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      if (line === 'ready') ready.resolve()
      else violations.push(`worker ${id}: ${line}`)
    })
    await Promise.race([ready.promise, gone])
  }

  /**
   * In batches, each in a transaction that writes down what it sends: it commits as a whole, or not. Over all the time that
   * there are faults, so that every one of them finds jobs in hand.
   */
  async function send(): Promise<void> {
    const since = performance.now()
    for (let n = 0; n < plan.jobs; ) {
      await sleep(Math.max(since + (n / plan.jobs) * plan.seconds * 1_000 - performance.now(), 0))
      const batch = Array.from({ length: Math.min(BATCH, plan.jobs - n) }, (_, i) => n + i)
      try {
        await kysely.transaction().execute(async (trx) => {
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
        await sleep(50) // the database is away: the same again
      }
    }
  }

  const later: Promise<void>[] = []
  const paused = new Set<number>()
  const hit = {
    kills(slot: number) {
      if (paused.has(slot)) return // whoever stands still must come to itself: that is when it is dangerous
      hits.kills++
      workers[slot]?.child.kill('SIGKILL')
      void start(slot)
    },
    pauses(slot: number) {
      if (paused.has(slot)) return
      hits.pauses++
      paused.add(slot)
      const child = workers[slot]?.child
      child?.kill('SIGSTOP')
      // Every other time for longer than the heartbeat, so that what it has in hand is given to others meanwhile.
      const ms = random() < 0.5 ? 500 + random() * 4_500 : 11_000 + random() * 4_000
      const goOn = () => {
        child?.kill('SIGCONT')
        paused.delete(slot)
      }
      later.push(sleep(ms).then(goOn))
    },
    async terminations(slot: number) {
      hits.terminations++
      const which = `jobber ${workers[slot]?.number}`
      const half = sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = ${which} and random() < 0.5`
      await half.execute(kysely).catch(() => {})
    },
  }
  const ways = Object.keys(hit) as (keyof typeof hit)[]

  let recoveredMs = 0
  try {
    await Promise.all(Array.from({ length: plan.workers }, (_, slot) => start(slot)))
    let sent = false
    const sending = send().then(() => {
      sent = true
    })
    const end = performance.now() + plan.seconds * 1_000
    const every = Math.min(RESTART_EVERY_MS, (plan.seconds * 1_000) / 2)
    let crash = random() < 0.5
    let next = performance.now() + every
    while ((performance.now() < end || !sent) && violations.length === 0) {
      await sleep(100 + random() * 900)
      if (performance.now() >= next) {
        hits[crash ? 'crashes' : 'stops']++
        await plan.restart(crash ? 'crash' : 'stop')
        crash = !crash
        next = performance.now() + every
        continue
      }
      const way = ways[Math.floor(random() * ways.length)] as keyof typeof hit
      await hit[way](Math.floor(random() * plan.workers))
    }
    await Promise.all([...later, sending])

    // Nothing is broken any more: everything comes to be done.
    const since = performance.now()
    for (; violations.length === 0; await sleep(200)) {
      const left = await sql<{ n: string }>`select count(*) as n from lockstep_boss.job
                           where name in (${QUEUES.transactional.name}, ${QUEUES.plain.name}) and state <> 'completed'`
        .execute(kysely)
        .catch(() => undefined)
      if (left?.rows[0]?.n === '0') break
      await tasks.tick().catch(() => {})
      if (performance.now() - since > RECOVERS_MS) {
        violations.push(`${left?.rows[0]?.n} jobs were not done within ${RECOVERS_MS} ms after the last fault`)
      }
    }
    recoveredMs = Math.round(performance.now() - since)
    await tasks.tick() // the slots until now
    await tasks.unschedule('every second')
  } finally {
    for (const { child } of workers) child.kill('SIGKILL')
    await Promise.all(workers.map(({ gone }) => gone))
  }

  const rows = async <R>(statement: ReturnType<typeof sql<R>>) => (await statement.execute(kysely)).rows
  const counted = await rows(sql<{ n: number; kind: string; times: string }>`
    select s.n, s.kind, count(e.n) as times
      from sent s left join effect e on e.kind = s.kind and e.n = case when s.kind = 'job' then s.n else -1 - s.n end
     group by s.n, s.kind`)
  const jobs = counted.filter(({ kind }) => kind === 'job')
  const plain = counted.filter(({ kind }) => kind === 'plain')
  if (jobs.length !== plan.jobs) violations.push(`${jobs.length} jobs were sent of ${plan.jobs}`)
  for (const { n, times } of jobs) if (times !== '1') violations.push(`job ${n} has its effect ${times} times`)
  for (const { n, times } of plain) if (times === '0') violations.push(`plain job ${n} has no effect`)
  const strange = await rows(sql`select n from effect where kind = 'job' and n not in (select n from sent)`)
  if (strange.length > 0) violations.push(`${strange.length} effects are of jobs that were never sent`)

  const slots = (
    await rows(
      sql<{ at: Date }>`select start_after as at from lockstep_boss.job where name = ${QUEUES.slots.name} order by 1`,
    )
  ).map(({ at }) => at.getTime())
  slots.forEach((slot, i) => {
    const before = slots[i - 1]
    if (before === slot) violations.push(`slot ${new Date(slot).toISOString()} was sent twice`)
    if (before !== undefined && slot - before > 1_000) {
      violations.push(`no slot was sent between ${new Date(before).toISOString()} and ${new Date(slot).toISOString()}`)
    }
  })
  if (!slots[0] || slots[0] < began.getTime()) violations.push('the schedule did not begin when it was made')
  const again = await rows(sql<{ n: string }>`
    select coalesce(sum(retry_count), 0) as n from lockstep_boss.job where name = ${QUEUES.transactional.name}`)
  return {
    ...{ jobs: jobs.length, plain: plain.length, slots: slots.length, again: Number(again[0]?.n) },
    ...hits,
    ...{ recoveredMs, violations },
  }
}
