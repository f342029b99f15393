/** Bugs of elections and terms. */
import type { Mutant } from './mutant.ts'

export const LEADER: readonly Mutant[] = [
  {
    bug: 'elections are told on a channel that every role can name',
    file: 'db/migrations/0014_read.sql',
    from: "select 'lockstep_' || s.channel || '_' || replace(s.secret::text, '-', '') from",
    to: "select 'lockstep_' || s.channel from",
    files: ['neighbours/neighbours.test.ts'],
    tests: 'shows observers no leader, makes none stop, and hears of none',
  },
  {
    bug: 'a candidate that has left keeps its place',
    file: 'db/migrations/0002_election.sql',
    from: 'delete from lockstep.candidate c where c.name = withdraw.name and c.holder = withdraw.holder;',
    to: 'perform from lockstep.candidate c where c.name = withdraw.name and c.holder = withdraw.holder;',
    files: ['leader/leader.test.ts'],
  },
  {
    bug: 'a term whose leader was asked to step down is renewed',
    file: 'db/migrations/0002_election.sql',
    from: "and l.expires_at < 'infinity' and not l.deposed",
    to: "and l.expires_at < 'infinity'",
    files: ['leader/leader.test.ts'],
  },
  {
    bug: 'a lease has ended when a clock that was set forward says so',
    file: 'db/migrations/0002_election.sql',
    from: 'if expired and a.over is distinct from l.token\n',
    to: 'if false and a.over is distinct from l.token\n',
    files: ['leader/leader.test.ts', 'leader/loss.test.ts'],
  },
  {
    bug: 'a step of the clock of the database is not noticed',
    file: 'lib/leader/clock-step.ts',
    from: 'if (both.low <= both.high) {',
    to: 'if (both) {',
    files: ['leader/clock-step.test.ts'],
  },
  {
    bug: 'a leader begins to work again before it has resigned',
    file: 'lib/leader/lead-loop.ts',
    from: 'await term[Symbol.asyncDispose]()',
    to: 'void term',
    files: ['leader/lead-loop.test.ts'],
  },
  {
    bug: 'an expired term is taken by a candidate that has not watched the clock',
    file: 'lib/leader/clock-step.ts',
    from: 'if (!(this.#high - this.#low <= ttlMs * PRECISION)) return ttlMs',
    to: 'if (ttlMs > 0) return 0',
    files: ['simulation/simulation.test.ts'],
    tests: 'every promise of leaders is kept',
  },
  {
    bug: 'an observer is shown an older change after a newer one',
    file: 'lib/leader/observe.ts',
    from: 'if (last && state.revision < last.revision) return\n',
    to: 'if (last && state.revision < 0n) return\n',
    files: ['simulation/simulation.test.ts'],
    tests: 'every promise of leaders is kept',
  },
]
