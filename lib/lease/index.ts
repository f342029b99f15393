/** The exports of this room. */

export type { Grant, Hold } from './api.ts'
export { otherHoldLost } from './denied-holds.ts'
export { AbstractHold } from './hold.ts'
export { type LockState, leasedFor, listHeld, lockState } from './inspect.ts'
export { Leases } from './leases.ts'
export { ELECTIONS, GROUPS } from './namespace.ts'
export { LeaseHold, Renewer } from './renewer.ts'
export { type GrantRequest, grantAll } from './statements.ts'
