/** The Node server in its own process; it reports its memory on request. Ends with its parent. */
import { serve } from '../../functions/adapters/node.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { KEYS } from './request.ts'

export interface Sample {
  rssMiB: number
  heapMiB: number
  sockets: number
}

const onError = (error: unknown) => console.error(error)
const lockstep = createLockstep({ connectionString: process.argv[2] ?? '', applicationName: 'fuzzed' })
const rooms = { tasks: createTasks(lockstep, { onError }), events: createEvents(lockstep, { onError }) }
const { url } = await serve({ lockstep, ...rooms, port: 0, keys: KEYS, onError })

process.on('disconnect', () => process.exit())
process.on('message', () => {
  globalThis.gc?.()
  globalThis.gc?.()
  const { rss, heapUsed } = process.memoryUsage()
  const sockets = process.getActiveResourcesInfo().filter((each) => each === 'TCPSocketWrap').length
  const sample: Sample = { rssMiB: rss / 2 ** 20, heapMiB: heapUsed / 2 ** 20, sockets }
  process.send?.(sample)
})
process.send?.(url)
