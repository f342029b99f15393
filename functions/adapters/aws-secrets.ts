/**
 * Secrets of AWS Secrets Manager.
 *
 * The client of AWS comes with Lambda's own Node and is loaded at first use: it takes 200 ms of a cold start, which a function
 * that has everything in its environment need not pay. Secrets change while a process lives, so none is kept for long.
 */

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

/** The address of a secret's database. DATABASE_HOST, DATABASE_PORT and DATABASE_NAME override what the secret says. */
export function addressOf(secret: DatabaseSecret, env: Environment): string {
  const host = env.DATABASE_HOST || secret.host
  if (!host) throw new UnavailableError('The secret of the database names no host, and DATABASE_HOST is not set')
  const port = env.DATABASE_PORT || secret.port || 5432
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

export type Environment = Record<string, string | undefined>
