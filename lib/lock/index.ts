/** What others use of this room. */

export { type AcquireOptions, Locks, type TransactionOptions, type TryOptions } from './locks.ts'
export type { TransactionWork } from './transaction.ts'
