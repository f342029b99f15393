/**
 * What this process holds, for others to see (lockstep.hold).
 *
 * A connection or transaction hold is an advisory lock, whose key does not tell the name. So the process that has it enters it into a
 * table. Most holds are over in milliseconds, and cost nothing here: a hold is entered when it has lasted for 250 ms, or when this
 * process looks. Holds that are entered or over at the same time share a statement, on a connection that no hold depends on. If that
 * fails, it is tried again with the next one. Nothing is decided by what is shown.
 */
import { sql } from 'kysely'
import { metaText, Stopwatch } from '../base/index.ts'
import { column, type Database, keyOf } from '../database/index.ts'

/** From when on a hold is shown to other processes. */
const SHOWN_AFTER_MS = 250
/** When a statement that failed is tried again. */
const AGAIN_MS = 5_000
/** How often what dead processes have left is deleted. */
const CLEAN_MS = 600_000
/** The most holds in one statement. */
const MOST = 500

/** A hold as it is shown. */
export interface ShownHold {
  readonly name: string
  readonly kind: 'connection' | 'transaction'
  /** Undefined: this process, as `host:pid`. */
  readonly holder: string | undefined
  readonly token: bigint
  /** Of the backend that has K. */
  readonly pid: number
  readonly meta?: unknown
}

/** A hold that was given to {@link ShownHolds.add}. */
export interface ShownEntry {
  readonly hold: ShownHold
  readonly since: Stopwatch
  /** Fresh: not entered yet. Entered: it is, or may be. Over: the hold is. */
  state: 'fresh' | 'entered' | 'over'
}

export class ShownHolds {
  readonly #database: Database
  // A list with the dead left in it until they are many: a Map with an entry for each short hold took a fifth of a hold's time.
  /** The holds that are not entered, the oldest first, and some that are over. */
  #fresh: ShownEntry[] = []
  #dead = 0
  readonly #entered = new Set<ShownEntry>()
  /** Those that are over and may be entered. */
  readonly #over = new Set<ShownEntry>()
  #timer: NodeJS.Timeout | undefined
  #sending: Promise<void> = Promise.resolve()
  #failed = false
  #cleaned: Stopwatch | undefined
  #closed = false

  constructor(database: Database) {
    this.#database = database
  }

  /** A hold begins. */
  add(hold: ShownHold): ShownEntry {
    const entry: ShownEntry = { hold, since: new Stopwatch(), state: 'fresh' }
    this.#fresh.push(entry)
    this.#later()
    return entry
  }

  /** It is over. */
  remove(entry: ShownEntry): void {
    const { state } = entry
    entry.state = 'over'
    if (state === 'fresh') this.#bury()
    if (!this.#entered.delete(entry)) return
    this.#over.add(entry)
    this.#later(0)
  }

  #bury(): void {
    this.#dead++
    if (this.#dead < MOST || this.#dead < this.#fresh.length / 2) return
    this.#fresh = this.#fresh.filter(({ state }) => state === 'fresh')
    this.#dead = 0
  }

  /** Enters the holds of this process that begin with `prefix`, also those that are young: for its own look. */
  async enter(prefix: string): Promise<void> {
    if (!this.#fresh.some(({ hold, state }) => state === 'fresh' && hold.name.startsWith(prefix))) return
    for (let left = this.#fresh.length - this.#dead; left > 0; left -= MOST) await this.#send(0)
  }

  /** Deletes what is entered, as far as that is done when `late` resolves. */
  async close(late: Promise<void>): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    for (const entry of this.#entered) this.#over.add(entry)
    this.#fresh = []
    this.#dead = 0
    this.#entered.clear()
    if (this.#over.size > 0) await Promise.race([this.#send(0).catch(() => {}), late])
  }

  #later(ms = SHOWN_AFTER_MS): void {
    if (this.#closed || (this.#timer && (ms > 0 || this.#failed))) return
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      void this.#send(SHOWN_AFTER_MS)
        .then(
          () => false,
          () => true,
        )
        .then((failed) => {
          this.#failed = failed
          if (this.#fresh.length - this.#dead + this.#over.size > 0) this.#later(failed ? AGAIN_MS : SHOWN_AFTER_MS)
        })
    }, ms)
    this.#timer.unref?.()
  }

  // One statement at a time, so that a hold is not deleted before it is entered.
  #send(olderThanMs: number): Promise<void> {
    this.#sending = this.#sending.catch(() => {}).then(() => this.#sendNow(olderThanMs))
    return this.#sending
  }

  async #sendNow(olderThanMs: number): Promise<void> {
    const begun: ShownEntry[] = []
    let looked = 0
    for (const entry of this.#fresh) {
      const fresh = entry.state === 'fresh'
      if (fresh && (begun.length === MOST || entry.since.elapsed() < olderThanMs)) break
      looked++
      if (fresh) begun.push(entry)
    }
    this.#fresh.splice(0, looked)
    this.#dead -= looked - begun.length
    const over = [...this.#over].slice(0, MOST)
    if (begun.length + over.length === 0) return
    const clean = begun.length > 0 && (this.#cleaned?.elapsed() ?? CLEAN_MS) >= CLEAN_MS
    for (const entry of begun) {
      entry.state = 'entered'
      this.#entered.add(entry)
    }
    for (const entry of over) this.#over.delete(entry)
    try {
      await this.#database.control(statement(begun, over, clean))
      if (clean) this.#cleaned = new Stopwatch()
    } catch (error) {
      const again = begun.filter((entry) => this.#entered.delete(entry))
      for (const entry of again) entry.state = 'fresh'
      this.#fresh.unshift(...again)
      for (const entry of over) this.#over.add(entry)
      throw error
    }
  }
}

function statement(begun: ShownEntry[], over: ShownEntry[], clean: boolean) {
  const names = column(begun, 'text', ({ hold }) => hold.name)
  const kinds = column(begun, 'text', ({ hold }) => hold.kind)
  const holders = column(begun, 'text', ({ hold }) => hold.holder ?? thisProcess())
  const tokens = column(begun, 'bigint', ({ hold }) => hold.token)
  const pids = column(begun, 'integer', ({ hold }) => hold.pid)
  const heldMs = column(begun, 'bigint', ({ since }) => Math.round(since.elapsed()))
  const metas = column(begun, 'text', ({ hold }) => metaText(hold.meta))
  const overKeys = column(over, 'bigint', ({ hold }) => keyOf(hold.name))
  const overPids = column(over, 'integer', ({ hold }) => hold.pid)
  const overTokens = column(over, 'bigint', ({ hold }) => hold.token)
  return sql`select lockstep.show_holds(${names}, ${kinds}, ${holders}, ${tokens}, ${pids}, ${heldMs}, ${metas}::jsonb[],
    ${overKeys}, ${overPids}, ${overTokens}, ${clean})`
}

// Not imported: a Worker has no node:os, and no host's name.
function thisProcess(): string {
  const host = process.getBuiltinModule?.('node:os')?.hostname() || 'worker'
  return `${host}:${process.pid}`
}
