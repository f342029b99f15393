/**
 * The checks of an answer, for any request: the OpenAPI document must list its status for the operation, its shape must match
 * the schema, and it must contain nothing internal, such as SQL.
 *
 * The operation is found from the path and the templates of the document, not from the router. So a request that the router
 * gives to another operation than the document says is found as a fault.
 */
import { type Document, referred } from './request.ts'

export interface Answered {
  status: number
  type: string
  text: string
}

/** Internal text: our SQL and PostgreSQL's, stack traces, connection strings. */
const INSIDE =
  /\blockstep(?:_boss)?\.[a-z_]+|\bselect\s|\binsert into|\bpg_[a-z]+|postgres(?:ql)?:\/\/|\bat \S+ \(|\.[jt]s:\d+/i

/**
 * The two answers 503 that are allowed while the database is healthy: one caller used a group while another deleted it; and a
 * tenth of a second may be too short for a tick on a busy server.
 */
const EXPECTED_503 = /The group was ended in this moment|The database was too slow for a budget of \d+ ms/

/** The fault of an answer; undefined: there is none. */
export function wrong(document: Document, method: string, path: string, answer: Answered): string | undefined {
  const { status, type, text } = answer
  const meant = operationsAt(document, path)
  const verb = method === 'HEAD' ? 'get' : method.toLowerCase()
  const operations = meant.map((item) => item[verb]).filter((each) => each !== undefined)
  const documented = operations.map(({ responses }) => responses[status]).filter((each) => each !== undefined)
  if (status >= 500 && status !== 504 && !EXPECTED_503.test(text)) return `it answered ${status}: ${text}`
  if (documented.length === 0) {
    // Answers that come before the operation is known: no key, a large body, no such path or method.
    const routers = operations.length > 0 ? [] : meant.length > 0 ? [401, 405, 413] : [401, 404, 413]
    if (!routers.includes(status)) return `no operation of ${method} ${path.slice(0, 100)} lists ${status}: ${text}`
  }
  if (method === 'HEAD' || type.startsWith('text/event-stream')) return undefined
  if (status === 204) return text === '' ? undefined : 'a 204 has a body'
  const leaked = new URL(`http://x${path}`).pathname !== '/openapi.json' && INSIDE.exec(text)
  if (leaked) return `the answer contains ${JSON.stringify(leaked[0])}: ${text}`
  if (status >= 400) return wrongProblem(document, answer)
  const value = JSON.parse(text)
  const schemas = documented.map((each) => each.content['application/json'].schema)
  const faults = schemas.map((schema) => misfit(document, schema, value, ''))
  return faults.includes(undefined)
    ? undefined
    : `the answer is not as documented: ${faults[0]} in ${text.slice(0, 500)}`
}

/** The items of the document whose path template matches. */
function operationsAt(document: Document, path: string): Document[] {
  const segments = new URL(`http://x${path}`).pathname.split('/')
  return Object.entries<Document>(document.paths)
    .filter(([template]) => {
      const those = template.split('/')
      if (those.length !== segments.length) return false
      return those.every((one, i) => (one.startsWith('{') ? segments[i] !== '' : one === segments[i]))
    })
    .map(([, item]) => item)
}

function wrongProblem(document: Document, { status, type, text }: Answered): string | undefined {
  if (type !== 'application/problem+json') return `${status} is ${type}`
  const problem = JSON.parse(text)
  if (problem.status !== status) return `its status field is ${problem.status}, its status ${status}`
  if (!/^[A-Z_]+$/.test(problem.code)) return `its code is ${problem.code}`
  if (status === 400 && !problem.errors?.length) return 'a 400 names no field'
  if (text.length > 10_000) return `a problem of ${text.length} characters`
  return misfit(document, document.components.schemas.Problem, problem, '')
}

/** Where a value does not match a schema; undefined: it matches. */
function misfit(document: Document, schema: Document, value: unknown, at: string): string | undefined {
  if (schema.$ref) return misfit(document, referred(document, schema.$ref), value, at)
  const all = schema.anyOf ?? schema.oneOf
  if (all) {
    const faults = all.map((each: Document) => misfit(document, each, value, at))
    return faults.includes(undefined) ? undefined : faults[0]
  }
  for (const each of schema.allOf ?? []) {
    const fault = misfit(document, each, value, at)
    if (fault) return fault
  }
  const types = [schema.type ?? []].flat() as string[]
  if (types.length > 0 && !types.some((type) => isOf(type, value))) return `${at} is not ${types.join(' or ')}`
  if (schema.enum && !schema.enum.includes(value)) return `${at} is none of ${schema.enum}`
  if (schema.pattern && typeof value === 'string' && !new RegExp(schema.pattern, 'u').test(value))
    return `${at} does not match ${schema.pattern}`
  if (Array.isArray(value) && schema.items) {
    return first(value.map((each, i) => misfit(document, schema.items, each, `${at}[${i}]`)))
  }
  if (isOf('object', value) && schema.properties) {
    const object = value as Record<string, unknown>
    const missing = (schema.required ?? []).find((name: string) => !(name in object))
    if (missing) return `${at}.${missing} is missing`
    const known = Object.entries<Document>(schema.properties).filter(([name]) => name in object)
    return first(known.map(([name, inner]) => misfit(document, inner, object[name], `${at}.${name}`)))
  }
  return undefined
}

const first = (faults: (string | undefined)[]) => faults.find((each) => each !== undefined)

function isOf(type: string, value: unknown): boolean {
  if (type === 'null') return value === null
  if (type === 'array') return Array.isArray(value)
  if (type === 'integer') return Number.isInteger(value)
  return typeof value === type && value !== null && !Array.isArray(value)
}
