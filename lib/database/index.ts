/** The exports of this room. */

export {
  type AnyTransaction,
  type ClientInTransaction,
  checkTransaction,
  read,
  textOn,
  textWithin,
  within,
  XID,
} from './caller-transaction.ts'
export { CLOCK, type Clocked, type ClockReading, gapOf, type LocalClock } from './clock.ts'
export type { ConnectOptions } from './connect-options.ts'
export { checkedConnectionString } from './connection-string.ts'
export { type Context, contextOf, keepContext } from './context.ts'
export { Database } from './database.ts'
export { keyOf } from './lock-key.ts'
export { Notifier } from './notifier.ts'
export { PARSERS } from './parsers.ts'
export type { Pool, SupervisedOptions } from './pool.ts'
export { whyOneSession } from './proxies.ts'
export { LOCKS_NOT_SHOWN, type ServerFacts, whyReadOnly, whyUnsupported } from './server-facts.ts'
export type { Session } from './session.ts'
export { SessionPool } from './session-pool.ts'
export { countdown, sharedSession } from './shared-session.ts'
export type { Tables } from './tables.ts'
export type { TakeResult } from './take-result.ts'
export { column, list, nullable, sqlState } from './values.ts'
