/** Values on their way to the database and back: array parameters, and the SQLSTATE of an error. */
import { sql } from 'kysely'
import { UnavailableError } from '../base/index.ts'

type ArrayType = 'text' | 'integer' | 'bigint' | 'boolean' | 'uuid' | 'jsonb' | 'double precision'

/**
 * An array parameter with its type, as the SQL functions of Lockstep take them. An array of numbers is written as text here: pg
 * would quote each number, which takes longer.
 */
export const list = (values: readonly unknown[], type: ArrayType) =>
  sql`${PLAIN.has(type) ? `{${values.map((value) => value ?? 'NULL').join(',')}}` : values}::${sql.raw(type)}[]`
const PLAIN = new Set<ArrayType>(['integer', 'bigint', 'boolean', 'double precision'])

/**
 * The same for an array with nulls in a statement of the caller's connection: there array_nulls may be off, and a null in the text of
 * an array would be the string NULL.
 */
export const nullable = (values: readonly (string | bigint | null)[], type: ArrayType) =>
  values.includes(null)
    ? sql`array(select e.value::${sql.raw(type)} from pg_catalog.jsonb_array_elements_text(${JSON.stringify(
        values.map((value) => (value === null ? null : String(value))),
      )}::jsonb) with ordinality e(value, nth) order by e.nth)`
    : list(values, type)

/** One property of many items, as an array parameter. */
export const column = <T>(items: readonly T[], type: ArrayType, of: (item: T) => unknown) => list(items.map(of), type)

/**
 * The code of an error, or of the cause of an {@link UnavailableError}: its SQLSTATE if the database reported it; '' if it has no
 * code. A handler may throw anything, so any value is accepted.
 */
export function sqlState(error: unknown): string {
  try {
    const reported = error instanceof UnavailableError ? error.cause : error
    return String((reported as { code?: unknown } | null | undefined)?.code ?? '')
  } catch {
    return ''
  }
}
