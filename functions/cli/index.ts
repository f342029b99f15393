#!/usr/bin/env node
/**
 * The command `lockstep`: environment → database → server. The only file that reads the environment and prints.
 *
 * `start` needs nothing: without DATABASE_URL it brings its own PostgreSQL (lib/setup/embedded-postgres.ts) with the data in
 * `.lockstep/`. It migrates before it listens, so whoever gets an answer gets it from the right schema. The first
 * SIGINT or SIGTERM stops gracefully, at any moment of the start as well; the second ends the process at once (the
 * embedded server then stops by itself, leases run out). What cannot go on ends in one sentence and exit code 1;
 * a command that is not understood, in 2.
 */
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { type Blocker, described, type MigrateOptions, migrate } from '../../lib/setup/migrate.ts'
import { createTasks } from '../../lib/task/index.ts'
import { NTP_SERVERS, type Ntp, ntp } from '../../lib/time/ntp/index.ts'
import { listenAddress, serve } from '../adapters/node.ts'
import { parseKeys } from '../http/index.ts'

const HELP = `lockstep: distributed coordination on Postgres

  lockstep [start]     migrate the database, then serve HTTP
    --no-migrate       serve on the schema as it is, also a newer one
  lockstep migrate     migrate the database of DATABASE_URL
    --grant <role>     and give a role exactly the rights that the functions need
    --wait-ms <ms>     for how long it waits when nobody may hold meanwhile (30000)
    --terminate        end the connections that are in the way then, after a second
  lockstep --version   lockstep --help

Environment
  PORT                 0–65535, 0 for a free one (3000)
  HOST                 address to listen on (127.0.0.1); any but loopback needs keys
  DATABASE_URL         postgres://user:password@host:port/database
                       (an embedded PostgreSQL, its data in .lockstep/)
  LOCKSTEP_NTP_SERVERS servers that are asked for true time: host[:port], 3–16 of them,
                       separated by commas; or off
                       (${NTP_SERVERS.join(', ')})
  LOCKSTEP_API_KEYS    id:sha256-of-secret:scope+scope[:name-prefix],…
                       scopes: locks, leaders, tasks, streams, time, each with :read or :write; admin
                       a secret: openssl rand -hex 32    its hash: printf %s "$secret" | sha256sum
`

const FOLDER = '.lockstep'

async function main(args: string[], env: NodeJS.ProcessEnv): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      help: { type: 'boolean', short: 'h' },
      version: { type: 'boolean', short: 'v' },
      grant: { type: 'string' },
      terminate: { type: 'boolean' },
      'wait-ms': { type: 'string' },
      'no-migrate': { type: 'boolean' },
    },
  })
  if (values.help) return console.log(HELP)
  if (values.version) return console.log(await version())
  const [command = 'start', ...more] = positionals
  if (more.length > 0 || !['start', 'migrate'].includes(command)) {
    throw misunderstood(`There is no command "${positionals.join(' ')}": try --help`)
  }
  for (const option of ['grant', 'terminate', 'wait-ms'] as const) {
    if (values[option] !== undefined && command !== 'migrate')
      throw misunderstood(`--${option} goes with migrate: try --help`)
  }
  const waitMs = values['wait-ms']
  if (waitMs !== undefined && !/^\d{1,9}$/.test(waitMs)) {
    throw misunderstood(`--wait-ms is a whole number of milliseconds, not ${JSON.stringify(waitMs)}`)
  }
  if (values['no-migrate'] && command !== 'start') throw misunderstood('--no-migrate goes with start: try --help')
  const settings = readSettings(env)
  if (command === 'start') return start({ ...settings, migrates: !values['no-migrate'] })
  if (!settings.url) throw new Error('migrate needs DATABASE_URL (the embedded PostgreSQL is migrated by start)')
  const stop = stopSignal()
  const given = { ...(values.grant !== undefined && { grant: values.grant }), terminate: values.terminate ?? false }
  await migrated(settings.url, stop, { ...given, ...(waitMs !== undefined && { waitMs: Number(waitMs) }) }).catch(
    (error) => {
      throw error === stop.reason ? new Error('stopped; the database works as before') : error
    },
  )
}

const misunderstood = (sentence: string) => Object.assign(new Error(sentence), { exitCode: 2 })

interface Settings {
  port: number
  host: string
  url: string | undefined
  keys: string | undefined
  ntp: Ntp | undefined
}

/** Everything that can be wrong with the environment is found before anything is started. */
function readSettings(env: NodeJS.ProcessEnv): Settings {
  const port = env.PORT || '3000'
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65_535) {
    throw new Error(`PORT must be a whole number, 0–65535, not ${JSON.stringify(port)}`)
  }
  const host = env.HOST || '127.0.0.1'
  if (!/^[\w.:%-]+$/.test(host)) throw new Error(`HOST must be an address or a name, not ${JSON.stringify(host)}`)
  const url = env.DATABASE_URL || undefined
  if (url && !/^postgres(ql)?:/.test(URL.parse(url)?.protocol ?? '')) {
    throw new Error(
      'DATABASE_URL must be like postgres://user:password@host:port/database, special characters percent-encoded',
    )
  }
  parseKeys(env.LOCKSTEP_API_KEYS)
  return { port: Number(port), host, url, keys: env.LOCKSTEP_API_KEYS, ntp: readServers(env.LOCKSTEP_NTP_SERVERS) }
}

function readServers(text: string | undefined): Ntp | undefined {
  const list = text?.trim()
  if (!list) return ntp()
  if (list === 'off') return undefined
  try {
    return ntp({ servers: list.split(',').map((server) => server.trim()) })
  } catch (error) {
    throw new Error(`LOCKSTEP_NTP_SERVERS must be host[:port],…, 3–16 of them, or off: ${(error as Error).message}`)
  }
}

async function start({ port, host, url: given, keys, ntp, migrates }: Settings & { migrates: boolean }): Promise<void> {
  await listenAddress(host, keys)
  const stop = stopSignal()
  const undo: (() => Promise<void>)[] = []
  try {
    let url = given
    if (!url) {
      console.log(`starting PostgreSQL, data in ${FOLDER}/ …`)
      const postgres = await startPostgres({ dir: FOLDER, signal: stop })
      undo.push(() => postgres.stop())
      url = postgres.url
    }
    stop.throwIfAborted()
    if (migrates) await migrated(url, stop)
    stop.throwIfAborted()

    const lockstep = createLockstep({ connectionString: url, time: ntp ? { ntp } : {} })
    undo.push(() => lockstep.close())
    const tasks = createTasks(lockstep, { onError: (error) => report('tasks', error) })
    const events = createEvents(lockstep, { onError: (error) => report('events', error) })
    const onError = (error: unknown, id: string) => report(id === '' ? 'sweep' : `request ${id}`, error)
    const server = await serve({ lockstep, tasks, events, host, port, keys, version: await version(), onError })
    undo.splice(-1, 1, () => server.close())
    console.log(greeting(server.url, keys))
    if (ntp) void tellTime(lockstep, ntp, stop)
    if (!stop.aborted) await once(stop, 'abort')
    console.log('stopping …')
  } catch (error) {
    if (error !== stop.reason) throw error
  } finally {
    for (const step of undo.reverse()) await step()
  }
  console.log('stopped')
}

/** Whether true time is known, once it is known or cannot be had; said once, since `GET /v1/time` tells always. */
async function tellTime({ time }: Lockstep, ntp: Ntp, stop: AbortSignal): Promise<void> {
  console.log(`asking ${ntp.servers.join(', ')} for true time (LOCKSTEP_NTP_SERVERS)`)
  try {
    await time.synchronize({ signal: stop })
    const { boundMs, status } = time.now()
    if (boundMs !== null) console.log(`true time is known to within ${boundMs.toFixed(1)} ms, ${status}`)
  } catch (error) {
    if (!stop.aborted) console.error(`true time is not known yet: ${sentence(error)}`)
  }
}

/** Aborts at the first SIGINT or SIGTERM; the second ends the process. */
function stopSignal(): AbortSignal {
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => (stop.signal.aborted ? process.exit(1) : stop.abort()))
  }
  return stop.signal
}

/** A migration that is stopped while it waits takes back what it did. */
async function migrated(url: string, signal: AbortSignal, options: MigrateOptions = {}): Promise<void> {
  const verb = options.terminate ? 'ending' : 'waiting for'
  const onWait = (blockers: Blocker[]) => {
    for (const blocker of blockers) console.error(`${verb} ${described(blocker)}`)
  }
  const { applied, latest, granted, resumed } = await migrate(url, { ...options, signal, onWait })
  if (resumed) console.log('went on with a migration that had not come to its end')
  console.log(applied.length > 0 ? `migrations applied: ${applied.join(', ')}` : `schema is up to date (${latest})`)
  if (granted) console.log(`granted to ${options.grant}: what the functions need of ${counted(granted)}`)
}

/** On how many things there are rights. */
function counted(rights: string[]): string {
  const objects = [...new Set(rights.map((right) => right.replace(/^\w+ on | \(.*/g, '')))]
  const [sequences, functions] = ['sequence ', 'function '].map(
    (kind) => objects.filter((it) => it.startsWith(kind)).length,
  )
  return `${objects.filter((it) => !it.includes(' ')).length} tables, ${sequences} sequences and ${functions} functions`
}

function greeting(url: string, keys: string | undefined): string {
  const open = parseKeys(keys).length === 0
  const header = open ? '' : " \\\n    -H 'Authorization: Bearer id.secret'"
  return `listening on ${url}${open ? ', without keys: every program on this machine may do everything' : ''}

  curl -i -X POST ${url.replace('//0.0.0.0', '//127.0.0.1')}/v1/locks/hello${header} \\
    -H 'Content-Type: application/json' -d '{ "ttlMs": 30000 }'
`
}

let lastOutage = Number.NEGATIVE_INFINITY

/** A 500 is a bug and comes with its stack; an outage of the database is one line every ten seconds. */
function report(where: string, error: unknown): void {
  if ((error as { code?: unknown }).code !== 'UNAVAILABLE') {
    console.error(`${where}:`, error)
  } else if (performance.now() - lastOutage > 10_000) {
    lastOutage = performance.now()
    console.error(sentence(error))
  }
}

/** One line, with the cause if it tells more, and never a connection string. */
function sentence(error: unknown): string {
  const words: string[] = []
  for (let e: unknown = error; e instanceof Error; e = e instanceof AggregateError ? e.errors[0] : e.cause) {
    const [line = ''] = e.message.split('\n')
    if (line !== '' && !words.some((word) => word.includes(line))) words.push(line)
  }
  const [first = String(error), ...causes] = words
  const text = `${first}${causes.length > 0 ? ` (${causes.join('; ')})` : ''}`
  return process.env.DATABASE_URL ? text.replaceAll(process.env.DATABASE_URL, 'DATABASE_URL') : text
}

async function version(): Promise<string> {
  for (const place of ['../../package.json', '../../../package.json']) {
    const text = await readFile(new URL(place, import.meta.url), 'utf8').catch(() => '{}')
    const { name, version } = JSON.parse(text)
    if (name === 'lockstep') return version
  }
  return 'unknown'
}

try {
  await main(process.argv.slice(2), process.env)
} catch (error) {
  console.error(sentence(error))
  const { code, exitCode = 1 } = error as { code?: unknown; exitCode?: number }
  process.exit(/^ERR_PARSE_ARGS/.test(String(code)) ? 2 : exitCode)
}
