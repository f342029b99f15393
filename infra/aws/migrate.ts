/**
 * The function that migrates: each deployment calls it once, before the other functions get their new code.
 *
 * Only this function has the owner's secret. It creates the role that the other functions use, or sets its password again,
 * migrates, and grants that role exactly the rights that they need (lib/setup/role-rights.ts). All of this may be repeated. It does
 * not change a database whose schema is newer: when a deployment fails after its migrations, CloudFormation rolls back and calls the
 * older version of this function, which must then succeed. (Older functions work on a newer schema.)
 *
 * The database ends a session of that role that is idle in a transaction for a minute: the session belongs to a frozen execution
 * environment, and would otherwise keep its locks for as long as Lambda freezes it.
 */
import { fileURLToPath } from 'node:url'
import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import { addressOf, readDatabaseSecret } from '../../functions/adapters/aws-secrets.ts'
import { migrate, schemaState } from '../../lib/setup/migrate.ts'

const folder = fileURLToPath(new URL('migrations', import.meta.url))

/** @throws {Error} one sentence; the deployment then fails, and nothing has changed except the role. */
export async function handler(): Promise<{ applied: string[]; latest: string; role: string | null }> {
  const { LOCKSTEP_ROLE_SECRET_ARN: arn } = process.env
  const pool = new pg.Pool({ connectionString: await ownerUrl(), max: 1, connectionTimeoutMillis: 10_000 })
  pool.on('error', () => {})
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) })
  try {
    const role = arn ? await makeRole(pool, arn) : null
    const { newer, current, latest } = await schemaState(db, { folder })
    if (newer) {
      console.warn({ code: 'NEWER_SCHEMA', current, latest, role })
      return { applied: [], latest, role }
    }
    const { applied } = await migrate(db, { folder, ...(role !== null && { grant: role }) })
    console.info({ code: 'MIGRATED', applied, latest, role })
    return { applied, latest, role }
  } finally {
    await db.destroy()
  }
}

async function ownerUrl(): Promise<string> {
  const { DATABASE_URL, DATABASE_SECRET_ARN } = process.env
  if (DATABASE_URL) return DATABASE_URL
  if (!DATABASE_SECRET_ARN)
    throw new Error('DATABASE_SECRET_ARN or DATABASE_URL must be set, with the owner of the database')
  const secret = await readDatabaseSecret(DATABASE_SECRET_ARN)
  const url = new URL(addressOf(secret, process.env))
  url.password = encodeURIComponent(secret.password)
  return url.href
}

async function makeRole(pool: pg.Pool, arn: string): Promise<string> {
  const { username, password } = await readDatabaseSecret(arn)
  const [role, secret] = [pg.escapeIdentifier(username), pg.escapeLiteral(password)]
  const { rows } = await pool.query('select from pg_roles where rolname = $1', [username])
  if (rows.length === 0) await pool.query(`create role ${role} login`)
  await pool.query(`alter role ${role} login password ${secret}`)
  await pool.query(`alter role ${role} set idle_in_transaction_session_timeout = '60s'`)
  return username
}
