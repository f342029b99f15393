/**
 * Two parties, one name, and every order in which their steps can come.
 *
 * How all orders are found: a run makes a choice wherever both parties could go on. The next run repeats the choices of the
 * last but for the last one that has an alternative left, and takes that. When none is left, every order was run once; this
 * also is right where scripts end early, or wait.
 *
 * A step has ended when it was answered, or when pg_locks shows that its backend waits. A party that waits is left waiting, the other
 * goes on, and after each step it is asked anew. A party that stands at a gate (breakpoints.ts) can go on. When none can, the one that has ended
 * its script gives up what it got; and if still somebody waits then, nobody ever served him: a violation.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { SQLSTATE } from '../../../lib/base/errors.ts'
import { type Seen, violations } from './invariants.ts'
import {
  ACQUIRE,
  AGAIN,
  Backend,
  type Case,
  commit,
  HOLD,
  newCase,
  Party,
  type Script,
  STATES,
  type Step,
  THEN,
} from './scripts.ts'

/** A verb each, on a name in some state. */
export interface Pair {
  state: string
  a: string
  b: string
  scripts: [a: Script, b: Script]
}
/** One of the two stands still once: at the n-th stop that this backend of its passes. */
export interface Stop {
  who: 0 | 1
  on: Step['on']
  n: number
}

/**
 * Every pair of verbs, in every state. A does what it can have a reason to: a holder or former holder does what a holder does, a
 * stranger what B does. `longer`: each does everything, and a party that has got the name goes on to a fenced write.
 */
export function pairs(wanted: (pair: Pair) => boolean = () => true, longer = false): Pair[] {
  const others = Object.keys(ACQUIRE)
  const all = Object.entries(STATES).flatMap(([state, { a: is }]) => {
    const as = is === 'stranger' ? others : [...Object.keys(HOLD), ...(longer ? others : AGAIN)]
    return as.flatMap((a) =>
      others
        .filter((b) => is === 'holder' || others.indexOf(b) >= others.indexOf(a)) // the other half is its mirror image
        .map((b): Pair => ({ state, a, b, scripts: [script(a, longer), script(b, longer)] })),
    )
  })
  return all.filter(dies).filter(wanted)
}

function script(verb: string, longer: boolean): Script {
  return HOLD[verb] ?? [...(ACQUIRE[verb] as Script), ...(longer ? THEN : [])]
}

// Death is an event for a session that has K or is asking for it, and for a transaction. B kills.
function dies({ state, a, b, scripts: [ofA] }: Pair): boolean {
  if (a.startsWith('death')) return false
  if (b === 'death of its transaction, lease') return ofA.includes(commit)
  const had = state.startsWith("A's connection")
  if (b === 'death of its session, connection') return had
  return b !== 'death of its session, lease' || had || ofA.some(({ on }) => on === 'session')
}

interface Actor {
  party: Party
  script: Script
  next: number
  at: 'ready' | 'running' | 'waiting' | 'gate' | 'ended' | 'finished'
  /** The gate is shut for it; it has stopped there. */
  shut: boolean
  stopped: boolean
  running: Promise<void> | undefined
}
const HANGS_MS = 20_000

/** A lane: its own database and five connections. */
export class Stage {
  readonly #url: string
  #control: Backend
  #parties: [Party, Party]
  runs = 0
  #actors: Actor[] = []
  #trouble: string[] = []

  private constructor(url: string, [control, ...four]: Backend[]) {
    const [s1, p1, s2, p2] = four as [Backend, Backend, Backend, Backend]
    this.#url = url
    this.#control = control as Backend
    this.#parties = [new Party('A', s1, p1), new Party('B', s2, p2)]
  }

  static async open(url: string): Promise<Stage> {
    return new Stage(url, await Promise.all([1, 2, 3, 4, 5].map(() => Backend.open(url))))
  }

  async close(): Promise<void> {
    const all = [this.#control, ...this.#parties.flatMap(({ session, pool }) => [session, pool])]
    await Promise.all(all.map(({ client }) => client.end().catch(() => {})))
  }

  /** Every order of the steps of a pair, until one violates something. `reached`: in one of them it did stop. */
  async explore(pair: Pair, stop?: Stop): Promise<{ violations: string[]; reached: boolean }> {
    let path: number[] = []
    let reached = false
    for (;;) {
      const made: { choice: number; of: number }[] = []
      const told: string[] = []
      const found = await this.#run(pair, stop, (ready) => {
        const choice = Math.min(path[made.length] ?? 0, ready.length - 1)
        made.push({ choice, of: ready.length })
        const chosen = ready[choice] as Actor
        told.push(`${chosen.party.holder} ${chosen.at === 'gate' ? 'goes on' : chosen.script[chosen.next]?.name}`)
        return chosen
      })
      reached ||= this.#actors.some(({ stopped }) => stopped)
      if (found.length > 0) {
        const where = stop ? ` (${'AB'[stop.who]} stops at ${stop.n} of its ${stop.on})` : ''
        const what = `${pair.state}: ${pair.a} × ${pair.b}${where}: ${told.join(', ')}`
        return { violations: found.map((v) => `${what}: ${v}`), reached }
      }
      while (made.length > 0 && (made.at(-1)?.choice ?? 0) + 1 >= (made.at(-1)?.of ?? 0)) made.pop()
      if (made.length === 0) return { violations: [], reached }
      path = made.map(({ choice }) => choice)
      path[path.length - 1] = (path.at(-1) ?? 0) + 1
    }
  }

  /** The same with one of the two standing still once: at each stop that it passes, in a database that has stops. */
  async exploreStops(pair: Pair, enough: number): Promise<string[]> {
    const found: string[] = []
    for (const who of [0, 1] as const) {
      for (const on of new Set(pair.scripts[who].map((step) => step.on))) {
        for (let n = 1; found.length < enough; n++) {
          const { violations, reached } = await this.explore(pair, { who, on, n })
          found.push(...violations)
          if (!reached) break
        }
      }
    }
    return found
  }

  async #run(pair: Pair, stop: Stop | undefined, choose: (ready: Actor[]) => Actor): Promise<string[]> {
    const it = newCase(`name ${++this.runs}`)
    await this.#setUp(pair, stop, it)
    const seen: Seen = { control: this.#control, parties: this.#parties, it }
    const found: string[] = []
    let stoppedLast: Actor | undefined
    for (;;) {
      let ready = this.#actors.filter(({ at }) => at === 'ready' || at === 'gate')
      if (ready.length === 0) {
        if (!this.#actors.some(({ at }) => at === 'waiting')) break
        const done = this.#actors.find(({ at }) => at === 'ended')
        if (done) await this.#finish(done, it)
        else if (!(await this.#served(it))) found.push('somebody waits for ever')
        continue
      }
      // A party that has just been stopped does not go on at once: that would be the same order as without the stop.
      if (ready.length > 1 && stoppedLast) ready = ready.filter((each) => each !== stoppedLast)
      const actor = choose(ready)
      const { claims } = it
      const goesOn = actor.at === 'gate'
      actor.stopped ||= goesOn
      actor.at = 'running'
      actor.party.moved = ++it.clock
      if (goesOn) await this.#open(actor)
      else actor.running = this.#step(actor)
      await this.#settle()
      stoppedLast = (actor.at as string) === 'gate' ? actor : undefined
      const last = this.#actors.every(({ at }) => at === 'ended')
      if (it.claims > claims && !last) found.push(...(await violations.holders(seen)))
    }
    found.push(...(await violations.atTheEnd(seen)))
    for (const actor of this.#actors) await this.#open(actor)
    await this.#heal(it)
    for (const party of this.#parties) await party.leave()
    return [...this.#trouble, ...found]
  }

  async #setUp({ state, scripts }: Pair, stop: Stop | undefined, it: Case): Promise<void> {
    this.#trouble = []
    for (const party of this.#parties) Object.assign(party, { case: it, gated: false, holds: [] })
    await STATES[state]?.make(this.#parties[0], this.#control)
    this.#actors = this.#parties.map((party, i) => {
      const script = scripts[i as 0 | 1]
      return { party, script, next: 0, at: 'ready', shut: false, stopped: false, running: undefined }
    })
    this.#actors.forEach(skip)
    if (!stop) return
    const actor = this.#actors[stop.who] as Actor
    const set = `select set_config('stop.at', $1, false), set_config('stop.passed', '0', false), set_config('stop.gate', $2, false)`
    for (const on of ['session', 'pool'] as const) {
      await actor.party[on].ask(set, [String(on === stop.on ? stop.n : 0), String(stop.who)])
    }
    await this.#control.ask('select pg_advisory_lock(7, $1)', [stop.who])
    actor.shut = true
  }

  async #open(actor: Actor): Promise<void> {
    if (!actor.shut) return
    actor.shut = false
    await this.#control.ask('select pg_advisory_unlock(7, $1)', [this.#actors.indexOf(actor)])
  }

  async #step(actor: Actor): Promise<void> {
    const { party, script } = actor
    const other = this.#parties.find((each) => each !== party) as Party
    try {
      await (script[actor.next++] as Step).run(party, other)
      skip(actor)
    } catch (error) {
      const { code, message } = error as { code?: string; message: string }
      const lost = code === '57P01' || party.session.lost || party.pool.lost || /connection|terminated/i.test(message)
      if (lost) party.case.deaths = true
      if (code !== SQLSTATE.leaseLost && !lost) this.#trouble.push(`${party.holder}: ${code} ${message}`)
      await party.rollback().catch(() => {})
      actor.at = 'ended'
    }
  }

  // Until each that was asked has answered, waits for a lock, or stands at a gate.
  async #settle(): Promise<void> {
    const open = this.#actors.filter(({ at }) => at === 'running' || at === 'waiting')
    for (const actor of open) actor.at = 'running'
    const since = performance.now()
    for (const actor of open) {
      while (actor.at === 'running') {
        await Promise.race([actor.running, delay(2)])
        if ((actor.at as string) !== 'running') break
        const waits = await this.#control.ask(WAITS, [actor.party.session.pid, actor.party.pool.pid])
        if (waits.gate !== null && actor.at === 'running') actor.at = waits.gate ? 'gate' : 'waiting'
        if (performance.now() - since > HANGS_MS) throw new Error(`${actor.party.holder} hangs`)
      }
    }
  }

  async #finish(actor: Actor, it: Case): Promise<void> {
    await this.#open(actor) // or giving up would stop there
    await this.#heal(it)
    await actor.party.finish()
    actor.at = 'finished'
    await this.#settle()
  }

  // Somebody waits, and the other has given up everything: it is just being answered, or never will be.
  async #served(it: Case): Promise<boolean> {
    const waiting = this.#actors.filter(({ at }) => at === 'waiting')
    const answers = waiting.map(({ running }) => running?.then(() => true))
    const served = await Promise.race([...answers, delay(2_000, false)])
    if (!served) {
      it.deaths = true
      for (const { session, pool } of this.#parties) {
        await this.#control.ask('select pg_terminate_backend($1), pg_terminate_backend($2)', [session.pid, pool.pid])
      }
      await Promise.all(answers)
    }
    await this.#settle()
    return served === true
  }

  // Connections that were ended are made anew: what they had is gone.
  async #heal({ deaths }: Case): Promise<void> {
    if (!deaths) return
    for (const party of this.#parties) {
      for (const which of ['session', 'pool'] as const) {
        // the end may be known to the server only
        if (!party[which].lost && (await party[which].ask('select').catch(() => undefined))) continue
        party[which].lost = true
        if (which === 'pool') party.ended(false)
        else party.gated = false
        party[which] = await Backend.open(this.#url)
      }
    }
  }
}

// pids are the cluster's, so this needs no database
const WAITS = `
  select bool_or(locktype = 'advisory' and objsubid = 2) as gate from pg_locks
   where not granted and pid in ($1, $2) and locktype in ('advisory', 'transactionid', 'tuple')`

// What does not apply after what was learnt is not sent, and no turn.
function skip(actor: Actor): void {
  while (actor.next < actor.script.length && actor.script[actor.next]?.when?.(actor.party) === false) actor.next++
  actor.at = actor.next < actor.script.length ? 'ready' : 'ended'
}
