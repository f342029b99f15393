/**
 * The table of docs/guarantees.md that says which bugs are put in on purpose (test/tools/mutants) and which tests find each. It stands
 * between two marks in that file, and the rest of the file is not touched.
 */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { type Mutant, ROOMS } from '../tools/mutants/index.ts'

const TESTS = path.resolve(import.meta.dirname, '..')
const DOCUMENT = path.resolve(import.meta.dirname, '../../docs/guarantees.md')
const MARKS = ['<!-- mutants: written by `npm run facts` -->', '<!-- the end of the mutants -->'] as const

/** The text of docs/guarantees.md with the table as it should be. */
export function guaranteesText(): string {
  const text = fs.readFileSync(DOCUMENT, 'utf8')
  const [begin, end] = MARKS.map((mark) => text.indexOf(mark)) as [number, number]
  if (begin < 0 || end < begin) throw new Error(`docs/guarantees.md lacks ${MARKS.join(' or ')}`)
  return `${text.slice(0, begin)}${MARKS[0]}\n\n${table()}\n\n${text.slice(end)}`
}

function table(): string {
  const rows = Object.entries(ROOMS).flatMap(([room, mutants]) =>
    mutants.map((mutant) => `| ${room} | ${mutant.bug} | \`${mutant.file}\` | ${foundBy(mutant)} |`),
  )
  return ['| room | bug | file | found by |', '|---|---|---|---|', ...rows].join('\n')
}

/** The tests that are named, or else the files, each as docs/guarantees.md names a test. */
export function foundBy({ files, tests }: Mutant): string {
  if (tests === undefined) return files.map((file) => `\`${short(file)}\``).join(' · ')
  const all = files.flatMap(withSuites)
  const found = tests.split('|').map((part) => {
    const file = all.find((each) => read(each).includes(part))
    if (file === undefined) throw new Error(`No test of ${files} has ${JSON.stringify(part)} in its name`)
    return `\`${short(file)}: ${title(read(file), part)}\``
  })
  return [...new Set(found)].join(' · ')
}

/** A file of tests, and the suites that it registers. */
function withSuites(file: string): string[] {
  const suites = [...read(file).matchAll(/from '(\.[^']+\.suite\.ts)'/g)]
  return [file, ...suites.map(([, to = '']) => path.posix.join(path.posix.dirname(file), to))]
}

/** The whole name that has a part, as it is written in a file; or the part, if it is not in one string. */
function title(text: string, part: string): string {
  const at = text.indexOf(part)
  const line = text.slice(text.lastIndexOf('\n', at) + 1, text.indexOf('\n', at))
  const whole = [...line.matchAll(/'((?:[^'\\]|\\.)*)'|"([^"]*)"/g)].map(([, a, b]) => a ?? b ?? '')
  return whole.find((each) => each.includes(part) && !each.includes('\\') && !each.includes('`')) ?? part
}

const read = (file: string) => fs.readFileSync(path.join(TESTS, file), 'utf8')
const short = (file: string) => file.replace(/\.ts$/, '')
