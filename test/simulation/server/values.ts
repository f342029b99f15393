/** Values as PostgreSQL writes them, and parameters as pg does. */
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
