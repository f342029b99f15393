/**
 * The advisory locks K of names that one connection tries to get, has, and gives up.
 *
 * TURNS. Tries and releases are gathered into turns. A turn is one statement for all calls that came while the last turn was
 * under way. A turn is sent when no other is under way. When many calls wait, a second turn is sent too, so that the server works
 * on one while this process works on the other.
 *
 * A STATEMENT THAT FAILED PROVES NOTHING. Session locks survive a rollback: a turn that failed may have gained and given
 * up any of its names. So nothing is guessed. No further turn begins, the turns under way are waited for, and then the database
 * unlocks every lock of this connection except those that a successful answer confirmed (lockstep.keep_only). If that fails
 * too, the connection is ended, and all of its locks with it. This works because a name is in at most one statement under
 * way, so that this connection has its lock once or not at all.
 *
 * CAPACITY. The server has one lock table for all programs. When it is full, even a program that only connects is refused. So
 * all connection holds together may use half of it. A connection takes an equal share of what is free: the free part divided by
 * the number of connections that the server allows. When it has used its share it asks again. So together they stay below the
 * half, however many begin at once, and a few holds (32 with the server's defaults) cost one query.
 */

import { Stopwatch } from '../base/index.ts'
import { keyOf } from './lock-key.ts'

type Try = { name: string; resolve: (token: bigint | null) => void; reject: (error: unknown) => void }
type Release = { name: string; resolve: () => void }
/** The row that lockstep.turn_keys returns. */
type Turn = [base: string | null, refused: number[] | null, taken: number[] | null, tokens: string[]]
/** The most names in one turn: those that share a block of tokens. */
const TURN = 32
/** How long the server is not asked again after its lock table was found too full. */
const FULL_MS = 250

/** The connection that the turns are sent on. */
export interface Connection {
  /** Runs a statement. Rejects with the reason of the connection's end, if it has ended. */
  ask(prepared: string | undefined, text: string, values: unknown[]): Promise<unknown[][]>
  /** The key of the advisory lock that proves that the connection lives, if it has one. */
  witness(): Promise<bigint | undefined>
  /** Ends the connection. @returns why it ended. */
  end(why: unknown): Error
}

export class LockTurns {
  readonly #pid: number
  readonly #connection: Connection
  /** The names whose K this connection has, as far as the server has answered. */
  readonly #owned = new Set<string>()
  readonly #tries: Try[] = []
  readonly #releases: Release[] = []
  #underWay = 0
  /** The names in the turns under way. */
  readonly #asked = new Set<string>()
  #soon = false
  #recovery: Promise<void> | undefined
  #drained: (() => void) | undefined
  #lost: Error | undefined
  /** How many names this connection may have before the server is asked again. */
  #allowed = 0
  #checking: Promise<boolean> | undefined
  #full: Stopwatch | undefined

  constructor(pid: number, connection: Connection) {
    this.#pid = pid
    this.#connection = connection
  }

  /** Whether another name may be tried without a call of {@link checkCapacity}. */
  get hasCapacity(): boolean {
    return this.#owned.size + this.#tries.length + this.#asked.size < this.#allowed
  }

  /** Whether this connection has no name, and asks for none. */
  get idle(): boolean {
    return this.#owned.size + this.#tries.length + this.#releases.length + this.#asked.size === 0
  }

  /** Asks whether the server's lock table has space for more names of this connection. */
  checkCapacity(): Promise<boolean> {
    if (this.#full && this.#full.elapsed() < FULL_MS) return Promise.resolve(false)
    this.#checking ??= this.#askCapacity().finally(() => {
      this.#checking = undefined
    })
    return this.#checking
  }

  async #askCapacity(): Promise<boolean> {
    const [row] = await this.#connection.ask(
      'lockstep_room',
      'select held, most, connections from lockstep.lock_room()',
      [],
    )
    const [held, most, connections] = (row as string[]).map(Number) as [number, number, number]
    const pending = this.#tries.length + this.#asked.size // the server has not counted these yet
    const more = Math.ceil((most - held - pending) / connections)
    this.#full = more > 0 ? undefined : new Stopwatch()
    this.#allowed = this.#owned.size + pending + Math.max(more, 0)
    return more > 0
  }

  /** Tries to get K of a name that is free. @returns its token; null: it is not free. The caller must not have it already. */
  try(name: string): Promise<bigint | null> {
    return new Promise((resolve, reject) => {
      this.#tries.push({ name, resolve, reject })
      this.#turnSoon()
    })
  }

  /** Marks K of a name as owned, when this connection gets it otherwise than by {@link try}. */
  markOwned(name: string): void {
    this.#owned.add(name)
  }

  /** Gives up K of a name. It is free when this resolves: in the worst case because the connection has ended. */
  giveUp(name: string): Promise<void> {
    this.#owned.delete(name)
    return new Promise((resolve) => {
      this.#releases.push({ name, resolve })
      this.#turnSoon()
    })
  }

  #turnSoon() {
    const many = this.#tries.length + this.#releases.length >= TURN / 4
    if (this.#soon || this.#recovery || this.#underWay >= (many ? 2 : 1)) return
    this.#soon = true
    queueMicrotask(() => {
      this.#soon = false
      if (!this.#recovery) void this.#turn()
    })
  }

  async #turn() {
    const releases = this.#nextOf(this.#releases)
    const tries = this.#nextOf(this.#tries)
    if (tries.length + releases.length === 0) return // each waits for a statement under way with the same name
    const names = [...tries, ...releases].map(({ name }) => name)
    for (const name of names) this.#asked.add(name)
    this.#underWay++
    try {
      await this.#send(tries, releases)
      this.#turnEnded(names)
    } catch (error) {
      this.#turnEnded(names)
      await this.#recover()
      for (const { reject } of tries) reject(this.#lost ?? error)
      for (const { resolve } of releases) resolve()
    }
    if (this.#tries.length + this.#releases.length > 0) this.#turnSoon()
  }

  // A name is in one statement at a time, and it is released before it is tried again: so the outcome is known before the next
  // statement with the same name.
  #nextOf<C extends { name: string }>(calls: C[]): C[] {
    const first = calls === (this.#releases as unknown[]) ? [] : this.#releases
    if (this.#asked.size + first.length === 0) return calls.splice(0, TURN)
    const busy = new Set([...this.#asked, ...first.map(({ name }) => name)])
    const next: C[] = []
    const later: C[] = []
    for (const call of calls) (next.length < TURN && !busy.has(call.name) ? next : later).push(call)
    calls.splice(0, calls.length, ...later)
    return next
  }

  #turnEnded(names: string[]) {
    for (const name of names) this.#asked.delete(name)
    this.#underWay--
    if (this.#underWay === 0) this.#drained?.()
  }

  async #send(tries: Try[], releases: Release[]) {
    const [first] = tries
    if (first && tries.length === 1 && releases.length === 0) {
      const values = [first.name, keyOf(first.name), this.#pid]
      const [row] = await this.#connection.ask('lockstep_try', 'select lockstep.try_key($1, $2, $3)', values)
      this.#answer(first, row?.[0] == null ? null : BigInt(row[0] as string))
    } else if (tries.length === 0 && releases.length === 1) {
      const key = keyOf((releases[0] as Release).name)
      await this.#connection.ask('lockstep_give_up', 'select pg_advisory_unlock($1)', [key])
      releases[0]?.resolve()
    } else {
      await this.#sendTurn(tries, releases)
    }
  }

  async #sendTurn(tries: Try[], releases: Release[]) {
    const keys = (calls: { name: string }[]) => `{${calls.map(({ name }) => keyOf(name)).join()}}`
    const names = tries.map(({ name }) => name)
    const text = 'select * from lockstep.turn_keys($1, $2, $3, $4)'
    const [row] = await this.#connection.ask('lockstep_turn', text, [keys(releases), names, keys(tries), this.#pid])
    const [base, refused, taken, tokens] = row as Turn
    for (const release of releases) release.resolve()
    let token = BigInt(base ?? 0)
    for (const [k, each] of tries.entries()) {
      if (refused?.includes(k + 1)) this.#answer(each, null)
      else this.#answer(each, taken?.includes(k + 1) ? BigInt(tokens[taken.indexOf(k + 1)] as string) : token)
      token += 64n
    }
  }

  #answer({ name, resolve }: Try, token: bigint | null) {
    if (token !== null) this.#owned.add(name)
    resolve(token)
  }

  // For a statement that failed after it may have gained or given up a lock: the database unlocks what is not owned, or the
  // connection is ended. Turns that fail at the same time share one recovery.
  #recover(): Promise<void> {
    this.#recovery ??= this.#keepOwned().finally(() => {
      this.#recovery = undefined
    })
    return this.#recovery
  }

  async #keepOwned(): Promise<void> {
    if (this.#underWay > 0) {
      await new Promise<void>((resolve) => {
        this.#drained = resolve
      })
      this.#drained = undefined
    }
    try {
      const witness = await this.#connection.witness()
      const others = witness === undefined ? [] : [witness]
      await this.#connection.ask(undefined, 'select lockstep.keep_only($1, $2, $3)', [
        [...this.#owned],
        others,
        this.#pid,
      ])
    } catch (error) {
      this.#lost = this.#connection.end(error)
    }
  }
}
