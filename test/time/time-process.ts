/**
 * A process for tests that make its wall clock wrong. For each line on its input it prints a reading, with its monotonic clock
 * (the machine's, in microseconds) before and after it. The test compares it with true time.
 *
 *     node time-process.ts <connection string> [NTP servers, separated by commas]
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
