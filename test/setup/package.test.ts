/**
 * The package as users get it: packed, unpacked into a separate project, type-checked, imported and run.
 *
 * It is packed from a copy, so that nothing is written to the work tree. Its dependencies are links to the installed ones: no network.
 */
import { execFile } from 'node:child_process'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { serve } from '../../functions/adapters/node.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { freshDatabase } from '../support/database.ts'

const run = promisify(execFile)
const ROOT = path.resolve(import.meta.dirname, '../..')
const { version, dependencies, exports } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8'))
const subpaths = Object.keys(exports).map((subpath) => subpath.replace(/^\./, 'lockstep'))

let folder: string
/** A project that depends on the package. */
let project: string
/** Files of the package, relative to its root. */
let packed: string[]

beforeAll(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-package-'))
  const copy = path.join(folder, 'copy')
  for (const each of [
    'bin',
    'lib',
    'functions',
    'db',
    'package.json',
    'tsconfig.json',
    'tsconfig.build.json',
    'README.md',
  ]) {
    fs.cpSync(path.join(ROOT, each), path.join(copy, each), { recursive: true })
  }
  fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(copy, 'node_modules'))
  await saying('npm', ['pack', '--offline', '--pack-destination', folder], { cwd: copy })

  project = path.join(folder, 'project')
  const installed = path.join(project, 'node_modules', 'lockstep')
  fs.mkdirSync(path.join(project, 'node_modules', '.bin'), { recursive: true })
  await saying('tar', ['-xzf', `lockstep-${version}.tgz`], { cwd: folder })
  fs.renameSync(path.join(folder, 'package'), installed)
  packed = fs.readdirSync(installed, { recursive: true, encoding: 'utf8' })
  packed = packed.filter((file) => !fs.statSync(path.join(installed, file)).isDirectory())

  for (const name of [...Object.keys(dependencies), '@types/node']) {
    const link = path.join(project, 'node_modules', name)
    fs.mkdirSync(path.dirname(link), { recursive: true })
    fs.symlinkSync(path.join(ROOT, 'node_modules', name), link)
  }
  // npm does this for `bin`
  const { bin } = JSON.parse(fs.readFileSync(path.join(installed, 'package.json'), 'utf8'))
  fs.chmodSync(path.join(installed, bin.lockstep), 0o755)
  fs.symlinkSync(path.join('..', 'lockstep', bin.lockstep), path.join(project, 'node_modules', '.bin', 'lockstep'))
  write('package.json', JSON.stringify({ type: 'module' }))
}, 120_000)

afterAll(() => fs.rmSync(folder, { recursive: true, force: true }))

const write = (file: string, text: string) => fs.writeFileSync(path.join(project, file), text)

/** Runs a program; if it fails, rejects with everything that it printed. */
async function saying(command: string, args: string[], options: { cwd: string; env?: NodeJS.ProcessEnv }) {
  const { stdout } = await run(command, args, options).catch((error) => {
    throw new Error(`${command} ${args.join(' ')}: ${error.stdout}${error.stderr}`)
  })
  return stdout
}

/** Runs a program in the project, on the same Node. */
function inProject(command: string, args: string[], env: Record<string, string> = {}) {
  const PATH = [path.dirname(process.execPath), process.env.PATH].join(path.delimiter)
  return saying(command, args, { cwd: project, env: { PATH, ...env } })
}

const lockstep = (args: string[], env?: Record<string, string>) => inProject('node_modules/.bin/lockstep', args, env)

/** The programs of the README, each completed so that it runs. */
function examples(): string[] {
  const start = `import { createLockstep } from 'lockstep'
    await using lockstep = createLockstep({ connectionString: process.env.DATABASE_URL ?? '' })
    const { locks } = lockstep\n`
  const blocks = fs.readFileSync(path.join(ROOT, 'README.md'), 'utf8').matchAll(/```ts\n([\s\S]*?)```/g)
  return [...blocks].map(([, text = '']) => (text.includes("from 'lockstep'") ? text : start + text))
}

/** A program that compiles only if each option of the public interface may be given as undefined. */
function optionsConsumer(): string {
  const parts = fs.readFileSync(path.join(ROOT, 'docs/api.txt'), 'utf8').split(/^\/\/ ---- (lockstep\S*) ----$/m)
  const named = parts.flatMap((subpath, i) => {
    if (!/^lockstep/.test(subpath)) return []
    const interfaces =
      (parts[i + 1] as string).split('// ---- mentioned')[0]?.matchAll(/^export interface (\w+)/gm) ?? []
    const names = [...interfaces].flatMap(([, name = '']) =>
      /(Options|Page|Backoff|Rule|NewEvent)$/.test(name) ? name : [],
    )
    return names.map((name) => ({ subpath, name }))
  })
  expect(named.length).toBeGreaterThan(25)
  return `
    import type { Leaders, Locks, Time, Hold, Term } from 'lockstep'
    import type { Queue, Tasks, Worker } from 'lockstep/task'
    import type { Consumer, Events } from 'lockstep/event'
    ${named.map(({ subpath, name }, i) => `import type { ${name} as Named${i} } from '${subpath}'`).join('\n')}

    type Loose<T> = { [K in keyof T]: {} extends Pick<T, K> ? T[K] | undefined : T[K] }
    type NoOptions = ((...args: never[]) => unknown) | readonly unknown[] | Date | Queue
    type Refuses<O> = O extends NoOptions ? never : O extends object ? (Loose<O> extends O ? never : O) : never
    type Wrong<Room> = {
      [Verb in keyof Room]: Room[Verb] extends (...args: infer Args) => unknown ? ([Refuses<Args[number]>] extends [never] ? never : Verb) : never
    }[keyof Room]
    type None<T extends never> = T
    export type Verbs = None<
      Wrong<Pick<Locks, keyof Locks>> | Wrong<Pick<Leaders, keyof Leaders>> | Wrong<Pick<Time, keyof Time>> | Wrong<Tasks> | Wrong<Events>
    >
    export type Ends = None<Wrong<Pick<Hold, 'release'> & Pick<Term, 'resign'> & Pick<Worker, 'stop'> & Pick<Consumer, 'stop'>>>
    ${named.map((_, i) => `export type Interface${i} = None<Refuses<Named${i}>>`).join('\n')}
    declare const signal: AbortSignal | undefined
    declare const locks: Locks
    await locks.acquire('a', { signal, ttlMs: undefined })
  `
}

test('it contains what is built and nothing else', () => {
  expect(packed).toEqual(expect.arrayContaining(['package.json', 'README.md', 'dist/db/migrations/0001_lease.sql']))
  const strays = packed.filter(
    (file) => !/^dist\/(commonjs\/)?(lib|functions)\/([\w-]+\/)*[\w-]+\.(js|d\.ts)$/.test(file),
  )
  expect(
    strays.filter(
      (file) =>
        !/^(package\.json|README\.md|LICENSE|bin\/lockstep\.js|dist\/commonjs\/package\.json|dist\/db\/migrations\/\w+\.sql)$/.test(
          file,
        ),
    ),
  ).toEqual([])
  const built = (ending: string) =>
    packed
      .filter((file) => file.startsWith('dist/') && file.endsWith(ending))
      .map((file) => file.slice('dist/'.length, -ending.length))
      .sort()
  const sources = ['lib', 'functions'].flatMap((room) =>
    fs
      .readdirSync(path.join(ROOT, room), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts') && !file.endsWith('.d.ts')) // types that Lockstep declares for a package without types
      .map((file) => `${room}/${file.replace(/\.ts$/, '')}`),
  )
  expect(built('.js')).toEqual(sources.sort())
  const ofCommonJs = (file: string) => file.startsWith('commonjs/')
  expect(built('.d.ts').filter((file) => !ofCommonJs(file))).toEqual(built('.js'))
  expect(built('.d.ts').filter(ofCommonJs)).toEqual(built('.js').map((file) => `commonjs/${file}`))
})

describe('for a project with strict types', () => {
  const options = {
    module: 'nodenext',
    target: 'es2024',
    lib: ['es2024', 'esnext.disposable'],
    strict: true,
    exactOptionalPropertyTypes: true,
    skipLibCheck: false, // check Lockstep's declarations too, and everything they import
    noEmit: true,
    types: ['node'],
  }

  test('it has types, on every subpath, any option may be undefined, and the README is right', async () => {
    write(
      'consumer.ts',
      `import { createLockstep, type Hold, LeaseLostError, type Lockstep } from 'lockstep'
       import { UnavailableError } from 'lockstep/errors'
       import { migrate, type SchemaState } from 'lockstep/migrate'
       import { type Postgres, startPostgres } from 'lockstep/postgres'
       import { createTasks, type Job, type Tasks } from 'lockstep/task'
       import { type Consumer, createEvents, type Events, type StoredEvent } from 'lockstep/event'
       import { type Measurement, ntp } from 'lockstep/ntp'
       import { createApp } from 'lockstep/app'
       import { type Server, serve } from 'lockstep/node'

       const lockstep: Lockstep = createLockstep({ connectionString: 'postgres://localhost/app' })
       export const held: Hold | null = await lockstep.locks.tryAcquire('a', { ttlMs: 1_000 })
       export const token: bigint | undefined = held?.token
       export const answer: Response = await createApp(lockstep).request('/healthz')
       export const server: Server = await serve({ lockstep })
       export const applied: string[] = (await migrate('postgres://localhost/app')).applied
       export const postgres: Postgres = await startPostgres()
       export const current = (state: SchemaState): string | null => state.current
       export const ours = (error: unknown) => error instanceof LeaseLostError || error instanceof UnavailableError

       export const measured: Measurement = await ntp().measure()
       export const bound: number | null = (await lockstep.time.ready()).boundMs
       export const timed = createLockstep({ connectionString: 'postgres://localhost/app', time: { ntp: ntp() } })

       const tasks: Tasks = createTasks(lockstep)
       const count = tasks.define('count', (text: string) => text.length)
       tasks.define('both', async (_: null, { trx }) => void trx, { transactional: true })
       export const length: number = await tasks.run(count, 'four')
       export const lengths: number[] = await tasks.run(count, 'four', { pool: 2 })
       export const sent: string | null = await tasks.send('by its name', { any: 'thing' })
       export const job: Job | null = await tasks.get(count, 'id')
       // @ts-expect-error the data of this queue is a string
       await tasks.send(count, 4)
       // @ts-expect-error a handler has a transaction only if it is transactional
       tasks.define('neither', async (_: null, { trx }) => void trx)

       const events: Events = createEvents(lockstep)
       export const appended: bigint = (await events.append('s', { type: 't' }, { expected: 3n })).last
       export const page: StoredEvent[] = (await events.read('s', { from: 1n })).events
       export const consumer: Consumer = events.consume('g', {}, async ({ stream }, { trx }) => void [stream, trx])
       for await (const event of events.subscribe({ prefix: 's' })) use(event)
       function use(event: StoredEvent) { return event.cursor }
       // @ts-expect-error a position is a bigint
       await events.read('s', { from: 1 })
       // @ts-expect-error an event has a type
       await events.append('s', {})

       // @ts-expect-error a name is a string
       await lockstep.locks.acquire(1)
       // @ts-expect-error no such option
       await lockstep.locks.acquire('a', { ttl: 1_000 })
       // @ts-expect-error an answer may be null
       await (await lockstep.locks.tryAcquire('a')).release()
       // @ts-expect-error not for others
       import 'lockstep/lib/db'
      `,
    )
    write('options.ts', optionsConsumer())
    examples().forEach((text, i) => {
      write(`readme-${i}.ts`, text)
    })
    write('tsconfig.json', JSON.stringify({ compilerOptions: options, include: ['*.ts'] }))
    await inProject(path.join(ROOT, 'node_modules', '.bin', 'tsc'), ['-p', '.'])
  })
})

test('npx lockstep works in a clone before a build', async () => {
  const clone = path.join(folder, 'clone')
  for (const each of ['bin', 'lib', 'functions', 'db', 'package.json']) {
    fs.cpSync(path.join(ROOT, each), path.join(clone, each), { recursive: true })
  }
  fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(clone, 'node_modules'))
  const env = { ...process.env, npm_config_cache: path.join(folder, 'npm') }
  expect(await saying('npx', ['--offline', 'lockstep', '--version'], { cwd: clone, env })).toBe(`${version}\n`)
})

describe('for a project of CommonJS', () => {
  test('it has types under node16, on every subpath, and can be required', async () => {
    const names = subpaths.map((subpath, i) => `import * as part${i} from '${subpath}'\n`).join('')
    write(
      'required.cts',
      `import { createLockstep, type Hold, LeaseLostError } from 'lockstep'
       import { createTasks } from 'lockstep/task'
       ${names}
       const lockstep = createLockstep({ connectionString: 'postgres://localhost/app' })
       export const acquire = (): Promise<Hold> => lockstep.locks.acquire('a', { ttlMs: 1_000 })
       export const tasks = createTasks(lockstep)
       export const lost = (error: unknown): boolean => error instanceof LeaseLostError
       console.log(typeof createLockstep, ${subpaths.map((_, i) => `Object.keys(part${i}).length > 0`).join(', ')})
       // @ts-expect-error no such option
       export const wrong = () => lockstep.locks.acquire('a', { ttl: 1_000 })`,
    )
    // The types of kysely are of an ES module, which a project of CommonJS can only skip.
    const options = {
      module: 'node16',
      target: 'es2022',
      lib: ['es2024', 'esnext.disposable'],
      strict: true,
      skipLibCheck: true,
    }
    write(
      'tsconfig.cjs.json',
      JSON.stringify({ compilerOptions: { ...options, types: ['node'] }, files: ['required.cts'] }),
    )
    await inProject(path.join(ROOT, 'node_modules', '.bin', 'tsc'), ['-p', 'tsconfig.cjs.json'])
    expect(await inProject('node', ['required.cjs'])).toBe(`function${' true'.repeat(subpaths.length)}\n`)
  })
})

describe('with a database', () => {
  test.each(['esm', 'cjs'] as const)(
    'a bundle (%s) migrates from the folder that it is told, and says so without one',
    async (format) => {
      await using database = await freshDatabase({ empty: true })
      write(
        'bundled.js',
        `import { migrate } from 'lockstep/migrate'
      migrate(process.env.DATABASE_URL, process.env.FOLDER ? { folder: process.env.FOLDER } : {}).then(
        ({ applied }) => console.log(applied.length > 0), (error) => console.log(error.message))`,
      )
      const out = `bundle.${format === 'cjs' ? 'cjs' : 'mjs'}`
      const banner =
        format === 'cjs'
          ? []
          : ["--banner:js=import { createRequire } from 'module'; const require = createRequire(import.meta.url)"]
      await inProject(path.join(ROOT, 'node_modules', '.bin', 'esbuild'), [
        ...[
          'bundled.js',
          '--bundle',
          '--platform=node',
          `--format=${format}`,
          `--outfile=${out}`,
          '--external:pg-native',
          '--log-level=error',
        ],
        ...banner,
      ])
      const env = { DATABASE_URL: database.url }
      expect(await inProject('node', [out], env)).toMatch(
        /^The migrations are not beside this code.* `folder`.*lockstep\/dist\/db\/migrations/,
      )
      expect(await inProject('node', [out], { ...env, FOLDER: path.join(ROOT, 'db/migrations') })).toBe('true\n')
    },
  )

  test.each(subpaths)('%s can be imported', async (subpath) => {
    write('import.js', `console.log(Object.keys(await import(${JSON.stringify(subpath)})).length)`)
    expect(Number(await inProject('node', ['import.js']))).toBeGreaterThan(0)
  })

  test('the command prints its version, and migrates an empty database once', async () => {
    await using database = await freshDatabase({ empty: true })
    const env = { DATABASE_URL: database.url }
    expect(await lockstep(['--version'])).toBe(`${version}\n`)
    expect(await lockstep(['migrate'], env)).toMatch(/^migrations applied: 0001_lease/)
    expect(await lockstep(['migrate'], env)).toMatch(/^schema is up to date/)
  })

  test('it grants, refuses and releases', async () => {
    await using database = await freshDatabase()
    write(
      'hold.js',
      `import { createLockstep } from 'lockstep'
       const lockstep = createLockstep({ connectionString: process.env.DATABASE_URL })
       const held = await lockstep.locks.acquire('a')
       const refused = await lockstep.locks.tryAcquire('a')
       await held.release()
       const again = await lockstep.locks.tryAcquire('a', { ttlMs: 5_000 })
       console.log(held.kind, refused, again.kind, again.token > held.token)
       await lockstep.close()`,
    )
    expect(await inProject('node', ['hold.js'], { DATABASE_URL: database.url })).toBe('connection null lease true\n')
  })

  test('the programs of the README run, on a fenced table', async () => {
    await using database = await freshDatabase()
    await database.pool.query(`create table orders (id int primary key, state text, token bigint, seen bigint)`)
    await database.pool.query(`insert into orders (id, state) values (7, 'new')`)
    await database.pool.query(`select lockstep.fence_table('orders')`)
    await using lockstep = createLockstep({ connectionString: database.url })
    const server = await serve({ lockstep, port: 0 })
    // A SERIALIZABLE transaction, as in a run where every setting is odd, does not see queues that its own program has just made.
    for (const queue of ['bill', 'mail']) await createTasks(lockstep).declare(queue)
    const programs = examples()
    expect(programs.length).toBeGreaterThan(4)
    const env = { DATABASE_URL: database.url, LOCKSTEP_URL: server.url, LOCKSTEP_API_KEYS: 'off' }
    for (const [i, text] of programs.entries()) {
      write(`readme-${i}.ts`, text)
      await inProject('node', [`readme-${i}.ts`], env)
    }
    await server.close()
    const { rows } = await database.pool.query('select state, token > 0 as token from orders')
    expect(rows).toEqual([{ state: 'billed', token: true }])
  }, 120_000) // each program is a process
})
