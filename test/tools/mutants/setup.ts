/** Bugs of the migration. */
import type { Mutant } from './mutant.ts'

export const SETUP: readonly Mutant[] = [
  {
    bug: 'a migration that closes goes on without waiting until it is quiet',
    file: 'lib/setup/exclusive-migration.ts',
    from: 'if (blockers === null || blockers.length === 0) return blockers !== null',
    to: 'return true',
    files: ['setup/exclusive-migration.test.ts'],
  },
  {
    bug: 'a migration that closes waits for locks, and not for transactions that can still take them',
    file: 'db/migrations/0008_close.sql',
    from: 'and l.virtualtransaction = any (transactions)',
    to: 'and false',
    files: ['setup/exclusive-migration.test.ts'],
    tests: 'a transaction that was open',
  },
  {
    bug: 'a migration that closes refuses locks, and not appends',
    file: 'db/migrations/0008_close.sql',
    from: `        ('begin_append', refused),     -- what every append begins with, before it takes a gate\n`,
    to: '',
    files: ['setup/exclusive-migration.test.ts'],
    tests: 'a process of 0.6 that holds',
  },
]
