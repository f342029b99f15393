/** The exports of this room. */

export type { Grant, Hold } from './api.ts'
export { otherHoldLost } from './denied-holds.ts'
export { AbstractHold } from './hold.ts'
export { type LockHolder, type LockState, leasedFor, listHeld, listLocks, lockState } from './inspect.ts'
export { Leases } from './leases.ts'
export { ELECTIONS, GROUPS } from './namespace.ts'
export { LeaseHold, Renewer } from './renewer.ts'
export { type GrantRequest, grantAll } from './statements.ts'
