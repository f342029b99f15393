/**
 * What one connection tries, has and gives up: the advisory locks K of names.
 *
 * TURNS. Tries and releases are gathered: one statement each way for all that came while the last was under way. A turn goes
 * when none is under way; a second one beside it when it is worth its while, so that the server works on one while we work
 * on the other.
 *
 * A STATEMENT THAT FAILED PROVES NOTHING. Session locks survive a rollback: a turn that failed may have gained and given
 * up any of its names. Nothing is guessed then. No further turn begins, those under way come to their ends, and the
 * database gives up every lock of this connection but those that were answered for (lockstep.keep_only). If that fails
 * too, the connection is given up, and all that it had with it. It works because a name is in one statement under way at
 * most, so that this connection has its lock once or not at all.
 *
 * ROOM. The server has one table for all locks of all programs, and when it is full even a program that only connects is
 * refused. So all connection holds together have half of it. A connection takes its share of what is left, as if there were as
 * many connections as there may be, and asks again when it has used that: together they stay below, however many begin at
 * once, and a few holds (32 with the server's defaults) cost one question.
 */

import { Stopwatch } from '../base/index.ts'
import { keyOf } from './lock-key.ts'

type Try = { name: string; resolve: (token: bigint | null) => void; reject: (error: unknown) => void }
type Release = { name: string; resolve: () => void }
/** What lockstep.turn_keys answers. */
type Turn = [base: string | null, refused: number[] | null, taken: number[] | null, tokens: string[]]
/** Names in one turn: as many as share a block of tokens. */
const TURN = 32
/** After the server's lock table was found too full: for so long it is not asked again. */
const FULL_MS = 250

/** What a connection does for its turns. */
export interface Connection {
  /** Rejects with why the connection is over, if it is. */
  ask(prepared: string | undefined, text: string, values: unknown[]): Promise<unknown[][]>
  /** The key of the lock that shows that the connection lives, if it has one. */
  witness(): Promise<bigint | undefined>
  /** Ends the connection. @returns why. */
  end(why: unknown): Error
}

export class LockTurns {
  readonly #pid: number
  readonly #connection: Connection
  /** Names whose K this connection has, as far as it was answered. */
  readonly #owned = new Set<string>()
  readonly #tries: Try[] = []
  readonly #releases: Release[] = []
  #underWay = 0
  /** Names in turns under way. */
  readonly #asked = new Set<string>()
  #soon = false
  #recovery: Promise<void> | undefined
  #drained: (() => void) | undefined
  #lost: Error | undefined
  /** How many names this connection may have before the server is asked for room. */
  #allowed = 0
  #checking: Promise<boolean> | undefined
  #full: Stopwatch | undefined

  constructor(pid: number, connection: Connection) {
    this.#pid = pid
    this.#connection = connection
  }

  /** Whether one more name may be tried without asking for {@link checkCapacity}. */
  get hasCapacity(): boolean {
    return this.#owned.size + this.#tries.length + this.#asked.size < this.#allowed
  }

  /** Whether there is room in the server's lock table for more names of this connection. */
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
    const pending = this.#tries.length + this.#asked.size // which the server has not counted yet
    const more = Math.ceil((most - held - pending) / connections)
    this.#full = more > 0 ? undefined : new Stopwatch()
    this.#allowed = this.#owned.size + pending + Math.max(more, 0)
    return more > 0
  }

  /** Tries to get K of a name and the name free: its token, or null. The caller does not have it yet. */
  try(name: string): Promise<bigint | null> {
    return new Promise((resolve, reject) => {
      this.#tries.push({ name, resolve, reject })
      this.#turnSoon()
    })
  }

  /** This connection has K of a name in another way than by a try, or is about to. */
  markOwned(name: string): void {
    this.#owned.add(name)
  }

  /** Gives up K of a name. When this resolves it is given up: in the worst case the connection was. */
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
    if (tries.length + releases.length === 0) return // all of them wait for a statement under way with the same name
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

  // A name goes in one statement at a time, and its release before the next try of it: what became of it is known before it
  // is asked for again.
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

  // After a statement failed that may have gained or given up a lock: what this connection has is set right by what the
  // database says, or the connection is given up. LockTurns that fail meanwhile share it.
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
