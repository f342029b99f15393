/**
 * What a run must not leave behind, on the server and in its process. One home for it: the runs of faults, chaos and fuzz ask here.
 *
 * On the server: connections, their open transactions, and their advisory locks, granted or waited for. A LISTEN belongs to a
 * connection, and no other connection can see it: it is gone when the connection is. In the process: the timers and handles that keep it
 * alive, and what is on the heap after a collection. These figures are of the whole process, so they are compared with those of
 * before, when everything that the run has made is closed again.
 */
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'
import * as v8 from 'node:v8'
import { runInNewContext } from 'node:vm'
import { ask } from './query-once.ts'

/** Longer than the server takes to close a connection that is silent: 15 s. */
const GOES_MS = 30_000
/** How much the heap may grow, in bytes: code that is compiled late, and caches, of which each has a bound. */
const HEAP_GROWS = 16 * 2 ** 20

const LEFT = `
  select format('a connection of %s (%s): %s', quote_literal(application_name), coalesce(state, 'no state'), left(query, 80)) as what
    from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name like $1
  union all
  select format('an open transaction of %s', quote_literal(application_name)) from pg_stat_activity
   where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name like $1 and xact_start is not null
  union all
  select format('an advisory lock (%s, %s, %s) that %s %s', l.classid, l.objid, l.objsubid, quote_literal(s.application_name),
                case when l.granted then 'has' else 'waits for' end)
    from pg_locks l join pg_stat_activity s using (pid)
   where l.locktype = 'advisory' and l.pid <> pg_backend_pid() and s.application_name like $1
  union all
  select format('a prepared transaction %s', quote_literal(gid)) from pg_prepared_xacts`

/**
 * What is left on a server, when it has had time to go.
 * @param application  of the connections that are meant, as a pattern of LIKE. @default all but the one that asks
 * @returns a line for each thing that is left; nothing is left: none.
 */
export async function leftOnServer(url: string, application = '%', withinMs = GOES_MS): Promise<string[]> {
  for (const since = performance.now(); ; await sleep(20)) {
    const left = (await ask(url, LEFT, [application])).map(({ what }) => what as string)
    if (left.length === 0 || performance.now() - since > withinMs) return left
  }
}

export interface ProcessResources {
  /** How many of each kind keep the process alive: Timeout, TCPSocketWrap, … */
  handles: ReadonlyMap<string, number>
  /** Bytes on the heap after a collection. */
  heap: number
}

/** What this process has now. */
export async function ofProcess(): Promise<ProcessResources> {
  await nextTurn() // what has ended is removed at the end of the turn
  const handles = new Map<string, number>()
  for (const kind of process.getActiveResourcesInfo()) handles.set(kind, (handles.get(kind) ?? 0) + 1)
  return { handles, heap: heap() }
}

/**
 * What this process has more than before, when it has had time to go.
 * @param heapGrows  how many bytes the heap may grow. @default 16 MiB
 * @returns a line for each kind of handle, and for the heap; nothing has grown: none.
 */
export async function leftInProcess(before: ProcessResources, heapGrows = HEAP_GROWS): Promise<string[]> {
  for (const since = performance.now(); ; await sleep(20)) {
    const now = await ofProcess()
    const more = [...now.handles].filter(([kind, count]) => count > (before.handles.get(kind) ?? 0))
    const left = more.map(([kind, count]) => `${kind}: ${before.handles.get(kind) ?? 0} became ${count}`)
    if (now.heap > before.heap + heapGrows) left.push(`the heap grew from ${before.heap} to ${now.heap} bytes`)
    if (left.length === 0 || performance.now() - since > GOES_MS) return left
  }
}

let collect: (() => void) | undefined

/** Bytes on the heap. It collects twice, because finalized objects go with the second. */
function heap(): number {
  if (collect === undefined) {
    v8.setFlagsFromString('--expose-gc')
    collect = globalThis.gc ?? (runInNewContext('gc') as () => void)
  }
  collect()
  collect()
  return process.memoryUsage().heapUsed
}
