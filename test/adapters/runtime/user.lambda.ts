/**
 * Functions as a user writes them, for tests that freeze them: one that holds a lease by the library and writes under it, one
 * that has jobs to do, and the HTTP function, impatient.
 *
 * It stops where the test wants it to: at each point it takes an advisory lock, which the test holds to make it wait there.
 */
import { sql, type Transaction } from 'kysely'
import { lambda } from '../../../functions/adapters/lambda.ts'
import { createLockstep, type Lockstep } from '../../../lib/index.ts'
import { createTasks } from '../../../lib/task/index.ts'

let own: Lockstep | undefined
function mine(): Lockstep {
  const { DATABASE_URL: connectionString = '' } = process.env
  own ??= createLockstep({ connectionString, directConnectionString: null, shared: true })
  return own
}

const pass = (point: 'granted' | 'begun' | 'asserted' | 'written') =>
  sql`select pg_advisory_lock_shared(hashtext(${point})), pg_advisory_unlock_shared(hashtext(${point}))`

/** Writes `me` under a lease; `how`: asserts it, or leaves that to the fence of the table. */
export async function holder({ name, me, how }: { name: string; me: string; how: 'asserts' | 'fenced' }) {
  const lockstep = mine()
  const held = await lockstep.locks.acquire(name, { ttlMs: 1_000 })
  try {
    await pass('granted').execute(lockstep.kysely)
    const trustedAt = held.isTrusted()
    await lockstep.kysely.transaction().execute(async (trx) => {
      await pass('begun').execute(trx)
      if (how === 'asserts') await held.assertHeld(trx)
      else await sql`select set_config('lockstep.fence', ${`${name}:${held.token}`}, true)`.execute(trx)
      await pass('asserted').execute(trx)
      await write(trx, name, me, held.token)
      await pass('written').execute(trx)
    })
    return { wrote: true, trustedAt }
  } catch (error) {
    return { wrote: false, error: String(error), code: (error as { code?: unknown }).code, trusted: held.isTrusted() }
  } finally {
    await held.release().catch(() => {})
  }
}

// biome-ignore lint/suspicious/noExplicitAny: the test's table
const write = (trx: Transaction<any>, name: string, me: string, token: bigint) =>
  sql`insert into effect (name, who, token) values (${name}, ${me}, ${token})`.execute(trx)

/** Makes its connections anew after half a second of rest, and reads keys again after as long. */
export const { handler } = lambda({ restMs: 500, keysMs: 500 })

/** Works on a queue whose jobs last. */
export const { scheduled } = lambda({
  tasks(own) {
    const tasks = createTasks(own)
    tasks.define('lasting', async ({ ms }: { ms: number }, { signal }) => {
      await new Promise((resolve, reject) => {
        setTimeout(resolve, ms)
        signal.addEventListener('abort', () => reject(signal.reason))
      })
    })
    return tasks
  },
})
