/**
 * Web pages. A browser says in `Origin` which page asks: one of this very origin may, one of another only if it is listed, and then
 * the answer tells the browser so (CORS). Programs send no `Origin`.
 */
import type { MiddlewareHandler } from 'hono'
import { Problem } from './problem.ts'

export interface OriginOptions {
  /** The origins whose web pages may ask, such as `https://app.example.com`. @default none but its own */
  origins?: readonly string[] | undefined
}

/** @param from  the option, or the variable. @throws {Error} one of them is no origin. */
export function checkOrigins(origins: readonly string[] = [], from = 'origins'): void {
  const wrong = origins.find((origin) => !/^https?:/.test(origin) || URL.parse(origin)?.origin !== origin)
  if (wrong === undefined) return
  throw new Error(`${from} must be origins like https://app.example.com, without a path, not ${JSON.stringify(wrong)}`)
}

/** Whether a request comes from a web page whose origin is listed. */
export function isListed(request: Request, { origins = [] }: OriginOptions): boolean {
  return origins.includes(request.headers.get('Origin') ?? '')
}

/** Refuses requests of web pages that may not ask, and answers the browser's question whether a listed one may. */
export function webPages(options: OriginOptions): MiddlewareHandler {
  return async (c, next) => {
    const request = c.req.raw
    const origin = request.headers.get('Origin')
    if (origin === null) {
      await next()
    } else if (!isListed(request, options)) {
      // TLS may have ended in front of us, so the scheme says nothing.
      if (URL.parse(origin)?.host !== new URL(request.url).host) throw refused(origin)
      await next()
    } else {
      const asks = request.method === 'OPTIONS' && request.headers.has('Access-Control-Request-Method')
      if (asks) c.res = c.body(null, 204, PREFLIGHT)
      else await next()
      c.res.headers.set('Access-Control-Allow-Origin', origin)
      c.res.headers.set('Access-Control-Expose-Headers', READABLE)
    }
    if (options.origins?.length) c.res.headers.append('Vary', 'Origin')
  }
}

const refused = (origin: string) =>
  new Problem(
    403,
    'FORBIDDEN',
    `Web pages of ${JSON.stringify(origin.slice(0, 255))} may not ask: it is not among the origins that are listed`,
  )

const PREFLIGHT = {
  'Access-Control-Allow-Methods': 'GET, POST, PUT, PATCH, DELETE',
  'Access-Control-Allow-Headers': 'Authorization, Content-Type, Last-Event-ID',
  'Access-Control-Max-Age': '600',
}
const READABLE = 'Retry-After, X-Request-Id'
