/**
 * How a call of the library ended, and whether it may end so. Allowed are: a result; an error with one of our codes, and with a
 * `field` if the call was wrong; and the reason of the call's signal.
 *
 * Every hold that a call returns is released, so that no call is blocked by the one before it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import type { Events } from '../../lib/event/index.ts'
import type { Lockstep } from '../../lib/index.ts'
import type { Tasks } from '../../lib/task/index.ts'

export interface Rooms {
  lockstep: Lockstep
  tasks: Tasks
  events: Events
}

export interface Call {
  /** The call as source code. */
  text: string
  make(rooms: Rooms): unknown
}

// biome-ignore lint/suspicious/noExplicitAny: any function, with any arguments
type Any = any

const CODES = [
  ...['LEASE_HELD', 'LEASE_LOST', 'UNAVAILABLE', 'POSITION_CONFLICT', 'NOT_FOUND', 'JOB_FAILED', 'RUN_TIMEOUT'],
  ...['HANDED_BACK', 'INVALID_ARGUMENT'],
]
/** The reason of every signal that is passed to a call. */
export const ENOUGH = Symbol('the signal of the call')

/** How a call ended, and its fault; undefined: there is none. */
export async function outcome(call: Call, rooms: Rooms): Promise<{ end: string; fault?: string | undefined }> {
  try {
    const got = (await call.make(rooms)) as Any
    if (typeof got?.next === 'function') await follow(got)
    await (got?.resign ?? got?.release ?? got?.stop ?? got?.close)?.call(got)
    return { end: 'returned' }
  } catch (error) {
    if (error === ENOUGH) return { end: 'aborted' }
    const { code, field, stack } = (error ?? {}) as { code?: unknown; field?: unknown; stack?: string }
    const end = String(code)
    // A migration that is not possible throws a plain Error with a sentence (lib/setup/migrate.ts).
    if (call.text.startsWith('migrate') && (error as Error)?.constructor === Error) return { end: 'refused' }
    if (!CODES.includes(end))
      return { end, fault: `it threw an error without one of our codes: ${stack ?? inspect(error)}` }
    if (end !== 'INVALID_ARGUMENT') return { end }
    const right =
      (error instanceof TypeError || error instanceof RangeError) && typeof field === 'string' && field !== ''
    return { end, fault: right ? undefined : `INVALID_ARGUMENT names no field: ${stack}` }
  }
}

/** Lets an iterator run for a short time. */
async function follow(following: AsyncGenerator): Promise<void> {
  const first = following.next()
  first.catch(() => {})
  await Promise.race([first, sleep(50)])
  void following.return(undefined).catch(() => {})
}
