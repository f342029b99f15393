/**
 * Values and JSON: what can be stored as jsonb, errors in a form that always can, and our own answers, whose 64-bit numbers JSON
 * has no type for.
 */
import { LIMITS } from './arguments.ts'
import { outOfRange, wrongType } from './errors.ts'

/** The JSON text of `meta`; null if there is none. @throws {TypeError | RangeError} */
export function metaText(meta: unknown): string | null {
  return meta === undefined ? null : jsonText('meta', meta, LIMITS.metaBytes)
}

/** The JSON text of a value, which Postgres can store as jsonb. @throws {TypeError | RangeError} with `code` INVALID_ARGUMENT and `field`. */
export function jsonText(field: string, value: unknown, maxBytes: number): string {
  const expected = `JSON of at most ${maxBytes} bytes`
  let text: string | undefined
  try {
    text = JSON.stringify(value)
    // JSON.stringify makes null of NaN and Infinity. Most texts have no null, and are not looked at again.
    if (text?.includes('null')) JSON.stringify(value, finite)
  } catch (error) {
    if (error instanceof NotFinite) throw wrongType(field, `${expected}, of finite numbers`, error.number)
    text = undefined
  }
  // JSON can express U+0000 and half of a surrogate pair; jsonb cannot store them
  if (text === undefined || (text.includes('\\u') && /(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(text)))
    throw wrongType(field, `${expected}, of whole characters`, value)
  // a UTF-16 unit is three bytes at most, so most texts need not be encoded to know their size
  if (text.length * 3 > maxBytes && new TextEncoder().encode(text).length > maxBytes)
    throw outOfRange(field, expected, value)
  return text
}

class NotFinite extends Error {
  readonly number: number
  constructor(number: number) {
    super()
    this.number = number
  }
}
function finite(_key: string, value: unknown): unknown {
  const number = value instanceof Number ? value.valueOf() : value
  if (typeof number === 'number' && !Number.isFinite(number)) throw new NotFinite(number)
  return value
}

/** An error may have the sockets of a request in it: so many levels, and values, are kept. */
const MOST = { levels: 1_000, values: 100_000 }

/**
 * Anything that was thrown, as a JSON value that jsonb can store. Of an error `name`, `message`, `stack`, `code`, `cause`, `errors` and
 * its other properties are kept. U+0000 becomes `\\0`, and half of a surrogate pair U+FFFD; bigints, NaN and Infinity become text.
 * Functions are left out, and so is what contains itself.
 */
export function storableError(thrown: unknown): unknown {
  try {
    return storable(thrown, { above: [], count: { values: 0 } }) ?? null
  } catch {
    return { message: 'What was thrown cannot be shown' } // it has a getter that throws
  }
}

interface Place {
  above: object[]
  count: { values: number }
}

function storable(value: unknown, { above, count }: Place): unknown {
  count.values += 1
  if (typeof value === 'string') return characters(value)
  if (typeof value === 'bigint') return String(value)
  if (typeof value === 'number') return Number.isFinite(value) ? value : String(value)
  if (typeof value === 'symbol') return characters(String(value))
  if (typeof value === 'function') return undefined
  if (typeof value !== 'object' || value === null) return value
  if (above.includes(value) || above.length >= MOST.levels || count.values > MOST.values) return undefined
  const within = { above: [...above, value], count }
  if (Array.isArray(value)) return value.map((each) => storable(each, within) ?? null)
  if (ArrayBuffer.isView(value)) return `${value.byteLength} bytes`
  const own = value instanceof Error ? errorFields(value) : shown(value)
  if (typeof own !== 'object' || own === null) return storable(own, within)
  const kept: Record<string, unknown> = {}
  for (const [key, inner] of Object.entries(own)) {
    const stored = storable(inner, within)
    // not by an assignment: that of __proto__ would set the prototype
    if (stored !== undefined) Object.defineProperty(kept, characters(key), { value: stored, ...ORDINARY })
  }
  return kept
}
const ORDINARY = { enumerable: true, configurable: true, writable: true }

// An error has these as properties that are not listed, or inherits them.
function errorFields(error: Error): object {
  const { name, message, stack, code, cause, errors } = error as Error & Record<'code' | 'cause' | 'errors', unknown>
  return { name, message, stack, code, cause, errors, ...(shown(error) as object) }
}

// What JSON.stringify would make of it: toJSON of a Date, or of a class of the user's, which may throw.
function shown(value: object): unknown {
  try {
    const { toJSON } = value as { toJSON?: unknown }
    return typeof toJSON === 'function' ? toJSON.call(value, '') : value
  } catch {
    return value
  }
}

const characters = (text: string): string => text.replaceAll('\0', '\\0').toWellFormed()

/** The fields of an answer as JSON.stringify gets them: 64-bit numbers as decimal strings, as everywhere over HTTP. */
export function exactJson(fields: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [key, typeof value === 'bigint' ? String(value) : value]),
  )
}

/** An answer with 64-bit numbers: JSON.stringify throws at a bigint, unless its object says what to write. */
export class Exact {
  toJSON(): Record<string, unknown> {
    return exactJson(this)
  }
}

/** An answer with these fields whose bigints are decimal strings in JSON. */
export function exact<T extends object>(fields: T): T & Exact {
  return Object.assign(new Exact(), fields)
}
