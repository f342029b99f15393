/**
 * Writes the generated facts anew, which tests of test/facts compare with what they are made from: `npm run facts`.
 *
 *     npm run facts -- [schema] [api] [mutants]
 *
 * schema   db/schema.sql, from the migrations
 * api      docs/api.txt, from what the package exports
 * mutants  a table of docs/guarantees.md, from test/tools/mutants
 */
import * as fs from 'node:fs'
import * as path from 'node:path'
import pg from 'pg'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { apiText } from '../facts/api.ts'
import { guaranteesText } from '../facts/mutants.ts'
import { schemaText } from '../facts/schema.ts'
import { BINARIES } from '../support/postgres-majors.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')

const FACTS: Record<string, { file: string; text: () => Promise<string> }> = {
  schema: { file: 'db/schema.sql', text: schema },
  api: { file: 'docs/api.txt', text: async () => apiText() },
  mutants: { file: 'docs/guarantees.md', text: async () => guaranteesText() },
}

const asked = process.argv.slice(2)
const unknown = asked.filter((name) => !(name in FACTS))
if (unknown.length > 0) {
  console.error(`There are ${Object.keys(FACTS).join(', ')}, and no ${unknown.join(', ')}`)
  process.exit(2)
}
for (const name of asked.length > 0 ? asked : Object.keys(FACTS)) {
  const { file, text } = FACTS[name] as (typeof FACTS)[string]
  const at = path.join(ROOT, file)
  const before = fs.existsSync(at) ? fs.readFileSync(at, 'utf8') : ''
  const after = await text()
  if (before !== after) fs.writeFileSync(at, after)
  console.log(`${file} ${before === after ? 'is as it was' : 'is new'}`)
}

async function schema(): Promise<string> {
  const server = await startPostgres(BINARIES)
  const client = new pg.Client(server.url)
  try {
    await migrate(server.url)
    await client.connect()
    return await schemaText(client)
  } finally {
    await client.end()
    await server.stop()
  }
}
