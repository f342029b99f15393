/** What a queue's handler is, and what it is given besides its data. */
import type { Transaction } from 'kysely'

/** What a handler may know and use besides its data. */
export interface HandlerContext {
  job: {
    readonly id: string
    readonly queue: string
    /** 1 for the first. */
    readonly attempt: number
    /** The token of this attempt: greater than that of any earlier attempt of the job. For what is written elsewhere. */
    readonly token: bigint
  }
  /** Aborts when the handler should stop; its `reason` says why. */
  signal: AbortSignal
  /** Shows how far it is, 0–1, to whoever asks for the job. @throws {LeaseLostError} */
  progress(fraction: number, note?: string): Promise<void>
}
/** @see DefineOptions.transactional */
export interface TransactionalContext extends HandlerContext {
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  trx: Transaction<any>
}
/** What it returns is the job's output: JSON. What it throws fails the attempt. */
// biome-ignore lint/suspicious/noExplicitAny: the types of data and output are those of the definition
export type Handler<Input = any, Output = any> = (data: Input, context: any) => Promise<Output> | Output
