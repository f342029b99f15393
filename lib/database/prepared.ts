/**
 * Which statements are sent as prepared statements with a name: the server parses and plans them once for a connection, and not at
 * every call. Measured: one job's insert takes 123 µs of the server's time instead of 614, a grant of 32 leases a fifth less.
 *
 * A name lives in a session of the server. So only a connection that is direct, and that only Lockstep's own statements use, has names
 * (pool-clients.ts). Beyond that, a text has a name if
 *
 * - it has parameters. A text of several statements has none, and cannot be prepared. A text without any is planned for what it says,
 *   and would keep its first plan for ever: pg-boss's fetch is such a text;
 * - it calls one of our functions, or it inserts. Its plan does not depend on the values. Other texts search tables, where a plan for
 *   all values can be much worse than one for these;
 * - it has been sent before. A text that is sent once would only take up the memory of a plan;
 * - fewer than {@link MOST} texts have a name. pg-boss writes the queue's name into its texts, and a process may have any number of
 *   queues; a plan takes about 30 kB on each connection.
 *
 * A text that was changed by uncached.ts is sent through a proxy, and never has a name.
 */
import { BoundedMap } from '../base/index.ts'
import { sqlState } from './values.ts'

const MOST = 128
/** How many texts that were sent once are remembered. */
const SEEN = 1_000

const OUR_FUNCTION = /^\s*select\b[^;]*?\blockstep\.\w+\(/i
const INSERT = /^\s*(?:with\b[^;]*?)?insert\s+into\b/i

/** The texts that have a name, on every connection of a pool. */
export class PreparedNames {
  readonly #names = new Map<string, string>()
  readonly #seen = new BoundedMap<string, true>(SEEN)
  #given = 0

  /** The name of a statement; undefined: it is sent without one. */
  of(text: string, values: readonly unknown[] | undefined): string | undefined {
    if (values === undefined || values.length === 0) return undefined
    const name = this.#names.get(text)
    if (name !== undefined || this.#given >= MOST) return name
    if (this.#seen.delete(text)) {
      const first = `lockstep_${this.#given++}`
      this.#names.set(text, first)
      return first
    }
    if (OUR_FUNCTION.test(text) || INSERT.test(text)) this.#seen.set(text, true)
    return undefined
  }

  /**
   * Whether a statement failed because of its name, and can be sent again without it: it had no effect. After a migration a plan may
   * not fit any more (0A000, which has other causes too): the text gets another name. A connection that has another session than it
   * had, though it passed for a direct one, has lost the names (26000): from then on there are none.
   */
  failed(text: string, error: unknown): boolean {
    const state = sqlState(error)
    if (state === NO_SUCH_NAME) {
      this.#given = MOST
      this.#names.clear()
    }
    if (state === UNFIT_PLAN) this.#names.delete(text)
    return state === NO_SUCH_NAME || state === UNFIT_PLAN
  }
}

const UNFIT_PLAN = '0A000'
const NO_SUCH_NAME = '26000'
