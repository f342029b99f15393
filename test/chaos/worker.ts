/**
 * A process that increments the counter under a hold, again and again, until it is killed.
 *
 * It reads the counter and then writes it, with a pause between: two holders at once would lose an increment. The write is
 * fenced, and records its token in the same transaction. The process reports every acknowledged increment on stdout.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import { sql, type Transaction } from 'kysely'
import { fromDatabase, LeaseLostError, UnavailableError } from '../../lib/base/errors.ts'
import { createLockstep } from '../../lib/index.ts'

const [url = '', kind = 'mixed', worker = '0'] = process.argv.slice(2)
const NAME = 'the counter'
const TTL_MS = 1_000
const lockstep = createLockstep({ connectionString: url, max: 2, applicationName: `worker ${worker}` })

// biome-ignore lint/suspicious/noExplicitAny: any tables
async function increment(trx: Transaction<any>, token: bigint, how: string) {
  const { rows } = await sql<{ n: string }>`select n from counter`.execute(trx)
  const next = Number(rows[0]?.n) + 1
  await sleep(Math.random() * 2)
  await sql`update counter set n = ${next}`.execute(trx)
  await sql`insert into history (n, token, worker, how) values (${next}, ${token}, ${worker}, ${how})`.execute(trx)
  return next
}

const ways = {
  connection: async () => {
    await using held = await lockstep.locks.acquire(NAME)
    await sleep(Math.random() * 5) // a pause may come between the grant and the write: then the fence must refuse
    return await held.transaction((trx) => increment(trx, held.token, held.kind))
  },
  lease: async () => {
    await using held = await lockstep.locks.acquire(NAME, { ttlMs: TTL_MS })
    await sleep(Math.random() * 5)
    return await held.transaction((trx) => increment(trx, held.token, held.kind))
  },
  transaction: () => lockstep.locks.transaction(NAME, (trx, { token }) => increment(trx, token, 'transaction')),
}
const kinds = Object.keys(ways) as (keyof typeof ways)[]

console.log('ready')
for (;;) {
  const way = kind === 'mixed' ? (kinds[Math.floor(Math.random() * 3)] as 'lease') : (kind as 'lease')
  try {
    console.log(`done ${await ways[way]()}`)
  } catch (error) {
    const expected = isExpected(error)
    console.log(`${expected ? 'error' : 'fault'} ${inspect(error)}`.replaceAll('\n', ' '))
    if (expected) await sleep(20)
  }
}

// A holder may get two errors: its lease is lost, or the database is unreachable. Any other error is a fault, and ends the run.
function isExpected(error: unknown): boolean {
  // The work failed, and then the release failed.
  if (error instanceof SuppressedError) return isExpected(error.error) && isExpected(error.suppressed)
  const known = fromDatabase(error)
  return known instanceof LeaseLostError || known instanceof UnavailableError
}
