/**
 * The shared session, for callers that can wait for it.
 *
 * When the server refuses a connection because it has too many (53300), that is no answer to who asked for a lock: it is one
 * more thing to wait for, and ends with the wait. All callers of a process ask together, so that a server which is full is not
 * asked a thousand times.
 */
import { abortable, noConnectionLeft, Stopwatch } from '../base/index.ts'
import type { Session } from './session.ts'
import type { SessionPool } from './session-pool.ts'

const AGAIN_MS = 250
const pauses = new WeakMap<SessionPool, Promise<void>>()

/** What remains of `ms` milliseconds from now on. */
export function countdown(ms: number): () => number {
  const since = new Stopwatch()
  return () => ms - since.elapsed()
}

/**
 * The session that everybody's tries share; `null` behind a pooler.
 * @param left  milliseconds that remain of the wait.
 * @throws {UnavailableError} it cannot be opened; the signal's reason.
 */
export async function sharedSession(
  sessions: SessionPool,
  left: () => number,
  signal: AbortSignal | undefined,
): Promise<Session | null> {
  for (;;) {
    try {
      return await abortable(signal, sessions.shared())
    } catch (error) {
      const leftMs = left()
      if (!noConnectionLeft(error) || leftMs <= 0) throw error
      await abortable(signal, Promise.race([together(sessions), pause(leftMs)]))
    }
  }
}

function together(sessions: SessionPool): Promise<void> {
  let next = pauses.get(sessions)
  if (!next) {
    next = pause(AGAIN_MS * (0.75 + Math.random() / 2)).then(() => void pauses.delete(sessions))
    pauses.set(sessions, next)
  }
  return next
}

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, Math.min(ms, AGAIN_MS * 2)))
