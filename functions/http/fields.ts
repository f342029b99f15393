/**
 * What a request may contain: the fields all routes share, and how a body and a path are read.
 *
 * One zod schema per field both validates and documents it (openapi.json). Its message is the whole allowed range in
 * words, whatever was wrong, so that every 400 reads "`ttlMs` must be an integer, 1000–3600000". Objects are strict:
 * a misspelt `ttlMS` is a 400 that names it, never a silent default.
 *
 * Reading is stricter than the platform's: bytes that are not UTF-8 and percent-signs that encode nothing are
 * refused, since replacing them (as `fetch` and hono do) would make one name out of two.
 */
import { z } from '@hono/zod-openapi'
import type { Context, MiddlewareHandler } from 'hono'
import { LIMITS } from '../../lib/index.ts'
import { invalid } from './problem.ts'

/** A name, or any other word of a caller: well-formed Unicode without control characters. */
export function text({ min, max }: { min: number; max: number }) {
  const error = `a string of ${min}–${max} characters, none of them a control character`
  return z
    .string({ error })
    .refine((s) => s.isWellFormed() && !/\p{Cc}/u.test(s) && within(s, min, max), { error })
    .openapi({ minLength: min, maxLength: max, pattern: '^\\P{Cc}*$' })
}

/** A whole number in a body. */
export function integer({ min, max }: { min: number; max: number }) {
  const error = `an integer, ${min}–${max}`
  return z.number({ error }).int({ error }).min(min, { error }).max(max, { error })
}

/** Any number in a body. */
export function number({ min, max }: { min: number; max: number }) {
  const error = `a number, ${min}–${max}`
  return z.number({ error }).min(min, { error }).max(max, { error })
}

/** One of these words. */
export function word<const W extends string>(...words: W[]) {
  return z.enum(words, { error: listed(words) })
}
const listed = (words: string[]) => words.join(', ').replace(/, ([^,]+)$/, ' or $1')

/** A whole number in a query string: digits only, no `1e3`, no sign, no spaces. */
export function digits({ min, max }: { min: number; max: number }) {
  const error = `an integer, ${min}–${max}`
  return z
    .string({ error })
    .regex(/^\d{1,9}$/, { error })
    .transform(Number)
    .refine((n) => n >= min && n <= max, { error })
    .openapi({ type: 'integer', minimum: min, maximum: max })
}

const QUEUE = 'a string of 1–255 letters, digits, `_`, `-`, `.` and `/`'
// Postgres reads jsonb by recursion, and so does JSON.stringify write it: either would end at some thousands.
const MAX_DEPTH = 1_000
const MAX = 2n ** 63n - 1n

/** A whole number of 64 bits, from 1: a string, because JSON numbers lose precision above 2^53. */
export function decimal(max = MAX) {
  const error = `a decimal string, 1–${max}`
  return z
    .string({ error })
    .regex(/^[1-9]\d{0,18}$/, { error })
    .transform(BigInt)
    .refine((n) => n <= max, { error })
    .openapi({ type: 'string', pattern: '^[1-9][0-9]{0,18}$', example: '4711' })
}

/** Such a number, or one of these words. */
export function decimalOr<const W extends string>(min: 0n | 1n, ...words: W[]) {
  const error = `a decimal string, ${min}–${MAX}, ${listed(words)}`
  const pattern = `^(${words.join('|')}|${min === 0n ? '0|' : ''}[1-9][0-9]{0,18})$`
  return z
    .string({ error })
    .regex(new RegExp(pattern), { error })
    .transform((text) => (words.includes(text as W) ? (text as W) : BigInt(text)))
    .refine((value) => typeof value === 'string' || value <= MAX, { error })
    .openapi({ type: 'string', pattern })
}

/** A fencing token. */
export const token = decimal()
/** Where an event is in its stream; as a cursor: where it is among all. */
export const position = decimal()

/** A switch in a query string. */
export const yes = z.literal('true', { error: '`true`, or left out' })

/** The name of a queue: what pg-boss allows. */
export const queue = z
  .string({ error: QUEUE })
  .regex(/^[\w./-]{1,255}$/, { error: QUEUE })
  .refine((name) => !(name in Object.prototype), { error: 'no word that every object has, such as `constructor`' })
  .openapi({ minLength: 1, maxLength: 255, description: 'In a path a `/` in it is written `%2F`' })

/** Of a job. In lower case, as Postgres gives it back: it is compared with that. */
export const uuid = z
  .guid({ error: 'a UUID' })
  .transform((id) => id.toLowerCase())
  .openapi({ type: 'string', format: 'uuid' })

const ANY = `a JSON value of at most ${MAX_DEPTH} levels, without \\u0000 and lone surrogates`

/** What nobody but the caller understands. */
export const json = z
  .unknown() // not z.json(): it recurses, and 64 KiB of brackets would end its stack
  .refine((value) => shallow(value, MAX_DEPTH) && storable(value), { error: ANY })
  .openapi({ description: `Any JSON value of at most ${MAX_DEPTH} levels` })

const META = `a JSON value of at most ${LIMITS.metaBytes} bytes, without \\u0000 and lone surrogates`

/** Anything the caller wants others to see. */
export const meta = z
  .unknown() // not z.json(): it recurses, and 64 KiB of brackets would end its stack
  .refine((value) => storable(value, LIMITS.metaBytes), { error: META })
  .openapi({ description: `Any JSON value, at most ${LIMITS.metaBytes} bytes. Shown to whoever looks` })

export const name = text(LIMITS.name).openapi({
  description: 'Percent-encoded, a `/` in it as `%2F`. `.` and `..` cannot be said in a URL',
})
export const holder = text(LIMITS.holder)
export const ttlMs = integer(LIMITS.ttlMs)
export const waitMs = integer(LIMITS.waitMs)

/** An object that has no other fields than these. */
export function strict<S extends z.ZodRawShape>(shape: S) {
  const error = (issue: { code?: string | undefined }) => (issue.code === 'invalid_type' ? 'a JSON object' : undefined)
  return z.strictObject(shape, { error })
}

/** The body, checked. An empty one is `{}`; anything else must be said to be JSON, and be JSON. */
export async function readBody<S extends z.ZodType>(c: Context, schema: S): Promise<z.output<S>> {
  const bytes = await c.req.arrayBuffer().catch(() => {
    throw invalid({ field: 'body', expected: 'as long as its Content-Length says' })
  })
  if (bytes.byteLength > 0 && !/^application\/json\s*(;|$)/i.test(c.req.header('Content-Type') ?? '')) {
    throw invalid({ field: 'content-type', expected: 'application/json' })
  }
  let value: unknown = {}
  try {
    if (bytes.byteLength > 0) value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    throw invalid({ field: 'body', expected: 'JSON in UTF-8' })
  }
  const result = schema.safeParse(value)
  if (result.success) return result.data
  throw invalidFields(result.error, 'body')
}

/** The hook of OpenAPIHono: a path or query that does not fit is a 400. */
export function checked(result: { success: true } | { success: false; target: string; error: z.ZodError }): void {
  if (!result.success) throw invalidFields(result.error, result.target)
}

/** Refuses a path or query whose percent-signs encode nothing: `%zz`, `%ff`. Names the field. */
export const wellEncoded: MiddlewareHandler = async (c, next) => {
  if (!decodes(c.req.path)) {
    const at = c.req.path.split('/').findIndex((segment) => !decodes(segment)) // `/v1/tasks/{name}/{id}`
    throw invalid({ field: at > 3 ? 'id' : 'name', expected: 'percent-encoded UTF-8' })
  }
  const at = c.req.url.indexOf('?')
  const pairs = at < 0 ? [] : c.req.url.slice(at + 1).split('&')
  const broken = pairs.find((pair) => !decodes(pair))
  if (broken) throw invalid({ field: shortened(broken.split('=', 1)[0] as string), expected: 'percent-encoded UTF-8' })
  await next()
}

function invalidFields(error: z.ZodError, whole: string) {
  return invalid(
    ...error.issues.flatMap((issue) =>
      issue.code === 'unrecognized_keys'
        ? issue.keys.map((key) => ({
            field: shortened([...issue.path, key].join('.')),
            expected: 'left out: there is no such field',
          }))
        : [{ field: issue.path.join('.') || whole, expected: issue.message }],
    ),
  )
}

// Code points, as Postgres counts; the first test saves counting a string of a megabyte.
function within(s: string, min: number, max: number): boolean {
  return s.length <= max * 2 && [...s].length >= min && [...s].length <= max
}

// What jsonb refuses: \u0000, and halves of surrogate pairs (JSON.stringify escapes them). A value too deep for
// the stack of JSON.stringify has more brackets than bytes are allowed.
function storable(value: unknown, bytes = Infinity): boolean {
  try {
    const json = JSON.stringify(value)
    return (
      (bytes === Infinity || new TextEncoder().encode(json).byteLength <= bytes) &&
      !/(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/i.test(json)
    )
  } catch {
    return false
  }
}

function shallow(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return true
  return levels > 0 && Object.values(value).every((inner) => shallow(inner, levels - 1))
}

function decodes(s: string): boolean {
  try {
    decodeURIComponent(s)
    return true
  } catch {
    return false
  }
}

function shortened(s: string): string {
  return s.length > 80 ? `${s.slice(0, 80)}…` : s
}
