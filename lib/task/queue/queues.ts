/**
 * The queues that this process knows, and those in the database.
 *
 * A queue is made at its first use, not when it is defined: so a definition is no statement, and can stand at the top of a
 * module. What a definition says is then what holds: pg-boss alone ignores another definition of a queue that exists.
 */
import { sql } from 'kysely'
import { BoundedMap, checkPage, fromDatabase, outOfRange } from '../../base/index.ts'
import type { Pool } from '../../database/index.ts'
import type { Engine, EngineQueue } from '../pgboss/index.ts'
import { noQueue } from '../pgboss/index.ts'
import { type DeclareOptions, type Definition, queueRow, WORKER_QUEUES } from './options.ts'

export class Queues {
  readonly definitions = new Map<string, Definition>()
  readonly #pool: Pool
  readonly #boss: () => Engine
  readonly #there: Map<string, Promise<unknown>>

  /** @param many  is told each time that as many have been forgotten as are remembered: pg-boss remembers all of them. */
  constructor(pool: Pool, boss: () => Engine, many: () => void) {
    this.#pool = pool
    this.#boss = boss
    let forgotten = 0
    this.#there = new BoundedMap(MOST_KNOWN, () => {
      forgotten += 1
      if (forgotten % MOST_KNOWN === 0) many()
    })
  }

  /** Resolves when the queue is in the database, as it was defined here if it was. @throws {NotFoundError | UnavailableError} */
  async ensure(name: string): Promise<void> {
    let there = this.#there.get(name)
    if (!there) {
      const definition = this.definitions.get(name)
      there = definition ? this.declare(name, definition.options) : this.#find(name)
      this.#there.set(name, there)
      there.catch(() => this.forget(name)) // asked again next time
    }
    await there
  }

  /** It is not there any more, or not known whether. */
  forget(name: string): void {
    this.#there.delete(name)
  }

  /** Makes a queue, or changes it to what `options` say. Whether it was made. */
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

  /** Names, in the order of their code points. */
  async list(page: { prefix?: string; limit?: number; after?: string }): Promise<string[]> {
    const { prefix, limit, after } = checkPage(page)
    const rows = await this.#pool.run<{ name: string }>(
      sql`select name from lockstep_boss.queue
           where name collate "C" > ${after} and starts_with(name, ${prefix}) and not starts_with(name, ${WORKER_QUEUES})
           order by name collate "C" limit ${limit}`,
    )
    return rows.map(({ name }) => name)
  }

  // Only what was said is changed: another program may have said the rest.
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

  // pg-boss wants it to be there first.
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

// Anybody who may send may make queues, and each worker has one of its own.
const MOST_KNOWN = 2_000
const DEFAULTS = { policy: 'standard', heartbeatSeconds: 30, notify: true }
