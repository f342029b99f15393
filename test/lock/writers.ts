/**
 * Programs that write to a database, each in one transaction of its own: what a fence lets through does not depend on which it is.
 */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { Kysely, PostgresDialect, sql } from 'kysely'
import pg from 'pg'

/** Why a transaction did not commit. */
export interface Refusal {
  code: string
  message: string
}
/** Runs the statements in one transaction, and says why it did not commit. */
export type Writer = (url: string, statements: string[]) => Promise<Refusal | 'committed'>

/** The setting that names holds, for the rest of the transaction. */
export const fence = (...holds: string[]) => `set local lockstep.fence = '${holds.join('\n').replaceAll("'", "''")}'`

export const sqlWriter: Writer = async (url, statements) => {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    await client.query('begin')
    for (const statement of statements) await client.query(statement)
    await client.query('commit')
    return 'committed'
  } catch (error) {
    return refusal(error)
  } finally {
    await client.end()
  }
}

const kyselyWriter: Writer = async (url, statements) => {
  const kysely = new Kysely({ dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: url, max: 1 }) }) })
  try {
    await kysely.transaction().execute(async (trx) => {
      for (const statement of statements) await sql.raw(statement).execute(trx)
    })
    return 'committed'
  } catch (error) {
    return refusal(error)
  } finally {
    await kysely.destroy()
  }
}

/** Debian's, or whichever is in the path. What it says in another language has the same codes. */
export const psqlWriter: Writer = async (url, statements) => {
  const psql = spawn('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', url], { stdio: 'pipe' })
  psql.stdin.end(
    ['begin', ...statements, 'commit'].map((each) => (each.endsWith('\\.') ? each : `${each};`)).join('\n'),
  )
  const [said, [code]] = await Promise.all([text(psql.stderr), once(psql, 'exit'), text(psql.stdout)])
  return code === 0 ? 'committed' : { code: /: +([A-Z0-9]{5}): /.exec(said)?.[1] ?? '', message: said }
}

const PYTHON = '/usr/bin/python3' // that of the system, whose packages are there
const PROGRAM = `
import json, sys, psycopg2
connection = psycopg2.connect(sys.argv[1])
try:
    with connection, connection.cursor() as cursor:
        for statement in json.load(sys.stdin):
            cursor.execute(statement)
    print(json.dumps("committed"))
except psycopg2.Error as error:
    print(json.dumps({"code": error.pgcode, "message": str(error)}))
`
const pythonWriter: Writer = async (url, statements) => {
  const python = spawn(PYTHON, ['-c', PROGRAM, url], { stdio: ['pipe', 'pipe', 'inherit'] })
  python.stdin.end(JSON.stringify(statements))
  return JSON.parse(await text(python.stdout))
}

const there = (program: string, ...args: string[]) => {
  try {
    execFileSync(program, args, { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}
export const psqlAvailable = there('psql', '--version')

/** By name; `available`: whether what it needs is on this machine. */
export const WRITERS: [name: string, writer: Writer, available: boolean][] = [
  ['SQL', sqlWriter, true],
  ['Kysely', kyselyWriter, true],
  ['psql', psqlWriter, psqlAvailable],
  ['Python with psycopg2', pythonWriter, there(PYTHON, '-c', 'import psycopg2')],
]

const refusal = (error: unknown): Refusal => {
  const { code, message } = error as Refusal
  if (code === undefined) throw error
  return { code, message }
}
