/**
 * A process that increments the counter under a hold, again and again, until it is killed.
 *
 * It reads the counter and then writes it, with a pause between: two holders at once would lose an increment. The write is
 * fenced, and records its token in the same transaction. The process reports every acknowledged increment on stdout, and the
 * invocation and the answer of every verb (linear/record.ts).
 *
 * With the kind `lease` half of the leases are granted by the verbs that keep nothing in the process: grant, renew, revoke.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import { sql, type Transaction } from 'kysely'
import { fromDatabase, LeaseHeldError, LeaseLostError, SQLSTATE, UnavailableError } from '../../lib/base/errors.ts'
import { createLockstep, type Hold } from '../../lib/index.ts'
import { type Output, Recorder } from '../linear/index.ts'

const [url = '', kind = 'mixed', worker = '0', NAME = ''] = process.argv.slice(2)
const TTL_MS = 1_000
const WAIT_MS = 500
const recorder = new Recorder()
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

// In a transaction that is not the hold's own the database says it.
const isLost = (error: unknown) =>
  fromDatabase(error) instanceof LeaseLostError || (error as { code?: string }).code === SQLSTATE.leaseLost
const lostIs = (output: Output) => (error: unknown) => (isLost(error) ? output : undefined)

async function holding(ttlMs?: number): Promise<number> {
  const kind = ttlMs === undefined ? 'connection' : 'lease'
  const acquire = () => lockstep.locks.acquire(NAME, { ttlMs })
  const granted = (hold: Hold) => ({ token: hold.token, kind: hold.kind })
  const held = await recorder.do(NAME, { do: 'acquire', kind, ttlMs }, acquire, granted)
  const { token } = held
  try {
    await sleep(Math.random() * 5) // a pause may come between the grant and the write: then the fence must refuse
    if (held.kind === 'lease') trusted(held)
    const write = () => held.transaction((trx) => increment(trx, token, held.kind))
    return await recorder.do(NAME, { do: 'write', token }, write, (n) => ({ n }), lostIs('none'))
  } finally {
    const release = { do: 'release', token, kind: held.kind }
    const released = () => held.release()
    await recorder
      .do(NAME, release, released, () => ({}), lostIs({ lost: true }))
      .catch((error) => {
        if (!(error instanceof LeaseLostError)) throw error // as at the end of an `await using` block
      })
  }
}

function trusted(held: Hold): void {
  const answered = recorder.open(NAME, { do: 'trusted', token: held.token })
  answered(held.isTrusted() ? {} : 'none')
}

async function granting(): Promise<number> {
  const { locks } = lockstep
  const grant = () => locks.grant(NAME, { ttlMs: TTL_MS, waitMs: WAIT_MS })
  const refused = (error: unknown) => (error instanceof LeaseHeldError ? 'none' : undefined)
  const { token } = await recorder.do(NAME, { do: 'acquire', kind: 'lease', ttlMs: TTL_MS }, grant, asToken, refused)
  if (Math.random() < 0.5) {
    const renew = () => locks.renew(NAME, token, { ttlMs: TTL_MS })
    await recorder.do(NAME, { do: 'renew', token, ttlMs: TTL_MS }, renew, () => ({}), lostIs({ lost: true }))
  }
  const write = () =>
    lockstep.kysely.transaction().execute(async (trx) => {
      await sql`select lockstep.assert_held(${NAME}, ${token})`.execute(trx)
      return increment(trx, token, 'grant')
    })
  const n = await recorder.do(NAME, { do: 'write', token }, write, (n) => ({ n }), lostIs('none'))
  const revoke = () => locks.revoke(NAME, token)
  await recorder.do(NAME, { do: 'release', token, kind: 'lease' }, revoke, () => ({}), lostIs({ lost: true }))
  return n
}

async function transaction(): Promise<number> {
  let token = 0n
  const work = () =>
    lockstep.locks.transaction(NAME, (trx, hold) => {
      token = hold.token
      return increment(trx, token, 'transaction')
    })
  return recorder.do(NAME, { do: 'transaction' }, work, (n) => ({ n, token }))
}

/** Looks at the name and at the counter, without a hold. */
async function look(): Promise<void> {
  const get = () => lockstep.locks.get(NAME)
  await recorder.do(NAME, { do: 'get' }, get, ({ kind, token }) => ({ kind, token }))
  const read = () => sql<{ n: string }>`select n from counter`.execute(lockstep.kysely)
  await recorder.do(NAME, { do: 'read' }, read, ({ rows }) => ({ n: Number(rows[0]?.n) }))
}

const asToken = ({ token }: { token: bigint }) => ({ token })

const ways = {
  connection: () => holding(),
  lease: () => (Math.random() < 0.5 ? holding(TTL_MS) : granting()),
  transaction,
}
const kinds = Object.keys(ways) as (keyof typeof ways)[]

console.log('ready')
for (;;) {
  const way = kind === 'mixed' ? (kinds[Math.floor(Math.random() * 3)] as 'lease') : (kind as 'lease')
  try {
    console.log(`done ${await ways[way]()}`)
    if (Math.random() < 0.1) await look()
  } catch (error) {
    const expected = isExpected(error)
    console.log(`${expected ? 'error' : 'fault'} ${inspect(error)}`.replaceAll('\n', ' '))
    if (expected) await sleep(20)
  }
}

// A holder may get two errors: its lease is lost, or the database is unreachable. A grant may have waited in vain. Any other
// error is a fault, and ends the run.
function isExpected(error: unknown): boolean {
  // The work failed, and then the release failed.
  if (error instanceof SuppressedError) return isExpected(error.error) && isExpected(error.suppressed)
  const known = fromDatabase(error)
  return isLost(error) || known instanceof LeaseHeldError || known instanceof UnavailableError
}
