/**
 * How a call of the library ended, and whether it may end so: with a result, with an error that has a code of ours, and with
 * a field if the call was wrong; or with the reason of its own signal.
 *
 * What was got is given back, so that no call is held up by the one before it.
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
  /** As it would be written. */
  text: string
  make(rooms: Rooms): unknown
}

// biome-ignore lint/suspicious/noExplicitAny: whatever is called, with whatever
type Any = any

const CODES = [
  ...['LEASE_HELD', 'LEASE_LOST', 'UNAVAILABLE', 'POSITION_CONFLICT', 'NOT_FOUND', 'JOB_FAILED', 'RUN_TIMEOUT'],
  ...['HANDED_BACK', 'INVALID_ARGUMENT'],
]
/** The reason of every signal that a call is given. */
export const ENOUGH = Symbol('the signal of the call')

/** How a call ended, and what is wrong with that; undefined: nothing. */
export async function outcome(call: Call, rooms: Rooms): Promise<{ end: string; fault?: string | undefined }> {
  try {
    const got = (await call.make(rooms)) as Any
    if (typeof got?.next === 'function') await begun(got)
    await (got?.resign ?? got?.release ?? got?.stop ?? got?.close)?.call(got)
    return { end: 'returned' }
  } catch (error) {
    if (error === ENOUGH) return { end: 'aborted' }
    const { code, field, stack } = (error ?? {}) as { code?: unknown; field?: unknown; stack?: string }
    const end = String(code)
    // Of a migration what cannot be done is told in a sentence (lib/setup/migrate.ts).
    if (call.text.startsWith('migrate') && (error as Error)?.constructor === Error) return { end: 'told' }
    if (!CODES.includes(end)) return { end, fault: `it threw what has no code of ours: ${stack ?? inspect(error)}` }
    if (end !== 'INVALID_ARGUMENT') return { end }
    const right =
      (error instanceof TypeError || error instanceof RangeError) && typeof field === 'string' && field !== ''
    return { end, fault: right ? undefined : `INVALID_ARGUMENT names no field: ${stack}` }
  }
}

/** What follows something is let follow it for a moment. */
async function begun(following: AsyncGenerator): Promise<void> {
  const first = following.next()
  first.catch(() => {})
  await Promise.race([first, sleep(50)])
  void following.return(undefined).catch(() => {})
}
