/** What others use of this room. */

export { otherHoldLost } from './denied-holds.ts'
export { Hold } from './hold.ts'
export { type LockState, list, look } from './inspect.ts'
export { type Grant, type GrantRequest, grantAll, type Held, Leases } from './leases.ts'
export { ELECTIONS, GROUPS } from './namespace.ts'
export { Keeper, LeaseHold } from './renewer.ts'
