/** How the simulated server reads the parameters of statements, and writes its answers. */
import type { Row } from '../protocol.ts'
import type { Answer } from './backend.ts'
import type { Session } from './functions.ts'
import type { Blocked } from './locks.ts'

export type Values = (string | null)[]
export type Twin = (s: Session, v: string[], found: RegExpExecArray) => Answer | Generator<Blocked, Answer>

export const one = (types: Record<string, string>, row: Row): Answer => ({ types, rows: [row] })
export const nothing: Answer = { types: {}, rows: [] }
export const text = (value: unknown): string | null => (value === null || value === undefined ? null : String(value))
export const bool = (value: boolean): string => (value ? 't' : 'f')
export const instant = (ms: number | null): string | null =>
  ms === null
    ? null
    : ms === Infinity
      ? 'infinity'
      : `${new Date(ms).toISOString().replace('T', ' ').replace('Z', '')}+00`
/** An array as PostgreSQL writes it; an empty one of array_agg is null. */
export const array = (values: (string | null)[]): string | null =>
  values.length === 0 ? null : `{${values.map((value) => (value === null ? 'NULL' : `"${value}"`)).join()}}`
export const positions = (indices: number[]): string | null => array(indices.map((i) => String(i + 1)))

/** Reads an array parameter. */
export function elements(literal: string): (string | null)[] {
  const found = literal.slice(1, -1).match(/"(?:[^"\\]|\\.)*"|[^,]+/g) ?? []
  return found.map((each) =>
    each === 'NULL' ? null : each.startsWith('"') ? each.slice(1, -1).replace(/\\(.)/g, '$1') : each,
  )
}
export const texts = (literal: string | undefined) => elements(literal ?? '{}') as string[]

/** The names and tokens of a statement. */
export const pairs = (v: string[], at = 0) => {
  const tokens = texts(v[at + 1])
  return texts(v[at]).map((name, i) => ({ name, token: BigInt(tokens[i] as string) }))
}

/** What each answer that is a reading of the clock has, too. */
export const CLOCKED = { clock_us: 'int8', clock_server: 'int8' }
export const clock = ({ server }: Session): Row => ({
  ...{ clock_us: String(Math.floor(server.now * 1_000)), clock_server: '1' },
})

/** In the order of lib/database/settings.ts. */
export const SETTINGS_IN_ORDER: Record<string, string> = {
  search_path: '"$user", public',
  DateStyle: 'ISO, MDY',
  IntervalStyle: 'postgres',
  TimeZone: 'UTC',
  bytea_output: 'hex',
  extra_float_digits: '1',
  array_nulls: 'on',
  transform_null_equals: 'off',
  standard_conforming_strings: 'on',
  default_transaction_isolation: 'read committed',
  default_transaction_deferrable: 'off',
  statement_timeout: '0',
  lock_timeout: '0',
  idle_in_transaction_session_timeout: '0',
}
