/** The codes of our errors in SQL, their names in code, and the table of them in the docs are the same. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const read = (file: string) => fs.readFileSync(path.join(ROOT, file), 'utf8')

/** Rows of the table: code, name, functions. */
const TABLE = [...read('docs/sqlstates.md').matchAll(/^\| `(\w+)` \| `(\w+)` \| ([^|]+) \|/gm)].map(
  ([, code = '', name = '', functions = '']) => ({ code, name, functions: functions.replaceAll('`', '').split(' ') }),
)

/** By code: the functions that raise it. */
const raised = new Map<string, Set<string>>()
for (const text of read('db/schema.sql')
  .split(/^CREATE OR REPLACE FUNCTION lockstep\./m)
  .slice(1)) {
  const name = /^\w+/.exec(text)?.[0] as string
  for (const [, code = ''] of text.matchAll(/\berrcode = '(LS\w{3})'/gi)) {
    raised.set(code, (raised.get(code) ?? new Set()).add(name))
  }
}

test('each SQLSTATE of the functions has a name, and a row in docs/sqlstates.md', () => {
  expect([...raised.keys()].sort()).toEqual(TABLE.map(({ code }) => code))
  expect(Object.fromEntries(TABLE.map(({ code, name }) => [name, code]))).toEqual(SQLSTATE)
})

test('docs/sqlstates.md names the functions that raise it', () => {
  const found = [...raised].map(([code, functions]) => [code, [...functions].sort()])
  expect(Object.fromEntries(found)).toEqual(Object.fromEntries(TABLE.map(({ code, functions }) => [code, functions])))
})

test('no code and no test has one as a literal', () => {
  const files = ['lib', 'functions', 'infra', 'test'].flatMap((folder) =>
    fs
      .globSync('**/*.ts', {
        cwd: path.join(ROOT, folder),
        exclude: (name) => /^(node_modules|\.packages.*)$/.test(name),
      })
      .map((file) => `${folder}/${file}`),
  )
  const literal = files.filter((file) => /['"`]LS\d{3}['"`]/.test(read(file)))
  expect(literal).toEqual(['lib/base/sqlstates.ts'])
})
