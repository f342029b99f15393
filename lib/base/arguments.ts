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
  /** Of a candidate; the higher comes first. */
  priority: { min: -1_000, max: 1_000, default: 0 },
  /** Bytes of JSON. */
  metaBytes: 4_096,
  /** Bytes of JSON: of a job's data, and of its output. */
  dataBytes: 1_048_576,
  /** Characters that a job says of its progress, no control characters. */
  note: { min: 0, max: 1_000 },
} as const

/** For how long a wait in code may last. */
export const WAIT = { min: 0, max: Infinity }

/** @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkText(
  field: string,
  value: unknown,
  { min, max }: { min: number; max: number } = field === 'prefix' ? { min: 0, max: LIMITS.name.max } : LIMITS.name,
): asserts value is string {
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

/** @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkInteger(
  field: string,
  value: unknown,
  { min, max }: { min: number; max: number },
): asserts value is number {
  const expected = `an integer, ${min}–${max}`
  if (typeof value !== 'number' || Number.isNaN(value)) throw wrongType(field, expected, value)
  if (!Number.isInteger(value) || value < min || value > max) throw outOfRange(field, expected, value)
}

/** @throws {TypeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkWord(field: string, value: unknown, words: readonly string[]): void {
  if (!words.includes(value as string)) throw wrongType(field, words.map((word) => `'${word}'`).join(' or '), value)
}

/**
 * What a call is told besides, which is an object; and its `signal`, if it has one. Who calls from JavaScript may give anything.
 * @throws {TypeError} with `code` INVALID_ARGUMENT and `field`.
 */
export function checkOptions(value: unknown, field = 'options'): asserts value is object {
  if (typeof value !== 'object' || value === null) throw wrongType(field, 'an object', value)
  const { signal } = value as { signal?: Partial<AbortSignal> | null }
  if (signal !== undefined && typeof signal?.throwIfAborted !== 'function') {
    throw wrongType('signal', 'an AbortSignal', signal)
  }
}

/** A fencing token. @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkToken(value: unknown): asserts value is bigint {
  const expected = 'a bigint, 0n–9223372036854775807n'
  if (typeof value !== 'bigint') throw wrongType('token', expected, value)
  if (value < 0n || value >= 2n ** 63n) throw outOfRange('token', expected, value)
}

/** A page of a list. @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkPage(page: { prefix?: string; limit?: number; after?: string }) {
  checkOptions(page)
  const { prefix = '', limit = 100, after = '' } = page
  checkText('prefix', prefix)
  if (after !== '') checkText('after', after)
  checkInteger('limit', limit, { min: 1, max: 1_000 })
  return { prefix, limit, after }
}

/** What has a budget of time: 100–86,400,000 ms, 10,000 if nothing is said. @throws {TypeError | RangeError} */
export function budgeted<O extends { budgetMs?: number }>(options: O): O & { budgetMs: number } {
  checkOptions(options)
  const { budgetMs = 10_000 } = options
  checkMs('budgetMs', budgetMs, { min: 100, max: 86_400_000 })
  return { ...options, budgetMs }
}

/** JSON text of `meta`, or null. @throws {TypeError | RangeError} */
export function metaText(meta: unknown): string | null {
  return meta === undefined ? null : jsonText('meta', meta, LIMITS.metaBytes)
}

/** JSON text that Postgres can keep. @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function jsonText(field: string, value: unknown, maxBytes: number): string {
  const expected = `JSON of at most ${maxBytes} bytes`
  let text: string | undefined
  try {
    text = JSON.stringify(value)
  } catch {}
  // what JSON can write and jsonb cannot keep: U+0000 and half a surrogate pair
  if (text === undefined || (text.includes('\\u') && /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(text)))
    throw wrongType(field, `${expected}, of whole characters`, value)
  // a character is three bytes at most: most texts need not be counted
  if (text.length * 3 > maxBytes && new TextEncoder().encode(text).length > maxBytes)
    throw outOfRange(field, expected, value)
  return text
}

/** Of calls that end with `(…, work)` or `(…, options, work)`. @throws {TypeError} */
export function optionsAndWork<O extends object, W>(rest: unknown[]): [O, W] {
  const work = rest.at(-1)
  if (typeof work !== 'function') throw wrongType('work', 'a function', work)
  const [options = {}] = rest.length > 1 ? rest : []
  checkOptions(options)
  return [options as O, work as W]
}

// Holders of our own making: this process, and a number. Not made before it is needed: a Worker has no random numbers
// while it loads.
let ours: string | undefined
let fresh = 1

/** The default holder: another one each time, so that every call is a contender of its own. */
export function freshHolder(): string {
  ours ??= crypto.randomUUID()
  return `${ours}.${fresh++}`
}
