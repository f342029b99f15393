/**
 * What becomes of attempts, in the database: the verbs, without memory.
 *
 * Each names the whole attempt (queue, id, and which one), so that a stale one does nothing: what it answers then is
 * "lost". Those of many jobs that come together share a statement: a worker with a hundred jobs in hand ends them with a
 * few commits.
 *
 * A job that somebody waits for (`run`) can be told by its id, which has another version than those of the others: so no
 * job that nobody waits for costs a NOTIFY, and no table says who waits.
 */
import { sql } from 'kysely'
import {
  batched,
  checkText,
  LeaseLostError,
  LIMITS,
  outOfRange,
  UnavailableError,
  wrongType,
} from '../../base/index.ts'
import { type AnyTransaction, column, list, type Pool, within } from '../../database/index.ts'
import type { Engine } from '../pgboss/index.ts'
import { fromBoss } from '../pgboss/index.ts'

/** One attempt of a job. `attempt`: pg-boss's retry count, 0 for the first. */
export interface AttemptOf {
  queue: string
  id: string
  attempt: number
}
/** Counts from 1. */
export const tokenOf = (attempt: number): bigint => BigInt(attempt) + 1n
export const lost = ({ queue, id, attempt }: AttemptOf, why: string): LeaseLostError =>
  new LeaseLostError(`${queue}/${id}`, tokenOf(attempt), why)

type Ended = AttemptOf & { output: string }
type Failure = { error: unknown }

const MOST = 500 // in one statement

/** Ids of jobs that somebody waits for are of version 8 (RFC 9562: "custom"), those of others are random, version 4. */
export const awaitedId = (): string => {
  const id = crypto.randomUUID()
  return `${id.slice(0, 14)}8${id.slice(15)}`
}
export const isAwaited = (id: string): boolean => id[14] === '8'

/** Notifier of a job: it is over, or was cancelled. */
export const JOB_CHANNEL = 'lockstep_job'
/** Notifier of a queue: there is work. pg-boss's own, 'pgboss_' and the hash of its schema's name. */
export const QUEUE_CHANNEL = 'pgboss_7d2848c635f27e46abe34e19'

export class Settle {
  readonly #pool: Pool
  readonly #boss: () => Engine
  readonly #complete: (ended: Ended) => Promise<boolean | Failure>
  readonly #handBack: (attempt: AttemptOf) => Promise<boolean | Failure>
  readonly #beat: (attempt: AttemptOf) => Promise<boolean | Failure>
  readonly #tell: (id: string) => Promise<undefined>

  constructor(pool: Pool, boss: () => Engine) {
    this.#pool = pool
    this.#boss = boss
    this.#complete = batched(
      (all: Ended[]) => byQueue(all, (queue, some) => this.#completeAll(queue, some)),
      idOf,
      MOST,
    )
    this.#handBack = batched(
      (all) => byQueue(all, (queue, some) => this.#call('hand_back_jobs', queue, some)),
      idOf,
      MOST,
    )
    this.#beat = batched((all) => byQueue(all, (queue, some) => this.#call('beat_jobs', queue, some)), idOf, MOST)
    this.#tell = batched(
      async (ids) => {
        await this.#pool.run(sql`select pg_notify(${JOB_CHANNEL}, id) from unnest(${list(ids, 'text')}) id`)
        return ids.map(() => undefined)
      },
      (id) => id,
      MOST,
    )
  }

  /** Whether this call completed the job. @param output  JSON text. @throws {UnavailableError} the outcome is unknown. */
  async complete(attempt: AttemptOf, output: string): Promise<boolean> {
    const done = orThrow(await this.#complete({ ...attempt, output }))
    if (done) this.tell(attempt.id)
    return done
  }

  /** The same, in a transaction: it is completed when that commits. Then somebody has to {@link tell}. */
  async completeWithin(trx: AnyTransaction, attempt: AttemptOf, output: string): Promise<boolean> {
    const [row] = await within(trx, completed(attempt.queue, [{ ...attempt, output }]))
    return row?.ids.length === 1
  }

  /**
   * Whether this call failed the attempt; the job is tried again, or has failed for good.
   * @param final  for good, whatever retries it has left.
   * @throws {UnavailableError}
   */
  async fail(attempt: AttemptOf, error: unknown, final = false): Promise<boolean> {
    const { queue, id } = attempt
    try {
      if (final) await this.#pool.run(sql`select lockstep.exhaust_job(${queue}, ${id}, ${attempt.attempt})`)
      const said = await this.#boss().fail(queue, { id, retryCount: attempt.attempt }, told(error))
      const failed = (said as { affected?: number }).affected === 1
      if (failed) this.tell(id)
      return failed
    } catch (refused) {
      // U+0000 and half a surrogate pair, which jsonb cannot keep, in what was thrown: the job must fail all the same.
      if (/^22/.test(String((refused as { code?: unknown }).code)) && !(error instanceof Unkept)) {
        return this.fail(attempt, new Unkept(error), final)
      }
      throw fromBoss(refused, queue)
    }
  }

  /**
   * Whether this call gave the job back to its queue, ready at once, without spending a retry.
   * @throws {UnavailableError}
   */
  async handBack(attempt: AttemptOf): Promise<boolean> {
    try {
      return orThrow(await this.#handBack(attempt))
    } catch (error) {
      // Its queue's policy allows but one job in this state, and there is one: then it costs a retry.
      if ((error as { code?: unknown }).code !== '23505') throw error
      return this.fail(attempt, new Error('The worker that ran it has stopped'))
    }
  }

  /** Shows that the attempt lives; whether it is one still. @throws {UnavailableError} */
  async beat(attempt: AttemptOf): Promise<boolean> {
    return orThrow(await this.#beat(attempt))
  }

  /** Shows how far an attempt is. @throws {LeaseLostError | UnavailableError | TypeError | RangeError} */
  async progress(attempt: AttemptOf, fraction: number, note?: string): Promise<void> {
    const range = 'a number, 0–1'
    if (typeof fraction !== 'number' || Number.isNaN(fraction)) throw wrongType('fraction', range, fraction)
    if (fraction < 0 || fraction > 1) throw outOfRange('fraction', range, fraction)
    if (note !== undefined) checkText('note', note, LIMITS.note)
    const [row] = await this.#pool.run<{ said: boolean }>(
      sql`select lockstep.progress_job(${attempt.queue}, ${attempt.id}, ${attempt.attempt}, ${fraction}, ${note ?? null}) as said`,
    )
    if (!row?.said) throw lost(attempt, 'it is over, or another attempt runs')
  }

  /** Tells whoever waits for a job that it is worth a look. */
  tell(id: string): void {
    if (isAwaited(id)) void this.#tell(id).catch(() => {}) // they look by themselves too
  }

  /** Tells the worker that runs a job to look, and whoever waits for it. */
  async tellAll(id: string): Promise<void> {
    await this.#tell(id).catch(() => {})
  }

  async #completeAll(queue: string, some: Ended[]): Promise<string[]> {
    const [row] = await this.#pool.run(completed(queue, some))
    return row?.ids ?? []
  }

  async #call(verb: 'hand_back_jobs' | 'beat_jobs', queue: string, some: AttemptOf[]): Promise<string[]> {
    const [row] = await this.#pool.run<{ ids: string[] }>(
      sql`select lockstep.${sql.raw(verb)}(${queue}, ${column(some, 'uuid', idOf)}, ${column(some, 'integer', (a) => a.attempt)}) as ids`,
    )
    return row?.ids ?? []
  }
}

const idOf = (attempt: AttemptOf): string => attempt.id

function completed(queue: string, some: Ended[]) {
  const ended = some.map(({ id, attempt, output }) => `{"id":"${id}","attempt":${attempt},"output":${output}}`)
  return sql<{ ids: string[] }>`select lockstep.complete_jobs(${queue}, ${`[${ended}]`}::json) as ids`
}

/**
 * One statement for each queue, side by side; for each item whether its id was among the answers. What the database refuses
 * of one (an output, a policy) is no other's failure: then each has a statement of its own.
 */
async function byQueue<T extends AttemptOf>(
  all: T[],
  run: (queue: string, some: T[]) => Promise<string[]>,
): Promise<(boolean | Failure)[]> {
  const done = new Map<string, true | Failure>()
  const settle = async (queue: string, some: T[]): Promise<void> => {
    try {
      for (const id of await run(queue, some)) done.set(id, true)
    } catch (error) {
      if (error instanceof UnavailableError) throw error
      if (some.length > 1) await Promise.all(some.map((each) => settle(queue, [each])))
      else for (const { id } of some) done.set(id, { error })
    }
  }
  await Promise.all([...Map.groupBy(all, ({ queue }) => queue)].map(([queue, some]) => settle(queue, some)))
  return all.map(({ id }) => done.get(id) ?? false)
}

/** The answer, unless it is a failure. */
function orThrow(answer: boolean | Failure): boolean {
  if (typeof answer === 'object') throw answer.error
  return answer
}

/** What was thrown, as something that has a message: anything can be thrown. */
function told(error: unknown): object {
  if (error instanceof Error) return error
  if (typeof error === 'object' && error !== null && 'message' in error) return error
  let thrown: unknown = error
  try {
    thrown = JSON.parse(JSON.stringify(error ?? null))
  } catch {
    thrown = String(error)
  }
  return { name: 'Error', message: typeof thrown === 'string' ? thrown : JSON.stringify(thrown), thrown }
}

/** An error that Postgres cannot keep, as far as it can. */
class Unkept extends Error {
  constructor(error: unknown) {
    super((told(error) as { message: unknown } & object).message?.toString().replaceAll('\0', '\\0').toWellFormed())
    this.name = 'Error'
  }
}
