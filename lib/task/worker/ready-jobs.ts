/** When the next job of a queue can be fetched. Worker loops and waiting claims ask before they fetch. */
import { sql } from 'kysely'
import { batched } from '../../base/index.ts'
import { list, type Pool } from '../../database/index.ts'

/** Callers that ask at the same time share a statement. */
export class ReadyJobs {
  readonly #nextInMs: (queue: string) => Promise<number | null>

  constructor(pool: Pool) {
    this.#nextInMs = batched(
      async (queues) => {
        const rows = await pool.run<{ queue: string; in_ms: number | null }>(
          sql`select * from lockstep.ready_jobs(${list(queues, 'text')})`,
        )
        return rows.map(({ in_ms }) => in_ms)
      },
      (queue) => queue,
      1_000,
    )
  }

  /** Milliseconds until a job is ready: 0: now; null: no job waits. @throws {UnavailableError} */
  nextInMs(queue: string): Promise<number | null> {
    return this.#nextInMs(queue)
  }
}
