/**
 * The package as users get it: packed, unpacked into a separate project, type-checked, imported and run.
 *
 * What the README and the guides show is run by test/docs.
 */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { freshDatabase } from '../support/database.ts'
import { type Project, packedProject, saying } from '../support/packed.ts'
import { completed, textsOf } from '../support/samples.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const { version, exports } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8'))
const subpaths = Object.keys(exports).map((subpath) => subpath.replace(/^\./, 'lockstep'))

let project: Project
beforeAll(async () => {
  project = await packedProject()
}, 120_000)
afterAll(() => project?.[Symbol.dispose]())

const lockstep = (args: string[], env?: Record<string, string>) => project.run('node_modules/.bin/lockstep', args, env)

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
  const { packed } = project
  expect(packed).toEqual(expect.arrayContaining(['package.json', 'README.md', 'dist/db/migrations/0001_lease.sql']))
  const strays = packed.filter(
    (file) => !/^dist\/(commonjs\/)?(lib|functions)\/([\w-]+\/)*[\w-]+\.(js|d\.ts)$/.test(file),
  )
  expect(
    strays.filter(
      (file) =>
        !/^(package\.json|[A-Z]+\.md|LICENSE|bin\/lockstep\.js|docs\/[\w-]+\.(md|txt)|docs\/pictures\/\w+\.svg|dist\/commonjs\/package\.json|dist\/db\/migrations\/\w+\.sql)$/.test(
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
    project.write(
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
    project.write('options.ts', optionsConsumer())
    textsOf('README.md', 'ts').forEach((text, i) => {
      project.write(`readme-${i}.ts`, completed(text))
    })
    project.write('tsconfig.json', JSON.stringify({ compilerOptions: options, include: ['*.ts'] }))
    await project.run(path.join(ROOT, 'node_modules', '.bin', 'tsc'), ['-p', '.'])
  })
})

test('npx lockstep works in a clone before a build', async () => {
  const clone = path.join(project.folder, 'clone')
  for (const each of ['bin', 'lib', 'functions', 'db', 'package.json']) {
    fs.cpSync(path.join(ROOT, each), path.join(clone, each), { recursive: true })
  }
  fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(clone, 'node_modules'))
  const env = { ...process.env, npm_config_cache: path.join(project.folder, 'npm') }
  expect(await saying('npx', ['--offline', 'lockstep', '--version'], { cwd: clone, env })).toBe(`${version}\n`)
})

describe('for a project of CommonJS', () => {
  test('it has types under node16, on every subpath, and can be required', async () => {
    const names = subpaths.map((subpath, i) => `import * as part${i} from '${subpath}'\n`).join('')
    project.write(
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
    project.write(
      'tsconfig.cjs.json',
      JSON.stringify({ compilerOptions: { ...options, types: ['node'] }, files: ['required.cts'] }),
    )
    await project.run(path.join(ROOT, 'node_modules', '.bin', 'tsc'), ['-p', 'tsconfig.cjs.json'])
    expect(await project.run('node', ['required.cjs'])).toBe(`function${' true'.repeat(subpaths.length)}\n`)
  })
})

describe('with a database', () => {
  test.each(['esm', 'cjs'] as const)(
    'a bundle (%s) migrates from the folder that it is told, and says so without one',
    async (format) => {
      await using database = await freshDatabase({ empty: true })
      project.write(
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
      await project.run(path.join(ROOT, 'node_modules', '.bin', 'esbuild'), [
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
      expect(await project.run('node', [out], env)).toMatch(
        /^The migrations are not beside this code.* `folder`.*lockstep\/dist\/db\/migrations/,
      )
      expect(await project.run('node', [out], { ...env, FOLDER: path.join(ROOT, 'db/migrations') })).toBe('true\n')
    },
  )

  test.each(subpaths)('%s can be imported', async (subpath) => {
    project.write('import.js', `console.log(Object.keys(await import(${JSON.stringify(subpath)})).length)`)
    expect(Number(await project.run('node', ['import.js']))).toBeGreaterThan(0)
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
    project.write(
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
    expect(await project.run('node', ['hold.js'], { DATABASE_URL: database.url })).toBe('connection null lease true\n')
  })
})
