/** A process that works a queue and says what it does; for tests that kill it or make it stand still. */
import { sql } from 'kysely'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'

const [connectionString = '', queue = '', how = 'plain'] = process.argv.slice(2)
const lockstep = createLockstep({ connectionString, applicationName: `jobber ${queue}` })
const tasks = createTasks(lockstep)
const never = new Promise<never>(() => {})

if (how === 'transactional') {
  tasks.define(
    queue,
    async (n: number, { trx }) => {
      await sql`insert into effect (n) values (${n})`.execute(trx)
      console.log(`began ${n}`)
      await never
    },
    { transactional: true },
  )
} else {
  tasks.define(queue, async (n: number, { signal }) => {
    signal.addEventListener('abort', () => console.log(`aborted ${signal.reason.code}`))
    console.log(`began ${n}`)
    await never
  })
}
const worker = tasks.work(queue)
process.once('SIGTERM', async () => {
  await worker.stop({ graceMs: 0 })
  await lockstep.close()
  console.log('stopped')
  process.exit()
})
