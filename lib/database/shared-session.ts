/**
 * The shared session, for callers that can wait for it.
 *
 * When the server refuses a connection because it has too many (53300), a caller that waits for a lock waits for the connection
 * too, within the same time limit. All callers of a process try again together, so that a full server is not asked a
 * thousand times.
 */
import { abortable, noConnectionLeft, Stopwatch } from '../base/index.ts'
import type { Session } from './session.ts'
import type { SessionPool } from './session-pool.ts'

const AGAIN_MS = 250
const pauses = new WeakMap<SessionPool, Promise<void>>()

/** Begins a countdown of `ms` milliseconds. @returns a function that says how many are left. */
export function countdown(ms: number): () => number {
  const since = new Stopwatch()
  return () => ms - since.elapsed()
}

/**
 * The shared session; `null` behind a pooler.
 * @param left  how many milliseconds of the wait are left.
 * @throws {UnavailableError} it cannot be opened.
 * @throws the signal's reason.
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
