/**
 * API keys: what a caller may do, and to which names.
 *
 * LOCKSTEP_API_KEYS holds entries separated by commas, blanks and newlines around them allowed:
 *
 *     id:sha256-of-secret:scope+scope[:name-prefix]
 *     ci:9f86d081884c…0a08:locks:write+time:read:ci/
 *
 * The separator `:` also stands inside a scope. That is no ambiguity: a scope is one of eleven fixed words
 * (`locks|leaders|tasks|streams|time` + `:read|:write`, and `admin`), so the list ends where no `+` follows, and
 * everything after the next `:` is the prefix, colons included. In the prefix `%` and `,` are written `%25` and
 * `%2C` (any character may be percent-encoded; a trailing blank must be).
 *
 * A caller sends `Authorization: Bearer id.secret`. Only the hash of the secret is configured, and the comparison
 * does the same work for an unknown id as for a wrong secret. Secrets must be random (`openssl rand -hex 32`): a
 * plain sha256 is no protection for a password.
 *
 * `write` implies `read`: a caller that may acquire learns from refusals what `read` would show. `admin` implies every
 * scope, and only `admin` may force a release. A prefix limits all scopes, `admin` too: such a key touches, and lists, only
 * names that start with the prefix. Without keys every caller may do everything; the adapters decide where that is allowed.
 */
import type { Context, MiddlewareHandler } from 'hono'
import { bearerAuth } from 'hono/bearer-auth'
import { timingSafeEqual } from 'hono/utils/buffer'
import { sha256 } from 'hono/utils/crypto'
import { Problem, sendProblem } from './problem.ts'

type Area = 'locks' | 'leaders' | 'tasks' | 'streams' | 'time'
export type Scope = `${Area}:read` | `${Area}:write` | 'admin'

export interface Key {
  id: string
  /** sha256 of the secret, lower-case hexadecimal. */
  hash: string
  scopes: ReadonlySet<Scope>
  /** '' for all names. */
  prefix: string
}

/** What our middleware stores in the context. `key` is absent when there are no keys; `arrivedMs` is there for `/v1/time` only. */
export interface Env {
  Variables: { requestId: string; key?: Key; arrivedMs?: number }
}

/**
 * Reads LOCKSTEP_API_KEYS. Absent or blank: no keys.
 *
 * @throws {Error} naming the entry's number and the field, never its content.
 */
export function parseKeys(configured: string | undefined): Key[] {
  if (!configured?.trim()) return []
  const keys = configured.split(',').map((entry, i) => parseKey(entry.trim(), i + 1))
  keys.forEach((key, i) => {
    if (keys.findIndex(({ id }) => id === key.id) < i) throw malformed(i + 1, 'id', 'used by one entry only')
  })
  return keys
}

/** Lets a request through that has one of these keys. */
export function authenticate(keys: readonly Key[]): MiddlewareHandler<Env> {
  if (keys.length === 0) return (_c, next) => next()
  const refuse = (detail: string) => (c: Context) => sendProblem(c, new Problem(401, 'UNAUTHENTICATED', detail))
  return bearerAuth<Env>({
    realm: 'lockstep',
    verifyToken: async (token, c) => {
      const key = await verify(keys, token)
      if (key) c.set('key', key)
      return key !== undefined
    },
    noAuthenticationHeader: { message: refuse('Send `Authorization: Bearer id.secret`') },
    invalidAuthenticationHeader: { message: refuse('Send `Authorization: Bearer id.secret`') },
    invalidToken: { message: refuse('There is no such key') },
  })
}

/** Lets a request through whose key has the scope and, where the path has a name, may touch that name. */
export function needs(scope: Scope): MiddlewareHandler<Env> {
  return async (c, next) => {
    allow(c, scope)
    covers(c, c.req.param('name'))
    await next()
  }
}

/** Throws a 403 unless the request's key may touch this name. '' stands for all names. */
export function covers(c: Context<Env>, name: string | undefined): void {
  if (name !== undefined && !name.startsWith(prefixOf(c))) throw otherNames(c)
}

/** Throws a 403 unless the request's key has the scope. */
export function allow(c: Context<Env>, scope: Scope): void {
  const scopes = c.get('key')?.scopes
  if (!scopes || scopes.has(scope) || scopes.has('admin')) return
  if (scope.endsWith(':read') && scopes.has(scope.replace(':read', ':write') as Scope)) return
  throw new Problem(403, 'FORBIDDEN', `The key lacks the scope ${scope}`)
}

/** The prefix of the names that a list under `asked` may show this key: the narrower of the two. Throws a 403 if they exclude each other. */
export function listable(c: Context<Env>, asked: string): string {
  const own = prefixOf(c)
  if (asked.startsWith(own)) return asked
  if (own.startsWith(asked)) return own
  throw otherNames(c)
}

function prefixOf(c: Context<Env>): string {
  return c.get('key')?.prefix ?? ''
}

function otherNames(c: Context<Env>): Problem {
  return new Problem(403, 'FORBIDDEN', `The key is for names that start with ${JSON.stringify(prefixOf(c))}`)
}

async function verify(keys: readonly Key[], token: string): Promise<Key | undefined> {
  const dot = token.indexOf('.')
  const key = keys.find(({ id }) => id === token.slice(0, Math.max(dot, 0)))
  // An unknown id is compared too, with a hash no secret has.
  const equal = await timingSafeEqual(key?.hash ?? '-'.repeat(64), (await sha256(token.slice(dot + 1))) ?? '')
  return equal ? key : undefined
}

const SCOPE = /^(?:(?:locks|leaders|tasks|streams|time):(?:read|write)|admin)(?=[+:]|$)/

function parseKey(entry: string, number: number): Key {
  const [id = '', hash = ''] = entry.split(':', 2)
  if (!/^[\w-]{1,64}$/.test(id)) throw malformed(number, 'id', '1–64 letters, digits, _ or -')
  if (!/^[0-9a-f]{64}$/i.test(hash)) throw malformed(number, 'sha256-of-secret', '64 hexadecimal digits')

  const scopes = new Set<Scope>()
  let rest = entry.slice(id.length + hash.length + 1)
  do {
    const scope = SCOPE.exec(rest.slice(1))?.[0]
    if (!scope) {
      throw malformed(
        number,
        'scope',
        'locks, leaders, tasks, streams or time with :read or :write, or admin, joined by +',
      )
    }
    scopes.add(scope as Scope)
    rest = rest.slice(1 + scope.length)
  } while (rest.startsWith('+'))

  return { id, hash: hash.toLowerCase(), scopes, prefix: rest ? parsePrefix(rest.slice(1), number) : '' }
}

function parsePrefix(encoded: string, number: number): string {
  const expected = '1–255 characters without control characters, % written %25 and comma %2C'
  let prefix = ''
  try {
    prefix = decodeURIComponent(encoded)
  } catch {
    // stays '', which is refused
  }
  if (prefix === '' || [...prefix].length > 255 || /\p{Cc}/u.test(prefix))
    throw malformed(number, 'name-prefix', expected)
  return prefix
}

// Never the content: a secret pasted into the wrong place must not reach a log.
function malformed(number: number, field: string, expected: string): Error {
  return new Error(
    `LOCKSTEP_API_KEYS, entry ${number}: \`${field}\` must be ${expected} (id:sha256-of-secret:scope+scope[:name-prefix])`,
  )
}
