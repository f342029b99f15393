/**
 * A process whose forty loops try to acquire sixty names, and which from time to time holds two hundred names of its own, until it
 * is asked to stop.
 *
 * Each holder writes its token to the row of the name, on a connection outside Lockstep. A trusted holder that finds a later
 * token in the row is a violation: the name has two holders. At the end Lockstep is closed; anything that is left keeps the
 * process from exiting.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { UnavailableError } from '../../lib/base/errors.ts'
import { createLockstep, type Hold } from '../../lib/index.ts'

const [url = '', direct = '', worker = '0'] = process.argv.slice(2)
const NAMES = 60
const LOOPS = 40
const HOARD = 200
const WARM_MS = 5_000

const lockstep = createLockstep({ connectionString: url, max: 2, applicationName: `worker ${worker}` })
const witness = new pg.Pool({ connectionString: direct, max: 4, application_name: `witness ${worker}` })
witness.on('error', () => {})
let stopping = false

async function enter(held: Hold): Promise<void> {
  const { rowCount } = await witness.query(
    `insert into inside as i values ($1, $2) on conflict (name) do update set token = excluded.token where i.token < excluded.token`,
    [held.name, held.token],
  )
  if (rowCount === 0 && held.isTrusted()) console.log(`double ${held.name}: under ${held.token} after a larger one`)
}

async function leave(held: Hold): Promise<void> {
  const { rows } = await witness.query('select token from inside where name = $1', [held.name])
  if (BigInt(rows[0].token) !== held.token && held.isTrusted()) {
    console.log(`double ${held.name}: ${held.token} is trusted, and ${rows[0].token} is in the row`)
  }
}

async function loop(): Promise<void> {
  while (!stopping) {
    try {
      const held = await lockstep.locks.tryAcquire(`name ${Math.floor(Math.random() * NAMES)}`)
      if (!held) continue
      try {
        await enter(held)
        await sleep(Math.random() * 3)
        await leave(held)
      } finally {
        await held.release()
      }
      console.log('done 1')
    } catch (error) {
      await checkError(error)
    }
  }
}

async function hoard(): Promise<void> {
  while (!stopping) {
    const tries = Array.from({ length: HOARD }, (_, i) => lockstep.locks.tryAcquire(`${worker} ${i}`))
    const held = (await Promise.allSettled(tries)).flatMap((each) =>
      each.status === 'fulfilled' ? (each.value ?? []) : [],
    )
    await sleep(200)
    await Promise.allSettled(held.map((each) => each.release()))
    await sleep(300)
  }
}

async function checkError(error: unknown): Promise<void> {
  const { code, cause } = error as { code?: string; cause?: unknown }
  const ours = error instanceof UnavailableError || code === 'LEASE_LOST'
  // an error of the witness pool: its server was stopped, or accepts no more connections
  const theirs = /^(53|57|08)/.test(String(code)) || /terminated|ECONN|timeout/.test(String(error))
  if (!ours && !theirs) console.log(`fault ${String(error)} ${String(cause ?? '')}`.replaceAll('\n', ' '))
  await sleep(20)
}

const heap = () => {
  globalThis.gc?.()
  return process.memoryUsage().heapUsed
}

console.log('ready')
const all = [...Array.from({ length: LOOPS }, loop), hoard()]
setTimeout(() => console.log(`heap ${heap()}`), WARM_MS).unref()
process.once('SIGTERM', async () => {
  stopping = true
  await Promise.all(all)
  console.log(`heap ${heap()}`)
  await witness.end()
  await lockstep.close()
  console.log('closed')
  setTimeout(() => {
    console.log(`left ${process.getActiveResourcesInfo().filter((each) => each !== 'PipeWrap')}`)
    process.exit(1)
  }, 5_000).unref()
})
