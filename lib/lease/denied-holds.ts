/**
 * Which hold the database denies. LS001 need not be about the hold that a caller has in hand: a fenced table that is bound to its
 * rows wants the hold of each row, and a transaction under order/42 may have written a row of order/43. Then order/42 is not lost.
 */

import { LeaseLostError, SQLSTATE } from '../base/index.ts'
import { sqlState } from '../database/index.ts'

/** Under the name that the database knows: elections and groups have a prefix. `token`: null if the transaction did not name it. */
export interface DeniedHold {
  name: string
  token: string | null
}

/** The holds that an LS001 of ours is about; none for any other error, and for an LS001 that somebody else's function raised. */
export function denied(error: unknown): DeniedHold[] {
  if (sqlState(error) !== SQLSTATE.leaseLost) return []
  try {
    const holds: unknown = JSON.parse(String((error as { detail?: unknown }).detail))
    return Array.isArray(holds) ? holds : []
  } catch {
    return []
  }
}

/** What a caller is told when a write was refused for want of a hold that is not the caller's. Other errors are as they came. */
export function otherHoldLost(error: unknown): unknown {
  const [other] = denied(error)
  if (!other) return error
  const token = /^\d+$/.test(other.token ?? '') ? BigInt(other.token as string) : 0n
  const why = other.token === null ? 'a write needs it, and its transaction does not name it' : 'the database says so'
  return new LeaseLostError(other.name, token, why, { cause: error })
}
