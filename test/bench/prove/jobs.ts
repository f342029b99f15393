/**
 * The experiment with jobs: a few processes work the queues of a peer and of Lockstep, under one nemesis. Each job has one effect, a
 * row. After the last fault the run waits until every queue is done, at most for DONE_MS. Then the rows of each job are counted:
 * more than one is a double effect, none is a lost one. The history of each job, of the effects that its handlers made and of the rows
 * that are there at the end, is judged by the checker of `npm run chaos`.
 *
 * At least once is what these queues promise, and what Lockstep promises of a plain handler: a double effect is no fault of them. It
 * is what a job does that is neither transactional nor idempotent.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { check, type Model, type Recorded } from '../../linear/index.ts'
import { Cast } from './cast.ts'
import { HEARTBEAT_MS, JOB_FORMS, type JobSystem, QUEUES } from './job-forms.ts'
import { type Plan, type Result, rows } from './plan.ts'

const PROCESSES = 3
const JOBS_A_SECOND = 8
const DONE_MS = 60_000

export async function proveJobs(peer: Exclude<JobSystem, 'lockstep'>, plan: Plan): Promise<Result[]> {
  const systems = [peer, 'lockstep'] as const
  const forms = systems.flatMap((system) => JOB_FORMS[system].map((how) => ({ system, how })))
  await using stack = new AsyncDisposableStack()
  const senders = new Map<string, Awaited<ReturnType<(typeof QUEUES)[JobSystem]['sender']>>>()
  for (const system of systems) {
    senders.set(system, stack.use(await QUEUES[system].sender(plan.databaseUrl, plan.peerUrl)))
  }
  await using cast = new Cast({
    ...{ plan, processes: PROCESSES, program: fileURLToPath(new URL('worker.ts', import.meta.url)) },
    argumentsOf: (network, name) => [peer, network(1), network(0), name],
    restMs: (chance) => 300 + chance * 2_000,
    // Half of the pauses are longer than the heartbeat, so that the jobs go to others in the meantime.
    awayMs: (chance) => (chance < 0.5 ? 500 + chance * 4_000 : HEARTBEAT_MS * (1 + (chance - 0.5))),
    killed: (names) => {
      for (const sender of senders.values()) void sender.killed?.(names)
    },
  })

  let jobs = 0
  let sending = true
  const sent = (async () => {
    for (; sending; jobs++) {
      for (const { system, how } of forms) await senders.get(system)?.send(how, jobs)
      await sleep(1_000 / JOBS_A_SECOND)
    }
  })()
  const faults = await cast.rage()
  sending = false
  await sent
  await allDone(plan.databaseUrl, jobs * forms.length)
  await cast.end()

  const all = cast.history.byObject()
  const results: Result[] = []
  for (const { system, how } of forms) {
    const form = `${system} ${how}`
    const counted = await rows(
      plan.databaseUrl,
      'select job, count(*)::integer as times from job_effect where form = $1 group by job',
      [form],
    )
    const times = new Map(counted.map(({ job, times }) => [job as number, times as number]))
    const histories = Array.from({ length: jobs }, (_, job) => {
      const seen = { process: 'the end', on: form, input: { do: 'rows' }, output: { n: times.get(job) ?? 0 } }
      return check(jobModel(how === 'transactional'), [
        ...(all.get(`${form} ${job}`) ?? []),
        { ...seen, from: 1e12, to: 1e12 },
      ])
    })
    results.push({
      ...{ system, how, effects: times.size, refused: 0, faults },
      doubles: counted.reduce((sum, { times }) => sum + times - 1, 0),
      lost: jobs - times.size,
      history: histories.find(({ is }) => is !== 'linearizable')?.is ?? 'linearizable',
    })
  }
  return results
}

/** A job: one effect, and at the end as many rows. @param unseen  its handlers do not see whether the effect was committed. */
const jobModel = (unseen: boolean): Model<number, Recorded> => ({
  initial: 0,
  key: String,
  reads: ({ input }) => input.do === 'rows',
  alike: ({ input }) => input.do,
  step(effects, { input, output }) {
    if (input.do === 'effect') return effects === 0 ? [1] : []
    const { n } = output as { n: number }
    return n === effects || (unseen && n === 1) ? [effects] : []
  },
})

async function allDone(url: string, jobs: number): Promise<void> {
  for (const since = performance.now(); performance.now() - since < DONE_MS; await sleep(500)) {
    const [{ n }] = await rows(url, 'select count(distinct (form, job))::integer as n from job_effect')
    if (n === jobs) break
  }
  await sleep(HEARTBEAT_MS * 1.5) // a job whose effect is there may still be done again
}
