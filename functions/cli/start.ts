/**
 * `lockstep start`: database → migration → library → server.
 *
 * It needs nothing: without DATABASE_URL it brings its own PostgreSQL (lib/setup/embedded-postgres.ts) with the data in
 * `.lockstep/`, or where the command says (lib/setup/fallback-folder.ts). It migrates before it listens, so every answer is from the right schema. The first SIGINT or SIGTERM stops it
 * gracefully, also while it starts. The second ends the process at once: the embedded server then stops by itself, and leases
 * run out.
 */
import { once } from 'node:events'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { createTasks } from '../../lib/task/index.ts'
import type { Ntp } from '../../lib/time/ntp/index.ts'
import { listenAddress, serve } from '../adapters/node.ts'
import { parseKeys } from '../http/index.ts'
import type { Settings } from './environment.ts'
import { migrateAndPrint } from './migrate.ts'
import { report, sentence } from './output.ts'
import { stopSignal } from './stop.ts'
import { version } from './version.ts'

const FOLDER = '.lockstep'

/** Serves until SIGINT or SIGTERM. @param options  `migrates`: before it listens. */
export async function start(settings: Settings, { migrates }: { migrates: boolean }): Promise<void> {
  const { port, host, keys, basePath, origins, ntp, dataFallbacks } = settings
  await listenAddress(host, keys, port)
  const stop = stopSignal()
  const undo: (() => Promise<void>)[] = []
  try {
    let { url } = settings
    if (!url) {
      console.log(`starting PostgreSQL, data in ${FOLDER}/ …`)
      const postgres = await startPostgres({ dir: FOLDER, fallbacks: dataFallbacks, signal: stop })
      if (postgres.whyElsewhere) console.log(`data is in ${postgres.dir} instead, because ${postgres.whyElsewhere}`)
      undo.push(() => postgres.stop())
      url = postgres.url
    }
    stop.throwIfAborted()
    if (migrates) await migrateAndPrint(url, stop)
    stop.throwIfAborted()

    const lockstep = createLockstep({ connectionString: url, time: ntp ? { ntp } : {} })
    undo.push(() => lockstep.close())
    const tasks = createTasks(lockstep, { onError: (error) => report('tasks', error) })
    const events = createEvents(lockstep, { onError: (error) => report('events', error) })
    const onError = (error: unknown, id: string) => report(id === '' ? 'sweep' : `request ${id}`, error)
    const common = { host, port, keys, basePath, origins, version: await version(), onError }
    const server = await serve({ lockstep, tasks, events, ...common })
    undo.splice(-1, 1, () => server.close())
    console.log(greeting(server.url + basePath, url, keys))
    if (ntp) void printTime(lockstep, ntp, stop)
    if (!stop.aborted) await once(stop, 'abort')
    console.log('stopping …')
  } catch (error) {
    if (error !== stop.reason) throw error
  } finally {
    for (const step of undo.reverse()) await step()
  }
  console.log('stopped')
}

/** Prints once whether true time is known, as soon as that is decided. `GET /v1/time` always tells. */
async function printTime({ time }: Lockstep, ntp: Ntp, stop: AbortSignal): Promise<void> {
  const how = ntp.servers.length === 1 ? 'LOCKSTEP_TRUSTED_NTP_SERVER), without a vote' : 'LOCKSTEP_NTP_SERVERS)'
  console.log(`asking ${ntp.servers.join(', ')} for true time (${how}`)
  try {
    await time.synchronize({ signal: stop })
    const { boundMs, status } = time.now()
    if (boundMs !== null) console.log(`true time is known to within ${boundMs.toFixed(1)} ms, ${status}`)
  } catch (error) {
    // Each server's reason would fill the screen.
    const [why = ''] = sentence(error).split(/[,:(]/)
    if (!stop.aborted) console.error(`true time is not known yet: ${why.trim()} (LOCKSTEP_NTP_SERVERS)`)
  }
}

function greeting(url: string, database: string, keys: string | undefined): string {
  const open = parseKeys(keys).length === 0
  const { protocol, username, host, pathname } = new URL(database) // and never its password, or what is behind `?`
  const here = url.replace('//0.0.0.0', '//127.0.0.1')
  const header = open ? '' : " \\\n    -H 'Authorization: Bearer id.secret'"
  return `listening on ${url}${open ? ', without keys: every program on this machine may do everything' : ''}

  database  ${protocol}//${username && `${username}@`}${host}${pathname}
  routes    ${here}/openapi.json

  curl -i -X POST ${here}/v1/locks/hello${header} \\
    -H 'Content-Type: application/json' -d '{ "ttlMs": 30000 }'
`
}
