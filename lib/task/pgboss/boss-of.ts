/**
 * pg-boss itself, for whoever asks: what it can do and we have no word for stays within reach, under its own names.
 *
 * Apart from task/tasks.ts because of its types: who does not ask for them does not have to check them (engine.ts).
 */
import type { PgBoss } from 'pg-boss'

const KEY = Symbol.for('lockstep.boss') // the same in two copies of this package

export function keepBoss(tasks: object, boss: () => PgBoss): void {
  Object.defineProperty(tasks, KEY, { value: boss })
}

/**
 * The pg-boss of what `createTasks` has made: for flows, `upsert`, `redrive`, `subscribe` and `publish`, statistics. It is
 * not started. Do not start it: its clockwork is ours (task/tick.ts).
 *
 * @throws {TypeError} it was not made by `createTasks`.
 */
export function bossOf(tasks: object): PgBoss {
  const boss = (tasks as { [KEY]?: () => PgBoss })[KEY]
  if (!boss) throw new TypeError('Expected what createTasks has made')
  return boss()
}
