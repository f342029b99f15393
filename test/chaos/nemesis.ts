/**
 * What befalls the processes of a run, one fault after another, chosen by a seed: the same seed, the same faults in the same
 * order. When exactly each one strikes is the machine's.
 *
 * - kill, pause: SIGKILL; SIGSTOP, and SIGCONT when a lease of a second has run out.
 * - cut, hold, swallow: of a network, which some processes share; its connections are reset, or every byte is held back and
 *   delivered late, or lost without a word until all connections are reset.
 * - terminate: the server ends a backend, as an operator does.
 * - clock: the wall clock of those processes that live under a false one is set, by an hour or by a blink, or runs faster. Their
 *   monotonic clock, by which holds are trusted, is the machine's. (Only where libfaketime is installed.)
 */
import type { ChildProcess } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { faketimeAvailable, type WrongClock, wrongClock } from '../faketime.ts'
import { type TcpProxy, tcpProxy } from '../proxy.ts'
import { seeded } from './random.ts'

export const FAULTS = ['kill', 'pause', 'cut', 'hold', 'swallow', 'terminate', 'clock'] as const
export type Fault = (typeof FAULTS)[number]

export interface Struck {
  /** Milliseconds since the beginning. */
  at: number
  fault: Fault
  whom: string
}

export interface Victim {
  child: ChildProcess
  name: string
}

const LONG_MS = 1_700 // past the ttl of 1,000

export class Nemesis implements AsyncDisposable {
  readonly struck: Struck[] = []
  readonly #networks: TcpProxy[]
  readonly #clock: WrongClock | undefined
  readonly #admin: pg.Client
  readonly #random: () => number
  readonly #since = performance.now()
  readonly #under = new Set<Promise<void>>()

  /** @param networks  how many there are between the processes and the server. */
  static async between(url: string, admin: pg.Client, seed: number, networks = 3): Promise<Nemesis> {
    return new Nemesis(await Promise.all(Array.from({ length: networks }, () => tcpProxy(url))), admin, seed)
  }

  private constructor(networks: TcpProxy[], admin: pg.Client, seed: number) {
    this.#networks = networks
    this.#admin = admin
    this.#random = seeded(seed)
    this.#clock = faketimeAvailable() ? wrongClock('+0') : undefined
  }

  /** Where the n-th process finds the server, and under which clock. */
  lot(n: number): { url: string; env: Record<string, string> } {
    const { url } = this.#networks[n % this.#networks.length] as TcpProxy
    return { url, env: n % 3 === 0 ? (this.#clock?.env ?? {}) : {} }
  }

  /**
   * Waits a moment, and strikes; a pause and a broken network end by themselves.
   * @param favourite  is preferred as a victim: who has just held.
   * @returns who was killed.
   */
  async strike(victims: Victim[], favourite: Victim | undefined): Promise<Victim | undefined> {
    await sleep(50 + this.#random() * 250)
    // Always as many draws, whatever is left to strike: the next faults stay the same.
    const [which, preferred, place, how] = [this.#random(), this.#random(), this.#random(), this.#random()]
    const fault = FAULTS[Math.floor(which * FAULTS.length)] as Fault
    const victim = (preferred < 0.5 && favourite) || victims[Math.floor(place * victims.length)]
    const network = Math.floor(place * this.#networks.length)
    if (fault === 'kill' || fault === 'pause' || fault === 'terminate') {
      if (!victim) return undefined
      this.#note(fault, victim.name)
      if (fault === 'terminate') await this.#terminate(victim.name)
      else if (fault === 'pause') this.#pause(victim.child)
      else victim.child.kill('SIGKILL')
      return fault === 'kill' ? victim : undefined
    }
    if (fault === 'clock') this.#setClock(how)
    else this.#break(fault, network)
    return undefined
  }

  /** Until everything that was struck is as it was. */
  async quiet(): Promise<void> {
    await Promise.all(this.#under)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.quiet()
    await Promise.all(this.#networks.map((network) => network.close()))
    this.#clock?.[Symbol.dispose]()
  }

  #note(fault: Fault, whom: string): void {
    this.struck.push({ at: Math.round(performance.now() - this.#since), fault, whom })
  }

  #for(ms: number, then: () => void): void {
    const over = sleep(ms).then(() => {
      this.#under.delete(over)
      then()
    })
    this.#under.add(over)
  }

  #pause(child: ChildProcess): void {
    child.kill('SIGSTOP')
    this.#for(LONG_MS, () => child.kill('SIGCONT'))
  }

  async #terminate(name: string): Promise<void> {
    await this.#admin.query(
      `select pg_terminate_backend(pid) from
         (select pid from pg_stat_activity where application_name = $1 order by random() limit 1) one`,
      [name],
    )
  }

  #break(fault: 'cut' | 'hold' | 'swallow', which: number): void {
    const network = this.#networks[which] as TcpProxy
    this.#note(fault, `network ${which}`)
    if (fault === 'cut') {
      network.cut()
      return
    }
    if (fault === 'hold') network.hold()
    else network.blackhole()
    this.#for(LONG_MS, () => network.resume())
  }

  #setClock(how: number): void {
    if (!this.#clock) return
    const to = ['+3600', '-3600', '+0.4', '-0.4 x1.2', '+0'][Math.floor(how * 5)] as string
    this.#note('clock', to)
    this.#clock.set(to)
  }
}
