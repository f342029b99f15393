/** Settings and parsers as no test would choose them, for the tests that Lockstep does not depend on any. */
import pg from 'pg'

/** Settings that a role or a database may have, each with an odd value. Those of timeouts are longer than any statement of a test. */
export const ODD_SETTINGS: Record<string, string> = {
  datestyle: "'German, DMY'",
  intervalstyle: 'sql_standard',
  timezone: "'Asia/Kathmandu'",
  statement_timeout: "'900ms'",
  lock_timeout: "'600ms'",
  idle_in_transaction_session_timeout: "'800ms'",
  idle_session_timeout: "'700ms'",
  default_transaction_isolation: 'serializable',
  default_transaction_deferrable: 'on',
  array_nulls: 'off',
  bytea_output: 'escape',
  search_path: 'public, pg_catalog',
  standard_conforming_strings: 'off',
  escape_string_warning: 'off',
  extra_float_digits: '-15',
  transform_null_equals: 'on',
}

/** Types that an application may have parsers of its own for: booleans, numbers, JSON, instants, bytes, and arrays of them. */
const REPLACED = [
  16, 17, 20, 21, 23, 114, 700, 701, 1000, 1005, 1007, 1009, 1016, 1114, 1184, 1185, 1231, 2951, 3802, 3807,
]

/** The parser that a process with odd parsers has for a type. */
export const absurd = (oid: number) => (text: string) => (REPLACED.includes(oid) ? { absurd: text } : text)

/** The parsers that a process has as pg's default. */
export const STANDARD_TYPES = {
  getTypeParser: (oid: number, format?: 'text') => pg.types.getTypeParser(oid, format as 'text'),
}

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

/** The settings of a client that has the standard settings and parsers, in a database that may be odd. */
export const standard = (config: string | pg.ClientConfig = {}): pg.ClientConfig => ({
  options,
  types: STANDARD_TYPES as never,
  ...(typeof config === 'string' ? { connectionString: config } : config),
})

/** How the pool of another package connects, which the plugin of vitest.config.ts does not reach. */
export const standardIfOdd = (connectionString: string): { connectionString: string } =>
  process.env.TEST_ODD === undefined ? { connectionString } : { ...standard(connectionString), connectionString }

/** In a run where everything is odd, the statements that make a database odd; else none. */
export const oddStatements = (database: string): string[] =>
  process.env.TEST_ODD === undefined
    ? []
    : Object.entries(ODD_SETTINGS).map(([name, value]) => `alter database ${database} set ${name} = ${value}`)

/** Replaces the parsers of this process, as an application may. @returns a function that restores them. */
export function replaceParsers(): () => void {
  const types = pg.types as unknown as Record<string, (oid: number, parse?: unknown) => unknown>
  const before = REPLACED.map((oid) => types.getTypeParser?.(oid))
  for (const oid of REPLACED) types.setTypeParser?.(oid, absurd(oid))
  return () => {
    for (const [i, oid] of REPLACED.entries()) types.setTypeParser?.(oid, before[i])
  }
}
