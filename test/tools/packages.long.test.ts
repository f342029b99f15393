/**
 * Packages that are installed where they are first used: with the real npm, from a registry on loopback that has one small package.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import * as os from 'node:os'
import * as path from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { until } from '../support/until.ts'

const WITH = path.join(import.meta.dirname, 'with.ts')

let folder: string
let registry: http.Server
/** The downloads of the package, by its version. */
let downloads: string[]
/** While it is set, downloads do not end. */
let held: Promise<void> | undefined
const started: ChildProcess[] = []

beforeAll(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-packages-'))
  const versions = ['1.0.0', '2.0.0']
  for (const version of versions) {
    write(`${version}/package/package.json`, { name: 'tiny', version, bin: 'tiny.js' })
    fs.writeFileSync(
      path.join(folder, version, 'package/tiny.js'),
      `#!/usr/bin/env node\nconsole.log('${version}', process.cwd(), process.version, ...process.argv.slice(2))\nprocess.exitCode = 3\n`,
    )
    execFileSync('tar', ['-czf', `${version}.tgz`, '-C', version, 'package'], { cwd: folder })
  }
  registry = http.createServer(async (request, response) => {
    const version = /-([\d.]+)\.tgz$/.exec(request.url ?? '')?.[1]
    if (version) {
      downloads.push(version)
      await held
      return response.end(fs.readFileSync(path.join(folder, `${version}.tgz`)))
    }
    const tarball = (each: string) => `http://${request.headers.host}/tiny/-/tiny-${each}.tgz`
    const described = versions.map((each) => [
      each,
      { name: 'tiny', version: each, bin: 'tiny.js', dist: { tarball: tarball(each) } },
    ])
    response.end(JSON.stringify({ name: 'tiny', versions: Object.fromEntries(described) }))
  })
  registry.listen(0, '127.0.0.1')
  await once(registry, 'listening')
})
afterAll(() => {
  registry.closeAllConnections()
  registry.close()
  fs.rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
})

let project: string
beforeEach(() => {
  project = fs.mkdtempSync(path.join(folder, 'project-'))
  downloads = []
  held = undefined
  locks('1.0.0')
})
afterEach(() => {
  for (const child of started.splice(0)) child.kill('SIGKILL')
})

function write(file: string, content: object) {
  fs.mkdirSync(path.dirname(path.join(folder, file)), { recursive: true })
  fs.writeFileSync(path.join(folder, file), JSON.stringify(content))
}

/** Writes the package.json and the lock file of the project. */
function locks(version: string) {
  const name = path.basename(project)
  const dependencies = { tiny: version }
  write(`${name}/package.json`, { private: true, description: 'a tiny package: 1 kB', dependencies })
  const packages = { '': { dependencies }, 'node_modules/tiny': { version, bin: { tiny: 'tiny.js' } } }
  write(`${name}/package-lock.json`, { lockfileVersion: 3, requires: true, packages })
}

interface Ran {
  code: number | null
  out: string
  err: string
}

/** Runs the package's command, with arguments. */
function run(...args: string[]): { child: ChildProcess; ended: Promise<Ran> } {
  const { port } = registry.address() as AddressInfo
  const env = {
    ...process.env,
    npm_config_registry: `http://127.0.0.1:${port}/`,
    npm_config_cache: fs.mkdtempSync(path.join(folder, 'cache-')),
  }
  const child = spawn(process.execPath, [WITH, project, '--', 'tiny', ...args], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  started.push(child)
  const ran: Ran = { code: null, out: '', err: '' }
  child.stdout.on('data', (bytes) => (ran.out += bytes))
  child.stderr.on('data', (bytes) => (ran.err += bytes))
  return { child, ended: once(child, 'close').then(([code]) => ({ ...ran, code })) }
}

const left = () => fs.readdirSync(project).sort()
const COMPLETE = ['node_modules', 'package-lock.json', 'package.json']

test('they are downloaded once, with a line that says so, and the command runs in their folder, on this Node', async () => {
  const first = await run('a', 'b').ended
  expect(first).toMatchObject({ code: 3, out: `1.0.0 ${project} ${process.version} a b\n` })
  expect(first.err).toMatch(/^\S+: downloading a tiny package: 1 kB \(once\)\n$/)
  const second = await run().ended
  expect(second).toMatchObject({ code: 3, err: '' })
  expect(downloads).toEqual(['1.0.0'])
  expect(left()).toEqual(COMPLETE)
})

test('a lock file that has changed is installed anew', async () => {
  await run().ended
  locks('2.0.0')
  expect((await run().ended).out).toMatch(/^2\.0\.0 /)
  expect(left()).toEqual(COMPLETE)
})

test('of several programs that need them at once one downloads, and the others wait for it', async () => {
  const runs = [run('1'), run('2'), run('3')]
  const ran = await Promise.all(runs.map(({ ended }) => ended))
  expect(ran.map(({ code }) => code)).toEqual([3, 3, 3])
  expect(downloads).toEqual(['1.0.0'])
  expect(left()).toEqual(COMPLETE)
})

test('an install that is killed leaves no half of one: the next begins again, at once, and removes what is left', async () => {
  const gate = Promise.withResolvers<void>()
  held = gate.promise
  const { child, ended } = run()
  await until('it downloads', () => downloads.length > 0)
  expect(left().length).toBe(4) // the lock and the folder of the install; no node_modules
  expect(left()).not.toContain('node_modules')
  child.kill('SIGKILL')
  await ended.catch(() => {})
  gate.resolve()
  held = undefined
  expect((await run().ended).out).toMatch(/^1\.0\.0 /)
  expect(left()).toEqual(COMPLETE)
})

test('an install that fails says what npm said, and leaves what was there', async () => {
  await run().ended
  locks('3.0.0')
  const { code, out, err } = await run().ended
  expect({ code, out }).toEqual({ code: 1, out: '' })
  expect(err).toMatch(/3\.0\.0/)
  expect(left()).toEqual(COMPLETE)
  locks('1.0.0')
  expect(await run().ended).toMatchObject({ code: 3, err: '' })
})
