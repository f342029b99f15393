/** The parts of the tasks of one Lockstep, and how they are connected. What they promise together is said in tasks.ts. */
import { Closing, checkInteger, UnavailableError, wrongType } from '../base/index.ts'
import { contextOf, Notifier } from '../database/index.ts'
import type { Lockstep } from '../index.ts'
import { AttemptStore, JOB_CHANNEL, Jobs, Outcomes, QUEUE_CHANNEL, Runs } from './job/index.ts'
import { makeBoss } from './pgboss/index.ts'
import { Queues, Sender } from './queue/index.ts'
import { Schedules } from './schedule/index.ts'
import { Ticker } from './tick.ts'
import { Claims, ReadyJobs, RunningAttempts, WorkerRegistry } from './worker/index.ts'

/** The parts, by name. */
export type Parts = ReturnType<typeof makeParts>

/**
 * Makes the parts. Nothing is connected or asked before they are used.
 * @param connections  of the pool for jobs, 1–100.
 * @param onError      gets the errors that no caller gets.
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function makeParts(lockstep: Lockstep, connections: number, onError: (error: unknown) => void) {
  const { database, sessions, time, closing: closingOfLockstep, rooms } = contextOf(lockstep)
  checkInteger('connections', connections, { min: 1, max: 100 })
  if (typeof onError !== 'function') throw wrongType('onError', 'a function', onError)
  const pool = database.pool(connections, 'raise `connections` of createTasks')
  const closing = new Closing(closingOfLockstep)
  const report = (error: unknown) => {
    if (!(closing.closed && error instanceof UnavailableError)) onError(error) // closing cuts statements short: no failure
  }
  let made: ReturnType<typeof makeBoss> | undefined
  const boss = () => {
    made ??= makeBoss(pool, report)
    return made
  }
  // A notification says only that a job, or a queue, has changed.
  const notifier = (channel: string): Notifier<null> =>
    new Notifier(sessions, channel, (message) => [{ name: message, payload: null }])
  const jobNotifier = notifier(JOB_CHANNEL)
  const queueNotifier = notifier(QUEUE_CHANNEL)
  const queues = new Queues(pool, boss, () => {
    made = undefined // the next one begins with an empty cache
  })
  const readyJobs = new ReadyJobs(pool)
  const attempts = new AttemptStore(pool, boss)
  const running = new RunningAttempts(jobNotifier)
  const sender = new Sender(queues, boss, pool)
  const outcomes = new Outcomes(pool, jobNotifier)
  const jobs = new Jobs(pool, boss, queues, attempts)
  const runs = new Runs(sender, outcomes, jobs)
  const claims = new Claims({ pool, boss, attempts, queues, queueNotifier, readyJobs })
  const schedules = new Schedules({ pool, boss, ensure: (queue) => queues.ensure(queue) })
  const work = { database, pool, boss, attempts, queues, queueNotifier, readyJobs, running, onError: report }
  const registry = new WorkerRegistry(work)
  const ticker = new Ticker({ pool, boss, schedules, registry, queues, jobNotifier, work })
  return {
    ...{ database, time, rooms, closing, pool, boss, notifiers: [jobNotifier, queueNotifier] },
    ...{ queues, sender, runs, outcomes, jobs, claims, attempts, schedules, registry, running, ticker },
  }
}
