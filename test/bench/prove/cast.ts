/** The processes of an experiment, their nemesis, and what they report. One that is killed is replaced. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { Nemesis, type Victim } from '../../chaos/nemesis.ts'
import { History } from '../../linear/index.ts'
import type { Plan } from './plan.ts'

export interface Scene {
  plan: Plan
  /** Alive at a time; each has a network of its own. */
  processes: number
  program: string
  /** @param network  the connection string of a server in its network: 0 is PostgreSQL, 1 the peer. */
  argumentsOf(network: (target: 0 | 1) => string, name: string): string[]
  restMs(chance: number): number
  awayMs(chance: number): number
  /** A process was killed, or has ended by itself. @param names  what it has reported as `named`. */
  killed?(names: string[]): void
}

export class Cast implements AsyncDisposable {
  readonly history = new History()
  readonly #scene: Scene
  readonly #counts = new Map<string, number>()
  readonly #alive = new Map<Victim, Promise<unknown>>()
  #nemesis: Nemesis | undefined
  #spawned = 0
  #over = false

  constructor(scene: Scene) {
    this.#scene = scene
  }

  /** Starts the processes, and strikes until the time is over. @returns how often there was each fault. */
  async rage(): Promise<Record<string, number>> {
    const { plan, processes, restMs, awayMs } = this.#scene
    this.#nemesis = await Nemesis.of({
      ...{ targets: [plan.databaseUrl, plan.peerUrl], seed: plan.seed, seconds: plan.seconds, networks: processes },
      ...{ restMs, awayMs, victims: () => [...this.#alive.keys()] },
      killed: (victim) => {
        this.#alive.delete(victim)
        this.#scene.killed?.((victim as Member).names)
        void this.#start((victim as Member).slot)
      },
    })
    await Promise.all(Array.from({ length: processes }, (_, slot) => this.#start(slot)))
    await this.#nemesis.rage(() => false)
    return this.#nemesis.summary().faults
  }

  /** How often the processes reported something. */
  count(what: string, form: string): number {
    return this.#counts.get(`${what} ${form.replaceAll(' ', '-')}`) ?? 0
  }

  /** All that was reported, and how often. */
  get counts(): ReadonlyMap<string, number> {
    return this.#counts
  }

  async end(): Promise<void> {
    this.#over = true
    for (const { child } of this.#alive.keys()) child.kill('SIGKILL')
    await Promise.all(this.#alive.values())
    this.#alive.clear()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end()
    await this.#nemesis?.[Symbol.asyncDispose]()
  }

  async #start(slot: number): Promise<void> {
    const nemesis = this.#nemesis as Nemesis
    const number = this.#spawned++
    const name = `worker ${number}`
    const args = this.#scene.argumentsOf((target) => nemesis.network(slot, target), name)
    const child: ChildProcess = spawn(process.execPath, [this.#scene.program, ...args], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, ...nemesis.clock(number) },
    })
    const member: Member = { child, name, slot, names: [] }
    const gone = once(child, 'exit').then(() => this.#ended(member))
    this.#alive.set(member, gone)
    const ready = Promise.withResolvers<void>()
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      if (line === 'ready') return ready.resolve()
      if (this.history.take(name, line)) return
      const [what, of = ''] = line.split(' ')
      if (what === 'named') return member.names.push(of)
      const key = `${what} ${of}`
      this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1)
      if (what === 'done') nemesis.progress()
      else if (process.env.PROVE_ERRORS) console.error(`${name}: ${line}`)
    })
    await Promise.race([ready.promise, gone])
  }

  // A client that throws where nobody can catch it ends its process, as it would end its user's. Another one is started.
  #ended(member: Member): void {
    if (this.#over || !this.#alive.delete(member)) return
    this.#counts.set('crashed', (this.#counts.get('crashed') ?? 0) + 1)
    this.#scene.killed?.(member.names)
    setTimeout(() => this.#over || void this.#start(member.slot), 100)
  }
}

interface Member extends Victim {
  slot: number
  names: string[]
}
