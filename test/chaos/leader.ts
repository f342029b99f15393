/**
 * One process that wants to lead, again and again, until it is killed.
 *
 * While it leads it does two things side by side, so that neither keeps the other from going wrong: unfenced acts, for
 * as long as it trusts its term, written to a file that all processes share; and fenced rows. Terms, acknowledged rows
 * and losses are told to the parent on stdout.
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

// The clock is read before the term is: a pause between the two makes an act older than it is, and never younger. It is
// the machine's monotonic clock, the same in all processes: nobody sets it, and it tells nanoseconds apart.
async function act(term: Term, over: () => boolean) {
  for (let doubts = 0; !over(); await sleep(doubts > 0 ? 10 : 1 + Math.random() * 4)) {
    const at = process.hrtime.bigint()
    if (term.isTrusted()) {
      note(term, 'act', at)
      doubts = 0
    } else if (++doubts > 500) {
      // Counted in turns of this process and not in seconds, so that a pause is no reproach.
      return tell('fault', `term ${term.token} is not trusted any more, and its signal does not say so`)
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
      await sleep(20) // while the term stands it is worth trying again
    }
  }
}

async function row(term: Term, last: boolean) {
  const number = ++n
  await term.transaction(async (trx) => {
    await sql`insert into led (n, token, worker) values (${number}, ${term.token}, ${worker})`.execute(trx)
    if (last) await term.resign({ trx })
  })
  tell('done', `${number} ${term.token}`)
}

// Lost, or the database out of reach: what a leader is told. Anything else is a fault, and ends the run.
function failed(error: unknown) {
  const known = fromDatabase(error)
  if (known instanceof LeaseLostError || known instanceof UnavailableError) return
  tell('fault', error instanceof Error ? (error.stack ?? error.message) : String(error))
}

const tell = (what: string, detail: string) => console.log(`${what} ${detail}`.replaceAll('\n', ' '))

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
    tell('leads', String(term.token))
    term.signal.addEventListener('abort', () => {
      note(term, 'signal')
      tell('told', String(term.token))
    })
    const end = performance.now() + Math.random() * (Math.random() < 0.3 ? 500 : 5_000)
    const over = () => signal.aborted || performance.now() > end
    await Promise.all([act(term, over), write(term, over)])
    if (!signal.aborted && Math.random() < 0.3) await row(term, true)
  },
)
