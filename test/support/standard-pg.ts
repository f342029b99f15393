/**
 * `pg` for the tests themselves, in a run where everything is odd (TEST_ODD, vitest.config.ts): clients of a test have the standard
 * settings and parsers, so that what they read says what is in the database.
 */
import pg from 'pg'
import { ODD_SETTINGS, STANDARD_TYPES } from './odd.ts'

const NAMES = Object.keys(ODD_SETTINGS)
const STANDARD: Record<string, string> = {
  ...Object.fromEntries(NAMES.filter((name) => name.endsWith('timeout')).map((name) => [name, '0'])),
  ...{ datestyle: 'ISO', intervalstyle: 'postgres', timezone: 'UTC', array_nulls: 'on', bytea_output: 'hex' },
  ...{ default_transaction_isolation: 'read\\ committed' },
  ...{ default_transaction_deferrable: 'off', search_path: 'public', standard_conforming_strings: 'on' },
  ...{ extra_float_digits: '1', transform_null_equals: 'off' },
}
const options = Object.entries(STANDARD)
  .map(([name, value]) => `-c ${name}=${value}`)
  .join(' ')

const standard = (config: string | pg.ClientConfig = {}): pg.ClientConfig => ({
  options,
  types: STANDARD_TYPES as never,
  ...(typeof config === 'string' ? { connectionString: config } : config),
})

// Proxies and not classes of their own: a test may replace a method of the prototype, for all clients of the process.
const Client = new Proxy(pg.Client, {
  construct: (target, [config], self) => Reflect.construct(target, [standard(config)], self),
})
const Pool = new Proxy(pg.Pool, {
  construct: (target, [config], self) => Reflect.construct(target, [{ Client, ...config }], self),
})

export default { ...pg, Client, Pool }
