/**
 * A hostile tenant: another program on the same server and database, as a role that may connect, make objects in `public` and in a schema of
 * its own, and write one fenced table. It knows everything that is not secret: the names, the hash K, the numbers of the advisory locks,
 * the channels of 0.6.
 */
import { randomBytes } from 'node:crypto'
import pg from 'pg'
import type { FreshDatabase } from '../support/database.ts'

export interface Tenant extends AsyncDisposable {
  role: string
  /** A connection string, as that role. */
  url: string
  /** Its connection. */
  client: pg.Client
  /** A connection more. It is ended with the tenant. */
  connect(): Promise<pg.Client>
  /** Whether it may run a statement: undefined, or the SQLSTATE of its error. */
  refused(statement: string, values?: unknown[]): Promise<string | undefined>
  /** What it has heard: a line for each notification. */
  heard: string[]
}

export async function tenantOf(db: FreshDatabase): Promise<Tenant> {
  const role = `${db.name}_tenant`
  const password = randomBytes(12).toString('hex')
  await db.pool.query(`
    create role ${role} login password '${password}';
    create schema ${role} authorization ${role};
    grant create on schema public to ${role}`)
  const url = new URL(db.url)
  url.username = role
  url.password = password
  const open: pg.Client[] = []
  const heard: string[] = []
  const connect = async () => {
    const client = new pg.Client({ connectionString: url.href, application_name: 'tenant' })
    client.on('error', () => {})
    client.on('notification', ({ channel, payload }) => heard.push(`${channel} ${payload}`))
    await client.connect()
    open.push(client)
    return client
  }
  const client = await connect()
  return {
    ...{ role, url: url.href, client, connect, heard },
    async refused(statement, values = []) {
      const own = await connect()
      try {
        await own.query(statement, values)
        return undefined
      } catch (error) {
        return (error as { code?: string }).code
      } finally {
        await own.end()
      }
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(open.map((each) => each.end().catch(() => {})))
      await db.pool.query(`drop owned by ${role} cascade; drop role ${role}`)
    },
  }
}
