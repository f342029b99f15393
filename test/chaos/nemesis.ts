/**
 * What befalls the processes of a run, one fault after another, chosen by a seed: the same seed, the same faults in the same
 * order. When exactly each one strikes is the machine's.
 *
 * - kill, pause: SIGKILL; SIGSTOP, and SIGCONT when what it held has run out.
 * - cut, hold, swallow: of a network, which some processes share; its connections are reset, or every byte is held back and
 *   delivered late, or lost without a word until all connections are reset.
 * - terminate: the server ends backends of one process, as an operator does.
 * - clock: the wall clock of those processes that live under a false one is set, by an hour or by a blink, or runs faster. Their
 *   monotonic clock, by which holds are trusted, is the machine's. (Only where libfaketime is installed.)
 * - stop, crash, full: of the server, in turn: it is stopped, or crashed, and started again; its disk is full for a while.
 *   (The last where one may mount.)
 *
 * A run tells of its progress: from that it is known how long after each fault somebody got on.
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
  /** What it knows would be lost with it: it is never killed or paused. @default false */
  witness?: boolean
}

export interface Scene {
  server: ChaosServer
  seed: number
  /** For how long there are faults. */
  seconds: number
  /** How many there are between the processes and the server. */
  networks: number
  /** Milliseconds until the next fault; and for which a pause, a broken network or a full disk lasts. Of a number from 0 up to 1. */
  restMs(chance: number): number
  awayMs(chance: number): number
  victims(): Victim[]
  /** Preferred as a victim: who has just held. */
  favourite?(): Victim | undefined
  /** A victim was killed. */
  killed(victim: Victim): void
  /** Faults of this run only. */
  also?: Record<string, () => void>
}

export interface Struck {
  /** Milliseconds since the beginning. */
  at: number
  fault: string
  whom: string
  /** Milliseconds until somebody got on; undefined: nobody did any more. */
  recoveredMs?: number
}

const SERVER_EVERY_MS = 15_000
const MOST_FULL_MS = 3_000 // nothing else strikes meanwhile

export class Nemesis implements AsyncDisposable {
  readonly struck: Struck[] = []
  readonly #scene: Scene
  readonly #networks: TcpProxy[]
  readonly #clock: WrongClock | undefined
  readonly #random: () => number
  readonly #since = performance.now()
  readonly #under = new Set<Promise<void>>()
  readonly #paused = new Set<Victim>()
  #open: Struck[] = []

  static async of(scene: Scene): Promise<Nemesis> {
    return new Nemesis(
      scene,
      await Promise.all(Array.from({ length: scene.networks }, () => tcpProxy(scene.server.url))),
    )
  }

  private constructor(scene: Scene, networks: TcpProxy[]) {
    this.#scene = scene
    this.#networks = networks
    this.#random = seeded(scene.seed)
    this.#clock = faketimeAvailable() ? wrongClock('+0') : undefined
  }

  /** Where the n-th process finds the server. */
  network(n: number): string {
    return (this.#networks[n % this.#networks.length] as TcpProxy).url
  }

  /** The environment of the n-th process: one in three lives under the false clock. */
  clock(n: number): Record<string, string> {
    return n % 3 === 0 ? (this.#clock?.env ?? {}) : {}
  }

  /** Strikes until the time is over, or `stop` says so; then waits until everything that was struck is as it was. */
  async rage(stop: () => boolean): Promise<void> {
    const { seconds, restMs } = this.#scene
    const end = performance.now() + seconds * 1_000
    const every = Math.min(SERVER_EVERY_MS, (seconds * 1_000) / 4)
    let nth = Math.floor(this.#random() * 2) // a full disk is not the first: there may be time for one only
    for (let next = performance.now() + every; ; ) {
      await sleep(restMs(this.#random()))
      if (performance.now() >= end || stop()) break
      // Always as many draws, whatever is left to strike: the next faults stay the same.
      const [which = 0, whom = 0, place = 0, how = 0, away = 0] = Array.from({ length: 5 }, this.#random)
      const awayMs = this.#scene.awayMs(away)
      if (performance.now() < next) {
        await this.#strike(which, this.#choose(whom, place), { place, how, awayMs })
        continue
      }
      await this.#strikeServer(nth++, awayMs)
      next = performance.now() + every
    }
    await Promise.all(this.#under)
  }

  /** Somebody got on. */
  progress(): void {
    const now = performance.now() - this.#since
    for (const each of this.#open.splice(0)) each.recoveredMs = Math.round(now - each.at)
  }

  /** How often each struck, and after how many milliseconds somebody got on, each time. */
  summary(): { faults: Record<string, number>; recoveredMs: number[] } {
    const faults: Record<string, number> = {}
    for (const { fault } of this.struck) faults[fault] = (faults[fault] ?? 0) + 1
    return { faults, recoveredMs: this.struck.flatMap(({ recoveredMs }) => recoveredMs ?? []) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#under)
    await Promise.all(this.#networks.map((network) => network.close()))
    this.#clock?.[Symbol.dispose]()
  }

  // Who stands still must come to itself: that is when it is dangerous.
  #choose(whom: number, place: number): Victim | undefined {
    const awake = this.#scene.victims().filter((each) => !this.#paused.has(each))
    const favourite = this.#scene.favourite?.()
    if (whom < 0.5 && favourite && awake.includes(favourite)) return favourite
    return awake[Math.floor(place * awake.length)]
  }

  async #strike(which: number, victim: Victim | undefined, by: { place: number; how: number; awayMs: number }) {
    const { also = {} } = this.#scene
    const all = [...FAULTS, ...Object.keys(also)]
    const fault = all[Math.floor(which * all.length)] as string
    const network = Math.floor(by.place * this.#networks.length)
    if (fault === 'cut' || fault === 'hold' || fault === 'swallow') this.#break(fault, network, by.awayMs)
    else if (fault === 'clock') this.#setClock(by.how)
    else if (fault in also) {
      this.#note(fault, '')
      also[fault]?.()
    } else if (victim && fault === 'terminate') await this.#terminate(victim, by.how)
    else if (victim && !victim.witness && fault === 'pause') this.#pause(victim, by.awayMs)
    else if (victim && !victim.witness && fault === 'kill') {
      this.#note(fault, victim.name)
      victim.child.kill('SIGKILL')
      this.#scene.killed(victim)
    }
  }

  async #strikeServer(nth: number, awayMs: number): Promise<void> {
    const { server } = this.#scene
    const fault = OF_THE_SERVER[nth % OF_THE_SERVER.length] as (typeof OF_THE_SERVER)[number]
    if (fault === 'full' && !server.fill) return
    this.#note(fault, 'server')
    if (fault === 'full') await server.fill?.(Math.min(awayMs, MOST_FULL_MS))
    else await server.restart(fault)
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

  // One of its backends, or half of them, or all.
  async #terminate({ name }: Victim, how: number): Promise<void> {
    this.#note('terminate', name)
    const which = how < 0.4 ? 'order by random() limit 1' : how < 0.7 ? 'and random() < 0.5' : ''
    const theirs = `select pid from pg_stat_activity where application_name = $1 ${which}`
    // A server whose table of locks is full takes no connection: then it strikes nobody.
    await ask(this.#scene.server.url, `select pg_terminate_backend(pid) from (${theirs}) those`, [name]).catch(() => {})
  }

  #break(fault: 'cut' | 'hold' | 'swallow', which: number, ms: number): void {
    const network = this.#networks[which] as TcpProxy
    this.#note(fault, `network ${which}`)
    if (fault === 'cut') network.cut()
    else {
      if (fault === 'hold') network.hold()
      else network.blackhole()
      this.#for(ms, () => network.resume())
    }
  }

  #setClock(how: number): void {
    if (!this.#clock) return
    const to = ['+3600', '-3600', '+0.4', '-0.4 x1.2', '+0'][Math.floor(how * 5)] as string
    this.#note('clock', to)
    this.#clock.set(to)
  }
}
