/**
 * The samples of the README and the guides: every fenced block, and how it is run.
 *
 * How a block is run follows from its language. A comment on the line above it says what is different: `<!-- sample: … -->`.
 *
 * | block | run by |
 * |---|---|
 * | `ts` | test/docs/samples.long.test.ts: a program in a project that has the packed package |
 * | `sh` | the same: bash in that project, with a server; `stream`: until it has printed something |
 * | `sql` | the same: on a database of the file; `under name:token`: while that lease is held |
 * | `json` | the same: what the last request of the block of `sh` above it answers |
 * | `python` | test/http/python.test.ts |
 * | `server`, `route`, `bundle`, `test` | test/docs/in-your-app.long.test.ts |
 * | without a language | not at all: it shows what is printed, or a setting |
 */
import * as fs from 'node:fs'
import * as path from 'node:path'

const ROOT = path.resolve(import.meta.dirname, '../..')

/** The README and the guides, relative to the root. */
export const GUIDES = ['README.md', ...fs.readdirSync(path.join(ROOT, 'docs')).map((file) => `docs/${file}`)].filter(
  (file) => file.endsWith('.md'),
)

export interface Sample {
  file: string
  line: number
  /** `ts`, `sh`, …; empty if the block has none. */
  language: string
  /** What the comment above it says: how it is run if not as its language says, such as `server POST /orders`. Empty: nothing. */
  how: string
  text: string
}

/** The samples of a file, in their order. */
export function samplesOf(file: string): Sample[] {
  const lines = fs.readFileSync(path.join(ROOT, file), 'utf8').split('\n')
  const samples: Sample[] = []
  for (let i = 0; i < lines.length; i++) {
    const language = /^ *```(\w*)$/.exec(lines[i] ?? '')?.[1]
    if (language === undefined) continue
    const above = lines[i - 1] ?? ''
    const how = /^<!-- sample: (.*) -->$/.exec(above)?.[1] ?? ''
    // The end of a block whose beginning is missing would look like the beginning of another one.
    if (above !== '' && how === '')
      throw new Error(`${file}:${i + 1}: a block begins after an empty line, or after its comment`)
    const end = lines.findIndex((line, at) => at > i && /^ *```$/.test(line))
    samples.push({ file, line: i + 1, language, how, text: `${lines.slice(i + 1, end).join('\n')}\n` })
    i = end
  }
  return samples
}

/** The samples of one language in a file, such as the programs in Python. */
export const textsOf = (file: string, language: string): string[] =>
  samplesOf(file).flatMap((sample) => (sample.language === language ? [sample.text] : []))

/** A program of the guides that begins with what the README's first sample has made. */
export function completed(text: string): string {
  if (text.includes("from 'lockstep'")) return text
  return `import { createLockstep } from 'lockstep'
    await using lockstep = createLockstep({ connectionString: process.env.DATABASE_URL ?? '' })
    const { locks } = lockstep\n${text}`
}
