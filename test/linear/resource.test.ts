/** The row that `npm run prove` protects: what a token at the resource prevents, and what it does not. */
import { expect, test } from 'vitest'
import { Resource, SCHEMA } from '../bench/prove/resource.ts'
import { freshDatabase } from '../support/database.ts'

test.each([
  { sees: 'writes', doubles: 1 },
  { sees: 'reads and writes', doubles: 0 },
])(
  'of a holder that writes late, after the next one has read, a row that sees tokens in $sees',
  async ({ sees, doubles }) => {
    await using database = await freshDatabase()
    await database.pool.query(SCHEMA)
    await database.pool.query(`insert into resource values ('it', 0, 0)`)
    await using resource = new Resource(database.url)
    const read = (token: string) => resource.read('it', sees === 'writes' ? null : token)

    const [first, second] = [await read('33'), await read('34')]
    expect([first, second]).toEqual([0, 0])
    const late = await resource.write('it', 0, '33', 'the one before')
    expect(late).toBe(sees === 'writes' ? 1 : undefined)
    await resource.write('it', 0, '34', 'the next one')
    expect(await resource.write('it', 1, '33', 'the one before')).toBe(undefined) // now it is known, in either way
    const { rows } = await database.pool.query('select from effect where based_on <> version - 1')
    expect(rows.length).toBe(doubles)
  },
)
