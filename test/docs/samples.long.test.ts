/**
 * Every sample of the README and the guides is run: programs in a project that has the packed package, commands in bash, requests
 * against a server, SQL on a database. What a request answers is compared with what the text shows. The samples of a file share a
 * database and a server, and run in their order; samples.ts says which block is run how.
 */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Server, serve } from '../../functions/adapters/node.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { type FreshDatabase, freshDatabase } from '../support/database.ts'
import { type Project, packedProject } from '../support/packed.ts'
import { completed, GUIDES, type Sample, samplesOf } from '../support/samples.ts'
import { until } from '../support/until.ts'
import { installStandIns } from './stand-ins/install.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const SERVER = 'http://127.0.0.1:3000' // that of the texts
/** The texts whose samples have changed the state of order 7 when they have been run. */
const BILLS = ['README.md', 'docs/events.md', 'docs/leaders.md', 'docs/locks.md']
const ELSEWHERE = /^(server|route|test|bundle)\b/ // in-your-app.test.ts

/** Commands of the texts that this machine does not have: what needs them is not run. */
const MISSING = ['psql', 'curl', 'openssl', 'sha256sum'].filter((command) => !installed(command))

const all = GUIDES.flatMap(samplesOf)
const where = ({ file, line }: Sample) => `${file}:${line}`

let project: Project
beforeAll(async () => {
  project = await packedProject()
  installStandIns(project)
}, 120_000)
afterAll(() => project?.[Symbol.dispose]())

test('each sample is run, or says why not', () => {
  const known = (sample: Sample): boolean => {
    const { language, how } = sample
    if (how.startsWith('none')) return /^none, because ./.test(how)
    if (language === 'ts') return how === '' || ELSEWHERE.test(how)
    if (language === 'sh') return ['', 'stream', 'bundle'].includes(how)
    if (language === 'sql') return how === '' || /^under \S+:\d+$/.test(how)
    if (language === 'python') return sample.file === 'docs/shell.md' // test/http/python.test.ts
    return ['json', ''].includes(language) && how === ''
  }
  expect(all.length).toBeGreaterThan(60)
  expect(all.filter((sample) => !known(sample)).map(where)).toEqual([])
  const comments = GUIDES.flatMap(
    (file) =>
      fs.readFileSync(path.join(ROOT, file), 'utf8').match(/<!--(?! (?:mutants:|the end of the mutants))/g) ?? [],
  )
  expect(comments.length, 'a comment is on the line above a block, or a mark of npm run facts').toBe(
    all.filter(({ how }) => how !== '').length,
  )
  expect(all.filter(({ how }) => how.startsWith('none')).length).toBeLessThanOrEqual(2)
})

test('each program of the guides has the right types', async () => {
  const programs = all.filter(({ language }) => language === 'ts')
  expect(programs.length).toBeGreaterThan(30)
  for (const program of programs) project.write(fileOf(program), completed(program.text))
  const compilerOptions = {
    ...{ module: 'nodenext', target: 'es2024', lib: ['es2024', 'esnext.disposable'], strict: true, noEmit: true },
    ...{ exactOptionalPropertyTypes: true, types: ['node'], skipLibCheck: true, noImplicitReturns: true },
  }
  project.write('tsconfig.json', JSON.stringify({ compilerOptions, include: ['*.ts'] }))
  await project.run(path.join(ROOT, 'node_modules', '.bin', 'tsc'), ['-p', '.'])
})

describe('the samples of', () => {
  const files = GUIDES.filter((file) => all.some((sample) => sample.file === file && runsHere(sample)))
  test.each(files)(
    '%s run, and answer what it says',
    async (file) => {
      await using place = await Place.make(file)
      for (const sample of samplesOf(file).filter(runsHere)) {
        await place.run(sample).catch((error) => {
          throw new Error(`${where(sample)}: ${error.message}`, { cause: error })
        })
      }
      await place.check()
    },
    180_000,
  ) // each program is a process
})

function runsHere({ language, how, text }: Sample): boolean {
  if (language === 'sh' && MISSING.some((command) => text.includes(`${command} `))) return false
  return ['ts', 'sh', 'sql', 'json'].includes(language) && !how.startsWith('none') && !ELSEWHERE.test(how)
}

function installed(command: string): boolean {
  return spawnSync('bash', ['--norc', '-c', `command -v ${command}`]).status === 0
}

function fileOf({ file, line }: Sample): string {
  return `${path.basename(file, '.md').toLowerCase()}-${line}.ts`
}

/** What the samples of a file share. */
class Place implements AsyncDisposable {
  /** The latest commands, and what they printed. */
  #asked = { script: '', said: '' }
  readonly #file: string
  readonly #db: FreshDatabase
  readonly #lockstep: Lockstep
  readonly #server: Server

  private constructor(file: string, db: FreshDatabase, lockstep: Lockstep, server: Server) {
    this.#file = file
    this.#db = db
    this.#lockstep = lockstep
    this.#server = server
  }

  static async make(file: string): Promise<Place> {
    const db = await freshDatabase()
    await db.pool.query('create table orders (id int primary key, state text, token bigint, seen bigint)')
    await db.pool.query(`insert into orders (id, state) values (7, 'new'), (8, 'new'), (42, 'new')`)
    await db.pool.query(`select lockstep.fence_table('orders')`)
    await db.pool.query('create table auctions (closes_at timestamptz, closed boolean)')
    const lockstep = createLockstep({ connectionString: db.url })
    const tasks = createTasks(lockstep)
    tasks.define('greet', ({ name }: { name: string }) => ({ greeting: `Hello, ${name}!` })) // as the worker in Python
    // A SERIALIZABLE transaction, as in a run where every setting is odd, does not see queues that its own program has just made.
    for (const queue of ['bill', 'mail', 'resize']) await tasks.declare(queue)
    const server = await serve({ lockstep, tasks, events: createEvents(lockstep), port: 0 })
    return new Place(file, db, lockstep, server)
  }

  run(sample: Sample): Promise<unknown> {
    if (sample.language === 'ts') return this.#program(sample)
    if (sample.language === 'sql') return this.#sql(sample)
    if (sample.language === 'json') return this.#answer(sample.text)
    return sample.how === 'stream' ? this.#stream(sample.text) : this.#commands(sample.text)
  }

  // It ends by itself, and with the exit code 0.
  async #program(sample: Sample): Promise<void> {
    project.write(fileOf(sample), completed(sample.text))
    await project.run('node', [fileOf(sample)], { ...this.#env(), LOCKSTEP_API_KEYS: 'off' })
  }

  async #sql({ text, how }: Sample): Promise<void> {
    const [, name, token] = /^under (\S+):(\d+)$/.exec(how) ?? []
    if (name) {
      await this.#lockstep.locks.grant(name, { ttlMs: 60_000 })
      await this.#db.pool.query('update lockstep.lease set token = $2 where name = $1', [name, token])
    }
    await this.#db.pool.query(text)
  }

  async #commands(script: string): Promise<void> {
    const said = await project.run('bash', ['--norc', '-c', PRELUDE + this.#here(script)], this.#env())
    this.#asked = { script, said }
  }

  /** What the text shows after commands is the answer to the last of them: of the first time, or else of a second time. */
  async #answer(text: string): Promise<void> {
    const shown = shape(JSON.parse(text))
    if (isDeepStrictEqual(this.#lastAnswer(), shown)) return
    await this.#commands(this.#asked.script)
    expect(this.#lastAnswer(), this.#asked.said).toEqual(shown)
  }

  #lastAnswer(): unknown {
    const line = this.#asked.said.split(/\r?\n/).findLast((each) => each.startsWith('{'))
    return shape(JSON.parse(line ?? 'null'))
  }

  async #stream(script: string): Promise<void> {
    const env = { ...project.env, ...this.#env() }
    const child = spawn('bash', ['--norc', '-c', PRELUDE + this.#here(script)], {
      cwd: project.dir,
      env,
      detached: true,
    })
    let said = ''
    child.stdout.on('data', (text) => {
      said += text
    })
    await until('something follows', () => /^data: /m.test(said))
    process.kill(-(child.pid as number), 'SIGKILL')
    await once(child, 'exit')
  }

  /** After the last sample. */
  async check(): Promise<void> {
    if (!BILLS.includes(this.#file)) return
    const { rows } = await this.#db.pool.query('select state from orders where id = 7')
    expect(rows[0].state).not.toBe('new')
  }

  #here(script: string): string {
    return script.replaceAll(SERVER, this.#server.url).replaceAll('postgres://…', this.#db.url)
  }

  #env(): Record<string, string> {
    return { DATABASE_URL: this.#db.url, LOCKSTEP_URL: this.#server.url }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.close()
    for (const role of ['app', 'viewer']) {
      const { rowCount } = await this.#db.pool.query('select from pg_roles where rolname = $1', [role])
      if (rowCount) await this.#db.pool.query(`drop owned by ${role}; drop role ${role}`)
    }
    await this.#db.close()
  }
}

// What `npm install` would install is there. Each answer begins on a line of its own.
const PRELUDE = `set -euo pipefail
npm() { [ "$1" = install ] || command npm "$@"; }
curl() { command curl -sS "$@" && echo; }
`

/** What two answers have in common that were given at different times: everything but ids, instants and numbers in texts. */
function shape(value: unknown): unknown {
  if (typeof value === 'string') return value.replace(/[\da-f]{8}-[\da-f-]{27}/g, 'id').replace(/\d+/g, '0')
  if (Array.isArray(value)) return value.map(shape)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, shape(each)]))
}
