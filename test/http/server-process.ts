/** A Node door with little memory, that says how much it uses when it is asked (a line on its standard input); for followers.test.ts. */
import { createInterface } from 'node:readline'
import { serve } from '../../functions/adapters/node.ts'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'

const [connectionString = '', unreadMs = '3600000'] = process.argv.slice(2)
const lockstep = createLockstep({ connectionString, applicationName: 'doorman' })
const events = createEvents(lockstep)
const server = await serve({
  lockstep,
  events,
  port: 0,
  maxStreams: 1_000,
  unreadMs: Number(unreadMs),
  keepAliveMs: 1_000,
})
console.log(server.url)
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'close') break
  const { gc } = globalThis as { gc?: () => void }
  // what has been let go of is collected by the second, what that kept (sockets) by the third
  for (let i = 0; i < 3; i++) {
    gc?.()
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  const { heapUsed, external, arrayBuffers, rss } = process.memoryUsage()
  console.log(JSON.stringify({ heapUsed, external, arrayBuffers, rss }))
}
await server.close()
process.stdin.destroy()
