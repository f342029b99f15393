/** `db/schema.sql` is what the migrations make, on every major of PostgreSQL, and it is complete: it makes the same schema. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import type pg from 'pg'
import { expect, test } from 'vitest'
import { freshDatabase } from '../support/database.ts'
import { schemaText } from './schema.ts'

const FILE = fs.readFileSync(path.resolve(import.meta.dirname, '../../db/schema.sql'), 'utf8')

test('db/schema.sql is the schema after all migrations', async () => {
  await using db = await freshDatabase()
  expect(await textOf(db.pool), 'db/schema.sql is not up to date: `npm run facts` writes it anew').toBe(FILE)
})

test('a database made from db/schema.sql has that schema', async () => {
  await using db = await freshDatabase({ empty: true })
  await db.pool.query(FILE)
  expect(await textOf(db.pool)).toBe(FILE)
})

test.each([
  ['a view', 'create view lockstep.x as select 1', 'view lockstep.x'],
  ['a type', 'create type lockstep.x as enum ()', 'type lockstep.x'],
  ['a comment', `comment on table lockstep.lease is 'x'`, 'comment on table lockstep.lease'],
  [
    'a trigger',
    'create trigger x after insert on lockstep.lease execute function lockstep.check_fence()',
    'trigger x on table lockstep.lease',
  ],
  ['a function of the same name', 'create function lockstep.now(int) returns int return 1', 'function lockstep.now('],
])('what its text has no form for is refused and not left out: %s', async (_what, statement, named) => {
  await using db = await freshDatabase()
  await db.pool.query(statement)
  await expect(textOf(db.pool)).rejects.toThrow(named)
})

async function textOf(pool: pg.Pool): Promise<string> {
  const client = await pool.connect()
  try {
    return await schemaText(client)
  } finally {
    client.release()
  }
}
