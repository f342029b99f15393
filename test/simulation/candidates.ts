/**
 * What candidates do in a world: they campaign in every way, lead, proclaim, are asked to step down, resign; and they observe.
 *
 * A term is checked as a hold is (ledger.ts): while it is trusted, its row is live under its token; no two are trusted; tokens rise;
 * fenced writes commit in their order. A term with `failover: 'connection'` promises the last two only, as its documentation says.
 * An observer is shown revisions that rise.
 */
import { sql } from 'kysely'
import type { Hold, Term } from '../../lib/index.ts'
import type { Random } from './faults.ts'
import { Violation } from './ledger.ts'
import { expected, OwnStatement, type Stage } from './programs.ts'

/** The acts of a candidate: each is one call, and what follows from it. */
export function candidate(stage: Stage, random: Random): ((name: string) => Promise<void>)[] {
  const { leaders } = stage.lockstep
  const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

  async function campaign(name: string): Promise<void> {
    const ttlMs = Math.floor(1_000 + random() * 4_000)
    const failover = random() < 0.3 ? 'connection' : 'lease'
    const priority = Math.floor(random() * 3)
    const holder = random() < 0.2 ? { holder: `candidate ${Math.floor(random() * 2)} of ${stage.process.name}` } : {}
    const meta = random() < 0.3 ? { meta: { n: Math.floor(random() * 9) } } : {}
    const waits = random() < 0.3 ? { waitMs: Math.floor(random() * 6_000) } : random() < 0.3 ? { signal: leaves() } : {}
    await serve(await leaders.campaign(name, { ttlMs, failover, priority, ...holder, ...meta, ...waits }), ttlMs)
  }
  async function tryCampaign(name: string): Promise<void> {
    const term = await leaders.tryCampaign(name, { ttlMs: 2_000, priority: Math.floor(random() * 3) })
    if (term) await serve(term, 2_000)
  }
  async function lead(name: string): Promise<void> {
    const options = { ttlMs: 2_000, signal: leaves(), backoff: { firstMs: 50, mostMs: 500 }, onError: expected }
    await leaders.lead(name, options, async (term, signal) => {
      const entry = granted(term, 2_000)
      await Promise.race([sleep(random() * 2_000), new Promise((resolve) => signal.addEventListener('abort', resolve))])
      entry.over = true
    })
  }
  async function stepDown(name: string): Promise<void> {
    await leaders.stepDown(name)
  }
  async function look(name: string): Promise<void> {
    const { revision } = await leaders.get(name)
    if (revision < 0n) throw new Violation('A revision is negative')
    await leaders.members(name)
  }
  async function observe(name: string): Promise<void> {
    let last = -1n
    const signal = leaves()
    try {
      for await (const { revision } of leaders.observe(name, { signal })) {
        if (revision < last) throw new Violation(`${name}: an observer is shown revision ${revision} after ${last}`)
        last = revision
        if (random() < 0.2) await sleep(random() * 1_000)
      }
    } catch (error) {
      if (error !== signal.reason) throw error
    }
  }

  /** Aborts after a while, with an error that is expected. */
  function leaves(): AbortSignal {
    const controller = new AbortController()
    const reason = Object.assign(new Error('The caller has left'), { code: 'LEASE_HELD' })
    setTimeout(() => controller.abort(reason), random() * 5_000)
    return controller.signal
  }

  function granted(term: Term, ttlMs: number) {
    const hold = {
      ...{ name: `leader\t${term.name}`, token: term.token, holder: term.holder },
      kind: 'lease',
      isTrusted: () => term.failover === 'lease' && term.isTrusted(),
    }
    return stage.ledger.granted(hold as Hold, stage.process, ttlMs)
  }

  async function serve(term: Term, ttlMs: number): Promise<void> {
    const entry = granted(term, ttlMs)
    try {
      if (random() < 0.6) await sleep(random() * (random() < 0.3 ? 8_000 : 400))
      if (random() < 0.2) await term.proclaim({ at: 1 })
      if (random() < 0.4) {
        await term.transaction(async (trx) => {
          await sql`select simulated_effect(${`leader\t${term.name}`}, ${term.token})`.execute(trx).catch((cause) => {
            throw new OwnStatement('the statement failed', { cause })
          })
          if (random() < 0.3) await sleep(random() * 500)
        })
      }
    } catch (error) {
      expected(error)
    }
    try {
      await term.resign()
    } catch (error) {
      expected(error)
    } finally {
      entry.over = true
    }
  }

  return [campaign, campaign, campaign, tryCampaign, lead, stepDown, look, observe]
}
