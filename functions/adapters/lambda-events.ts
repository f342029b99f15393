/**
 * Events of Lambda as requests, and responses as the results that Lambda expects.
 *
 * Function URLs and HTTP APIs send events of format 2.0, REST APIs and load balancers of format 1.0, VPC Lattice its own. Other
 * programs may call a function with anything. An event that is no request, or one that `node:http` would refuse, is a 400 here too: a
 * handler never throws, because Lambda would answer 502 and count a failure. Hono's own handler is not used: it
 * cannot make a request of a GET with a body (as clients send it, Node ignores the body), and answers its failures in plain text,
 * the streaming one with 200.
 *
 * Paths. A function URL hands on the path as it was sent. An HTTP API (API Gateway v2) decodes it first. Most of that is undone
 * here, but a name with `/` or `?` in it can no longer be told from another.
 */
import { METHODS } from 'node:http'
import { invalid, refuseDots } from '../http/index.ts'

type Pairs = [name: string, value: string][]

/** What all formats have. A load balancer sends both queries, paths and values as the client did. */
interface Asked {
  method: unknown
  path: string
  /** Without `?`. */
  query: string
  headers: Pairs
}

/**
 * The request of an event.
 * @param basePath  below which the application answers.
 * @throws {Problem} 400: it is no request.
 */
export function requestOf(event: unknown, basePath = ''): Request {
  const { method, path, query, headers: pairs } = asked(event, basePath)
  if (typeof method !== 'string' || !METHODS.includes(method)) throw invalid({ field: 'method', expected: METHOD })
  if (!path.startsWith('/') || !readable(path) || path.includes('\\')) throw invalid({ field: 'path', expected: PATH })
  if (!readable(query)) throw invalid({ field: 'query', expected: 'percent-encoded UTF-8' })
  refuseDots(path)
  const target = path.replaceAll('?', '%3F') + (query && `?${query}`)
  const headers = headersOf(pairs)
  const body = NO_BODY.has(method) ? undefined : bodyOf(event as { body?: unknown; isBase64Encoded?: unknown })
  // The length that was announced may be another one, and the application relies on it.
  for (const name of ['Content-Length', 'Transfer-Encoding']) headers.delete(name)
  if (body) headers.set('Content-Length', String(body.byteLength))
  const forbidden = FORBIDDEN.has(method)
  const init = { method: forbidden ? 'GET' : method, headers, ...(body && { body }) }
  const request = new Request(`https://localhost${target.replaceAll('#', '%23')}`, init)
  return forbidden ? Object.defineProperty(request, 'method', { value: method }) : request
}

/** The result of a whole response, for an event. */
export async function resultOf(event: unknown, response: Response): Promise<object> {
  const multiple = (event as { multiValueHeaders?: unknown } | null)?.multiValueHeaders
  const headers = [...response.headers]
  return {
    statusCode: response.status,
    ...(multiple
      ? { multiValueHeaders: Object.fromEntries(headers.map(([name, value]) => [name, [value]])) }
      : { headers: Object.fromEntries(headers) }),
    body: await response.text(), // all that is answered in one piece is text
    isBase64Encoded: false,
  }
}

const METHOD = 'a method of HTTP, in capital letters'
const PATH = 'a path that begins with `/`, in percent-encoded UTF-8, without a backslash'
const NO_BODY = new Set(['GET', 'HEAD', 'TRACE', 'CONNECT'])
// `fetch` makes no request of these. The application refuses them: 405.
const FORBIDDEN = new Set(['TRACE', 'CONNECT', 'TRACK'])

// A URL drops line breaks, and replaces a lone surrogate: two names would become one.
// biome-ignore lint/suspicious/noControlCharactersInRegex: those of ASCII
const readable = (text: string) => text.isWellFormed() && !/[\0-\x1f\x7f]/.test(text)

function asked(event: unknown, basePath: string): Asked {
  const { requestContext, ...its } = record(event)
  const context = record(requestContext)
  if (typeof its.rawPath === 'string') {
    return {
      method: record(context.http).method,
      path: pathOf(its.rawPath, context, basePath),
      query: text(its.rawQueryString),
      headers: [...pairsOf(its.headers), ['Cookie', many(its.cookies).join('; ')]],
    }
  }
  const [path = '', ...query] = text(its.path).split('?') // Lattice: with its query
  const single = pairsOf(its.headers)
  const multiple = pairsOf(its.multiValueHeaders)
  const there = new Set(multiple.map(([name]) => name.toLowerCase()))
  return {
    method: its.httpMethod ?? its.method,
    path,
    query: 'serviceArn' in context ? query.join('?') : queryOf(its, 'elb' in context),
    headers: [...multiple, ...single.filter(([name]) => !there.has(name.toLowerCase()))],
  }
}

/** A path of format 2.0, as the client sent it. A stage is cut off, unless what seems to be it is the mapping of a domain. */
function pathOf(rawPath: string, { domainName, stage }: Record<string, unknown>, basePath: string): string {
  if (/\.lambda-url\.[^.]+\.on\.aws(\.cn)?$/.test(text(domainName))) return rawPath
  const mapped = basePath !== '' && rawPath.startsWith(`${basePath}/`)
  const staged = !mapped && text(stage) !== '' && rawPath.startsWith(`/${stage}/`)
  const path = staged ? rawPath.slice(text(stage).length + 1) : rawPath
  return path.isWellFormed() ? path.split('/').map(encodeURIComponent).join('/') : path
}

/** The query of format 1.0: an API has decoded it, a load balancer has not. */
function queryOf(its: Record<string, unknown>, encoded: boolean): string {
  const multiple = pairsOf(its.multiValueQueryStringParameters)
  const pairs = multiple.length > 0 ? multiple : pairsOf(its.queryStringParameters)
  const written = (part: string) => (encoded || !part.isWellFormed() ? part : encodeURIComponent(part))
  return pairs.map((pair) => pair.map(written).join('=')).join('&')
}

function headersOf(pairs: Pairs): Headers {
  const headers = new Headers()
  for (const [name, value] of pairs) {
    if (value === '' && name === 'Cookie') continue
    try {
      // Node takes each byte for a character.
      headers.append(name, Buffer.from(value, 'utf8').toString('latin1'))
    } catch {
      throw invalid({ field: 'headers', expected: 'names and values as HTTP allows them' })
    }
  }
  return headers
}

function bodyOf({
  body,
  isBase64Encoded,
}: {
  body?: unknown
  isBase64Encoded?: unknown
}): Uint8Array<ArrayBuffer> | undefined {
  if (body === undefined || body === null || body === '') return undefined
  if (typeof body !== 'string') throw invalid({ field: 'body', expected: 'a string' })
  if (!isBase64Encoded) {
    if (!body.isWellFormed()) throw invalid({ field: 'body', expected: 'JSON in UTF-8' })
    return new TextEncoder().encode(body)
  }
  // Buffer reads past what is wrong, and so would make something else of it.
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(body)) throw invalid({ field: 'body', expected: 'base64' })
  return new Uint8Array(Buffer.from(body, 'base64'))
}

const record = (value: unknown): Record<string, unknown> =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
const text = (value: unknown) => (typeof value === 'string' ? value : '')
const many = (value: unknown) => (Array.isArray(value) ? value : [value]).filter((each) => typeof each === 'string')

/** Every value of an object whose values are strings, or arrays of them. */
function pairsOf(values: unknown): Pairs {
  return Object.entries(record(values)).flatMap(([name, value]) =>
    many(value).map((each) => [name, each] as Pairs[number]),
  )
}
