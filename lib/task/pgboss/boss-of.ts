/**
 * pg-boss itself. What it can do and Lockstep has no verb for stays available, under pg-boss's names.
 *
 * This is a file of its own because of pg-boss's types: an application that does not import it does not have to check them
 * (engine.ts).
 */
import type { PgBoss } from 'pg-boss'

const KEY = Symbol.for('lockstep.boss') // the same in two copies of this package

export function keepBoss(tasks: object, boss: () => PgBoss): void {
  Object.defineProperty(tasks, KEY, { value: boss })
}

/**
 * Returns the pg-boss instance behind a `Tasks`: for flows, `upsert`, `redrive`, `subscribe` and `publish`, statistics. It is not
 * started. Do not start it: ticks do what its timers would do (task/tick.ts). They also send what its `schedule` has made, as
 * `tasks.schedules()` shows, by the rule of `tasks.schedule`.
 *
 * @param tasks  what `createTasks` has made.
 * @throws {TypeError} `tasks` was not made by `createTasks`.
 */
export function bossOf(tasks: object): PgBoss {
  const boss = (tasks as { [KEY]?: () => PgBoss })[KEY]
  if (!boss) throw new TypeError('Expected what createTasks has made')
  return boss()
}
