/**
 * A process that keeps time, for tests that make its wall clock wrong: says what time it is at each line that it reads, with its
 * monotonic clock before and after (microseconds, the machine's), and `true` time is not its business.
 *
 *     node time-process.ts <connection string> [NTP servers, by commas]
 */
import { createInterface } from 'node:readline'
import { createLockstep } from '../../lib/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'

const [connectionString = '', servers] = process.argv.slice(2)
const time = servers ? { ntp: ntp({ servers: servers.split(',') }) } : {}
const lockstep = createLockstep({ connectionString, time })
await lockstep.time.ready()
const mono = () => Number(process.hrtime.bigint() / 1_000n)
console.log('ready')
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'sample') await lockstep.time.ready()
  const before = mono()
  const { timeMs, earliestMs, latestMs, boundMs, spreadMs, status, falsetickers } = lockstep.time.now()
  const after = mono()
  const reading = { timeMs, earliestMs, latestMs, boundMs, spreadMs, status, falsetickers }
  console.log(JSON.stringify({ before, after, wallMs: Date.now(), ...reading }))
}
await lockstep.close()
