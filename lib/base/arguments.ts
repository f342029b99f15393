/**
 * The range of every option, and the checks of arguments. An error names the field and the range.
 */
import { outOfRange, wrongType } from './invalid-argument.ts'
import { checkOptions, type Known, known } from './options.ts'

/** Ranges of every option, in its own unit. */
export const LIMITS = {
  /** Characters (Unicode code points), no control characters. Not `.` or `..`, which no URL can have. */
  name: { min: 1, max: 255 },
  /** Characters (Unicode code points), no control characters. */
  holder: { min: 1, max: 255 },
  ttlMs: { min: 1_000, max: 3_600_000, default: 15_000 },
  /** Milliseconds, over HTTP. In code a wait may be endless. */
  waitMs: { min: 0, max: 20_000 },
  /** Of a candidate. The candidate with the highest priority is elected first. */
  priority: { min: -1_000, max: 1_000, default: 0 },
  /** Bytes of JSON. */
  metaBytes: 4_096,
  /** Bytes of JSON, both for the data of a job and for its output. */
  dataBytes: 1_048_576,
  /**
   * Bytes of an answer that carries many (a page of events, a poll, a claim, a list over HTTP), as a carrier sends it that puts it
   * into a string of JSON: quotes and backslashes count twice. A single one is sent whatever its size. Lambda takes 6,291,556.
   */
  answerBytes: 5_000_000,
  /** Characters of a job's progress note, no control characters. */
  note: { min: 0, max: 1_000 },
} as const

/** The range of a wait in code, in milliseconds. */
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
  if (isDots(value) && NAMES.has(field))
    throw outOfRange(field, 'another name than . and .., which no URL can have', value)
}
const NAMES = new Set(['name', 'stream', 'group'])

/** Whether a name is one that a URL cannot have: such a segment of a path means "here" or "one up", also percent-encoded. */
export function isDots(name: string): boolean {
  return name === '.' || name === '..'
}
// biome-ignore lint/suspicious/noControlCharactersInRegex: the same as \p{Cc}, which takes ten times as long
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

/** Checks a fencing token. @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkToken(value: unknown): asserts value is bigint {
  const expected = 'a bigint, 0n–9223372036854775807n'
  if (typeof value !== 'bigint') throw wrongType('token', expected, value)
  if (value < 0n || value >= 2n ** 63n) throw outOfRange('token', expected, value)
}

/** A page of a list, in the order of code points. */
export interface Page {
  /** Only names that begin with this text. @default '' */
  prefix?: string | undefined
  /** How many at most, 1–1,000. @default 100 */
  limit?: number | undefined
  /** The last name of the page before this one. @default the first page */
  after?: string | undefined
}

const PAGE = known<Page>({ prefix: true, limit: true, after: true })

/** Checks which page of a list is asked for, and fills in the defaults. @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function checkPage(page: Page, names = PAGE) {
  checkOptions(page, names)
  const { prefix = '', limit = 100, after = '' } = page
  checkText('prefix', prefix)
  if (after !== '') checkText('after', after)
  checkInteger('limit', limit, { min: 1, max: 1_000 })
  return { prefix, limit, after }
}

/** Options with a time budget `budgetMs`: milliseconds, 100–86_400_000. @default 10_000 @throws {TypeError | RangeError} */
export function budgeted<O extends { budgetMs?: number | undefined }>(
  options: O,
  names: Known,
): O & { budgetMs: number } {
  checkOptions(options, names)
  const { budgetMs = 10_000 } = options
  checkMs('budgetMs', budgetMs, { min: 100, max: 86_400_000 })
  return { ...options, budgetMs }
}

/** The last arguments of a call that ends with `(…, work)` or `(…, options, work)`. @throws {TypeError} */
export function optionsAndWork<O extends object, W>(rest: unknown[], names: Known): [O, W] {
  const work = rest.at(-1)
  if (typeof work !== 'function') throw wrongType('work', 'a function', work)
  const [options = {}] = rest.length > 1 ? rest : []
  checkOptions(options, names)
  return [options as O, work as W]
}

// A generated holder is an id of this process and a number. The id is made at first use, because a Worker has no random numbers
// while it loads.
let ours: string | undefined
let fresh = 1

/** The default holder. It is different each time, so every call is a separate contender. */
export function freshHolder(): string {
  ours ??= crypto.randomUUID()
  return `${ours}.${fresh++}`
}
