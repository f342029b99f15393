/** What others use of this room. */

export { CLOCK, type Clocked, type ClockReading, gapOf, type LocalClock } from './clock.ts'
export { type Context, contextOf, keepContext } from './context.ts'
export {
  type AnyTransaction,
  type ClientInTransaction,
  type ConnectOptions,
  checkTransaction,
  column,
  Database,
  list,
  type Pool,
  sqlState,
  type Tables,
  textOn,
  textWithin,
  within,
  XID,
} from './database.ts'
export { Notifier } from './notifier.ts'
export { LOCKS_NOT_SHOWN, type ServerFacts, whyReadOnly, whyUnsupported } from './server-facts.ts'
export type { Session, TakeResult } from './session.ts'
export { SessionPool } from './session-pool.ts'
export { countdown, sharedSession } from './shared-session.ts'
