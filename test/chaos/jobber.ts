/**
 * A process that works the queues of the chaos test, and ticks, until it is killed. The effect of a job is one row, written in the
 * transaction that completes the job, with a pause before the commit in which a fault may strike.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { fromDatabase, UnavailableError } from '../../lib/base/errors.ts'
import { createLockstep } from '../../lib/index.ts'
import { createTasks } from '../../lib/task/index.ts'
import { QUEUES } from './jobs.ts'

const [url = '', worker = '0'] = process.argv.slice(2)
const lockstep = createLockstep({ connectionString: url, max: 12, applicationName: `jobber ${worker}` })
const tasks = createTasks(lockstep, {
  onError(error) {
    const known = fromDatabase(error)
    if (!(known instanceof UnavailableError)) report('fault', String((error as Error)?.stack ?? error))
  },
})
const report = (what: string, detail: string) => console.log(`${what} ${detail}`.replaceAll('\n', ' '))

const { transactional, plain, slots } = QUEUES
tasks.define(
  transactional.name,
  async (n: number, { trx, job }) => {
    await sql`insert into effect (n, kind, token, worker) values (${n}, 'job', ${job.token}, ${worker})`.execute(trx)
    await sleep(Math.random() * (Math.random() < 0.05 ? 1_000 : 10))
    if (Math.random() < 0.01) throw new Error('a random failure')
  },
  { ...transactional.options, transactional: true, concurrency: 8 },
)
tasks.define(
  plain.name,
  async (n: number, { job }) => {
    await sleep(Math.random() * 10)
    await sql`insert into effect (n, kind, token, worker) values (${n}, 'plain', ${job.token}, ${worker})`.execute(
      lockstep.kysely,
    )
    console.log('did')
  },
  { ...plain.options, concurrency: 4 },
)
tasks.define(slots.name, () => {}, slots.options)
tasks.work()
console.log('ready')
