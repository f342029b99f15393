/** What others use of this room. */

export { CLOCK, type Clocked, gapOf, type Heard, type LocalClock } from './clock.ts'
export { keepParts, type Parts, partsOf } from './context.ts'
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
export { News } from './notifier.ts'
export { NOT_SHOWN, type ServerFacts, unfit, unwritable } from './server-facts.ts'
export type { Place, Session } from './session.ts'
export { Sessions } from './session-pool.ts'
export { countdown, sharedSession } from './shared-session.ts'
