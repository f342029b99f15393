/**
 * The bench: `npm run bench`.
 *
 *     npm run bench -- [locks] [leaders] [tasks] [time] [events] [clouds] [--rounds 5] [--seconds 1.5] [--only <row>]…
 *
 * Prints one line of JSON for each contender of each row on stdout, and a table at the end of each part; progress goes to
 * stderr. Each file of a part says what it measures; harness.ts says how, and servers.ts on which servers.
 *
 * A wrong result fails the run. A slow one does not.
 */

import * as os from 'node:os'
import { parseArgs } from 'node:util'
import { CLOUDS } from './cloud.ts'
import { EVENTS } from './event.ts'
import { type Line, table } from './harness.ts'
import { LEADERS } from './leader.ts'
import { LOCKS } from './lock.ts'
import { type Row, startServers } from './servers.ts'
import { TASKS } from './task.ts'
import { TIME } from './time.ts'

interface Part {
  rows: Record<string, Row>
  peers: Parameters<typeof startServers>[0]
}

const PARTS: Record<string, Part> = {
  locks: { rows: LOCKS, peers: ['redis'] },
  leaders: { rows: LEADERS, peers: ['etcd'] },
  tasks: { rows: TASKS, peers: ['redis'] },
  time: { rows: TIME, peers: [] },
  events: { rows: EVENTS, peers: ['redis'] },
  clouds: { rows: CLOUDS, peers: [] },
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '1.5' },
    only: { type: 'string', multiple: true, default: [] },
  },
})
const settings = { rounds: Number(values.rounds), seconds: Number(values.seconds) }
const parts = Object.entries(PARTS)
  .filter(([name]) => positionals.length === 0 || positionals.includes(name))
  .map(([, { rows, peers }]) => {
    const names = Object.keys(rows).filter((row) => values.only.length === 0 || values.only.includes(row))
    return { peers, rows: names.map((name) => [name, rows[name] as Row] as const) }
  })
  .filter(({ rows }) => rows.length > 0)
const chosen = parts.flatMap(({ rows }) => rows.map(([name]) => name))
const unknown = [
  ...positionals.filter((part) => !(part in PARTS)),
  ...values.only.filter((row) => !chosen.includes(row)),
]
if (!(Number.isInteger(settings.rounds) && settings.rounds > 0 && settings.seconds > 0) || unknown.length > 0) {
  const rows = Object.entries(PARTS).map(([name, part]) => `${name}: ${Object.keys(part.rows).join(', ')}`)
  console.error(`--rounds: an integer ≥ 1. --seconds: above 0. Parts, and the rows for --only: ${rows.join('; ')}`)
  process.exit(2)
}

const load = () => os.loadavg()[0]?.toFixed(2)

async function measure({ rows, peers }: (typeof parts)[number]): Promise<void> {
  const before = load()
  await using servers = await startServers(peers)
  const lines: Line[] = []
  for (const [name, row] of rows) {
    try {
      lines.push(...(await row(servers, settings)))
    } catch (error) {
      console.error(error)
      process.exitCode = 1
      lines.push({ row: name, beside: '–', measured: `**wrong**: ${(error as Error).message}`, rates: '–' })
    }
  }
  console.log(`\n${table(lines)}\n`)
  console.log(
    `${os.cpus()[0]?.model}, ${os.availableParallelism()} cores, load ${before} at the start and ${load()} at the ` +
      `end, Node ${process.versions.node}, ${servers.about}; ${settings.rounds} rounds of ${settings.seconds} s each, ` +
      `unless a row says otherwise.`,
  )
}

for (const part of parts) await measure(part)
