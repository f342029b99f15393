/** What others use of this room. */

export { Locks } from './locks.ts'
export type { AcquireOptions, TransactionOptions, TryOptions } from './options.ts'
export type { TransactionWork } from './transaction.ts'
