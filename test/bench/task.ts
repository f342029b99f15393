/**
 * The cost of a job, compared with the alternatives: `npm run bench -- tasks`.
 *
 * harness.ts describes the method, servers.ts the servers, peer.ts the other queues. When you read the numbers, note:
 *
 * - Our tasks are built on pg-boss. It is measured alone, on the same tables, in queues that were declared with our
 *   options: `notify`, a heartbeat, its own two retries. So these rows show what our layer costs, and what it saves.
 * - All jobs of a turn are counted at its end, and removed: every turn begins with an empty table. With millions of jobs in
 *   the table, all contenders are slower.
 * - Clients and servers share the cores of this machine, over loopback. With many at once, a rate is the CPU time of all of
 *   them together.
 * - Against us: BullMQ's Redis is not durable; our jobs are on the disk when `send` answers. NOTIFY makes commits wait for
 *   one another, and our sends use it, as those of pg-boss and graphile-worker do here. Each of our jobs has its own handler
 *   call, signal and output, while a call of pg-boss's handler gets a hundred jobs; graphile-worker deletes jobs that are done.
 * - For us: concurrent sends share an insert, and concurrent completions an update. So 64 at once are fast; one alone gains
 *   nothing.
 * - The times of single jobs are taken after a twentieth of a second without any work, so that each of their round trips has
 *   to wake an idle core, ours and pg-boss's alike. A run is more than a pickup: the end of the job is on the disk, the
 *   sender is notified, and has read the output.
 */

import { setTimeout as delay } from 'node:timers/promises'
import pg from 'pg'
import { createLockstep } from '../../lib/index.ts'
import { createTasks, type Tasks } from '../../lib/task/index.ts'
import { countStatements } from './candidate.ts'
import {
  atOnce,
  byTurns,
  figure,
  type Line,
  perSecond,
  ratio,
  type Sample,
  type Settings,
  spread,
  WrongResult,
} from './harness.ts'
import { bossStore, graphileStore, type Store, startBoss, startBull, startGraphile, workGraphile } from './peer.ts'
import { NO_REDIS, type Row, type Servers } from './servers.ts'

export const TASKS: Record<string, Row> = { send, batch, sends, complete, work, run, tick }

const OURS = 'bench-ours'
const PEERS = 'bench-peers'
/** The number of jobs in a batch. */
const BATCH = 1_000
/** The number of jobs that are completed in a turn, each by a call of its own. */
const COMPLETED = 4_000
/** The number of jobs that are worked in a turn. */
const JOBS = 10_000
/** Until all processes are idle. */
const QUIET_MS = 50

/** One of our queues, and the same queue for pg-boss alone. */
async function queues(tasks: Tasks): Promise<void> {
  await tasks.declare(OURS)
  await tasks.declare(PEERS)
}

async function connected(databaseUrl: string) {
  const client = new pg.Client(databaseUrl)
  await client.connect()
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() })
}

/** Sends in `width` concurrent loops; at the end all jobs must be stored, and no others. */
function sending(width: number, store: Store, many: number, send: (lane: number) => Promise<unknown>) {
  return async (seconds: number): Promise<Sample> => {
    let sent = 0
    const sample = await atOnce(width, seconds, async (lane) => {
      await send(lane)
      sent += many
    })
    const there = await store.left()
    if (there !== sent) throw new WrongResult(`${there} jobs are stored, ${sent} were sent`)
    await store.empty()
    return { ...sample, rate: sample.rate * many, clientCpuMicros: (sample.clientCpuMicros ?? 0) / many }
  }
}

function sentOne(id: unknown): void {
  if (typeof id !== 'string') throw new WrongResult('A job was refused')
}

function sentAll(ids: readonly unknown[] | null): void {
  if (ids?.filter((id) => id !== null).length !== BATCH) throw new WrongResult('A job of a batch was refused')
}

/** One send alone is a round trip and a commit; ours adds its checks. */
async function send({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const tasks = createTasks(lockstep)
  await queues(tasks)
  await using boss = await startBoss(databaseUrl)
  await using client = await connected(databaseUrl)
  const { ours, raw } = await byTurns(
    'send',
    {
      ours: sending(1, bossStore(client, OURS), 1, async (n) => sentOne(await tasks.send(OURS, { n }))),
      raw: sending(1, bossStore(client, PEERS), 1, async (n) => sentOne(await boss.send(PEERS, { n }))),
    },
    settings,
  )
  return [
    {
      row: 'send, one after another',
      beside: 'rate of pg-boss',
      target: { atLeast: 0.9 },
      measured: ratio(ours, raw),
      rates: `${perSecond(ours)} · pg-boss ${perSecond(raw)}`,
    },
  ]
}

/** A thousand in one statement. */
async function batch({ databaseUrl }: Servers, settings: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const tasks = createTasks(lockstep)
  await queues(tasks)
  await using boss = await startBoss(databaseUrl)
  await using graphile = await startGraphile(databaseUrl)
  await using client = await connected(databaseUrl)
  const each = <T>(job: (data: { n: number }) => T) => Array.from({ length: BATCH }, (_, n) => job({ n }))
  const {
    ours,
    raw,
    graphile: peers,
  } = await byTurns(
    'batch',
    {
      ours: sending(1, bossStore(client, OURS), BATCH, async () =>
        sentAll(
          await tasks.sendAll(
            OURS,
            each((data) => ({ data })),
          ),
        ),
      ),
      raw: sending(1, bossStore(client, PEERS), BATCH, async () =>
        sentAll(
          await boss.insert(
            PEERS,
            each((data) => ({ data })),
            { returnId: true },
          ),
        ),
      ),
      graphile: sending(1, graphileStore(client), BATCH, async () =>
        sentAll(await graphile.addJobs(each((payload) => ({ identifier: PEERS, payload })))),
      ),
    },
    settings,
  )
  const row = 'sendAll of 1,000, one after another: jobs'
  return [
    {
      row,
      beside: 'rate of pg-boss insert',
      target: { atLeast: 0.9 },
      measured: ratio(ours, raw),
      rates: `${perSecond(ours)} · pg-boss ${perSecond(raw)}`,
    },
    {
      row,
      beside: 'rate of graphile-worker addJobs',
      measured: ratio(ours, peers),
      rates: `${perSecond(ours)} · graphile-worker ${perSecond(peers)}`,
    },
  ]
}

/** 64 callers at once: ours share inserts and commits. */
async function sends({ databaseUrl, redisPort }: Servers, settings: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const tasks = createTasks(lockstep)
  await queues(tasks)
  await using boss = await startBoss(databaseUrl)
  await using graphile = await startGraphile(databaseUrl)
  await using bull = redisPort === undefined ? undefined : await startBull(redisPort, PEERS)
  await using client = await connected(databaseUrl)
  const {
    ours,
    raw,
    bullmq,
    graphile: peers,
  } = await byTurns(
    'sends',
    {
      ours: sending(64, bossStore(client, OURS), 1, async (n) => sentOne(await tasks.send(OURS, { n }))),
      raw: sending(64, bossStore(client, PEERS), 1, async (n) => sentOne(await boss.send(PEERS, { n }))),
      bullmq: bull && sending(64, bull.store, 1, async (n) => sentOne((await bull.add(PEERS, { n })).id)),
      graphile: sending(64, graphileStore(client), 1, async (n) => sentOne((await graphile.addJob(PEERS, { n })).id)),
    },
    settings,
  )
  const row = 'send, 64 at once'
  return [
    {
      row,
      beside: 'rate of pg-boss',
      target: { atLeast: 10 },
      measured: ratio(ours, raw),
      rates: `${perSecond(ours)} · pg-boss ${perSecond(raw)}`,
    },
    {
      row,
      beside: 'rate of BullMQ (not durable)',
      target: { atLeast: 0.8 },
      measured: bull ? ratio(ours, bullmq) : NO_REDIS,
      rates: `${perSecond(ours)} · BullMQ ${perSecond(bullmq)}`,
    },
    {
      row,
      beside: 'rate of graphile-worker',
      measured: ratio(ours, peers),
      rates: `${perSecond(ours)} · graphile-worker ${perSecond(peers)}`,
    },
  ]
}

/** Completes fetched jobs, each by its own call and with its own output: our calls share updates and commits. */
async function complete({ databaseUrl }: Servers, { rounds }: Settings): Promise<Line[]> {
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const tasks = createTasks(lockstep)
  await queues(tasks)
  await using boss = await startBoss(databaseUrl)
  await using client = await connected(databaseUrl)
  const jobs = Array.from({ length: COMPLETED }, (_, n) => ({ data: { n } }))
  const completing = async (width: number, store: Store, ends: (() => Promise<unknown>)[]): Promise<Sample> => {
    await client.query('analyze')
    let next = 0
    const since = performance.now()
    const lane = async () => {
      for (let end = ends[next++]; end; end = ends[next++]) await end()
    }
    await Promise.all(Array.from({ length: width }, lane))
    const took = performance.now() - since
    const completed = await store.completed?.()
    if (completed !== COMPLETED) throw new WrongResult(`${completed} of ${COMPLETED} jobs were completed`)
    await store.empty()
    return { rate: (COMPLETED / took) * 1_000 }
  }
  const ours = (width: number) => async () => {
    await tasks.sendAll(OURS, jobs)
    const ends: (() => Promise<unknown>)[] = []
    while (ends.length < COMPLETED) {
      const claimed = await tasks.claim(OURS, { limit: 100, leaseMs: 600_000 })
      ends.push(
        ...claimed.map(
          ({ id, token }, n) =>
            () =>
              tasks.complete(OURS, id, token, { n }),
        ),
      )
    }
    return completing(width, bossStore(client, OURS), ends)
  }
  const raw = (width: number) => async () => {
    await boss.insert(PEERS, jobs)
    const fetched = await boss.fetch(PEERS, { batchSize: COMPLETED })
    const ends = fetched.map((job, n) => () => boss.complete(PEERS, job, { n }))
    return completing(width, bossStore(client, PEERS), ends)
  }
  const lines: Line[] = []
  for (const width of [1, 64]) {
    const turns = { ours: ours(width), raw: raw(width) }
    const sampled = await byTurns(`complete, ${width}`, turns, { rounds, seconds: 0 })
    lines.push({
      row: width === 1 ? 'complete, one after another' : `complete, ${width} at once`,
      beside: 'rate of pg-boss',
      ...(width > 1 && { target: { atLeast: 3 } }),
      measured: ratio(sampled.ours, sampled.raw),
      rates: `${perSecond(sampled.ours)} · pg-boss ${perSecond(sampled.raw)}`,
    })
  }
  return lines
}

/** Works the jobs that were sent before: from the start of the first job to the end of the last. */
async function work({ databaseUrl }: Servers, { rounds }: Settings): Promise<Line[]> {
  let book = new Book()
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const tasks = createTasks(lockstep)
  tasks.define(OURS, ({ n }: { n: number }) => book.done(n), { concurrency: 400 })
  await queues(tasks)
  await using boss = await startBoss(databaseUrl)
  await using graphile = await startGraphile(databaseUrl)
  await using client = await connected(databaseUrl)

  const fill = async (send: (jobs: { n: number }[]) => Promise<unknown>) => {
    for (let n = 0; n < JOBS; n += BATCH) await send(Array.from({ length: BATCH }, (_, i) => ({ n: n + i })))
  }
  const workOff = async (store: Store, begin: () => Promise<() => Promise<unknown>>): Promise<Sample> => {
    // The table now has ten thousand rows: without new statistics PostgreSQL would plan for an empty one.
    await client.query('analyze')
    const stop = await begin()
    await Promise.race([book.all, delay(60_000, undefined, { ref: false })])
    for (const until = performance.now() + 10_000; (await store.left()) > 0 && performance.now() < until; ) {
      await delay(2)
    }
    const took = performance.now() - book.began
    const left = await store.left()
    await stop()
    book.check()
    if (left > 0) throw new WrongResult(`${left} jobs were not completed`)
    const completed = (await store.completed?.()) ?? JOBS
    if (completed !== JOBS) throw new WrongResult(`${completed} of ${JOBS} jobs were completed in their first attempt`)
    await store.empty()
    book = new Book()
    return { rate: (JOBS / took) * 1_000 }
  }

  const {
    ours,
    raw,
    graphile: peers,
  } = await byTurns(
    'work',
    {
      ours: async () => {
        await fill((jobs) =>
          tasks.sendAll(
            OURS,
            jobs.map((data) => ({ data })),
          ),
        )
        return workOff(bossStore(client, OURS), async () => {
          const worker = tasks.work(OURS)
          return () => worker.stop()
        })
      },
      raw: async () => {
        await fill((jobs) =>
          boss.insert(
            PEERS,
            jobs.map((data) => ({ data })),
          ),
        )
        return workOff(bossStore(client, PEERS), async () => {
          const settings = {
            batchSize: 100,
            localConcurrency: 4,
            burstWhenBatchFull: true,
            pollingIntervalSeconds: 0.5,
          }
          await boss.work<{ n: number }>(PEERS, settings, async (jobs) => {
            for (const { data } of jobs) book.done(data.n)
          })
          return () => boss.offWork(PEERS)
        })
      },
      graphile: async () => {
        await fill((jobs) => graphile.addJobs(jobs.map((payload) => ({ identifier: PEERS, payload }))))
        return workOff(graphileStore(client), async () => {
          const runner = await workGraphile(databaseUrl, { [PEERS]: (data) => book.done((data as { n: number }).n) })
          return () => runner.stop()
        })
      },
    },
    { rounds, seconds: 0 }, // a turn takes as long as the jobs take
  )
  const row = 'jobs that do nothing, worked'
  const each = `${JOBS.toLocaleString('en')} in each of ${rounds} rounds`
  return [
    {
      row,
      beside: 'rate of pg-boss, 4 × 100 at a time',
      target: { atLeast: 0.9 },
      measured: ratio(ours, raw),
      rates: `${perSecond(ours)} · pg-boss ${perSecond(raw)}; ${each}`,
    },
    {
      row,
      beside: 'rate of graphile-worker, 500 at a time',
      measured: ratio(ours, peers),
      rates: `${perSecond(ours)} · graphile-worker ${perSecond(peers)}; ${each}`,
    },
  ]
}

/** Counts how often each job was done. */
class Book {
  readonly all: Promise<void>
  /** The time of the first one. */
  began = Number.NaN
  readonly #times = new Uint8Array(JOBS)
  readonly #isAll: () => void
  #done = 0

  constructor() {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.all = promise
    this.#isAll = resolve
  }

  done(n: number): void {
    if (this.#done === 0) this.began = performance.now()
    this.#times[n] = (this.#times[n] ?? 0) + 1
    this.#done += 1
    if (this.#done === JOBS) this.#isAll()
  }

  check(): void {
    const lost = this.#times.filter((times) => times === 0).length
    const twice = this.#times.filter((times) => times > 1).length
    if (lost + twice > 0) throw new WrongResult(`${lost} of ${JOBS} jobs were not done, ${twice} more than once`)
  }
}

/** From `run` to its answer; compared with pg-boss, from a send to the start of the job. */
async function run({ databaseUrl }: Servers, { rounds, seconds }: Settings): Promise<Line[]> {
  const long = { rounds, seconds: Math.max(seconds, 2) }
  await using client = await connected(databaseUrl)
  await using first = createLockstep({ connectionString: databaseUrl })
  await queues(createTasks(first))
  const { ours, raw } = await byTurns(
    'run',
    {
      ours: async (seconds) => {
        // New queues each time: the notifications of one contender would wake the workers of the other.
        await using here = createLockstep({ connectionString: databaseUrl })
        await using there = createLockstep({ connectionString: databaseUrl })
        const [tasks, working] = [createTasks(here), createTasks(there)]
        working.define(OURS, ({ n }: { n: number }) => n)
        working.work(OURS)
        const sample = await oneByOne(seconds, async (n) => {
          const since = performance.now()
          const output = await tasks.run(OURS, { n })
          const took = performance.now() - since
          if (output !== n) throw new WrongResult(`The run of ${n} answered ${output}`)
          return took
        })
        await allDone(bossStore(client, OURS), sample.jobs)
        return sample
      },
      raw: async (seconds) => {
        await using here = await startBoss(databaseUrl)
        await using there = await startBoss(databaseUrl, true)
        let begun: ((data: { n: number; at: number }) => void) | undefined
        await there.work<{ n: number }>(PEERS, async ([job]) =>
          begun?.({ n: job?.data.n ?? -1, at: performance.now() }),
        )
        const sample = await oneByOne(seconds, async (n) => {
          const { promise, resolve } = Promise.withResolvers<{ n: number; at: number }>()
          begun = resolve
          const since = performance.now()
          const [begin] = await Promise.all([promise, here.send(PEERS, { n })])
          if (begin.n !== n) throw new WrongResult(`${begin.n} began instead of ${n}`)
          return begin.at - since
        })
        await there.offWork(PEERS)
        await allDone(bossStore(client, PEERS), sample.jobs)
        return sample
      },
    },
    long,
  )
  return [
    {
      row: 'run of a job that does nothing, one after another',
      beside: 'time of one pg-boss NOTIFY pickup',
      target: { atMost: 2 },
      measured: ratio(raw, ours),
      rates: `${ms(ours)} · pg-boss ${ms(raw)}; ${of(long)}`,
    },
  ]
}

/** The rate per second if there were no pauses; the first is not counted. */
async function oneByOne(seconds: number, job: (n: number) => Promise<number>) {
  const times: number[] = []
  let jobs = 0
  for (const until = performance.now() + seconds * 1_000; jobs < 2 || performance.now() < until; ) {
    await delay(QUIET_MS)
    times.push(await job(jobs))
    jobs += 1
  }
  const { median, max } = spread(times.slice(1))
  return { rate: 1_000 / median, worst: max, jobs }
}

async function allDone(store: Store, jobs: number): Promise<void> {
  const [left, completed] = [await store.left(), await store.completed?.()]
  if (left !== 0 || completed !== jobs) throw new WrongResult(`${completed} of ${jobs} jobs were completed`)
  await store.empty()
}

/** The statements of a tick when nothing is due. */
async function tick({ databaseUrl }: Servers, { rounds, seconds }: Settings): Promise<Line[]> {
  const few = { rounds: Math.min(rounds, 3), seconds: Math.min(seconds, 1) }
  const counted = countStatements()
  const queue = 'bench-idle'
  await using lockstep = createLockstep({ connectionString: databaseUrl })
  const tasks = createTasks(lockstep)
  tasks.define(queue, () => {})
  await tasks.schedule(queue, '0 0 1 1 *', { queue })
  await tasks.tick() // makes the queue
  await tasks.tick() // the first maintenance
  const { ours } = await byTurns(
    'tick',
    {
      ours: async (seconds) => {
        const before = counted().all
        let ticks = 0
        const sample = await atOnce(1, seconds, async () => {
          const { slots, jobs } = await tasks.tick()
          if (slots + jobs > 0) throw new WrongResult(`An idle tick sent ${slots} and did ${jobs}`)
          ticks += 1
        })
        return { rate: (counted().all - before) / ticks, ms: 1_000 / sample.rate }
      },
    },
    few,
  ).finally(() => tasks.unschedule(queue))
  return [
    {
      row: 'an idle tick: statements',
      beside: '–',
      target: { atMost: 3 },
      of: 'count',
      measured: spread(ours.map(({ rate }) => rate)),
      rates: `${figure(spread(ours.map(({ ms }) => ms)).median)} ms; ${of(few)}`,
    },
  ]
}

const of = ({ rounds, seconds }: Settings) => `${rounds} rounds of ${seconds} s`

/** The median time, for the table. */
const ms = (samples: Sample[]) => `${figure(spread(samples.map(({ rate }) => 1_000 / rate)).median)} ms`
