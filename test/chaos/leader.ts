/**
 * A process that campaigns, again and again, until it is killed.
 *
 * While it leads it does two things concurrently, so that neither hides a fault of the other: unfenced acts, while it
 * trusts its term, written to a file that all processes share; and fenced rows. It reports terms, acknowledged rows and
 * signals to its parent on stdout.
 */
import * as fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { fromDatabase, LeaseLostError, UnavailableError } from '../../lib/base/errors.ts'
import { createLockstep, type Term } from '../../lib/index.ts'

const [url = '', failover = 'lease', ttl = '1500', worker = '0.0', log = ''] = process.argv.slice(2)
const file = fs.openSync(log, 'a')
const lockstep = createLockstep({ connectionString: url, max: 3, applicationName: `leader ${worker}` })
let n = 0

// The clock is read before the trust: a pause between the two makes the act look older than it is, never younger. It is the
// machine's monotonic clock, the same in all processes: it is never set, and has nanoseconds.
async function act(term: Term, over: () => boolean) {
  for (let doubts = 0; !over(); await sleep(doubts > 0 ? 10 : 1 + Math.random() * 4)) {
    const at = process.hrtime.bigint()
    if (term.isTrusted()) {
      note(term, 'act', at)
      doubts = 0
    } else if (++doubts > 500) {
      // Counted in turns of this process and not in seconds, because a pause is no fault.
      return report('fault', `term ${term.token} is not trusted any more, and its signal has not aborted`)
    } else note(term, 'doubt', at)
  }
}

const note = ({ token }: Term, what: 'act' | 'doubt' | 'signal', at = process.hrtime.bigint()) =>
  fs.writeSync(file, `${JSON.stringify({ token: String(token), at: String(at), what, worker })}\n`)

async function write(term: Term, over: () => boolean) {
  for (; !over(); await sleep(Math.random() * 30)) {
    try {
      await row(term, false)
    } catch (error) {
      failed(error)
      await sleep(20) // while the term lasts, try again
    }
  }
}

async function row(term: Term, last: boolean) {
  const number = ++n
  await term.transaction(async (trx) => {
    await sql`insert into led (n, token, worker) values (${number}, ${term.token}, ${worker})`.execute(trx)
    if (last) await term.resign({ trx })
  })
  report('done', `${number} ${term.token}`)
}

// A leader may get two errors: its lease is lost, or the database is unreachable. Any other error is a fault, and ends the run.
function failed(error: unknown) {
  const known = fromDatabase(error)
  if (known instanceof LeaseLostError || known instanceof UnavailableError) return
  report('fault', error instanceof Error ? (error.stack ?? error.message) : String(error))
}

const report = (what: string, detail: string) => console.log(`${what} ${detail}`.replaceAll('\n', ' '))

console.log('ready')
await lockstep.leaders.lead(
  'the chaos',
  {
    ttlMs: Number(ttl),
    failover: failover as Term['failover'],
    backoff: { firstMs: 20, mostMs: 200 },
    onError: failed,
  },
  async (term, signal) => {
    report('leads', String(term.token))
    term.signal.addEventListener('abort', () => {
      note(term, 'signal')
      report('signalled', String(term.token))
    })
    const end = performance.now() + Math.random() * (Math.random() < 0.3 ? 500 : 5_000)
    const over = () => signal.aborted || performance.now() > end
    await Promise.all([act(term, over), write(term, over)])
    if (!signal.aborted && Math.random() < 0.3) await row(term, true)
  },
)
