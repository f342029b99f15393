/** What goes wrong in a world: how often, and of what kinds. All of it is drawn from the seed. */
import type { Process, World } from './scheduler.ts'
import type { Backend, Fate } from './server/backend.ts'
import type { Faults, Server } from './server/server.ts'
import type { Socket } from './socket.ts'

/** The SQLSTATEs that PostgreSQL can give to any statement and go on. */
const ERRORS = ['53200', '53100', '57014', '40001', '40P01', '55P03', 'XX000', '25006', '58030']
const REFUSALS = ['53300', '57P03']

/** The kinds of faults. A world has some of them; a smaller one, when a failure is shrunk, has fewer. */
export const KINDS = [
  ...['error before', 'error after', 'end before', 'end after', 'late', 'refused', 'notification'],
  ...['swallow', 'cut', 'terminate', 'crash', 'pause', 'kill', 'vanish', 'clock'],
] as const
export type Kind = (typeof KINDS)[number]

export interface Plan {
  kinds: ReadonlySet<Kind>
  /** How often a statement fails, as a part of 1. */
  perStatement: number
  /** The mean time between what happens to processes, connections and the server, in ms. */
  everyMs: number
}

/** Draws of one purpose: the next number ≥ 0 and < 1. */
export type Random = () => number

export class WorldFaults implements Faults {
  /** Faults end before a world does, so that it can be seen what is left. */
  over = false
  readonly #plan: Plan
  readonly #random: Random
  readonly tell: ((line: string) => void) | undefined

  constructor(plan: Plan, random: Random, tell?: (line: string) => void) {
    this.#plan = plan
    this.#random = random
    this.tell = tell
  }

  #hit(kind: Kind, part: number): boolean {
    return !this.over && this.#plan.kinds.has(kind) && this.#random() < part
  }

  fate(backend: Backend, text: string): Fate {
    const fate = this.#fate()
    if (this.tell && !text.startsWith('set ')) {
      const what = fate.error ?? fate.end
      const said = `${backend.line?.process.name} on ${backend.pid}: ${text.trim().replace(/\s+/g, ' ').slice(0, 100)}`
      this.tell(what ? `${said}  ${JSON.stringify(what)}` : said)
    }
    return fate
  }

  #fate(): Fate {
    const part = this.#plan.perStatement / 4
    for (const after of [false, true]) {
      const when = after ? 'after' : 'before'
      if (this.#hit(`error ${when}`, part)) return { error: { code: pick(this.#random, ERRORS), after } }
      if (this.#hit(`end ${when}`, part / 2)) return { end: { after, fatal: this.#random() < 0.5 } }
    }
    return {}
  }

  refusal(): string | undefined {
    return this.#hit('refused', 0.2) ? pick(this.#random, REFUSALS) : undefined
  }

  notification(): number[] {
    if (!this.#hit('notification', 0.3)) return [0.1]
    const kind = this.#random()
    return kind < 0.4 ? [] : kind < 0.7 ? [0.1, 0.2] : [this.#random() * 5_000]
  }

  /** How long a piece of data takes: mostly a part of a millisecond, seldom seconds. */
  delay(): number {
    return this.#hit('late', 0.002) ? this.#random() * 20_000 : 0.05 + this.#random() * 0.4
  }
}

export interface Scene {
  world: World
  server: Server
  processes: Process[]
  sockets: Set<Socket>
  /** Starts the programs of a process that has died, in a new one. */
  revive(process: Process): void
}

/** Does what happens to processes, connections and the server, again and again until faults are over. */
export function torment(scene: Scene, faults: WorldFaults, { kinds, everyMs }: Plan, random: Random): void {
  const { world, server } = scene
  const some = KINDS.slice(KINDS.indexOf('swallow')).filter((kind) => kinds.has(kind))
  if (some.length === 0) return
  const next = () => world.after(-Math.log(1 - random()) * everyMs, act, undefined)
  const act = () => {
    if (faults.over) return
    const process = pick(random, scene.processes)
    const socket = pick(
      random,
      [...scene.sockets].filter(({ open }) => open),
    )
    const backend = pick(random, [...server.backends])
    const kind = pick(random, some)
    faults.tell?.(`${kind}: ${process?.name}, a connection of ${socket?.process.name}, or backend ${backend?.pid}`)
    if (kind === 'swallow' && socket) socket.swallowed = true
    if (kind === 'cut' && socket) breakLine(server, socket)
    if (kind === 'terminate' && backend) server.terminate(backend)
    if (kind === 'crash' && random() < 0.2) server.crash()
    if (kind === 'clock' && process) process.wallMs += (random() - 0.5) * 60_000
    if (kind === 'pause' && process && !process.paused) {
      world.pause(process)
      world.after(random() * 25_000, () => process.dead || world.resume(process), undefined)
    }
    if ((kind === 'kill' || kind === 'vanish') && process) {
      if (kind === 'vanish') for (const each of scene.sockets) if (each.process === process) each.swallowed = true
      world.kill(process)
      world.after(random() * 3_000, () => scene.revive(process), undefined)
    }
    next()
  }
  next()
}

/** A connection breaks, and both sides learn of it. */
export function breakLine(server: Server, socket: Socket): void {
  const backend = [...server.backends].find(({ line }) => line === socket)
  if (backend) server.ended(backend)
  socket.cut()
}

/** One of them; undefined if there is none. */
export function pick<T>(random: Random, from: readonly T[]): T {
  return from[Math.floor(random() * from.length)] as T
}
