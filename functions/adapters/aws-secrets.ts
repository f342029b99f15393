/**
 * Secrets of AWS Secrets Manager.
 *
 * The client of AWS comes with Lambda's own Node and is loaded at first use: it takes 200 ms of a cold start, which a function
 * that has everything in its environment need not pay. Secrets change while a process lives, so none is kept for long.
 */

import { type Endpoint, endpointIn, isPort } from '../../lib/base/index.ts'
import { UnavailableError } from '../../lib/index.ts'

// Where no answer comes at all (a network without a way to Secrets Manager), a request would wait until Lambda ends it.
const READ_MS = 3_000

/** The text of a secret. @throws {UnavailableError} which secret, and why; the message never has its content. */
export async function readSecret(arn: string): Promise<string> {
  const { GetSecretValueCommand, SecretsManagerClient } = await import('@aws-sdk/client-secrets-manager')
  try {
    const answer = await new SecretsManagerClient({}).send(new GetSecretValueCommand({ SecretId: arn }), {
      abortSignal: AbortSignal.timeout(READ_MS),
    })
    return answer.SecretString ?? ''
  } catch (cause) {
    throw new UnavailableError(`The secret ${arn} cannot be read: ${cause instanceof Error ? cause.message : cause}`, {
      cause,
    })
  }
}

/** What RDS and CDK write into the secret of a database. The rest may be in the environment. */
export interface DatabaseSecret {
  username: string
  password: string
  host?: string
  port?: number | string
  dbname?: string
}

/** @throws {UnavailableError} as {@link readSecret}, or what it lacks. */
export async function readDatabaseSecret(arn: string): Promise<DatabaseSecret> {
  const text = await readSecret(arn)
  const secret = parsed(text)
  for (const field of ['username', 'password'] as const) {
    if (typeof secret?.[field] !== 'string' || secret[field] === '') {
      throw new Error(
        `The secret ${arn} must be JSON like {"username":"…","password":"…","host":"…"}: it lacks ${field}`,
      )
    }
  }
  return secret as DatabaseSecret
}

function parsed(text: string): Partial<DatabaseSecret> | undefined {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/**
 * The address of a secret's database. DATABASE_HOST, DATABASE_PORT and DATABASE_NAME override what the secret says. A host may have
 * a port (`[::1]:5432`), which counts for more than the secret's.
 *
 * @throws {UnavailableError} in one sentence: there is no host; a host or a port is none.
 */
export function addressOf(
  secret: Pick<DatabaseSecret, 'username'> & Partial<DatabaseSecret>,
  env: Environment,
): string {
  checkAddress(env)
  const given = env.DATABASE_HOST || secret.host
  if (!given) throw new UnavailableError('The secret of the database names no host, and DATABASE_HOST is not set')
  const at = hostIn(given, `host${OF_SECRET}`)
  const port = env.DATABASE_PORT || at.port || secret.port || 5432
  checkPort(String(port), `port${OF_SECRET}`)
  const host = at.host.includes(':') ? `[${at.host}]` : at.host
  const name = env.DATABASE_NAME || secret.dbname || 'postgres'
  // The certificate is checked: RDS has its own authority, which NODE_EXTRA_CA_CERTS must name.
  const mode = env.DATABASE_SSLMODE || 'verify-full'
  return `postgres://${encodeURIComponent(secret.username)}@${host}:${port}/${encodeURIComponent(name)}?sslmode=${mode}`
}

/** At connections that are made together, one read is enough; a rotation is over after a second more. */
const SAME_MS = 1_000

/**
 * The database of a secret that changes while it is used: by rotation of the password (by RDS, or by a function of Secrets Manager),
 * by rotation of two users that take turns, or because the database has moved.
 */
export class ChangingSecret {
  readonly #arn: string
  readonly #env: Environment
  #last: { readAt: number; secret: Promise<DatabaseSecret> } | undefined
  #used: { address: string; password: string } | undefined
  #moved = false

  constructor(arn: string, env: Environment) {
    this.#arn = arn
    this.#env = env
  }

  /** The address to use from now on. @throws {Error} as {@link readDatabaseSecret}, or there is no host. */
  async open(): Promise<string> {
    const secret = await this.#read()
    const address = addressOf(secret, this.#env)
    this.#used = { address, password: secret.password }
    return address
  }

  /**
   * The password for the address in use. When the secret has another address, that is the last one that this had: of two users
   * that take turns, each keeps its password for one turn more.
   */
  async password(): Promise<string> {
    const secret = await this.#read()
    const used = this.#used as { address: string; password: string }
    if (addressOf(secret, this.#env) === used.address) used.password = secret.password
    else this.#moved = true
    return used.password
  }

  /** Whether the secret has had another address than the one in use. @param asks  reads it. @throws {Error} as `open`. */
  async moved(asks: boolean): Promise<boolean> {
    if (asks) await this.password()
    return this.#moved
  }

  #read(): Promise<DatabaseSecret> {
    if (this.#last && Math.abs(Date.now() - this.#last.readAt) < SAME_MS) return this.#last.secret
    const last = { readAt: Date.now(), secret: readDatabaseSecret(this.#arn) }
    this.#last = last
    last.secret.catch(() => {
      if (this.#last === last) this.#last = undefined
    })
    return last.secret
  }
}

/** @throws {UnavailableError} DATABASE_HOST or DATABASE_PORT is none, or they have different ports. */
export function checkAddress({ DATABASE_HOST: host, DATABASE_PORT: port }: Environment): void {
  const at = host ? hostIn(host, 'DATABASE_HOST') : undefined
  if (port) checkPort(port, 'DATABASE_PORT')
  if (at?.port && port && at.port !== Number(port)) {
    throw new UnavailableError(`DATABASE_HOST has the port ${at.port}, and DATABASE_PORT is ${port}`)
  }
}

const OF_SECRET = ' in the secret of the database'

function hostIn(text: string, field: string): Endpoint {
  const at = endpointIn(text)
  if (at && !at.host.includes('%')) return at
  throw new UnavailableError(`${field} must be a name or an address, like db.example.com, 10.0.0.1, ::1 or [::1]:5432`)
}

function checkPort(text: string, field: string): void {
  if (!isPort(text)) throw new UnavailableError(`${field} must be an integer, 1–65535`)
}

export type Environment = Record<string, string | undefined>
