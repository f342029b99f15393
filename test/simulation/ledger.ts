/**
 * The invariants, checked after every step from outside: what the holders believe, beside what the server has.
 *
 * 1. A hold that is trusted is held: its row is live under its token, or its process has K by one of its connections. A connection that the
 *    server has ended by itself, or a name that was taken by force, is something that the holder has to learn: so such a hold is
 *    excused for as long as its trust may last.
 *    If the server's clock was set, its leases may end too early: a lock by lease is excused, a term is not, for nobody else is elected
 *    before its leader has stopped.
 * 2. No two holds of a name are trusted at the same time, unless they are the same holder's under one token.
 * 3. A grant has a larger token than every earlier grant of the name.
 * 4. The fenced writes of a name commit in the order of their tokens.
 */

import { keyOf } from '../../lib/database/lock-key.ts'
import type { Hold } from '../../lib/index.ts'
import type { Process, World } from './scheduler.ts'
import type { Server } from './server/server.ts'

/** How long a connection hold is trusted after its last answer (lib/database/session.ts), and a little. */
const TRUST_MS = 8_100

/** The ttl of a hold that wanted none, behind a pooler. */
const POOLED_TTL_MS = 15_000

const isTerm = ({ name }: Hold) => name.startsWith('leader\t')

export class Violation extends Error {}

interface Entry {
  readonly hold: Hold
  readonly process: Process
  readonly ttlMs: number
  over: boolean
}

export class Ledger {
  readonly #world: World
  readonly #server: Server
  readonly #entries = new Map<string, Entry[]>()
  /** The largest token that was granted of each name, and to which holder. */
  readonly #last = new Map<string, { token: bigint; holder: string }>()
  #seen = 0
  readonly #effects = new Map<string, bigint>()
  grants = 0

  readonly #tell: ((line: string) => void) | undefined

  constructor(world: World, server: Server, tell?: (line: string) => void) {
    this.#tell = tell
    this.#world = world
    this.#server = server
  }

  /** A hold was handed to its caller. */
  granted(hold: Hold, process: Process, ttlMs: number): Entry {
    this.grants++
    const { name, token } = hold
    this.#tell?.(`${process.name} is granted ${name}: a ${hold.kind} hold under ${token}, as ${hold.holder}`)
    const entries = this.#entries.get(name) ?? []
    this.#entries.set(name, entries)
    const last = this.#last.get(name)
    const again = last?.token === token && last.holder === hold.holder // it has it already, perhaps by a release that failed
    const entry: Entry = { hold, process, ttlMs, over: false }
    // An answer may be late: then its hold is not trusted any more, and its token may be below one that was granted since.
    if (last && !again && token <= last.token && this.#trusted(hold, process) && !this.#excused(entry)) {
      throw new Violation(`${name}: token ${token} after ${last.token}`)
    }
    if (!last || token > last.token) this.#last.set(name, { token, holder: hold.holder })
    entries.push(entry)
    return entry
  }

  #trusted(hold: Hold, process: Process): boolean {
    return !process.dead && this.#world.as(process, () => hold.isTrusted())
  }

  check(): void {
    for (const [name, entries] of this.#entries) this.#checkName(name, entries)
    for (; this.#seen < this.#server.effects.length; this.#seen++) {
      const { name, token } = this.#server.effects[this.#seen] as { name: string; token: bigint }
      const last = this.#effects.get(name) ?? 0n
      if (token < last)
        throw new Violation(`${name}: a write under token ${token} was committed after one under ${last}`)
      this.#effects.set(name, token)
    }
  }

  #checkName(name: string, entries: Entry[]): void {
    let believed: Entry | undefined
    for (let i = 0; i < entries.length; i++) {
      const entry = entries[i] as Entry
      const { hold, process } = entry
      if (entry.over || process.dead || !this.#trusted(hold, process)) {
        if (entry.over || process.dead) entries.splice(i--, 1)
        continue
      }
      if (this.#excused(entry)) continue
      if (!this.#held(entry))
        throw new Violation(`${name}: a ${hold.kind} hold under ${hold.token} is trusted, and not held`)
      if (believed && believed.hold.token !== hold.token) {
        throw new Violation(`${name}: trusted under ${believed.hold.token} and under ${hold.token}`)
      }
      believed = entry
    }
  }

  #held({ hold, process }: Entry): boolean {
    const { leases, locks, now } = this.#server
    if (hold.kind === 'connection') return locks.holder(keyOf(hold.name))?.line?.process === process
    const row = leases.get(hold.name)
    if (row === undefined || row.token !== hold.token || row.holder === null) return false
    return row.expiresAt > now || isTerm(hold) // a term that a clock has ended too early is nobody else's
  }

  #excused({ hold, process, ttlMs }: Entry): boolean {
    const since = this.#world.now - (hold.kind === 'lease' ? Math.max(ttlMs, POOLED_TTL_MS) : TRUST_MS)
    const { takenAway, forced, clockSetAt } = this.#server
    while (takenAway[0] && takenAway[0].at < this.#world.now - 60_000) takenAway.shift()
    const { name } = hold
    if (forced.some((each) => each.name === name && each.at >= since)) return true
    if (hold.kind !== 'connection') return clockSetAt >= since && !isTerm(hold)
    const key = keyOf(name)
    return takenAway.some((each) => each.key === key && each.process === process && each.at >= since)
  }
}
