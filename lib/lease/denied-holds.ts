/**
 * Which hold the database denies. LS001 need not be about the caller's own hold: a fenced table that is bound to its rows needs the
 * hold of each row, and a transaction under order/42 may have written a row of order/43. Then order/42 is not lost.
 */

import { LeaseLostError, SQLSTATE } from '../base/index.ts'
import { sqlState } from '../database/index.ts'

/**
 * A hold that a transaction needs and does not have. `name` is the name of its row: elections and groups have a prefix. `token` is null
 * if the transaction has not asserted that name.
 */
export interface DeniedHold {
  name: string
  token: string | null
}

/** The holds that an LS001 of Lockstep is about; none for any other error, and none for an LS001 that another function raised. */
export function denied(error: unknown): DeniedHold[] {
  if (sqlState(error) !== SQLSTATE.leaseLost) return []
  try {
    const holds: unknown = JSON.parse(String((error as { detail?: unknown }).detail))
    return Array.isArray(holds) ? holds : []
  } catch {
    return []
  }
}

/** The error for a write that was refused because it needs a hold that the caller does not have. Other errors are unchanged. */
export function otherHoldLost(error: unknown): unknown {
  const [other] = denied(error)
  if (!other) return error
  const token = /^\d+$/.test(other.token ?? '') ? BigInt(other.token as string) : 0n
  const why = other.token === null ? 'a write needs it, and its transaction does not name it' : 'the database says so'
  return new LeaseLostError(other.name, token, why, { cause: error })
}
