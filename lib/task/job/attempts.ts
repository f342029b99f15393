/**
 * Attempts in the database: complete, fail, hand back, heartbeat, progress. Nothing is remembered here between two calls.
 *
 * Each statement names the whole attempt: the queue, the id, and which attempt of the job it is. A stale attempt therefore changes
 * nothing, and its caller learns that it is lost. Calls for many jobs that arrive together share a statement: a worker with a
 * hundred jobs completes them with a few commits.
 *
 * WHAT PG-BOSS HAS. pg-boss 12.38 checks the attempt too: `complete`, `fail`, `cancel` and `touch` take `{ id, retryCount }`, and
 * leave a job alone whose attempt is another one. Its workers may be transactional. We use its `fail`, `cancel` and `touch` (a
 * heartbeat; it takes 1.1 to 1.5 times as long as a statement of ours did, and a process sends one each ten seconds). The rest is
 * ours because pg-boss does less; test/task/pgboss.test.ts shows it, and fails on the day that pg-boss does the same:
 *
 * - Completing many jobs with an output each in one statement. pg-boss's `complete` has one output for all its jobs, and stores
 *   what is not an object as `{ value }`. Only `work({ perJobResults })` has an output for each, when the whole batch has ended: a
 *   quick job waits for the slowest one. 64 callers at once complete 5 to 18 times as many jobs a second as with `complete` for
 *   each job (medians of two runs on a busy machine, `npm run bench -- tasks --only complete`). It finds each job by
 *   its id, whatever the planner knows of the queue (0016_growth.sql).
 * - Handing a job back without a retry. pg-boss's `stop` fails the jobs that run, and `cancel` with `resume` counts as an attempt
 *   too.
 * - A transaction that its handler cannot end (worker/attempt.ts). In a transactional worker of pg-boss a handler that sends COMMIT
 *   and then throws has committed its effects; the job is tried again, and the effects are there twice.
 * - A signal that aborts when no heartbeat gets through. pg-boss aborts it only when a heartbeat is answered "not your attempt": on
 *   a network that is cut, the handler runs on beside the next attempt.
 * - The token, progress, and the check of an output's JSON: pg-boss has none of them.
 *
 * When somebody waits for a job (`run`), its end is notified. Such a job is recognised by its id, which is a UUID of another
 * version than the ids of other jobs. So a job that nobody waits for costs no NOTIFY, and no table of waiting callers is needed.
 */
import { sql } from 'kysely'
import {
  batched,
  checkText,
  LeaseLostError,
  LIMITS,
  outOfRange,
  storableError,
  UnavailableError,
  wrongType,
} from '../../base/index.ts'
import { type AnyTransaction, column, list, type Pool, within } from '../../database/index.ts'
import type { Engine } from '../engine.ts'
import { fromBoss, isQueueMissing } from '../pgboss/index.ts'

/** One attempt of a job. `attempt` is pg-boss's retry count: 0 for the first. */
export interface AttemptKey {
  queue: string
  id: string
  attempt: number
}
/** The token of an attempt counts from 1. */
export const tokenOf = (attempt: number): bigint => BigInt(attempt) + 1n
export const leaseLost = ({ queue, id, attempt }: AttemptKey, why: string): LeaseLostError =>
  new LeaseLostError(`${queue}/${id}`, tokenOf(attempt), why)

type Completion = AttemptKey & { output: string }
type Failure = { error: unknown }

const MAX_BATCH = 500 // attempts in one statement

/** A job that somebody waits for has an id of version 8 (RFC 9562: "custom"). The ids of other jobs are random, version 4. */
export const awaitedId = (): string => {
  const id = crypto.randomUUID()
  return `${id.slice(0, 14)}8${id.slice(15)}`
}
const isAwaited = (id: string): boolean => id[14] === '8'

/** The channel on which a job's id is notified when the job is over, or was cancelled. */
export const JOB_CHANNEL = 'lockstep_job'
/** The name that is notified on it when something is due sooner than ticks know: a new schedule, a short lease. */
export const TICKS = 'schedules'
/** The channel on which a queue's name is notified when it has work. It is pg-boss's: 'pgboss_' and the hash of its schema's name. */
export const QUEUE_CHANNEL = 'pgboss_7d2848c635f27e46abe34e19'

export class AttemptStore {
  readonly #pool: Pool
  readonly #boss: () => Engine
  readonly #complete: (completion: Completion) => Promise<boolean | Failure>
  readonly #handBack: (attempt: AttemptKey) => Promise<boolean | Failure>
  readonly #heartbeat: (attempt: AttemptKey) => Promise<boolean | Failure>
  readonly #notify: (id: string) => Promise<undefined>

  constructor(pool: Pool, boss: () => Engine) {
    this.#pool = pool
    this.#boss = boss
    this.#complete = batched(
      (all: Completion[]) => byQueue(all, (queue, some) => this.#completeAll(queue, some)),
      idOf,
      MAX_BATCH,
    )
    this.#handBack = batched((all) => byQueue(all, (queue, some) => this.#handBackAll(queue, some)), idOf, MAX_BATCH)
    this.#heartbeat = batched((all) => byQueue(all, (queue, some) => this.#touchAll(queue, some)), idOf, MAX_BATCH)
    this.#notify = batched(
      async (ids) => {
        await this.#pool.run(sql`select pg_notify(${JOB_CHANNEL}, id) from unnest(${list(ids, 'text')}) id`)
        return ids.map(() => undefined)
      },
      (id) => id,
      MAX_BATCH,
    )
  }

  /**
   * Completes an attempt. Returns whether this call did it.
   * @param output  JSON text.
   * @throws {UnavailableError} it may be completed, or not.
   */
  async complete(attempt: AttemptKey, output: string): Promise<boolean> {
    const done = orThrow(await this.#complete({ ...attempt, output }))
    if (done) this.notifyWaiting(attempt.id)
    return done
  }

  /** The same in a transaction: the job is completed when that commits. After the commit call {@link notifyWaiting}. */
  async completeWithin(trx: AnyTransaction, attempt: AttemptKey, output: string): Promise<boolean> {
    const [row] = await within(trx, completed(attempt.queue, [{ ...attempt, output }]))
    return row?.ids.length === 1
  }

  /**
   * Fails an attempt. Returns whether this call did it. The job is tried again, or has failed for good.
   * @param final  the job fails for good, also when it has retries left.
   * @throws {UnavailableError}
   */
  async fail(attempt: AttemptKey, error: unknown, final = false): Promise<boolean> {
    const { queue, id } = attempt
    try {
      if (final) await this.#pool.run(sql`select lockstep.exhaust_job(${queue}, ${id}, ${attempt.attempt})`)
      const response = await this.#boss().fail(queue, { id, retryCount: attempt.attempt }, errorObject(error))
      const failed = (response as { affected?: number }).affected === 1
      if (failed) this.notifyWaiting(id)
      return failed
    } catch (refused) {
      throw fromBoss(refused, queue)
    }
  }

  /**
   * Gives a job back to its queue, ready at once; it costs no retry. Returns whether this call did it.
   * @throws {UnavailableError}
   */
  async handBack(attempt: AttemptKey): Promise<boolean> {
    try {
      return orThrow(await this.#handBack(attempt))
    } catch (error) {
      // The queue's policy allows one job in the state 'retry', and there is one already: then it costs a retry.
      if ((error as { code?: unknown }).code !== '23505') throw error
      return this.fail(attempt, new Error('The worker that ran it has stopped'))
    }
  }

  /** Shows that the attempt is alive. Returns whether it still is the job's attempt. @throws {UnavailableError} */
  async heartbeat(attempt: AttemptKey): Promise<boolean> {
    return orThrow(await this.#heartbeat(attempt))
  }

  /** Shows how far an attempt is. @throws {LeaseLostError | UnavailableError | TypeError | RangeError} */
  async progress(attempt: AttemptKey, fraction: number, note?: string): Promise<void> {
    const range = 'a number, 0–1'
    if (typeof fraction !== 'number' || Number.isNaN(fraction)) throw wrongType('fraction', range, fraction)
    if (fraction < 0 || fraction > 1) throw outOfRange('fraction', range, fraction)
    if (note !== undefined) checkText('note', note, LIMITS.note)
    const [row] = await this.#pool.run<{ stored: boolean }>(
      sql`select lockstep.progress_job(${attempt.queue}, ${attempt.id}, ${attempt.attempt}, ${fraction}, ${note ?? null}) as stored`,
    )
    if (!row?.stored) throw leaseLost(attempt, 'it is over, or another attempt runs')
  }

  /** Notifies the caller that waits for the job, if one does: the job is over. */
  notifyWaiting(id: string): void {
    if (isAwaited(id)) void this.#notify(id).catch(() => {}) // a lost notification is made up for by polling
  }

  /** Notifies the worker that runs the job, and the caller that waits for it. */
  async notify(id: string): Promise<void> {
    await this.#notify(id).catch(() => {})
  }

  async #completeAll(queue: string, some: Completion[]): Promise<string[]> {
    const [row] = await this.#pool.run(completed(queue, some))
    return row?.ids ?? []
  }

  async #handBackAll(queue: string, some: AttemptKey[]): Promise<string[]> {
    const [row] = await this.#pool.run<{ ids: string[] }>(
      sql`select lockstep.hand_back_jobs(${queue}, ${column(some, 'uuid', idOf)}, ${column(some, 'integer', (a) => a.attempt)}) as ids`,
    )
    return row?.ids ?? []
  }

  async #touchAll(queue: string, some: AttemptKey[]): Promise<string[]> {
    try {
      const attempts = some.map(({ id, attempt }) => ({ id, retryCount: attempt }))
      return ((await this.#boss().touch(queue, attempts)) as { settled?: string[] }).settled ?? []
    } catch (error) {
      if (isQueueMissing(error)) return [] // the queue was deleted, and its jobs with it
      throw error
    }
  }
}

const idOf = (attempt: AttemptKey): string => attempt.id

function completed(queue: string, some: Completion[]) {
  const rows = some.map(({ id, attempt, output }) => `{"id":"${id}","attempt":${attempt},"output":${output}}`)
  return sql<{ ids: string[] }>`select lockstep.complete_jobs(${queue}, ${`[${rows}]`}::json) as ids`
}

/**
 * Runs one statement for each queue, side by side. Answers for each item whether its id was among the statement's ids. When the
 * database refuses one item (its output, or by the queue's policy), the others must not fail: then each has its own statement.
 */
async function byQueue<T extends AttemptKey>(
  all: T[],
  run: (queue: string, some: T[]) => Promise<string[]>,
): Promise<(boolean | Failure)[]> {
  const done = new Map<string, true | Failure>()
  const runOrEach = async (queue: string, some: T[]): Promise<void> => {
    try {
      for (const id of await run(queue, some)) done.set(id, true)
    } catch (error) {
      if (error instanceof UnavailableError) throw error
      if (some.length > 1) await Promise.all(some.map((each) => runOrEach(queue, [each])))
      else for (const { id } of some) done.set(id, { error })
    }
  }
  await Promise.all([...Map.groupBy(all, ({ queue }) => queue)].map(([queue, some]) => runOrEach(queue, some)))
  return all.map(({ id }) => done.get(id) ?? false)
}

function orThrow(answer: boolean | Failure): boolean {
  if (typeof answer === 'object') throw answer.error
  return answer
}

/** An object with a message that can be stored, made of anything that a handler may throw. */
function errorObject(error: unknown): object {
  const thrown = storableError(error)
  if (typeof thrown === 'object' && thrown !== null && 'message' in thrown) return thrown
  return { name: 'Error', message: typeof thrown === 'string' ? thrown : JSON.stringify(thrown), thrown }
}
