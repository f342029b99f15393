/**
 * Migrations at deploy: a function of its own, called once by each deployment before the others get their new code.
 *
 * It alone has the owner's secret. It makes the role that the other functions use, or sets its password anew, migrates, and
 * grants that role exactly what they need (lib/grant.ts). All of it may be done again, and at the same time by somebody else.
 * A session of that role that stands still in a transaction for a minute is ended: it belongs to a frozen environment, and
 * what it has locked would stay so for as long as Lambda likes.
 */
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { addressOf, readDatabaseSecret } from '../../functions/secret.ts'
import { migrate } from '../../lib/migrate.ts'

/** @throws {Error} in one sentence; the deployment fails, and nothing was changed but the role. */
export async function handler(): Promise<{ applied: string[]; latest: string; role: string | null }> {
  const url = await ownerUrl()
  const { LOCKSTEP_ROLE_SECRET_ARN: arn } = process.env
  const role = arn ? await makeRole(url, arn) : null
  const folder = fileURLToPath(new URL('migrations', import.meta.url))
  const { applied, latest } = await migrate(url, { folder, ...(role !== null && { grant: role }) })
  console.info({ code: 'MIGRATED', applied, latest, role })
  return { applied, latest, role }
}

async function ownerUrl(): Promise<string> {
  const { DATABASE_URL, DATABASE_SECRET_ARN } = process.env
  if (DATABASE_URL) return DATABASE_URL
  if (!DATABASE_SECRET_ARN)
    throw new Error('DATABASE_SECRET_ARN or DATABASE_URL must be set: the database, as its owner')
  const secret = await readDatabaseSecret(DATABASE_SECRET_ARN)
  const url = new URL(addressOf(secret, process.env))
  url.password = encodeURIComponent(secret.password)
  return url.href
}

async function makeRole(url: string, arn: string): Promise<string> {
  const { username, password } = await readDatabaseSecret(arn)
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 10_000 })
  await client.connect()
  try {
    const [role, secret] = [pg.escapeIdentifier(username), pg.escapeLiteral(password)]
    await client.query('begin; select pg_advisory_xact_lock(1819239275, 1937007984)') // as lib/migrate.ts: one at a time
    const { rows } = await client.query('select from pg_roles where rolname = $1', [username])
    if (rows.length === 0) await client.query(`create role ${role} login`)
    await client.query(
      `alter role ${role} login password ${secret}; alter role ${role} set idle_in_transaction_session_timeout = '60s'`,
    )
    await client.query('commit')
  } finally {
    await client.end()
  }
  return username
}
