/**
 * How the path, the query, the headers and the body of a request are read: all that is wrong in one of them is one 400.
 *
 * Reading is stricter than the platform's: bytes that are not UTF-8 and percent signs that encode nothing are refused,
 * since replacing them (as `fetch` and hono do) would make one name out of two.
 */
import type { Context, MiddlewareHandler } from 'hono'
import { type Fields, readFields, shortened } from './fields.ts'
import { invalid } from './problem.ts'
import type { Field, FieldError, ObjectOf } from './schema.ts'

/** Reads the parameters of a path, or headers: others are ignored. Throws a 400. */
export function readOpen<F extends Fields>(fields: F, values: Record<string, string>): ObjectOf<F> {
  const errors: FieldError[] = []
  const read = readFields(fields, values, '', errors, true)
  if (errors.length > 0) throw invalid(...errors)
  return read
}

/** Reads the query: one that the route does not know is refused, and so is one that is there twice. Throws a 400. */
export function readQuery<F extends Fields>(c: Context, fields: F): ObjectOf<F> {
  const errors: FieldError[] = []
  const all = Object.entries(c.req.queries()).map(([name, values]) => [name, values.length === 1 ? values[0] : values])
  const read = readFields(fields, Object.fromEntries(all), '', errors, false)
  if (errors.length > 0) throw invalid(...errors)
  return read
}

/** Reads the body. An empty one is `{}`; any other must be declared as JSON, and be JSON. Throws a 400. */
export async function readBody<T>(c: Context, field: Field<T>): Promise<T> {
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
  const errors: FieldError[] = []
  const read = field.read(value, '', errors)
  if (errors.length > 0) throw invalid(...errors)
  return read as T
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

function decodes(s: string): boolean {
  try {
    decodeURIComponent(s)
    return true
  } catch {
    return false
  }
}
