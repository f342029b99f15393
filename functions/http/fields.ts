/**
 * What a request may contain: the fields that all routes share. How they are read from a request: input.ts.
 *
 * One field both validates and documents (openapi.json). Its message is the whole allowed range in words, whatever was
 * wrong, so that every 400 reads "`ttlMs` must be an integer, 1000–3600000". Objects are closed: a misspelt `ttlMS` is a
 * 400 that names it, never a silent default.
 */
import { isDots } from '../../lib/base/index.ts'
import { LIMITS } from '../../lib/index.ts'
import { type Field, type FieldError, type JsonSchema, type ObjectOf, objectJson } from './schema.ts'

/** The properties of an object, or the parameters of a path or query, by name. */
export type Fields = { readonly [name: string]: Field<unknown> }

/** @param parse  returns undefined for a value that is not as `expected` says. */
function field<T>(expected: string, json: JsonSchema, parse: (value: unknown) => T | undefined): Field<T> {
  return {
    json,
    read(value, path, errors) {
      const parsed = parse(value)
      if (parsed === undefined) errors.push({ field: path, expected })
      return parsed
    },
  }
}

/** The same field, of which some values are refused for another reason. @param at  the property to blame, of an object. */
export function refined<T>(of: Field<T>, expected: string, holds: (value: T) => boolean, at?: string): Field<T> {
  return {
    ...of,
    read(value, path, errors) {
      const before = errors.length
      const read = of.read(value, path, errors) as T
      if (errors.length === before && !holds(read)) errors.push({ field: at ? joined(path, at) : path, expected })
      return read
    },
  }
}

/** A string of the caller's for which `parse` has a value. */
function parsed<T>(expected: string, json: JsonSchema, parse: (text: string) => T | undefined): Field<T> {
  return field(expected, { type: 'string', ...json }, (value) => (typeof value === 'string' ? parse(value) : undefined))
}

/** A string of the caller's for which `holds` is true. */
export function string(expected: string, json: JsonSchema, holds: (text: string) => boolean): Field<string> {
  return parsed(expected, json, (text) => (holds(text) ? text : undefined))
}

// Engines differ: not all know `\p{Cc}`, `\u` or a look ahead. This all of them read.
const PRINTABLE = '^[^\\x00-\\x1f\\x7f-\\x9f]*$'
const DOTS = { enum: ['.', '..'] }

/** A name, or any other word of a caller: well-formed Unicode without control characters. */
export function text({ min, max }: { min: number; max: number }): Field<string> {
  return string(
    `a string of ${min}–${max} characters, none of them a control character`,
    { minLength: min, maxLength: max, pattern: PRINTABLE },
    (text) => text.isWellFormed() && !/\p{Cc}/u.test(text) && within(text, min, max),
  )
}

/** A whole number in a body. */
export function integer({ min, max }: { min: number; max: number }): Field<number> {
  return field(`an integer, ${min}–${max}`, { type: 'integer', minimum: min, maximum: max }, (value) =>
    Number.isInteger(value) && between(value as number, min, max) ? (value as number) : undefined,
  )
}

/** Any number in a body. */
export function number({ min, max }: { min: number; max: number }): Field<number> {
  return field(`a number, ${min}–${max}`, { type: 'number', minimum: min, maximum: max }, (value) =>
    typeof value === 'number' && between(value, min, max) ? value : undefined,
  )
}

/** A truth value in a body. */
export function boolean(expected = 'true or false'): Field<boolean> {
  return field(expected, { type: 'boolean' }, (value) => (typeof value === 'boolean' ? value : undefined))
}

/** One of these words. */
export function word<const W extends string>(...words: W[]): Field<W> {
  return parsed(listed(words), { enum: words }, (text) => words.find((word) => word === text))
}
const listed = (words: string[]) => words.join(', ').replace(/, ([^,]+)$/, ' or $1')

/** A whole number in a query string: digits only, no `1e3`, no sign, no spaces. */
export function digits({ min, max }: { min: number; max: number }): Field<number> {
  return parsed(`an integer, ${min}–${max}`, { type: 'integer', minimum: min, maximum: max }, (text) =>
    /^\d{1,9}$/.test(text) && between(Number(text), min, max) ? Number(text) : undefined,
  )
}

const QUEUE = 'a string of 1–255 letters, digits, `_`, `-`, `.` and `/`, and not `.` or `..`'
// Postgres reads jsonb by recursion, and JSON.stringify writes it by recursion: both would end at some thousands.
const MAX_DEPTH = 1_000
const MAX = 2n ** 63n - 1n

/** A whole number of 64 bits, from 1: a string, because JSON numbers lose precision above 2^53. */
export function decimal(max = MAX): Field<bigint> {
  const json = { pattern: '^[1-9][0-9]{0,18}$', example: '4711' }
  return parsed(`a decimal string, 1–${max}`, json, (text) => bigint(text, max))
}

/** Such a number, or one of these words. */
export function decimalOr<const W extends string>(min: 0n | 1n, ...words: W[]): Field<bigint | W> {
  const json = { pattern: `^(${words.join('|')}|${min === 0n ? '0|' : ''}[1-9][0-9]{0,18})$` }
  return parsed<bigint | W>(
    listed([`a decimal string, ${min}–${MAX}`, ...words]),
    json,
    (text) => words.find((word) => word === text) ?? (text === '0' && min === 0n ? 0n : bigint(text, MAX)),
  )
}

function bigint(text: string, max: bigint): bigint | undefined {
  const value = /^[1-9]\d{0,18}$/.test(text) ? BigInt(text) : undefined
  return value !== undefined && value <= max ? value : undefined
}

/** A fencing token. */
export const token = decimal()
/** The position of an event in its stream, or its cursor: its place among all events. */
export const position = decimal()

/** A switch in a query string. */
export const flag = parsed<true>('`true`, or left out', { enum: ['true'] }, (text) =>
  text === 'true' ? true : undefined,
)

/** The name of a queue: what pg-boss allows. */
export const queue = refined(
  string(
    QUEUE,
    {
      minLength: 1,
      maxLength: 255,
      pattern: '^[A-Za-z0-9_./-]+$',
      not: DOTS,
      description: 'In a path a `/` in it is written `%2F`. Not `.` or `..`',
    },
    (name) => /^[\w./-]{1,255}$/.test(name) && !isDots(name),
  ),
  'no word that every object has, such as `constructor`',
  (name) => !(name in Object.prototype),
)

/** The id of a job. In lower case, as Postgres returns it: it is compared with that. */
export const uuid = parsed('a UUID', { format: 'uuid' }, (text) =>
  /^[\da-f]{8}-[\da-f]{4}-[\da-f]{4}-[\da-f]{4}-[\da-f]{12}$/i.test(text) ? text.toLowerCase() : undefined,
)

const STORABLE = 'without \\u0000, lone surrogates and numbers beyond ±1.7976931348623157e308'
/** What becomes of numbers: they are read as JavaScript reads them. */
export const NUMBERS = 'Numbers are 64-bit floats: of an integer beyond ±2^53 digits are lost, so send it as a string'

/** Any JSON value: only the caller understands it. */
export const json: Field<unknown> = field(
  `a JSON value of at most ${MAX_DEPTH} levels, ${STORABLE}`,
  { description: `Any JSON value of at most ${MAX_DEPTH} levels. ${NUMBERS}` },
  (value) => (shallow(value, MAX_DEPTH) && storable(value) ? value : undefined),
)

/** Why something failed: any JSON value. What cannot be stored of it is replaced by the library, for a failure must be told. */
export const failure: Field<unknown> = field(
  `a JSON value of at most ${MAX_DEPTH} levels`,
  { description: `Any JSON value of at most ${MAX_DEPTH} levels. ${NUMBERS}` },
  (value) => (shallow(value, MAX_DEPTH) ? value : undefined),
)

/** Any small JSON value that the caller wants others to see. */
export const meta: Field<unknown> = field(
  `a JSON value of at most ${LIMITS.metaBytes} bytes, ${STORABLE}`,
  { description: `Any JSON value, at most ${LIMITS.metaBytes} bytes. Every caller that may look sees it. ${NUMBERS}` },
  (value) => (storable(value, LIMITS.metaBytes) ? value : undefined),
)

const named = refined(text(LIMITS.name), 'another name than `.` and `..`, which no URL can have', (it) => !isDots(it))
export const name: Field<string> = {
  ...named,
  json: {
    ...named.json,
    not: DOTS,
    description:
      'Percent-encoded, a `/` in it as `%2F`. Not `.` or `..`: a URL cannot have such a segment, encoded or not',
  },
}
/** The path of what has a name. */
export const Name = { name }
export const holder = text(LIMITS.holder)
export const ttlMs = integer(LIMITS.ttlMs)
export const waitMs = integer(LIMITS.waitMs)

/** An array; the message is `expected`, also of one that is too short or too long. */
export function array<T>(items: Field<T>, { min, max }: { min: number; max: number }, expected: string): Field<T[]> {
  return {
    json: { type: 'array', items: items.json, minItems: min, maxItems: max },
    read(value, path, errors) {
      if (Array.isArray(value) && between(value.length, min, max)) {
        return value.map((item, i) => items.read(item, joined(path, String(i)), errors) as T)
      }
      errors.push({ field: path, expected })
      return undefined
    },
  }
}

/** One of two fields. @param isB  whether the caller means the second: then the errors are that field's. */
export function either<A, B>(a: Field<A>, b: Field<B>, isB: (value: unknown) => boolean): Field<A | B> {
  return {
    json: { anyOf: [a.json, b.json] },
    read: (value, path, errors) => (isB(value) ? b : a).read(value, path, errors),
  }
}

/** An object that has no other properties than these. */
export function object<F extends Fields>(fields: F): Field<ObjectOf<F>> {
  return {
    json: { ...objectJson(fields), additionalProperties: false },
    read(value, path, errors) {
      if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
        return readFields(fields, value as Record<string, unknown>, path, errors, false)
      }
      errors.push({ field: path || 'body', expected: 'a JSON object' })
      return undefined
    },
  }
}

/** Reads each field from `values`. @param open  whether other values may be there. */
export function readFields<F extends Fields>(
  fields: F,
  values: Record<string, unknown>,
  path: string,
  errors: FieldError[],
  open: boolean,
): ObjectOf<F> {
  const read: Record<string, unknown> = {}
  for (const [name, field] of Object.entries(fields)) {
    if (Object.hasOwn(values, name)) read[name] = field.read(values[name], joined(path, name), errors)
    else if (!field.optional) field.read(undefined, joined(path, name), errors)
  }
  for (const name of open ? [] : Object.keys(values)) {
    if (!Object.hasOwn(fields, name)) {
      errors.push({ field: shortened(joined(path, name)), expected: 'left out: there is no such field' })
    }
  }
  return read as ObjectOf<F>
}

const joined = (path: string, name: string) => (path === '' ? name : `${path}.${name}`)

const between = (value: number, min: number, max: number) => value >= min && value <= max

// Code points, as Postgres counts; the first test saves counting a string of a megabyte.
function within(s: string, min: number, max: number): boolean {
  return s.length <= max * 2 && [...s].length >= min && [...s].length <= max
}

// What jsonb refuses: \u0000, and halves of surrogate pairs (JSON.stringify escapes them); and `1e400`, which JSON.parse makes Infinity
// of, and JSON.stringify null. A value too deep for the stack of JSON.stringify has more brackets than bytes are allowed.
function storable(value: unknown, bytes = Infinity): boolean {
  try {
    const json = JSON.stringify(value)
    return (
      (bytes === Infinity || new TextEncoder().encode(json).byteLength <= bytes) &&
      !/(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/i.test(json) &&
      !(json.includes('null') && infinite(value))
    )
  } catch {
    return false
  }
}

function infinite(value: unknown): boolean {
  if (typeof value === 'number') return !Number.isFinite(value)
  return typeof value === 'object' && value !== null && Object.values(value).some(infinite)
}

function shallow(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return true
  return levels > 0 && Object.values(value).every((inner) => shallow(inner, levels - 1))
}

/** A name of the caller's, as much of it as an answer repeats. */
export function shortened(s: string): string {
  return s.length > 80 ? `${s.slice(0, 80)}…` : s
}
