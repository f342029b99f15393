/**
 * One attempt of a job, as it runs in this process.
 *
 *   fetched ──► handler ──┬─ returned ──► complete       each statement names the whole attempt; if that is not active
 *      │                  ├─ threw ─────► fail           any more, the attempt was lost, and nothing is changed
 *      │                  ├─ worker ends ► hand back
 *      └── heartbeats, while it runs
 *
 * THE SIGNAL aborts when the attempt is lost (the job was cancelled, or the worker was taken for dead because no heartbeat
 * arrived), when the attempt has taken too long, when the worker stops, and when the budget of a drain ends. Its reason is a
 * LeaseLostError in the first two cases and a HandedBackError in the others. From then on the handler's result is not used: the
 * handler may have done its work, or may only have stopped early, and nobody can tell which. The job runs again. When the attempt
 * is over, its slot in the worker is free at once, so a handler that never returns does not stop the queue.
 *
 * TRUST is as for leases. A heartbeat counts from the time at which it was *sent*, and is trusted for nine tenths of `heartbeatMs`.
 * So the signal aborts before upkeep can give the job to another worker, unless this whole process stands still.
 *
 * TRANSACTIONAL handlers complete their job as the last statement of their own transaction. The effects and the completion commit
 * together; if the attempt is stale, neither does. So effects in this database happen exactly once, whatever dies. Without
 * `transactional` they happen at least once: a worker can die between the effect and the completion.
 */
import { sql } from 'kysely'
import {
  BackoffDelays,
  Deadline,
  exact,
  HandedBackError,
  jsonText,
  LIMITS,
  Stopwatch,
  TransactionEndedError,
  trusted,
  UnavailableError,
} from '../../base/index.ts'
import type { Database, SupervisedOptions } from '../../database/index.ts'
import type { FetchedJob } from '../engine.ts'
import { type AttemptKey, type AttemptStore, leaseLost, tokenOf } from '../job/index.ts'
import type { Definition, HandlerContext, TransactionalContext } from '../queue/index.ts'
import { validated } from '../queue/index.ts'
import type { RunningAttempts } from './running-attempts.ts'

/** How an attempt ended in this process. */
export type AttemptResult = 'completed' | 'failed' | 'handed back' | 'lost'

export interface AttemptParts {
  database: Database
  attempts: AttemptStore
  running: RunningAttempts
  onError: (error: unknown) => void
}

const JOB_HEARTBEAT_MAX_MS = 10_000
const NOT_OURS = 'it was cancelled, or its worker was taken for dead'

export class RunningAttempt {
  readonly key: AttemptKey
  /** Settles when the attempt is over: the database has the result, or cannot get it. */
  readonly result: Promise<AttemptResult>
  readonly #parts: AttemptParts
  readonly #definition: Definition
  readonly #job: FetchedJob
  readonly #began: Stopwatch
  /** Rejects when the attempt is over, though its handler still runs. */
  readonly #abandoned = Promise.withResolvers<never>()
  /** Why the handler should stop, and its signal's controller; made when the handler reads the signal, which most do not. */
  #reason: Error | undefined
  #controller: AbortController | undefined
  /** When the last answered heartbeat was sent: the attempt is trusted from then on. */
  #trustedFrom: Stopwatch
  /** When the last heartbeat was sent. */
  #lastSent: Stopwatch
  /** How the attempt was ended from outside of its handler. The first decision stands. */
  #decided: 'lost' | 'expired' | 'handed back' | undefined

  /** @param fetched  started before the job was fetched. */
  constructor(parts: AttemptParts, definition: Definition, queue: string, job: FetchedJob, fetched: Stopwatch) {
    this.#parts = parts
    this.#definition = definition
    this.#job = job
    this.#began = this.#trustedFrom = this.#lastSent = fetched
    this.key = { queue, id: job.id, attempt: job.retryCount }
    this.#abandoned.promise.catch(() => {})
    parts.running.add(job.id, this)
    this.result = this.#run().finally(() => parts.running.remove(job.id, this))
  }

  /** Asks the handler to stop. Its job will run again. */
  interrupt(why: string): void {
    if (!this.#decided) this.#abort(new HandedBackError(`${why}: the job goes back to its queue`))
  }

  /** Gives the job back, whether the handler has stopped or not. */
  handBack(): void {
    if (this.#decided) return
    this.#decided = 'handed back'
    this.#abandoned.reject(this.#reason)
  }

  /** Called once a second. It does not wait for a heartbeat: trust must run out while one hangs. */
  check(): void {
    const { expireInSeconds, heartbeatSeconds } = this.#job
    const heartbeatMs = (heartbeatSeconds ?? Infinity) * 1_000
    if (this.#trustedFrom.elapsed() > trusted(heartbeatMs)) this.end('lost', 'no sign of life could be given')
    else if (this.#began.monotonic() > expireInSeconds * 1_000) {
      this.end('expired', `it took longer than ${expireInSeconds * 1_000} ms`)
    } else if (this.#lastSent.elapsed() > Math.min(heartbeatMs / 3, JOB_HEARTBEAT_MAX_MS)) this.heartbeat()
  }

  /** Sends a heartbeat now. If the database says that the attempt is not the job's any more, it is lost. */
  heartbeat(): void {
    void this.#heartbeat()
  }

  /** Ends the attempt: it is lost, or has taken too long. */
  end(how: 'lost' | 'expired', why: string): void {
    if (this.#decided) return
    this.#decided = how
    const error = leaseLost(this.key, why)
    this.#abort(error)
    this.#abandoned.reject(error)
  }

  #abort(reason: Error): void {
    this.#reason ??= reason
    this.#controller?.abort(this.#reason)
  }

  get #signal(): AbortSignal {
    this.#controller ??= new AbortController()
    if (this.#reason) this.#controller.abort(this.#reason)
    return this.#controller.signal
  }

  async #heartbeat(): Promise<void> {
    if (this.#decided) return
    const sent = new Stopwatch()
    this.#lastSent = sent
    try {
      if (await this.#parts.attempts.heartbeat(this.key)) this.#trustedFrom = sent
      else this.end('lost', NOT_OURS)
    } catch {} // sent again, until trust runs out
  }

  async #run(): Promise<AttemptResult> {
    try {
      const work = this.#definition.options.transactional ? this.#transactional() : this.#plain()
      work.catch(() => {}) // it may end after the attempt, when nobody waits for it
      return (await Promise.race([work, this.#abandoned.promise])) ? 'completed' : 'lost'
    } catch (error) {
      return await this.#failed(error).catch((failure) => {
        this.#parts.onError(failure)
        return 'lost' as const
      })
    }
  }

  /** Returns whether the job was completed. Throws what the handler throws. */
  async #plain(): Promise<boolean> {
    const output = await this.#handle()
    if (this.#reason) throw this.#reason
    return this.#retried(() => this.#parts.attempts.complete(this.key, output))
  }

  async #transactional(): Promise<boolean> {
    // READ COMMITTED: the completion must see what has settled the attempt since the transaction began. While no connection is
    // free, or the database takes none, the job waits, as long as the attempt lasts: that is no failure of the job.
    const how: SupervisedOptions = {
      isolation: 'read committed',
      abandoned: this.#abandoned.promise,
      signal: this.#signal,
      ms: Infinity,
    }
    let begun = false
    const run = () =>
      this.#parts.database.users.supervised(async (trx, runWork) => {
        begun = true
        const leftMs = Math.max(Math.ceil(this.#job.expireInSeconds * 1_000 - this.#began.elapsed()), 1)
        // A process that stands still must not keep the handler's row locks for ever.
        await sql`
          select set_config('idle_in_transaction_session_timeout', ${String(leftMs)}, true),
                 case when current_setting('transaction_timeout', true) is not null then set_config('transaction_timeout', '0', true) end
          `.execute(trx)
        const output = await runWork(() => this.#handle(trx))
        if (this.#reason) throw this.#reason
        if (!(await this.#parts.attempts.completeWithin(trx, this.key, output))) {
          this.end('lost', NOT_OURS)
          throw this.#reason
        }
      }, how)
    await this.#retried(run, () => !begun)
    this.#parts.attempts.notifyWaiting(this.key.id)
    return true
  }

  /** Calls the handler. Returns its output as JSON text. */
  async #handle(trx?: TransactionalContext['trx']): Promise<string> {
    const { handler, options } = this.#definition
    const data = options.schema ? await validated(options.schema, this.#job.data) : this.#job.data
    const output = await handler?.(data, this.#context(trx))
    return jsonText('output', output ?? null, LIMITS.dataBytes)
  }

  #context(trx: TransactionalContext['trx'] | undefined): HandlerContext {
    const { queue, id, attempt } = this.key
    const signal = () => this.#signal
    return {
      job: exact({ id, queue, attempt: attempt + 1, token: tokenOf(attempt) }),
      get signal() {
        return signal()
      },
      progress: (fraction, note) => this.#parts.attempts.progress(this.key, fraction, note),
      ...(trx && { trx }),
    }
  }

  async #failed(error: unknown): Promise<AttemptResult> {
    const { attempts } = this.#parts
    if (this.#decided === 'lost') return 'lost'
    // The effects of the handler may be committed, so they must not happen again.
    if (error instanceof TransactionEndedError) {
      return (await this.#retried(() => attempts.fail(this.key, error, true))) ? 'failed' : 'lost'
    }
    if (this.#decided === 'handed back' || this.#reason instanceof HandedBackError) {
      this.#decided = 'handed back'
      return (await attempts.handBack(this.key)) ? 'handed back' : 'lost'
    }
    // The error may also be of our own transaction, which could not be begun or ended. If that committed, the job is completed, and
    // this fails nothing; if the database was away, the job fails when it is back.
    return (await this.#retried(() => attempts.fail(this.key, error))) ? 'failed' : 'lost'
  }

  // While the database is away: again and again, as long as the attempt can still be the job's.
  async #retried<T>(statement: () => Promise<T>, again = () => true): Promise<T> {
    const delays = new BackoffDelays({ firstMs: 50, mostMs: 2_000 })
    for (;;) {
      try {
        return await statement()
      } catch (error) {
        if (!(error instanceof UnavailableError) || !again()) throw error
        if (this.#decided || this.#reason || this.#began.elapsed() > this.#job.expireInSeconds * 1_000) {
          throw error
        }
        const pause = new Deadline(delays.next())
        await pause.race(this.#abandoned.promise) // rejects when the attempt is given up
        pause.clear()
      }
    }
  }
}
