/** The codes of docs/errors.md, by which a caller decides. */
import * as fs from 'node:fs'
import * as path from 'node:path'

const text = fs.readFileSync(path.resolve(import.meta.dirname, '../../docs/errors.md'), 'utf8')

export const CODES: readonly string[] = [...text.matchAll(/^\| `([A-Z_]+)` \|/gm)].map(([, code = '']) => code)
if (!CODES.includes('UNAVAILABLE')) throw new Error('docs/errors.md has no table of codes')
