/** Bugs of what every room needs. */
import type { Mutant } from './mutant.ts'

export const BASE: readonly Mutant[] = [
  {
    bug: 'NaN is stored as null',
    file: 'lib/base/json.ts',
    from: "if (text?.includes('null')) JSON.stringify(value, finite)",
    to: '',
    files: ['base/json.test.ts'],
    tests: 'never turns a number into null',
  },
  {
    bug: 'an option that does not exist is ignored',
    file: 'lib/base/options.ts',
    from: 'if (names !== undefined) {',
    to: 'if (names === null) {',
    files: ['close/options.test.ts'],
    tests: 'is refused by',
  },
]
