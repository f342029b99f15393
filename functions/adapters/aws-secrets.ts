/**
 * Secrets of AWS Secrets Manager.
 *
 * The client of AWS comes with Lambda's own Node and is loaded at first use: it takes 200 ms of a cold start, which a function
 * that has everything in its environment need not pay. Secrets change while a process lives, so none is kept for long.
 */

import { UnavailableError } from '../../lib/index.ts'

/** The text of a secret. @throws {UnavailableError} which secret, and why; the message never has its content. */
export async function readSecret(arn: string): Promise<string> {
  const { GetSecretValueCommand, SecretsManagerClient } = await import('@aws-sdk/client-secrets-manager')
  try {
    const answer = await new SecretsManagerClient({}).send(new GetSecretValueCommand({ SecretId: arn }))
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

export type Environment = Record<string, string | undefined>
