/** The handler of a queue, and the context that it gets beside the job's data. */
import type { Transaction } from 'kysely'

/** What a handler gets beside the job's data. */
export interface HandlerContext {
  /** The job, and which attempt of it this is. */
  job: {
    /** The job's id, a UUID; the same in every attempt. Use it as an idempotency key for effects outside this database. */
    readonly id: string
    /** The queue's name. */
    readonly queue: string
    /** The number of this attempt: 1 for the first. */
    readonly attempt: number
    /** The fencing token of this attempt: larger than that of any earlier attempt of the job. For writes outside this database. */
    readonly token: bigint
  }
  /**
   * Aborts when the handler should stop. Its `reason` is a LeaseLostError when the job was cancelled, was given to another worker
   * or takes longer than `expireInMs`; and a HandedBackError when the worker stops or a budget ends. After that the handler's
   * result is not used.
   */
  signal: AbortSignal
  /**
   * Stores how far the handler is; `tasks.get` shows it.
   *
   * @param fraction  the part that is done, 0–1.
   * @param note      at most 1,000 characters.
   * @throws {LeaseLostError} the attempt is over.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  progress(fraction: number, note?: string): Promise<void>
}
/** What a transactional handler gets beside the job's data. @see DefineOptions.transactional */
export interface TransactionalContext extends HandlerContext {
  /** The transaction in which the job is completed. Lockstep ends it: the handler may use savepoints, but not COMMIT or ROLLBACK. */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  trx: Transaction<any>
}
/** A handler. It returns the job's output: JSON. If it throws, the attempt fails. */
// biome-ignore lint/suspicious/noExplicitAny: the types of data and output are those of the definition
export type Handler<Input = any, Output = any> = (data: Input, context: any) => Promise<Output> | Output
