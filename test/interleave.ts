/**
 * Two parties, one name, and every order in which their steps can come.
 *
 * How all orders are found: a run makes a choice wherever both parties could go on. The next run repeats the choices of the
 * last but for the last one that has an alternative left, and takes that. When none is left, every order was run once; this
 * also is right where scripts end early, or wait.
 *
 * A step has ended when it was answered, or when pg_locks shows that its backend waits. Who waits is left waiting, the other
 * goes on, and after each step it is asked anew. Who stands at a gate (stops.ts) can go on. When nobody can, who has ended
 * its script gives up what it got; and if still somebody waits then, nobody ever served him: a violation.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { type Ended, violations } from './invariants.ts'
import { Backend, type Case, over, Party, type Step } from './verbs.ts'

export interface Plan {
  state: [name: string, make: (a: Party, control: Backend) => Promise<unknown>]
  scripts: [name: string, steps: Step[]][]
  /** For each party: at which stop of which of its backends it stands still once. */
  stops?: (readonly ['session' | 'pool', number] | undefined)[]
}
interface Actor {
  party: Party
  script: Step[]
  next: number
  at: 'ready' | 'running' | 'waiting' | 'gate' | 'ended' | 'finished'
  /** The gate is shut for it; it has stopped there. */
  shut: boolean
  stopped: boolean
  running: Promise<void> | undefined
}
const HANGS_MS = 30_000

export class Stage {
  readonly #url: string
  readonly #lane: number
  #control: Backend
  #parties: [Party, Party]
  runs = 0
  #actors: Actor[] = []
  #trouble: string[] = []

  private constructor(url: string, lane: number, [control, ...four]: Backend[]) {
    const [s1, p1, s2, p2] = four as [Backend, Backend, Backend, Backend]
    this.#url = url
    this.#lane = lane
    this.#control = control as Backend
    this.#parties = [new Party('A', s1, p1), new Party('B', s2, p2)]
  }

  static async open(url: string, lane: number): Promise<Stage> {
    return new Stage(url, lane, await Promise.all([1, 2, 3, 4, 5].map(() => Backend.open(url))))
  }

  async close(): Promise<void> {
    const all = [this.#control, ...this.#parties.flatMap(({ session, pool }) => [session, pool])]
    await Promise.all(all.map(({ client }) => client.end().catch(() => {})))
  }

  /** Every order of the steps of a plan. Answers the violations, and which of its stops were reached. */
  async explore(plan: Plan): Promise<{ violations: string[]; reached: boolean }> {
    let path: number[] = []
    let reached = false
    for (;;) {
      const made: { choice: number; of: number }[] = []
      const told: string[] = []
      const found = await this.#run(plan, (ready) => {
        const choice = Math.min(path[made.length] ?? 0, ready.length - 1)
        made.push({ choice, of: ready.length })
        const chosen = ready[choice] as Actor
        told.push(chosen.party.holder)
        return chosen
      })
      reached ||= this.#actors.every(({ stopped }, i) => stopped || !plan.stops?.[i])
      if (found.length > 0) {
        const what = plan.scripts.map(([name], i) => `${name}${plan.stops?.[i] ? ` (stop ${plan.stops[i]})` : ''}`)
        return {
          violations: found.map((v) => `${plan.state[0]}: ${what.join(' × ')}, ${told.join('')}: ${v}`),
          reached,
        }
      }
      while (made.length > 0 && (made.at(-1)?.choice ?? 0) + 1 >= (made.at(-1)?.of ?? 0)) made.pop()
      if (made.length === 0) return { violations: [], reached }
      path = made.map(({ choice }) => choice)
      path[path.length - 1] = (path.at(-1) ?? 0) + 1
    }
  }

  async #run(plan: Plan, choose: (ready: Actor[]) => Actor): Promise<string[]> {
    const it: Case = { name: `${this.#lane}/${++this.runs}`, clock: 0, grants: [], effects: [] }
    await this.#setUp(plan, it)
    const ended: Ended = { control: this.#control, parties: this.#parties, it }
    const holders: string[] = []
    let stoppedLast: Actor | undefined
    for (;;) {
      let ready = this.#actors.filter(({ at }) => at === 'ready' || at === 'gate')
      if (ready.length === 0) {
        const done = this.#actors.find(({ at }) => at === 'ended')
        if (!done) break
        await this.#finish(done)
        continue
      }
      // Who has just been stopped does not go on at once: that would be the same order as without the stop.
      if (ready.length > 1 && stoppedLast) ready = ready.filter((each) => each !== stoppedLast)
      const actor = choose(ready)
      const known = it.grants.length
      const stood = actor.at === 'gate'
      actor.at = 'running' // before it can have ended
      if (!stood) actor.running = this.#step(actor)
      else {
        actor.stopped = true
        await this.#gate(actor, false)
      }
      await this.#settle()
      stoppedLast = (actor.at as string) === 'gate' ? actor : undefined
      if (it.grants.length > known) holders.push(...(await violations.holders(ended)))
    }
    for (const actor of this.#actors) {
      if (actor.at === 'waiting' && !(await this.#served(actor)))
        this.#trouble.push(`${actor.party.holder} waits for ever`)
    }
    for (const actor of this.#actors) await this.#giveUp(actor)
    return [...this.#trouble, ...holders, ...(await violations.atTheEnd(ended))]
  }

  async #setUp({ state: [, make], scripts, stops = [] }: Plan, it: Case): Promise<void> {
    this.#trouble = []
    for (const party of this.#parties) Object.assign(party, { case: it, gated: false, holds: [] })
    await make(this.#parties[0], this.#control)
    this.#actors = this.#parties.map((party, i) => {
      const script = scripts[i]?.[1] ?? []
      return { party, script, next: 0, at: 'ready', shut: false, stopped: false, running: undefined }
    })
    for (const [i, actor] of this.#actors.entries()) {
      const stop = stops[i]
      if (!stop) continue
      const set = `select set_config('stop.at', $1, false), set_config('stop.passed', '0', false), set_config('stop.gate', $2, false)`
      const gate = String(this.#gateOf(actor))
      for (const each of ['session', 'pool'] as const) {
        await actor.party[each].ask(set, [each === stop[0] ? String(stop[1]) : '0', gate])
      }
      await this.#gate(actor, true)
    }
  }

  #gateOf = (actor: Actor) => this.#lane * 2 + this.#actors.indexOf(actor)

  async #gate(actor: Actor, shut: boolean): Promise<void> {
    await this.#control.ask(`select pg_advisory_${shut ? '' : 'un'}lock(7, $1)`, [this.#gateOf(actor)])
    actor.shut = shut
  }

  async #step(actor: Actor): Promise<void> {
    const { party, script } = actor
    const other = this.#parties.find((each) => each !== party) as Party
    try {
      const step = script[actor.next++] as Step
      if ((await step(party, other)) === over) actor.next = script.length
      if (actor.next >= script.length) await party.rollback()
    } catch (error) {
      actor.next = script.length
      const { code, message } = error as { code?: string; message: string }
      const lost = party.session.lost || party.pool.lost || isLoss(error)
      if (code !== 'LS001' && !lost) this.#trouble.push(`${party.holder}: ${code} ${message}`)
      await party.rollback().catch(() => {})
    }
    actor.at = actor.next >= script.length ? 'ended' : 'ready'
  }

  // Until everybody who was asked has answered, waits for a lock, or stands at a gate.
  async #settle(): Promise<void> {
    const open = this.#actors.filter(({ at }) => at === 'running' || at === 'waiting')
    for (const actor of open) actor.at = 'running'
    const since = performance.now()
    for (const actor of open) {
      while (actor.at === 'running') {
        await Promise.race([actor.running, delay(2)])
        if (actor.at !== 'running') break
        const waits = await this.#control.ask(
          `select bool_or(locktype = 'advisory' and objsubid = 2) as gate from pg_locks where not granted and pid in ($1, $2)`,
          [actor.party.session.pid, actor.party.pool.pid],
        )
        if (waits.gate !== null && actor.at === 'running') actor.at = waits.gate ? 'gate' : 'waiting'
        if (performance.now() - since > HANGS_MS) throw new Error(`${actor.party.holder} hangs`)
      }
    }
  }

  async #finish(actor: Actor): Promise<void> {
    await this.#giveUp(actor)
    actor.at = 'finished'
    await this.#settle()
  }

  // What it does now is not of its script: it is stopped no more. And again, where its connections were ended and it had not
  // heard yet: what it had is gone then.
  async #giveUp(actor: Actor): Promise<void> {
    const { party } = actor
    if (actor.shut) await this.#gate(actor, false)
    for (;;) {
      await this.#heal()
      try {
        return await party.finish()
      } catch (error) {
        if (!party.session.lost && !party.pool.lost && !isLoss(error)) throw error
      }
    }
  }

  async #served(actor: Actor): Promise<boolean> {
    const answered = await Promise.race([actor.running?.then(() => true), delay(2_000, false)])
    if (answered) return true
    for (const each of ['session', 'pool'] as const) {
      await this.#control.ask('select pg_terminate_backend($1)', [actor.party[each].pid])
    }
    await actor.running
    return false
  }

  // Connections that were ended are made anew: what they had is gone.
  async #heal(): Promise<void> {
    for (const { party, at } of this.#actors) {
      if (at === 'waiting') continue // what is asked of it now would wait too
      for (const which of ['session', 'pool'] as const) {
        if (!party[which].lost) {
          // the end may be known to the server only
          await party[which].ask('select').catch(() => {})
        }
        if (!party[which].lost) continue
        if (which === 'pool') party.ended(false)
        else party.gated = false
        party[which] = await Backend.open(this.#url)
      }
    }
  }
}

const isLoss = (error: unknown) => {
  const { code, message } = error as { code?: string; message: string }
  return code === '57P01' || /connection|terminated/i.test(message)
}
