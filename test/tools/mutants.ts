/**
 * `npm run test:mutants [-- --only WORDS] [--room ROOM] [--short]`: mutation tests. Each mutant is a fatal bug, put on purpose into a copy of
 * the project. The command prints which tests find each mutant, and after how many seconds; its exit code is 1 if no test finds one of
 * them. With `--short` only the tests that `npm test` runs may find it.
 *
 * The mutants are in test/tools/mutants, a file for each room. The first of those of the leases are bugs that a lock on a database can
 * easily have without anybody's noticing.
 */
import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { parseArgs } from 'node:util'
import { serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { type Mutant, ROOMS } from './mutants/index.ts'
import { installPackages } from './packages.ts'

const { values } = parseArgs({
  options: { only: { type: 'string' }, room: { type: 'string' }, short: { type: 'boolean', default: false } },
})
const isShort = (name: string) => !name.endsWith('.long.test.ts')
const of = Object.entries(ROOMS).flatMap(([room, all]) =>
  values.room === undefined || room === values.room ? all : [],
)
const chosen = of.filter(({ bug }) => bug.includes(values.only ?? ''))
if (chosen.length === 0) {
  const every = Object.entries(ROOMS).flatMap(([room, all]) => all.map(({ bug }) => `${room}: ${bug}`))
  throw new Error(`--only is part of one, and --room is the room of one, of these:\n${every.join('\n')}`)
}
const root = path.resolve(import.meta.dirname, '../..')
// Tests in workerd find it in each copy.
const needsWrangler = (name: string) =>
  fs.readFileSync(path.join(root, 'test', name), 'utf8').includes('installWrangler')
if (chosen.some(({ files }) => files.some(needsWrangler))) await installPackages('infra/cloudflare')
let missed = 0
for (const mutant of chosen) {
  const since = performance.now()
  const found = tried({ ...mutant, files: mutant.files.filter((name) => !values.short || isShort(name)) })
  const seconds = Math.round((performance.now() - since) / 1_000)
  if (found.length === 0) missed += 1
  console.log(`${found.length > 0 ? 'found' : 'MISSED'} (${seconds} s): ${mutant.bug}`)
  for (const name of found.slice(0, 5)) console.log(`    ${name}`)
  if (found.length > 5) console.log(`    and ${found.length - 5} more`)
}
process.exit(missed > 0 ? 1 : 0)

/** The names of the tests that fail with the mutant. */
function tried({ file, from, to, files, tests }: Mutant): string[] {
  if (files.length === 0) return []
  const copy = fs.mkdtempSync(path.join(temporaryFolder(serverUser()), 'lockstep-mutant-'))
  try {
    for (const name of [
      'package.json',
      'tsconfig.json',
      'vitest.config.ts',
      'README.md',
      'docs',
      'db',
      'infra',
      'lib',
      'functions',
      'test',
    ]) {
      const filter = (file: string) => path.basename(file) !== 'node_modules'
      fs.cpSync(path.join(root, name), path.join(copy, name), { recursive: true, filter })
    }
    for (const each of ['node_modules', 'infra/cloudflare/node_modules']) {
      if (fs.existsSync(path.join(root, each))) fs.symlinkSync(path.join(root, each), path.join(copy, each))
    }
    const text = fs.readFileSync(path.join(copy, file), 'utf8')
    if (text.split(from).length !== 2) throw new Error(`${file} does not have exactly one place with ${from}`)
    fs.writeFileSync(
      path.join(copy, file),
      text.replace(from, () => to),
    )
    const report = path.join(copy, 'report.json')
    const args = [
      'vitest',
      'run',
      ...files.map((name) => `test/${name}`),
      '--bail=3',
      '--reporter=json',
      `--outputFile=${report}`,
    ]
    spawnSync('npx', [...args, ...(tests ? ['-t', tests] : [])], { cwd: copy, stdio: ['ignore', 'ignore', 'ignore'] })
    const { testResults } = JSON.parse(fs.readFileSync(report, 'utf8')) as Report
    return testResults.flatMap(({ name, assertionResults }) =>
      assertionResults
        .filter(({ status }) => status === 'failed')
        .map(({ title }) => `${path.basename(name)}: ${title}`),
    )
  } finally {
    fs.rmSync(copy, { recursive: true, force: true })
  }
}

interface Report {
  testResults: { name: string; assertionResults: { status: string; title: string }[] }[]
}
