/** A process with a consumer, which prints what it does; for tests that kill or pause it. */
import { sql } from 'kysely'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep } from '../../lib/index.ts'

const [connectionString = '', group = '', prefix = ''] = process.argv.slice(2)
const lockstep = createLockstep({ connectionString, applicationName: `streamer ${group}` })
const events = createEvents(lockstep)

const consumer = events.consume(
  group,
  { prefix, partitions: 1, ttlMs: 1_000, timeoutMs: 1_000 },
  async ({ stream, position }, { trx, signal }) => {
    signal.addEventListener('abort', () => console.log('aborted'))
    await sql`insert into effect (stream, position) values (${stream}, ${position})`.execute(trx)
    console.log(`began ${position}`)
    if (position === 2n) await new Promise(() => {})
  },
)
process.once('SIGTERM', async () => {
  await consumer.stop({ graceMs: 0 })
  await lockstep.close()
  console.log('stopped')
  process.exit()
})
