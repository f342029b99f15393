/**
 * Attempts that run in this process.
 *
 *   fetched ──► handler ──┬─ returned ──► complete       each matches the whole attempt in the database: if that is not
 *      │                  ├─ threw ─────► fail           active any more, it was lost, and nothing happens
 *      │                  ├─ worker ends ► hand back
 *      └── now and then: beat, while it runs
 *
 * THE SIGNAL aborts when the attempt is lost (cancelled; taken for dead because no beat arrived), when it has taken too
 * long, when the worker stops, and when the budget of a drain ends. The reason is a LeaseLostError in the first two cases
 * and a HandedBackError in the others. From then on nothing that the handler returns is taken, for who can tell whether it
 * has done its work or has only stopped in time? The job runs again. If the attempt is over, its place is free at once, so
 * that a handler that never returns does not keep the queue from its work.
 *
 * TRUST is as for leases: the beat is believed from the moment it was *attempted*, for nine tenths of the heartbeat. So
 * the signal aborts before upkeep can give the job to another, while this process does not stand still.
 *
 * TRANSACTIONAL handlers complete their job as the last statement of their own transaction: effects and completion commit
 * together, and if the attempt is stale they do not. So effects in this database happen exactly once, whatever dies.
 * Without it they happen at least once: a worker can die between the effect and the completion.
 */
import { sql } from 'kysely'
import {
  Deadline,
  HandedBackError,
  jsonText,
  LIMITS,
  Stopwatch,
  TransactionEndedError,
  trusted,
  UnavailableError,
} from '../../base/index.ts'
import type { Database, Notifier } from '../../database/index.ts'
import { type AttemptOf, lost, type Settle, tokenOf } from '../job/index.ts'
import type { FetchedJob } from '../pgboss/index.ts'
import type { Definition, HandlerContext, TransactionalContext } from '../queue/index.ts'
import { validated } from '../queue/index.ts'

export type Fate = 'completed' | 'failed' | 'handed back' | 'lost'

export interface RunningParts {
  database: Database
  settle: Settle
  pulse: Pulse
  onError: (error: unknown) => void
}

const PULSE_MS = 1_000
const MOST_BETWEEN_BEATS_MS = 10_000

/**
 * Goes through all that runs in this process once a second, so that their beats share statements, and that a job which
 * takes no time costs no timer. Hears for them of jobs that are worth a look: cancelled ones.
 */
export class Pulse {
  readonly #jobs: Notifier<null>
  readonly #all = new Map<string, Running>()
  #closed = false
  #timer: NodeJS.Timeout | undefined
  #unsubscribe = () => {}

  constructor(jobs: Notifier<null>) {
    this.#jobs = jobs
  }

  add(id: string, running: Running): void {
    this.#all.set(id, running)
    if (this.#timer || this.#closed) return
    this.#timer = setInterval(() => {
      for (const each of this.#all.values()) each.pulse()
    }, PULSE_MS).unref()
    this.#unsubscribe = this.#jobs.onAny((id) => {
      if (id !== null) this.#all.get(id)?.look()
      else for (const each of this.#all.values()) each.look()
    })
  }

  remove(id: string, running: Running): void {
    if (this.#all.get(id) === running) this.#all.delete(id) // another attempt of it may run here too
    if (this.#all.size === 0) this.#rest()
  }

  /** Resolves when all that runs now is over, or `ms` have passed; undefined: nothing runs. */
  settled(ms: number): Promise<void> | undefined {
    if (this.#all.size === 0) return undefined
    const deadline = new Deadline(ms)
    const all = [...this.#all.values()].map(({ fate }) => fate)
    return deadline.race(Promise.all(all)).finally(() => deadline.clear())
  }

  /** Goes through nothing any more. What still runs is given up: its database is gone. */
  close(): void {
    this.#closed = true
    this.#rest()
    for (const each of this.#all.values()) each.end('lost', 'Lockstep was closed')
  }

  #rest(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#unsubscribe()
  }
}

/** One attempt, here. */
export class Running {
  readonly of: AttemptOf
  /** Settles when the attempt is over, and not before the database was told, or cannot be. */
  readonly fate: Promise<Fate>
  readonly #parts: RunningParts
  readonly #definition: Definition
  readonly #job: FetchedJob
  readonly #began: Stopwatch
  readonly #given = Promise.withResolvers<never>()
  /** Why the handler should stop, and what tells it; made when it is asked for, since most handlers do not. */
  #reason: Error | undefined
  #controller: AbortController | undefined
  /** When the last beat was asked for that was answered, and the last one at all. */
  #beaten: Stopwatch
  #asked: Stopwatch
  /** What was decided about it already: then nothing else is. */
  #decided: 'lost' | 'expired' | 'handed back' | undefined

  /** @param fetched  the moment before it was asked for. */
  constructor(parts: RunningParts, definition: Definition, queue: string, job: FetchedJob, fetched: Stopwatch) {
    this.#parts = parts
    this.#definition = definition
    this.#job = job
    this.#began = this.#beaten = this.#asked = fetched
    this.of = { queue, id: job.id, attempt: job.retryCount }
    this.#given.promise.catch(() => {})
    parts.pulse.add(job.id, this)
    this.fate = this.#run().finally(() => parts.pulse.remove(job.id, this))
  }

  /** Asks the handler to stop; its job will run again. */
  interrupt(why: string): void {
    if (!this.#decided) this.#abort(new HandedBackError(`${why}: the job goes back to its queue`))
  }

  /** Gives the job back, whether the handler has stopped or not. */
  giveBack(): void {
    if (this.#decided) return
    this.#decided = 'handed back'
    this.#given.reject(this.#reason)
  }

  /** Once a second. Trust runs out while a beat hangs; so the two are apart. */
  pulse(): void {
    const { expireInSeconds, heartbeatSeconds } = this.#job
    const heartbeatMs = (heartbeatSeconds ?? Infinity) * 1_000
    if (this.#beaten.elapsed() > trusted(heartbeatMs)) this.end('lost', 'no sign of life could be given')
    else if (this.#began.monotonic() > expireInSeconds * 1_000) {
      this.end('expired', `it took longer than ${expireInSeconds * 1_000} ms`)
    } else if (this.#asked.elapsed() > Math.min(heartbeatMs / 3, MOST_BETWEEN_BEATS_MS)) void this.#beat()
  }

  /** There is news of the job: somebody has cancelled it, perhaps. */
  look(): void {
    void this.#beat()
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

  /** It is not ours any more, or has had its time. */
  end(how: 'lost' | 'expired', why: string): void {
    if (this.#decided) return
    this.#decided = how
    const error = lost(this.of, why)
    this.#abort(error)
    this.#given.reject(error)
  }

  async #beat(): Promise<void> {
    if (this.#decided) return
    const asked = new Stopwatch()
    this.#asked = asked
    try {
      if (await this.#parts.settle.beat(this.of)) this.#beaten = asked
      else this.end('lost', 'it was cancelled, or its worker was taken for dead')
    } catch {} // asked again, until trust runs out
  }

  async #run(): Promise<Fate> {
    try {
      const work = this.#definition.options.transactional ? this.#transactional() : this.#plain()
      work.catch(() => {}) // whose end nobody waits for any more
      return (await Promise.race([work, this.#given.promise])) ? 'completed' : 'lost'
    } catch (error) {
      return await this.#failed(error).catch((failure) => {
        this.#parts.onError(failure)
        return 'lost' as const
      })
    }
  }

  /** Whether it was completed; what is thrown is the handler's. */
  async #plain(): Promise<boolean> {
    const output = await this.#handle()
    if (this.#reason) throw this.#reason
    return this.#persist(() => this.#parts.settle.complete(this.of, output))
  }

  async #transactional(): Promise<boolean> {
    // READ COMMITTED: what settled the attempt meanwhile must be seen by the completion. Until there is a connection the job
    // waits, as long as the attempt lasts: that all are in use is nothing that it has failed by.
    const how = {
      isolation: 'read committed',
      abandoned: this.#given.promise,
      signal: this.#signal,
      ms: Infinity,
    } as const
    await this.#parts.database.users.supervised(async (trx, runWork) => {
      const leftMs = Math.max(Math.ceil(this.#job.expireInSeconds * 1_000 - this.#began.elapsed()), 1)
      // Nor must a process that stands still keep for ever what the handler has locked.
      await sql`select set_config('idle_in_transaction_session_timeout', ${String(leftMs)}, true)`.execute(trx)
      const output = await runWork(() => this.#handle(trx))
      if (this.#reason) throw this.#reason
      if (!(await this.#parts.settle.completeWithin(trx, this.of, output))) {
        this.end('lost', 'it was cancelled, or its worker was taken for dead')
        throw this.#reason
      }
    }, how)
    this.#parts.settle.tell(this.of.id)
    return true
  }

  /** The output, as JSON text. */
  async #handle(trx?: TransactionalContext['trx']): Promise<string> {
    const { handler, options } = this.#definition
    const data = options.schema ? await validated(options.schema, this.#job.data) : this.#job.data
    const output = await handler?.(data, this.#context(trx))
    return jsonText('output', output ?? null, LIMITS.dataBytes)
  }

  #context(trx: TransactionalContext['trx'] | undefined): HandlerContext {
    const { queue, id, attempt } = this.of
    const signal = () => this.#signal
    return {
      job: { id, queue, attempt: attempt + 1, token: tokenOf(attempt) },
      get signal() {
        return signal()
      },
      progress: (fraction, note) => this.#parts.settle.progress(this.of, fraction, note),
      ...(trx && { trx }),
    }
  }

  async #failed(error: unknown): Promise<Fate> {
    const { settle } = this.#parts
    if (this.#decided === 'lost') return 'lost'
    // Its effects may be there: then they must not happen again.
    if (error instanceof TransactionEndedError) {
      return (await this.#persist(() => settle.fail(this.of, error, true))) ? 'failed' : 'lost'
    }
    if (this.#decided === 'handed back' || this.#reason instanceof HandedBackError) {
      this.#decided = 'handed back'
      return (await settle.handBack(this.of)) ? 'handed back' : 'lost'
    }
    // A transaction of ours that could not be had or ended, not an error of the handler's: perhaps it committed, then it
    // is not failed; perhaps the database is away, then it is failed when it is back.
    return (await this.#persist(() => settle.fail(this.of, error))) ? 'failed' : 'lost'
  }

  // While the database is away: again and again, as long as the attempt can still be ours.
  async #persist(settle: () => Promise<boolean>): Promise<boolean> {
    for (let pauseMs = 50; ; pauseMs = Math.min(pauseMs * 2, 2_000)) {
      try {
        return await settle()
      } catch (error) {
        if (!(error instanceof UnavailableError)) throw error
        if (this.#decided || this.#reason || this.#began.elapsed() > this.#job.expireInSeconds * 1_000) {
          throw error
        }
        const pause = new Deadline(pauseMs)
        await pause.race(this.#given.promise) // which ends it, too
        pause.clear()
      }
    }
  }
}
