/** What others use of this room. */

export { otherHoldLost } from './denied-holds.ts'
export { AbstractHold } from './hold.ts'
export { type LockState, listHeld, lockState } from './inspect.ts'
export { type Grant, type GrantRequest, grantAll, type Hold, Leases } from './leases.ts'
export { ELECTIONS, GROUPS } from './namespace.ts'
export { LeaseHold, Renewer } from './renewer.ts'
