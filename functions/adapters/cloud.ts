/**
 * What the adapters of the two clouds have in common, where there is no terminal: what they log, what they answer before there is
 * an application, and what a scheduled event does.
 *
 * The log gets objects, one for each thing that an operator may want to count or search. Their `code` says what it is
 * (LEASE_LOST, UNAVAILABLE, INTERNAL).
 */
import type { Events } from '../../lib/event/index.ts'
import type { Lockstep } from '../../lib/index.ts'
import type { Tasks, TickResult } from '../../lib/task/index.ts'
import {
  type LostRequest,
  type OriginOptions,
  type PathOptions,
  problemAnswer,
  type StreamOptions,
  unavailable,
} from '../http/index.ts'

/** The library and its parts in a deployment. */
export interface Services {
  lockstep: Lockstep
  tasks: Tasks | undefined
  events: Events | undefined
}

/** The parts that a deployment wants. A part that is left out is not in the bundle either. */
export interface ServiceOptions extends StreamOptions, PathOptions, OriginOptions {
  /** `createTasks`, or a function that also defines queues. */
  tasks?: ((lockstep: Lockstep) => Tasks) | undefined
  /** `createEvents`. */
  events?: ((lockstep: Lockstep) => Events) | undefined
  /** Shown in openapi.json. */
  version?: string | undefined
}

/** An outage is a warning; anything else that is not the caller's doing is a bug and comes with its stack. */
export function report(error: unknown, requestId?: string): void {
  const { code, message = String(error), stack, cause } = (error ?? {}) as Error & { code?: unknown }
  const more = { ...(cause instanceof Error && { cause: cause.message }), ...(requestId && { requestId }) }
  if (code === 'UNAVAILABLE') console.warn({ code, message, ...more })
  else console.error({ code: 'INTERNAL', message, ...more, stack })
}

/** A caller that renews or releases too late has lost its hold. An operator may want to know how often that happens. */
export function reportLoss({ method, path, requestId }: LostRequest): void {
  console.warn({ code: 'LEASE_LOST', status: 409, method, path, requestId })
}

/** The 503 of a deployment that is not complete. The log says what is missing; the answer does not. */
export function notReady(error: unknown): Response {
  report(error)
  return problemAnswer(unavailable('It has no database or no keys yet; its log says why'))
}

/**
 * Does what is due, within a budget: schedules, upkeep, jobs of queues that are defined here, and the removal of what need not
 * be kept. It tries all of these.
 * @throws the first error, when all have ended; every error is reported.
 */
export async function upkeep({ lockstep, tasks, events }: Services, budgetMs: number): Promise<Partial<TickResult>> {
  const late = new AbortController()
  const timer = setTimeout(() => late.abort(), budgetMs)
  const { signal } = late
  const [ticked, ...swept] = await Promise.allSettled([
    tasks?.tick({ budgetMs, signal }),
    lockstep.locks.sweep(),
    events?.sweep({ signal }),
  ])
  clearTimeout(timer)
  const failed = [ticked, ...swept].flatMap((each) => (each.status === 'rejected' ? [each.reason] : []))
  for (const error of failed) report(error)
  if (failed.length > 0) throw failed[0]
  return ticked.status === 'fulfilled' ? (ticked.value ?? {}) : {}
}
