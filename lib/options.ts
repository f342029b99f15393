/**
 * What a caller may say: the range of every option, and the checks. A refusal names the field and the range.
 */
import { outOfRange, wrongType } from './errors.ts'

/** Ranges of every option, in its own unit. */
export const LIMITS = {
  /** Characters (Unicode code points), no control characters. */
  name: { min: 1, max: 255 },
  /** Characters (Unicode code points), no control characters. */
  holder: { min: 1, max: 255 },
  ttlMs: { min: 1_000, max: 3_600_000, default: 15_000 },
  /** Over HTTP; in code a wait may be endless. */
  waitMs: { min: 0, max: 20_000 },
  /** Bytes of JSON. */
  metaBytes: 4_096,
} as const

/** @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkText(field: 'name' | 'holder' | 'prefix' | 'after', value: unknown): asserts value is string {
  const { max } = LIMITS.name
  const min = field === 'prefix' ? 0 : LIMITS.name.min
  const expected = `a string of ${min}–${max} characters without control characters`
  if (typeof value !== 'string') throw wrongType(field, expected, value)
  const long = value.length > max && (value.length > 2 * max || [...value].length > max)
  if (value.length < min || long || CONTROL.test(value) || !value.isWellFormed()) {
    throw outOfRange(field, expected, value)
  }
}
// biome-ignore lint/suspicious/noControlCharactersInRegex: \p{Cc}, which takes ten times as long
const CONTROL = /[\0-\x1f\x7f-\x9f]/

/** @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkMs(
  field: string,
  value: unknown,
  { min, max }: { min: number; max: number },
): asserts value is number {
  const expected = max === Infinity ? `a number of milliseconds ≥ ${min}` : `an integer of milliseconds, ${min}–${max}`
  if (typeof value !== 'number' || Number.isNaN(value)) throw wrongType(field, expected, value)
  if (value < min || value > max || (max !== Infinity && !Number.isInteger(value))) {
    throw outOfRange(field, expected, value)
  }
}

/** JSON text of `meta`, or null. @throws {TypeError | RangeError} */
export function metaText(meta: unknown): string | null {
  if (meta === undefined) return null
  const expected = `JSON of at most ${LIMITS.metaBytes} bytes`
  let text: string | undefined
  try {
    text = JSON.stringify(meta)
  } catch {}
  // what JSON can write and jsonb cannot keep: U+0000 and half a surrogate pair
  if (text === undefined || /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(text))
    throw wrongType('meta', `${expected}, of whole characters`, meta)
  if (new TextEncoder().encode(text).length > LIMITS.metaBytes) throw outOfRange('meta', expected, meta)
  return text
}
