/** Bugs of queues, workers and schedules. */
import type { Mutant } from './mutant.ts'

export const TASK: readonly Mutant[] = [
  {
    bug: 'an attempt whose handler ended its transaction is tried again',
    file: 'lib/task/job/attempts.ts',
    from: 'if (final) await',
    to: 'if (false) await',
    files: ['database/transaction.test.ts'],
    tests: 'has failed for good',
  },
  {
    bug: 'a slot is moved on, and not sent',
    file: 'lib/task/schedule/due.ts',
    from: `if (passes(reason)) return`,
    to: `if (false) return`,
    files: ['task/schedule.test.ts'],
    tests: 'a schedule that cannot be sent',
  },
  {
    bug: 'the trouble of one schedule holds up the others',
    file: 'lib/task/schedule/due.ts',
    from: `if (passes(reason)) return`,
    to: `if (passes(reason)) throw reason\n  if (false) return`,
    files: ['task/schedule.test.ts'],
    tests: 'a schedule that cannot be sent',
  },
  {
    bug: 'a walk goes on from a slot that is not later',
    file: 'lib/task/schedule/slots.ts',
    from: `if (slot === null || +slot > +than) return slot`,
    to: `if (than) return slot`,
    files: ['task/cron.test.ts'],
    tests: 'the same slot again', // the others would never end
  },
  {
    bug: 'a fixed time that is repeated comes twice',
    file: 'lib/task/schedule/slots.ts',
    from: `adjusts(shift) ? Math.max(0, -shift) : 0`,
    to: `0`,
    files: ['task/cron.test.ts', 'task/zones.test.ts'],
  },
  {
    bug: 'a fixed time that is skipped does not come',
    file: 'lib/task/schedule/slots.ts',
    from: `adjusts(next.shift) ? Math.max(0, next.shift) : 0`,
    to: `adjusts(0) ? 0 : 0`,
    files: ['task/cron.test.ts', 'task/zones.test.ts'],
  },
  {
    bug: 'the timekeeper of pg-boss sends slots a second time',
    file: 'db/migrations/0015_cron.sql',
    from: `before update of cron_on on`,
    to: `before update of bam_on on`,
    files: ['task/boss-schedule.test.ts'],
    tests: 'own timekeeper',
  },
  {
    bug: 'a stale attempt completes the job of its successor',
    file: 'db/migrations/0004_task.sql',
    from: "where j.name = complete_jobs.queue and j.id = a.id and j.state = 'active' and j.retry_count = a.attempt",
    to: "where j.name = complete_jobs.queue and j.id = a.id and j.state = 'active'",
    files: ['task/task.test.ts'],
    tests: 'cannot complete its successor|cannot commit its transaction',
  },
  {
    bug: 'a job that is handed back has spent a retry',
    file: 'db/migrations/0004_task.sql',
    from: 'retry_limit = j.retry_limit + 1, start_after',
    to: 'start_after',
    files: ['task/task.test.ts', 'task/loss.test.ts'],
  },
  {
    bug: 'a stale attempt commits its transaction',
    file: 'lib/task/worker/attempt.ts',
    from: "this.end('lost', NOT_OURS)\n          throw this.#reason",
    to: 'void NOT_OURS',
    files: ['task/task.test.ts'],
    tests: 'cannot commit its transaction',
  },
  {
    bug: 'an attempt that can give no sign of life is trusted',
    file: 'lib/task/worker/attempt.ts',
    from: 'if (this.#trustedFrom.elapsed() > trusted(heartbeatMs)) this.end',
    to: 'if (heartbeatMs < 0) this.end',
    files: ['task/loss.test.ts'],
  },
]
