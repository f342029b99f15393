/**
 * A process of the experiment with locks: it holds by a peer and by Lockstep, in each form again and again, until it is killed. All
 * forms run in one process, so that each fault strikes all of them at the same moment.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Recorder } from '../../linear/index.ts'
import { type Held, LOCK_FORMS, type Locker, type LockSystem, lockerOf, lockstepLocker, TTL_MS } from './lock-forms.ts'
import { Resource } from './resource.ts'

const [peer = '', peerUrl = '', databaseUrl = '', worker = ''] = process.argv.slice(2)
const resource = new Resource(databaseUrl)
const recorder = new Recorder()
const { lockstep, lock: ours } = lockstepLocker(databaseUrl, worker)

const report = (what: string, form: string, error: unknown = '') =>
  console.log(`${what} ${form.replaceAll(' ', '-')} ${String(error)}`.replaceAll('\n', ' '))

/** How long a holder works between what it reads and what it writes. */
const WORK_MS = 150
const FENCED = 'prove/fenced'

async function act(system: LockSystem, how: string, lock: Locker): Promise<void> {
  const form = `${system} ${how}`
  await lock(`prove/${form}`, async (held) => {
    const token = how.startsWith('token') ? tokenOf(held) : null
    const look = () => resource.read(form, how === 'token, read too' ? token : null)
    const based = await recorder.do(form, { do: 'read' }, look, (n) => (n === undefined ? 'none' : { n }))
    if (based === undefined) return report('refused', form)
    await sleep(Math.random() * WORK_MS)
    if (how !== 'bare' && !held.holds()) return report('gave-up', form)
    await write(form, based, token)
  })
}

async function write(form: string, based: number, token: string | null): Promise<void> {
  const act = () => resource.write(form, based, token, worker)
  const version = await recorder.do(form, { do: 'write', based }, act, (n) => (n === undefined ? 'none' : { n }))
  report(version === undefined ? 'refused' : 'done', form)
}

function tokenOf({ token }: Held): string {
  if (token === undefined) throw new Error('This form has a token')
  return token
}

/** The row is in the database of the lock, and guards itself. */
async function actFenced(): Promise<void> {
  const form = 'lockstep fenced'
  await lockstep.locks.using(FENCED, { ttlMs: TTL_MS }, async (held) => {
    const look = async () => {
      const { rows } = await sql<{ version: string }>`select version from fenced`.execute(lockstep.kysely)
      return Number(rows[0]?.version)
    }
    const based = await recorder.do(form, { do: 'read' }, look, (n) => ({ n }))
    await sleep(Math.random() * WORK_MS)
    const write = () =>
      held.transaction(async (trx) => {
        const { rows } = await sql<{ version: string }>`
          with written as (update fenced set version = version + 1 returning version)
          insert into effect select ${form}, version, ${based}::bigint, ${worker} from written
          returning version`.execute(trx)
        return Number(rows[0]?.version)
      })
    const lost = (error: unknown) =>
      (error as { code?: string }).code === 'LEASE_LOST' ? ('none' as const) : undefined
    await recorder.do(form, { do: 'write', based }, write, (n) => ({ n }), lost)
    report('done', form)
  })
}

async function forever(form: string, once: () => Promise<void>): Promise<never> {
  for (;;) {
    try {
      await once()
    } catch (error) {
      // The lock was lost, or a server was unreachable: another attempt.
      report('error', form, error)
      await sleep(20)
    }
    await sleep(Math.random() * 20)
  }
}

// What a client throws where nobody catches it: it counts as an error, as for its other users.
process.on('unhandledRejection', (error) => report('error', peer, error))
process.stdin.resume().once('close', () => process.exit()) // the parent has ended

const their = peer as Exclude<LockSystem, 'lockstep'>
const theirs = await Promise.all(
  LOCK_FORMS[their].map(async (how) => [their, how, await lockerOf(their, peerUrl)] as const), // each has its own connection
)
console.log('ready')
const mine = LOCK_FORMS.lockstep.map((how) => ['lockstep', how, ours] as const)
await Promise.all(
  [...theirs, ...mine].map(([system, how, lock]) =>
    forever(`${system} ${how}`, how === 'fenced' ? actFenced : () => act(system, how, lock)),
  ),
)
