#!/usr/bin/env node
/**
 * The command `lockstep`: it reads the arguments and the environment, and runs one of its commands (start.ts, migrate.ts).
 *
 * This folder is the only one that reads the environment and prints. A command that cannot go on ends with one sentence and
 * exit code 1; a command that is not understood ends with exit code 2.
 */
import { parseArgs } from 'node:util'
import { NTP_SERVERS } from '../../lib/time/ntp/index.ts'
import { readSettings } from './environment.ts'
import { migrateCommand } from './migrate.ts'
import { sentence } from './output.ts'
import { start } from './start.ts'
import { version } from './version.ts'

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
  LOCKSTEP_TRUSTED_NTP_SERVER
                       in place of those: one server, believed without a vote: host[:port]
  LOCKSTEP_BASE_PATH   what every path begins with, such as /coord (nothing)
  LOCKSTEP_ORIGINS     origins whose web pages may ask, such as https://app.example.com,
                       separated by commas (none but its own)
  LOCKSTEP_API_KEYS    id:sha256-of-secret:scope+scope[:name-prefix],…
                       scopes: locks, leaders, tasks, streams, time, each with :read or :write; admin
                       a secret: openssl rand -hex 32    its hash: printf %s "$secret" | sha256sum
`

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
  if (command === 'start') return start(settings, { migrates: !values['no-migrate'] })
  return migrateCommand(settings, {
    ...(values.grant !== undefined && { grant: values.grant }),
    ...(waitMs !== undefined && { waitMs: Number(waitMs) }),
    terminate: values.terminate ?? false,
  })
}

const misunderstood = (sentence: string) => Object.assign(new Error(sentence), { exitCode: 2 })

try {
  await main(process.argv.slice(2), process.env)
} catch (error) {
  console.error(sentence(error))
  const { code, exitCode = 1 } = error as { code?: unknown; exitCode?: number }
  process.exit(/^ERR_PARSE_ARGS/.test(String(code)) ? 2 : exitCode)
}
