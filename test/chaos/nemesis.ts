/**
 * The nemesis (Jepsen's word for the source of faults): it strikes the processes of a run with one fault after another, chosen by
 * a seed. The same seed gives the same faults in the same order; the exact times depend on the machine. It strikes the processes of
 * `npm run prove` too, which hold by other systems and by ours.
 *
 * - kill, pause: SIGKILL; SIGSTOP, and SIGCONT after its holds have expired.
 * - cut, hold, swallow: faults of a network, which some processes share. Its connections are reset; or every byte is held back and
 *   delivered late; or every byte is lost silently until all connections are reset.
 * - terminate: the server ends backends of one process, as an operator does.
 * - clock: the wall clock of those processes that run under libfaketime is set, by an hour or by a fraction of a second, or runs
 *   faster. Their monotonic clock, which measures the trust in holds, is the machine's. (Only where libfaketime is installed.)
 * - stop, crash, full: faults of the server, in turn. It is stopped, or crashed, and started again; or its disk is full for a
 *   while. (The last only where mounting is allowed.)
 *
 * A run reports its progress. From that, the nemesis knows how long after each fault the first process made progress.
 */
import type { ChildProcess } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { faketimeAvailable, type WrongClock, wrongClock } from '../support/faketime.ts'
import { type TcpProxy, tcpProxy } from '../support/proxy.ts'
import { ask } from '../support/query-once.ts'
import { seeded } from './random.ts'
import type { ChaosServer } from './server.ts'

const FAULTS = ['kill', 'pause', 'cut', 'hold', 'swallow', 'terminate', 'clock'] as const
const OF_THE_SERVER = ['crash', 'stop', 'full'] as const

export interface Victim {
  child: ChildProcess
  /** The application_name of its backends. */
  name: string
  /** Its reports would be lost with it, so it is never killed or paused. @default false */
  witness?: boolean
}

export interface Scene {
  /** The PostgreSQL, which is struck too. Absent: no server is struck. */
  server?: ChaosServer
  /** Connection strings of all servers that the processes reach; each network leads to all of them. @default that of `server` */
  targets?: string[]
  seed: number
  /** How long there are faults. */
  seconds: number
  /** The number of networks between the processes and the server. */
  networks: number
  /** Milliseconds until the next fault, and how long a pause, a broken network or a full disk lasts; from a random number ≥ 0 and < 1. */
  restMs(chance: number): number
  awayMs(chance: number): number
  victims(): Victim[]
  /** The preferred victim: the process that was the last holder. */
  favourite?(): Victim | undefined
  /** The server is about to be struck; what is returned is called when it is back. */
  serverDown?(): (answer: Record<string, unknown>) => void
  /** A victim was killed. */
  killed(victim: Victim): void
  /** Additional faults of this run. */
  also?: Record<string, () => void>
}

export interface Struck {
  /** Milliseconds since the beginning. */
  at: number
  fault: string
  whom: string
  /** Milliseconds until a process made progress; undefined: none did any more. */
  recoveredMs?: number
}

const SERVER_EVERY_MS = 15_000
const MOST_FULL_MS = 3_000 // there is no other fault in the meantime

export class Nemesis implements AsyncDisposable {
  readonly struck: Struck[] = []
  readonly #scene: Scene
  readonly #networks: TcpProxy[][]
  readonly #clock: WrongClock | undefined
  readonly #random: () => number
  readonly #since = performance.now()
  readonly #under = new Set<Promise<void>>()
  readonly #paused = new Set<Victim>()
  #open: Struck[] = []

  static async of(scene: Scene): Promise<Nemesis> {
    const { targets = scene.server ? [scene.server.url] : [] } = scene
    const network = () => Promise.all(targets.map((target) => tcpProxy(target)))
    return new Nemesis(scene, await Promise.all(Array.from({ length: scene.networks }, network)))
  }

  private constructor(scene: Scene, networks: TcpProxy[][]) {
    this.#scene = scene
    this.#networks = networks
    this.#random = seeded(scene.seed)
    this.#clock = faketimeAvailable() ? wrongClock('+0') : undefined
  }

  /** The connection string of a server for the n-th process. @param target  its place in `targets`. */
  network(n: number, target = 0): string {
    const proxies = this.#networks[n % this.#networks.length] as TcpProxy[]
    return (proxies[target] as TcpProxy).url
  }

  /** The environment of the n-th process: one in three runs under the false clock. */
  clock(n: number): Record<string, string> {
    return n % 3 === 0 ? (this.#clock?.env ?? {}) : {}
  }

  /** Strikes until the time is over, or `stop` returns true; then waits until all faults have ended. */
  async rage(stop: () => boolean): Promise<void> {
    const { seconds, restMs } = this.#scene
    const end = performance.now() + seconds * 1_000
    const every = Math.min(SERVER_EVERY_MS, (seconds * 1_000) / 4)
    let nth = Math.floor(this.#random() * 2) // a full disk is not the first: there may be time for only one
    for (let next = performance.now() + every; ; ) {
      await sleep(restMs(this.#random()))
      if (performance.now() >= end || stop()) break
      // Always the same number of draws, whatever victims are left, so that the next faults stay the same.
      const [which = 0, whom = 0, place = 0, how = 0, away = 0] = Array.from({ length: 5 }, this.#random)
      const awayMs = this.#scene.awayMs(away)
      if (!this.#scene.server || performance.now() < next) {
        await this.#strike(which, this.#choose(whom, place), { place, how, awayMs })
        continue
      }
      await this.#strikeServer(this.#scene.server, nth++, awayMs)
      next = performance.now() + every
    }
    await Promise.all(this.#under)
  }

  /** A process made progress. */
  progress(): void {
    const now = performance.now() - this.#since
    for (const each of this.#open.splice(0)) each.recoveredMs = Math.round(now - each.at)
  }

  /** How often there was each fault, and how many milliseconds after each fault a process made progress. */
  summary(): { faults: Record<string, number>; recoveredMs: number[] } {
    const faults: Record<string, number> = {}
    for (const { fault } of this.struck) faults[fault] = (faults[fault] ?? 0) + 1
    return { faults, recoveredMs: this.struck.flatMap(({ recoveredMs }) => recoveredMs ?? []) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#under)
    await Promise.all(this.#networks.flat().map((proxy) => proxy.close()))
    this.#clock?.[Symbol.dispose]()
  }

  // A paused process must resume, because that is the dangerous time.
  #choose(whom: number, place: number): Victim | undefined {
    const awake = this.#scene.victims().filter((each) => !this.#paused.has(each))
    const favourite = this.#scene.favourite?.()
    if (whom < 0.5 && favourite && awake.includes(favourite)) return favourite
    return awake[Math.floor(place * awake.length)]
  }

  async #strike(which: number, victim: Victim | undefined, by: { place: number; how: number; awayMs: number }) {
    const { also = {}, server } = this.#scene
    const all = [...FAULTS, ...Object.keys(also)].filter((each) => server || each !== 'terminate')
    const fault = all[Math.floor(which * all.length)] as string
    const network = Math.floor(by.place * this.#networks.length)
    if (fault === 'cut' || fault === 'hold' || fault === 'swallow') this.#break(fault, network, by.awayMs)
    else if (fault === 'clock') this.#setClock(by.how)
    else if (fault in also) {
      this.#note(fault, '')
      also[fault]?.()
    } else if (victim && server && fault === 'terminate') await this.#terminate(server, victim, by.how)
    else if (victim && !victim.witness && fault === 'pause') this.#pause(victim, by.awayMs)
    else if (victim && !victim.witness && fault === 'kill') {
      this.#note(fault, victim.name)
      victim.child.kill('SIGKILL')
      this.#scene.killed(victim)
    }
  }

  async #strikeServer(server: ChaosServer, nth: number, awayMs: number): Promise<void> {
    const fault = OF_THE_SERVER[nth % OF_THE_SERVER.length] as (typeof OF_THE_SERVER)[number]
    if (fault === 'full' && !server.fill) return
    this.#note(fault, 'server')
    const back = this.#scene.serverDown?.()
    if (fault === 'full') await server.fill?.(Math.min(awayMs, MOST_FULL_MS))
    else await server.restart(fault)
    back?.({})
  }

  #note(fault: string, whom: string): void {
    const struck = { at: Math.round(performance.now() - this.#since), fault, whom }
    this.struck.push(struck)
    this.#open.push(struck)
  }

  #for(ms: number, then: () => void): void {
    const over = sleep(ms).then(() => {
      this.#under.delete(over)
      then()
    })
    this.#under.add(over)
  }

  #pause(victim: Victim, ms: number): void {
    this.#note('pause', victim.name)
    victim.child.kill('SIGSTOP')
    this.#paused.add(victim)
    this.#for(ms, () => {
      victim.child.kill('SIGCONT')
      this.#paused.delete(victim)
    })
  }

  // Ends one of its backends, half of them, or all.
  async #terminate({ url }: ChaosServer, { name }: Victim, how: number): Promise<void> {
    this.#note('terminate', name)
    const which = how < 0.4 ? 'order by random() limit 1' : how < 0.7 ? 'and random() < 0.5' : ''
    const theirs = `select pid from pg_stat_activity where application_name = $1 ${which}`
    // A server whose lock table is full accepts no connection: then the fault has no effect.
    await ask(url, `select pg_terminate_backend(pid) from (${theirs}) those`, [name]).catch(() => {})
  }

  #break(fault: 'cut' | 'hold' | 'swallow', which: number, ms: number): void {
    const network = this.#networks[which] ?? []
    this.#note(fault, `network ${which}`)
    for (const proxy of network) {
      if (fault === 'cut') proxy.cut()
      else if (fault === 'hold') proxy.hold()
      else proxy.blackhole()
    }
    if (fault === 'cut') return
    this.#for(ms, () => {
      for (const proxy of network) proxy.resume()
    })
  }

  #setClock(how: number): void {
    if (!this.#clock) return
    const to = ['+3600', '-3600', '+0.4', '-0.4 x1.2', '+0'][Math.floor(how * 5)] as string
    this.#note('clock', to)
    this.#clock.set(to)
  }
}
