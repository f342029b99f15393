/**
 * The queues that this process has defined, and those in the database.
 *
 * A queue is made at its first use, not when it is defined. So a definition needs no database, and can stand at the top of a
 * module. If the queue exists with other options, it is changed to the definition; pg-boss alone ignores the second definition of a
 * queue.
 */
import { sql } from 'kysely'
import { BoundedMap, checkPage, fromDatabase, outOfRange, type Page, Stopwatch } from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import type { Engine, EngineQueue } from '../engine.ts'
import { noQueue } from '../pgboss/index.ts'
import { type DeclareOptions, type Definition, queueRow, WORKER_QUEUES } from './options.ts'

export class Queues {
  readonly definitions = new Map<string, Definition>()
  readonly #pool: Pool
  readonly #boss: () => Engine
  /** Queues that are in the database, or are being made. */
  readonly #known: Map<string, { made: Promise<unknown>; since: Stopwatch }>

  /** @param onOverflow  called after every 2,000 names that were dropped from the cache. pg-boss's own cache drops none. */
  constructor(pool: Pool, boss: () => Engine, onOverflow: () => void) {
    this.#pool = pool
    this.#boss = boss
    let forgotten = 0
    this.#known = new BoundedMap(MAX_KNOWN, () => {
      forgotten += 1
      if (forgotten % MAX_KNOWN === 0) onOverflow()
    })
  }

  /** Resolves when the queue is in the database, as it was defined here if it was. @throws {NotFoundError | UnavailableError} */
  async ensure(name: string): Promise<void> {
    let known = this.#known.get(name)
    if (!known) {
      const definition = this.definitions.get(name)
      const made = definition ? this.declare(name, definition.options) : this.#find(name)
      known = { made, since: new Stopwatch() }
      this.#known.set(name, known)
      made.catch(() => this.forget(name)) // the next call asks again
    }
    await known.made
  }

  /** Whether a transaction that is open now may have begun before the queue was made: this process has known it for less than a minute. */
  isNew(name: string): boolean {
    return (this.#known.get(name)?.since.elapsed() ?? 0) < NEW_MS
  }

  /** Call it when the queue was deleted, or may have been: the next `ensure` asks the database. */
  forget(name: string): void {
    this.#known.delete(name)
  }

  /** Makes a queue, or changes it to `options`. Returns whether it was made. */
  async declare(name: string, options: DeclareOptions): Promise<boolean> {
    const row = queueRow(options)
    if (row.deadLetter === name) throw outOfRange('deadLetter', 'another queue than this one', name)
    if (row.deadLetter) await this.#ensureDeadLetter(row.deadLetter)
    try {
      const stored = await this.#boss().getQueue(name)
      if (stored) {
        await this.#change(name, stored, row)
        return false
      }
      await this.#boss().createQueue(name, { ...DEFAULTS, ...row })
      return true
    } catch (error) {
      throw fromDatabase(error)
    }
  }

  /** Names of queues, in the order of their code points. */
  async list(page: Page): Promise<string[]> {
    const { prefix, limit, after } = checkPage(page)
    const rows = await this.#pool.run<{ name: string }>(
      sql`select name from lockstep_boss.queue
           where name collate "C" > ${after} and starts_with(name, ${prefix}) and not starts_with(name, ${WORKER_QUEUES})
           order by name collate "C" limit ${limit}`,
    )
    return rows.map(({ name }) => name)
  }

  // Changes only the options that were given: another program may have set the others.
  async #change(name: string, stored: EngineQueue, { policy, partition, ...row }: EngineQueue): Promise<void> {
    for (const [field, value] of Object.entries({ policy, partition })) {
      const fixed = stored[field as 'policy']
      if (value !== undefined && value !== fixed) {
        throw outOfRange(field, `${fixed}, as the queue was made (it cannot be changed)`, value)
      }
    }
    const changed = Object.entries(row).filter(([key, value]) => stored[key as keyof EngineQueue] !== value)
    if (changed.length > 0) await this.#boss().updateQueue(name, Object.fromEntries(changed))
  }

  // pg-boss needs the dead letter queue first.
  async #ensureDeadLetter(name: string): Promise<void> {
    if (this.definitions.has(name)) await this.ensure(name)
    else if (!(await this.#boss().getQueue(name))) await this.declare(name, {})
  }

  async #find(name: string): Promise<void> {
    const stored = await this.#boss()
      .getQueue(name)
      .catch((error) => {
        throw fromDatabase(error)
      })
    if (!stored) throw noQueue(name)
  }
}

// Any sender may make queues, and each worker has its own queue; so the cache is bounded.
const MAX_KNOWN = 2_000
const NEW_MS = 60_000
const DEFAULTS = { policy: 'standard', heartbeatSeconds: 30, notify: true }
