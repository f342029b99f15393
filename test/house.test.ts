/**
 * The house rules, kept by a test: the imports that are allowed, the public names, the words, and that what the README and the guides name exists.
 *
 * A rule that changes is changed here, in the same commit as the code that needs it.
 */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { describe, expect, test } from 'vitest'
import { createApp } from '../functions/app.ts'
import { SCHEMA } from '../lib/database/database.ts'
import { createLockstep } from '../lib/index.ts'

const ROOT = path.dirname(import.meta.dirname)

/**
 * The law: what each room may import. Every arrow goes to a line above, so there are no circles between rooms, and what is not
 * named here is a neighbour, which is nobody's business.
 */
const MAY_IMPORT: Record<string, string[]> = {
  'lib/base': [],
  'lib/database': ['lib/base'],
  'lib/lease': ['lib/base', 'lib/database'],
  'lib/lock': ['lib/base', 'lib/database', 'lib/lease'],
  'lib/leader': ['lib/base', 'lib/database', 'lib/lease'],
  'lib/time': ['lib/base', 'lib/database'],
  'lib/index': ['lib/base', 'lib/database', 'lib/lease', 'lib/lock', 'lib/leader', 'lib/time'],
  'lib/task': ['lib/base', 'lib/database', 'lib/index'],
  'lib/event': ['lib/base', 'lib/database', 'lib/lease', 'lib/index'],
  'lib/setup': ['lib/base', 'lib/database'],
  'functions/http': ['lib/base', 'lib/index'],
  'functions/routes': ['lib/index', 'lib/task', 'lib/event', 'functions/http'],
  'functions/app': ['lib/index', 'lib/task', 'lib/event', 'functions/http', 'functions/routes'],
  'functions/adapters': [
    'lib/base',
    'lib/index',
    'lib/time',
    'lib/task',
    'lib/event',
    'functions/http',
    'functions/app',
  ],
  'functions/cli': [
    'lib/base',
    'lib/database',
    'lib/index',
    'lib/time',
    'lib/task',
    'lib/event',
    'lib/setup',
    'functions/http',
    'functions/adapters',
  ],
}

/** What importing a subpath of the package gives, by name. */
const PUBLIC = {
  'lib/index': {
    values: [
      ...['ForbiddenError', 'HandedBackError', 'JobFailedError', 'LIMITS', 'LeaseHeldError', 'LeaseLostError'],
      ...[
        'NotFoundError',
        'PositionConflictError',
        'RunTimeoutError',
        'TransactionEndedError',
        'UnavailableError',
        'createLockstep',
        'cristian',
      ],
    ],
    types: [
      ...['AcquireOptions', 'AnyTransaction', 'Backoff', 'CampaignOptions', 'Candidate', 'ClientInTransaction'],
      ...['ConnectOptions', 'EndedOutcome'],
      ...[
        'ElectionState',
        'ErrorCode',
        'Expected',
        'Grant',
        'Held',
        'Hold',
        'InvalidArgument',
        'LeadOptions',
        'LeadWork',
        'Leader',
      ],
      ...['Leaders', 'LockHolder', 'LockState', 'Locks', 'Lockstep', 'LockstepOptions', 'Members', 'Page', 'Reading'],
      ...['ReadyOptions'],
      ...['RemoteTime', 'Tables', 'Term', 'Time', 'TimeAnswer', 'TimeOptions', 'TimeSource', 'TimeStatus'],
      ...['TransactionOptions', 'TransactionWork', 'TryCampaignOptions', 'TryOptions'],
    ],
  },
  'lib/task/index': {
    values: ['createTasks'],
    types: [
      ...['ClaimOptions', 'Claimed', 'Counts', 'DeclareOptions', 'DefineOptions', 'DrainResult', 'Handler'],
      ...['HandlerContext', 'Job', 'JobState', 'Outcome', 'Page', 'Queue', 'RetryOptions', 'RunOptions', 'Schedule'],
      ...[
        'ScheduleOptions',
        'SendOptions',
        'StandardSchema',
        'Tasks',
        'TasksOptions',
        'TickResult',
        'TransactionalContext',
      ],
      'Worker',
    ],
  },
  'lib/event/index': {
    values: ['createEvents'],
    types: [
      ...['AllOptions', 'AppendOptions', 'Appended', 'ArchiveOptions', 'Batch', 'BatchEnd', 'ConsumeOptions'],
      ...[
        'Consumer',
        'EventContext',
        'EventHandler',
        'EventPage',
        'EventPiece',
        'Events',
        'EventsOptions',
        'FailOptions',
      ],
      ...['Group', 'GroupLag', 'GroupOptions', 'Holdup', 'Horizon', 'NewEvent', 'Parked', 'PartitionLag'],
      ...['PollOptions', 'ReadOptions', 'RetentionRule', 'StoredEvent', 'StreamLag', 'StreamState'],
      ...['SubscribeOptions', 'Swept', 'TruncateOptions', 'Truncated'],
    ],
  },
  'lib/task/pgboss/boss-of': { values: ['bossOf', 'keepBoss'], types: [] },
  'lib/base/errors': {
    values: [
      ...['ForbiddenError', 'HandedBackError', 'JobFailedError', 'LeaseHeldError', 'LeaseLostError', 'NotFoundError'],
      ...[
        'PositionConflictError',
        'RunTimeoutError',
        'SQLSTATE',
        'TransactionEndedError',
        'UnavailableError',
        'fromDatabase',
      ],
      ...['noConnectionLeft', 'outOfRange', 'wrongType'],
    ],
    types: ['EndedOutcome', 'ErrorCode', 'Expected', 'InvalidArgument'],
  },
  'lib/time/ntp/index': { values: ['NTP_SERVERS', 'ntp'], types: ['Measurement', 'Ntp', 'NtpOptions', 'ServerReport'] },
  'lib/setup/migrate': {
    values: ['described', 'migrate', 'schemaState'],
    types: ['Blocker', 'MigrateOptions', 'Migrated', 'SchemaState'],
  },
  'lib/setup/embedded-postgres': { values: ['startPostgres'], types: ['Postgres', 'PostgresOptions'] },
  'functions/app': { values: ['createApp'], types: ['AppOptions'] },
  'functions/adapters/node': { values: ['listenAddress', 'serve'], types: ['ServeOptions', 'Server'] },
  'functions/adapters/lambda': { values: ['lambda'], types: ['Handler', 'Lambda', 'LambdaOptions', 'StreamHandler'] },
  'functions/adapters/cloudflare': {
    values: ['worker'],
    types: ['Worker', 'WorkerContext', 'WorkerEnv', 'WorkerOptions'],
  },
}

/** Files that are longer than they should be, and how long they may be until they are divided. */
const LONG: Record<string, number> = {}

const read = (file: string) => fs.readFileSync(path.join(ROOT, file), 'utf8')

/** Files below these folders, from the root, by what their names end with. */
function filesIn(folders: string[], ending: string): string[] {
  return folders
    .flatMap((folder) =>
      fs.readdirSync(path.join(ROOT, folder), { withFileTypes: true }).flatMap((it) => {
        if (it.isDirectory()) {
          const others = it.name === 'node_modules' || it.name === '.wrangler' || it.name.startsWith('.packages')
          return others ? [] : filesIn([`${folder}/${it.name}`], ending)
        }
        return it.name.endsWith(ending) ? [`${folder}/${it.name}`] : []
      }),
    )
    .sort()
}

const OURS = filesIn(['lib', 'functions'], '.ts').filter((file) => !file.endsWith('.d.ts'))

/** The text of a file without its comments. Only whole-line ones and those after code: '/v1/*' opens no comment. */
function code(file: string): string {
  return read(file)
    .replaceAll(/^\s*\/\*[\s\S]*?\*\//gm, '')
    .replaceAll(/(^|\s)\/\/ .*$/gm, '')
}

/** What a file imports: our files by their path from the root without `.ts`, others as written; `types`: erased. */
function imports(file: string): { what: string; types: boolean }[] {
  const found = code(file).matchAll(
    /^(?:import|export)\s+(type\s)?[^'"=;()]*?\bfrom\s*'([^']+)'|^import\s*'([^']+)'|\bimport\(\s*'([^']+)'/gm,
  )
  return [...found].map(([, type, ...from]) => {
    const written = from.find(Boolean) ?? ''
    const what = written.startsWith('.')
      ? path.posix.join(path.posix.dirname(file), written).replace(/\.ts$/, '')
      : written
    return { what, types: type !== undefined }
  })
}

const own = (what: string) => !what.startsWith('node:') && fs.existsSync(path.join(ROOT, `${what}.ts`))

/** Everything that a bundler takes along with a file. */
function reach(file: string, seen = new Set<string>()): Set<string> {
  for (const { what, types } of imports(file)) {
    if (types || seen.has(what)) continue
    seen.add(what)
    if (own(what)) reach(`${what}.ts`, seen)
  }
  return seen
}

/** The room of a file: a folder of lib or functions, or a file that stands beside them. */
const roomOf = (file: string): string => file.split('/').slice(0, 2).join('/').replace(/\.ts$/, '')

/** The imports of our own files, from file to file, both with `.ts`. */
const ARROWS = new Map(
  OURS.map((file) => [file, imports(file).flatMap(({ what }) => (own(what) ? [`${what}.ts`] : []))]),
)

describe('imports', () => {
  test('the law names every room, and each may import only rooms that come before it', () => {
    const rooms = Object.keys(MAY_IMPORT)
    expect([...new Set(OURS.map(roomOf))].sort()).toEqual([...rooms].sort())
    for (const [i, room] of rooms.entries()) {
      expect(rooms.slice(0, i), room).toEqual(expect.arrayContaining(MAY_IMPORT[room] ?? []))
    }
  })

  test('all imports were found', () => {
    for (const file of OURS) {
      const written = code(file).match(/(?:from|import)\s*\(?\s*'\.[^']*'/g)?.length ?? 0
      expect(ARROWS.get(file)?.length, file).toBe(written)
    }
  })

  test('every room imports only what it may', () => {
    const arrows = [...ARROWS].flatMap(([file, to]) => to.map((other) => [file, other] as const))
    const used = arrows.filter(([file, other]) => roomOf(file) !== roomOf(other))
    expect(used.filter(([file, other]) => !MAY_IMPORT[roomOf(file)]?.includes(roomOf(other)))).toEqual([])
    // and the law allows nothing that nobody needs
    const needed = new Set(used.map(([file, other]) => `${roomOf(file)} imports ${roomOf(other)}`))
    const allowed = Object.entries(MAY_IMPORT).flatMap(([room, may]) => may.map((other) => `${room} imports ${other}`))
    expect([...needed].sort()).toEqual(allowed.sort())
  })

  test('a folder is entered by its index.ts, or by a file that the package exports', () => {
    const inside = (file: string, folder: string) => file.startsWith(`${folder}/`)
    const breaches = [...ARROWS].flatMap(([file, to]) =>
      to.flatMap((other) => {
        const folders = other.split('/').slice(0, -1)
        const entered = folders
          .map((_, i) => folders.slice(0, i + 1).join('/'))
          .filter((folder) => folder.includes('/') && !inside(file, folder))
        // an index.ts may be that of the room, or, for a subpath of the package, of a folder in it
        const through = other.replace(/\.ts$/, '') in PUBLIC || other === `${entered[0]}/index.ts`
        return entered.length === 0 || through ? [] : [`${file} imports ${other}`]
      }),
    )
    expect(breaches).toEqual([])
  })

  test('there is no circle of files, of types neither', () => {
    const circles: string[] = []
    const done = new Set<string>()
    const walk = (file: string, above: string[]) => {
      if (above.includes(file)) circles.push([...above.slice(above.indexOf(file)), file].join(' > '))
      else if (!done.has(file)) {
        for (const other of ARROWS.get(file) ?? []) walk(other, [...above, file])
        done.add(file)
      }
    }
    for (const file of OURS) walk(file, [])
    expect(circles).toEqual([])
  })

  test('lib knows nothing of functions, infra and tests, and functions nothing of infra and tests', () => {
    for (const [folder, others] of [
      ['lib', /^(functions|infra|test)\b/],
      ['functions', /^(infra|test)\b/],
      ['infra', /^test\b/],
    ] as const) {
      for (const file of filesIn([folder], '.ts')) {
        const wrong = imports(file).filter(({ what }) => others.test(what))
        expect(wrong, file).toEqual([])
      }
    }
  })

  test('infra deploys what is public, and reads secrets as the functions do', () => {
    for (const file of filesIn(['infra'], '.ts')) {
      const ours = imports(file).filter(({ what }) => /^(lib|functions)\b/.test(what))
      const own = ['functions/adapters/aws-secrets', 'lib/task/schedule/slots'] // the latter for infra/own-cron.ts
      const hidden = ours.filter(({ what }) => !(what in PUBLIC) && !own.includes(what))
      expect(hidden, file).toEqual([])
    }
  })

  test.each([
    ...[
      'lib/index.ts',
      'functions/app.ts',
      'lib/task/index.ts',
      'lib/event/index.ts',
      'functions/adapters/cloudflare.ts',
    ],
  ])('%s reaches only what a Worker has', (file) => {
    const reached = [...reach(file)]
    expect(reached).toContain('pg') // so it does reach
    const never = ['lib/time/ntp/index', 'functions/adapters/node', 'functions/cli/index']
    expect(reached.filter((what) => what.startsWith('lib/setup/') || never.includes(what))).toEqual([])
    const node = [
      ...['node:crypto', 'node:timers/promises'],
      ...(file === 'functions/adapters/cloudflare.ts' ? ['node:async_hooks'] : []),
    ]
    expect(reached.filter((what) => what.startsWith('node:')).sort()).toEqual(node.sort())
  })

  test('a program that does not import tasks does not bundle pg-boss', () => {
    expect([...reach('lib/task/index.ts')]).toContain('pg-boss') // so it would be found
    const lean = ['lib/index.ts', 'lib/event/index.ts', 'functions/app.ts', 'functions/adapters/node.ts']
    for (const file of [...lean, 'functions/adapters/lambda.ts', 'functions/adapters/cloudflare.ts']) {
      expect([...reach(file)]).not.toContain('pg-boss')
    }
  })

  test('what is imported is a dependency', () => {
    const { dependencies, peerDependencies } = JSON.parse(read('package.json'))
    const known = Object.keys({ ...dependencies, ...peerDependencies })
    for (const file of OURS) {
      for (const { what } of imports(file)) {
        if (own(what) || what.startsWith('node:')) continue
        const name = /^(@[^/]+\/)?[^/]+/.exec(what)?.[0] ?? ''
        expect(known, `${file} imports ${what}`).toContain(name)
      }
    }
  })

  test('only the command reads the environment and prints', () => {
    const does = OURS.filter((file) => /\bprocess\s*\.\s*(env|stdout|stderr)\b|\bconsole\b/.test(code(file)))
    // … and the doors of the clouds, where nobody sits at a terminal.
    expect(does.filter((file) => !file.startsWith('functions/cli/'))).toEqual([
      'functions/adapters/cloud.ts',
      'functions/adapters/lambda.ts',
    ])
  })
})

describe('the public surface', () => {
  test('is what package.json exports', () => {
    const { exports } = JSON.parse(read('package.json')) as { exports: Record<string, Record<string, string>> }
    const files = Object.values(exports).map((at) => /^\.\/dist\/(.+)\.js$/.exec(at.default ?? '')?.[1])
    expect(files).toEqual(Object.keys(PUBLIC))
    for (const at of Object.values(exports)) expect(at.types).toBe(at.default?.replace(/\.js$/, '.d.ts'))
  })

  test.each(Object.entries(PUBLIC))('of %s is as written down', async (file, { values, types }) => {
    expect(Object.keys(await import(/* @vite-ignore */ path.join(ROOT, `${file}.ts`))).sort()).toEqual(values)
    expect(exportedNames(`${file}.ts`)).toEqual([...values, ...types].sort())
  })
})

/** The names a file exports, types too. */
function exportedNames(file: string): string[] {
  const text = code(file)
  const lists = [...text.matchAll(/^export (?:type )?\{([^}]*)\}/gm)].flatMap(([, names = '']) =>
    names.split(',').map((name) => name.replace(/^.* as /s, '')),
  )
  const declared = text.matchAll(
    /^export (?:declare |abstract |async )*(?:class|function|interface|type|const) (\w+)/gm,
  )
  const names = [...lists.map((name) => name.replace('type ', '')), ...[...declared].map(([, name = '']) => name)]
  return [...new Set(names.map((name) => name.trim()).filter((name) => name !== ''))].sort()
}

describe('files', () => {
  test('the code asks for the last migration', () => {
    expect(filesIn(['db/migrations'], '.sql').at(-1)).toBe(`db/migrations/${SCHEMA}.sql`)
  })

  const all = [...filesIn(['lib', 'functions', 'infra', 'test'], '.ts'), ...filesIn(['db'], '.sql')]
  test('open with what they are for', () => {
    const silent = all.filter((file) => !/^(#!.*\n)?(\/\*\*\s|-- )/.test(read(file)))
    expect(silent).toEqual([])
  })

  test('that are SQL and new are ASCII, so that a database in another encoding is refused for a better reason', () => {
    const files = filesIn(['db/migrations'], '.sql').filter((file) => file >= 'db/migrations/0008')
    expect(files.filter((file) => /[^\n\x20-\x7e]/.test(read(file)))).toEqual([])
  })

  test('can be read in a sitting', () => {
    const lines = OURS.map((file) => [file, read(file).split('\n').length - 1] as const)
    expect(lines.filter(([file, count]) => count > (LONG[file] ?? 300))).toEqual([])
  })
})

describe('package.json', () => {
  const { dependencies, devDependencies, peerDependencies, allowScripts, scripts } = JSON.parse(read('package.json'))
  type Locked = Record<string, { version?: string; hasInstallScript?: boolean; resolved?: string }>
  const locked = (folder: string): Locked => JSON.parse(read(path.join(folder, 'package-lock.json'))).packages
  const scripted = (folder: string) =>
    Object.entries(locked(folder))
      .filter(([, it]) => it.hasInstallScript)
      .map(([at]) => at.replace(/^.*node_modules\//, ''))
      .filter((name, i, all) => all.indexOf(name) === i)
      .sort()
  const EXACT = /^\d+\.\d+\.\d+(-[\w.]+)?$/

  test('names exact versions', () => {
    const { '@aws-sdk/client-secrets-manager': lambdas, ...peers } = peerDependencies
    expect(lambdas).toMatch(/^\^\d+/) // Lambda brings its own
    const versions = Object.entries({ ...dependencies, ...devDependencies, ...peers })
    expect(versions.length).toBeGreaterThan(10)
    expect(versions.filter(([, version]) => !EXACT.test(String(version)))).toEqual([])
    expect(peerDependencies['embedded-postgres']).toBe(devDependencies['embedded-postgres'])
  })

  test('says of every package with an install script whether it may run', () => {
    expect(Object.keys(allowScripts).sort()).toEqual(scripted('.'))
    expect(Object.keys(allowScripts).filter((name) => allowScripts[name])).toEqual(['node'])
  })

  // test/tools/packages.ts
  const others = filesIn(['infra', 'test'], 'package.json').map((file) => path.dirname(file))
  test('what npm ci leaves out has a package.json of its own, and a script that installs it', () => {
    const folders = [
      ...Object.values<string>(scripts)
        .join('\n')
        .matchAll(/with\.ts (\S+) --/g),
    ].map(([, at]) => at)
    expect([...new Set(folders)].sort()).toEqual(others)
    expect(others).toEqual(['infra/aws', 'infra/cloudflare', 'test/bench', 'test/containers', 'test/openapi'])
  })

  test.each(others)(
    'of %s names exact versions, those of the project where it has them, and runs no install script',
    (at) => {
      const its = JSON.parse(read(`${at}/package.json`))
      expect(its).toMatchObject({ private: true, type: 'module', description: expect.stringMatching(/: \d+ MB$/) })
      expect(Object.values<string>(its.dependencies).filter((version) => !EXACT.test(version))).toEqual([])
      expect(Object.keys(its.allowScripts).sort()).toEqual(scripted(at))
      expect(Object.values(its.allowScripts).filter(Boolean)).toEqual([])
      const ours = Object.entries<string>({ ...dependencies, ...devDependencies })
      const other = ours.filter(
        ([name, version]) => (locked(at)[`node_modules/${name}`]?.version ?? version) !== version,
      )
      // openapi-typescript is written for the compiler of TypeScript 5, and the linters bring the types of their own Node.
      expect(other.map(([name]) => name)).toEqual(at === 'test/openapi' ? ['@types/node', 'typescript'] : [])
    },
  )

  test.each(['.', ...others])('the lock file of %s names no registry', (at) => {
    expect(Object.values(locked(at)).filter(({ resolved }) => resolved !== undefined)).toEqual([])
  })

  test('tests in workerd download it in a hook, which has the time for it', () => {
    const tests = filesIn(['test'], '.test.ts').filter((file) => /\b(startWorker|dryRun)\(/.test(read(file)))
    expect(tests.length).toBeGreaterThan(3)
    expect(tests.filter((file) => !read(file).includes('beforeAll(installWrangler, INSTALL_MS)'))).toEqual([])
  })
})

describe('the README and the guides', () => {
  const guides = ['README.md', ...filesIn(['docs'], '.md')]

  test('begin with a README that is read in ten minutes', () => {
    expect(read('README.md').split('\n').length - 1).toBeLessThanOrEqual(300)
    expect(guides.filter((file) => file !== 'README.md' && !reached('README.md', file))).toEqual([])
  })

  /** Whether a text links to another one. */
  function reached(from: string, to: string): boolean {
    return read(from).includes(`](${to}`)
  }

  test('name commands that exist, and none that npx would fetch', () => {
    const { scripts, bin } = JSON.parse(read('package.json'))
    const code = [...guides, 'CONTRIBUTING.md']
      .flatMap((file) => [...read(file).matchAll(/```sh\n([\s\S]*?)```|`([^`\n]+)`/g)])
      .map(([, block, span]) => block ?? span)
      .join('\n')
    const named = [...code.matchAll(/\bnpm (?:run )?([a-z]+)\b/g)].map(([, script]) => script)
    expect(named).toEqual(expect.arrayContaining(['start', 'test', 'build']))
    const npm = ['ci', 'install', 'pack', 'run']
    expect(named.filter((script) => script && !npm.includes(script) && !(script in scripts))).toEqual([])
    // `lockstep` is not published: npx would run what somebody else has published under that name.
    const ran = [...code.matchAll(/\bnpx (--no )?([\w-]+)/g)].map(([, no, command = '']) => ({ no, command }))
    const known = [...Object.keys(bin), 'vitest', 'esbuild', 'pg-boss-dashboard']
    expect(ran.length).toBeGreaterThan(5)
    expect(ran.filter(({ no, command }) => !known.includes(command) || (!no && command !== 'vitest'))).toEqual([])
  })

  test('name every path of the OpenAPI document', async () => {
    const http = read('docs/http.md')
    await using lockstep = createLockstep({ connectionString: 'postgres://127.0.0.1:1/nowhere' })
    const document = await createApp(lockstep).request('/openapi.json')
    const { paths } = (await document.json()) as { paths: object }
    expect(Object.keys(paths).length).toBeGreaterThan(3)
    expect(Object.keys(paths).filter((each) => !http.includes(`${each}\``) && !http.includes(`${each}?`))).toEqual([])
  })

  test('name every code of an error, with its status', () => {
    const errors = read('docs/errors.md')
    const [, union = ''] = /^export type ErrorCode = (.*);$/m.exec(read('docs/api.txt')) ?? []
    const ours = [...union.matchAll(/'(\w+)'/g)].map(([, code = '']) => code)
    const text = filesIn(['functions'], '.ts').map(read).join('\n')
    const overHttp = [...text.matchAll(/new Problem\((\d{3}), '([A-Z_]+)'/g)].map(([, status, code]) => ({
      status,
      code,
    }))
    expect(ours.length).toBeGreaterThan(8)
    expect(overHttp.length).toBeGreaterThan(8)
    expect(ours.filter((code) => !errors.includes(`\n| \`${code}\` |`))).toEqual([])
    const line = (code: string) => errors.split('\n').find((each) => each.startsWith(`| \`${code}\` |`)) ?? ''
    expect(overHttp.filter(({ status = '', code = '' }) => !line(code).includes(status))).toEqual([])
  })

  test('have pictures that can be seen in the light and in the dark, each with words in its place', () => {
    const pictures = filesIn(['docs/pictures'], '.svg')
    expect(pictures.length).toBeGreaterThan(3)
    for (const picture of pictures) {
      const text = read(picture)
      for (const part of ['prefers-color-scheme: dark', 'class="bg"', '<title>']) expect(text, picture).toContain(part)
      const shown = guides.filter((file) =>
        new RegExp(`!\\[[^\\]]{20,}\\]\\((docs/)?${picture.slice(5)}\\)`).test(read(file)),
      )
      expect(shown.length, picture).toBeGreaterThan(0)
    }
  })
})

test('the runbooks name scripts that exist, and no command that npx would fetch', () => {
  const { scripts } = JSON.parse(read('package.json'))
  for (const file of filesIn(['infra'], '.md')) {
    const named = [...read(file).matchAll(/\bnpm run ([\w:]+)/g)].map(([, script = '']) => script)
    expect(
      named.filter((script) => !(script in scripts)),
      file,
    ).toEqual([])
    const fetched = [...read(file).matchAll(/\bnpx (?!lockstep|cdk` would)(\w+)/g)].map(([all]) => all)
    expect(fetched, file).toEqual([])
  }
})

test('every text links to files and headings that exist', () => {
  const texts = ['README.md', 'SECURITY.md', 'CONTRIBUTING.md', ...filesIn(['infra', 'docs'], '.md')]
  const anchors = (file: string) =>
    [...read(file).matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) =>
      heading
        .toLowerCase()
        .replaceAll(/[^\w\s-]/g, '')
        .replaceAll(' ', '-'),
    )
  const broken = texts.flatMap((text) =>
    [...read(text).matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)/g)].flatMap(([link, to = '', anchor]) => {
      const file = to === '' ? text : path.join(path.dirname(text), to)
      const there = fs.existsSync(path.join(ROOT, file)) && (!anchor || anchors(file).includes(anchor))
      return there ? [] : [`${text}: ${link}`]
    }),
  )
  expect(texts.length).toBeGreaterThan(4)
  expect(broken).toEqual([])
})

test('each promise of docs/guarantees.md is shown by `npm test`, and not only by tests that last longer', () => {
  const short = filesIn(['test'], '.test.ts').filter((file) => !file.endsWith('.long.test.ts'))
  const suites = new Set(
    short.flatMap((file) =>
      [...read(file).matchAll(/from '(\.[^']+)\.suite\.ts'/g)].map(([, to = '']) => path.join(path.dirname(file), to)),
    ),
  )
  const isShort = (name: string) =>
    name.endsWith('.suite') ? suites.has(`test/${name.slice(0, -'.suite'.length)}`) : !name.endsWith('.long.test')
  const promises = read('docs/guarantees.md')
    .split('\n')
    .filter((line) => line.startsWith('|') && /`[\w./-]+\.(?:test|suite): /.test(line))
  const onlyLong = promises.filter(
    (line) => ![...line.matchAll(/`([\w./-]+\.(?:test|suite)): /g)].some(([, name = '']) => isShort(name)),
  )
  expect(promises.length).toBeGreaterThan(60)
  expect(onlyLong).toEqual([])
})

describe('words', () => {
  // The law of CONTRIBUTING.md: the field's standard terms, in sentences with a subject that a reader can see.
  const DIALECT = [
    /\bwhoever\b/i,
    /(^|[.:;] |\* |\/\/ )Who (?!holds it)[a-z]+ [^?]*$/, // as a subject; a question may begin so
    /\b(tidings|hearsay|vigils?|ballots?|hush)\b/i,
  ]
  const texts = ['README.md', 'SECURITY.md', 'CONTRIBUTING.md', ...filesIn(['docs', 'infra'], '.md')]
  test.each([...filesIn(['lib', 'functions', 'infra'], '.ts'), ...texts])('of %s are plain', (file) => {
    const lines = read(file).split('\n')
    const prose = file.endsWith('.md') ? lines : lines.filter((line) => /^\s*(\/\*\*|\*|\/\/)|\s\/\/ /.test(line))
    const found = prose.filter((line) => !line.startsWith('#') && DIALECT.some((words) => words.test(line)))
    expect(found).toEqual([])
  })
})

describe('CONTRIBUTING.md', () => {
  const text = read('CONTRIBUTING.md')

  test('names files, folders and scripts that exist', () => {
    const named = [...text.matchAll(/\b(?:lib|functions|infra|test|db|docs)\/[\w./-]*/g)].map(([name]) => name)
    expect(named.length).toBeGreaterThan(40)
    expect(named.filter((name) => !fs.existsSync(path.join(ROOT, name.replace(/\.$/, ''))))).toEqual([])
    const { scripts } = JSON.parse(read('package.json'))
    const run = [...text.matchAll(/\bnpm run ([\w:]+)/g)].map(([, script = '']) => script)
    expect(run.filter((script) => !(script in scripts))).toEqual([])
  })

  test('has a line for each room, and can be read in a sitting', () => {
    const rooms = Object.keys(MAY_IMPORT).filter((room) => fs.existsSync(path.join(ROOT, room)))
    expect(rooms.filter((room) => !text.includes(`\`${room}/\``))).toEqual([])
    expect(text.split('\n').length - 1).toBeLessThanOrEqual(125)
  })
})

test.each([
  ['docs/guarantees.md', 30],
  ['SECURITY.md', 25],
])('each test that %s names exists', (text, least) => {
  const named = [...read(text).matchAll(/`([\w./-]+\.(?:test|suite)): ([^`]+)`/g)]
  expect(named.length).toBeGreaterThan(least)
  const missing = named.filter(([, file, name]) => !read(`test/${file}.ts`).includes(name as string))
  expect(missing.map(([all]) => all)).toEqual([])
})
