/** Bugs of time. */
import type { Mutant } from './mutant.ts'

export const TIME: readonly Mutant[] = [
  {
    bug: 'a measurement of one trusted server makes a vote narrower',
    file: 'db/migrations/0014_read.sql',
    from: ' and a.trusted is not distinct from word then',
    to: ' then',
    files: ['time/time.test.ts'],
    tests: 'by a vote replaces the word of one server',
  },
  {
    bug: 'a vote is replaced by the word of one server at once',
    file: 'db/migrations/0014_read.sql',
    from: 'abs(now_us - a.at_us) <= 128000000',
    to: 'abs(now_us - a.at_us) <= 0',
    files: ['time/time.test.ts'],
    tests: 'does not replace a vote of the last 128 s',
  },
  {
    bug: 'a server that has sent a Kiss-o’-death is asked by its other address',
    file: 'lib/time/ntp/addresses.ts',
    from: 'if (kissed || ',
    to: 'if (',
    files: ['time/ntp.test.ts'],
    tests: 'is not asked by its other address',
  },
  {
    bug: 'a tick may be before the corrected time',
    file: 'db/migrations/0006_time.sql',
    from: 'greatest(s.last_value + 1, lockstep.microseconds(lockstep.now()))',
    to: 's.last_value + 1',
    files: ['time/time.test.ts'],
    tests: 'is unique and strictly increasing',
  },
  {
    bug: 'an interval does not grow while nothing is measured',
    file: 'lib/time/clock-model.ts',
    from: 'hi += growth * passed',
    to: 'hi += 0 * passed',
    files: ['time/estimate.test.ts'],
  },
  {
    bug: 'a time that rests on a clock that was set is not in doubt',
    file: 'lib/time/estimate.ts',
    from: "fit = 'inconsistent'\n      if (known) this.#keepAll(known, Math.max(0, minus(this.#theta.at(after), theta).hi), after)",
    to: "fit = 'inconsistent'",
    files: ['time/estimate.test.ts'],
  },
]
