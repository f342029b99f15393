/** `docs/api.txt` is what the package exports, with its signatures, so that a change of one is seen in the difference. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { expect, test } from 'vitest'
import { apiText } from './api.ts'

const FILE = fs.readFileSync(path.resolve(import.meta.dirname, '../../docs/api.txt'), 'utf8')

test('docs/api.txt is what the package exports', { timeout: 120_000 }, () => {
  expect(apiText(), 'docs/api.txt is not up to date: `npm run facts` writes it anew').toBe(FILE)
})
