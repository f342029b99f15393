/** The bugs that are put in on purpose: what they change is there, `npm test` finds them, and docs/guarantees.md lists them. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { describe, expect, test } from 'vitest'
import { ROOMS } from '../tools/mutants/index.ts'
import { foundBy, guaranteesText } from './mutants.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const read = (file: string) => fs.readFileSync(path.join(ROOT, file), 'utf8')
const ALL = Object.values(ROOMS).flat()

test('docs/guarantees.md lists each bug that is put in, and the tests that find it', () => {
  const text = read('docs/guarantees.md')
  expect(guaranteesText(), 'docs/guarantees.md is not up to date: `npm run facts` writes it anew').toBe(text)
})

test('no two bugs have one name', () => {
  expect(new Set(ALL.map(({ bug }) => bug)).size).toBe(ALL.length)
})

describe.each(Object.entries(ROOMS))('each bug of %s', (_room, mutants) => {
  test.each(mutants)('$bug: changes a text that is there once, and names tests that `npm test` runs', (mutant) => {
    expect(read(mutant.file).split(mutant.from)).toHaveLength(2)
    expect(mutant.to).not.toBe(mutant.from)
    expect(mutant.files.length).toBeGreaterThan(0)
    expect(mutant.files.filter((file) => !/(?<!\.long)\.test\.ts$/.test(file))).toEqual([])
    expect(foundBy(mutant)).not.toBe('')
  })
})

test.each(['lock', 'lease', 'leader', 'task', 'event', 'time', 'database', 'functions'])(
  'there are bugs of %s in TypeScript, and in SQL',
  (room) => {
    const files = (ROOMS[room] ?? []).map(({ file }) => path.extname(file))
    expect(new Set(files)).toEqual(new Set(['.ts', '.sql']))
  },
)
