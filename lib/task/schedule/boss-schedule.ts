/**
 * What is different about a schedule that was made with pg-boss's own `schedule()` (db/migrations/0015_cron.sql): its expression may
 * be a recurrence rule, which pg-boss reads, and it has pg-boss's options for its jobs.
 */
import type { Engine, EngineJob } from '../engine.ts'
import { checkCron, type Finder, slotAfter } from './slots.ts'

/** The first characters of their names. */
export const BOSS_PREFIX = 'pg-boss:'

/** A schedule of ours; or one of pg-boss, and how its expression is read. */
export type Kind = 'own' | 'cron' | 'rrule'

/** Finds the slots of a schedule. Ours is checked when it is made; one of pg-boss may be what only pg-boss's parser takes. */
export function finderOf(kind: Kind, engine: Engine): Finder {
  if (kind === 'own') return slotAfter
  if (kind === 'rrule') {
    return ({ cron, timezone }, after) =>
      engine.previewSchedule(cron, { tz: timezone, from: after, count: 1 })[0] ?? null
  }
  let checked: string | undefined
  return ({ cron, timezone }, after) => {
    checked ??= checkCron(cron)
    return slotAfter({ cron: checked, timezone }, after)
  }
}

/** The options of the jobs: without those of the schedule itself, and without an id, which each slot has of its own. */
export function jobOptions(options: object | null): Omit<EngineJob, 'id' | 'data'> {
  const { tz, key, missed, db, id, data, ...rest } = (options ?? {}) as Record<string, unknown>
  return rest
}
