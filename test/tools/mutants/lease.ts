/** Bugs of leases and their renewals. */
import type { Mutant } from './mutant.ts'

export const LEASE: readonly Mutant[] = [
  {
    bug: 'a holder trusts its lease after it has released it by another hold',
    file: 'lib/lease/renewer.ts',
    from: "other.lose('its holder has released it')",
    to: 'continue',
    files: ['lock/lock.test.ts'],
    tests: 'is granted again what it has by acquire',
  },
  {
    bug: 'the trust timer taken out: a hold that cannot be renewed is believed for ever',
    file: 'lib/lease/renewer.ts',
    from: 'for (const hold of this.#held) hold.check()\n',
    to: '\n',
    files: ['lock/loss.test.ts', 'leader/loss.test.ts'],
    tests: 'whose renewals hang|went silent',
  },
  {
    bug: 'the token from the row instead of the sequence',
    file: 'db/migrations/0001_lease.sql',
    from: `    base := nextval('lockstep.token');
    granted_at := clock_timestamp();`,
    to: `    base := coalesce((select max(l.token) from lockstep.lease l where l.name = any (names)), 0) + 1;
    granted_at := clock_timestamp();`,
    files: ['lock/lock.test.ts', 'lock/interleave/interleave.test.ts'],
  },
  {
    bug: 'trust begins with the answer, not with the attempt',
    file: 'lib/lease/renewer.ts',
    from: 'this.#kept = attempted\n        this.#pauseMs',
    to: 'this.#kept = new Stopwatch()\n        this.#pauseMs',
    files: ['lock/loss.test.ts', 'leader/loss.test.ts'],
  },
  {
    bug: 'a lease is granted without the gate that connection holds stand at',
    file: 'db/migrations/0001_lease.sql',
    from: `then pg_try_advisory_xact_lock(lockstep.key(a.name)) end),`,
    to: `then true end),`,
    files: ['lock/lock.test.ts', 'lock/interleave/interleave.test.ts'],
  },
  {
    bug: 'a hold whose release failed is believed again',
    file: 'lib/lease/hold.ts',
    from: `        this.lose('its release failed, and may have taken effect', error)\n`,
    to: '',
    files: ['faults/locks.test.ts'],
    tests: 'a fenced transaction of a lease, and its release',
  },
  {
    bug: 'what a holder releases while it is granted to it again is trusted',
    file: 'lib/lease/leases.ts',
    from: 'if (await revoked) return null',
    to: 'return hold()',
    files: ['lock/loss.test.ts'],
    tests: 'is granted anew',
  },
]
