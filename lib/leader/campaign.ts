/**
 * What a candidate asks the database: one statement for all that this process asks at a time. Every answer is also a
 * reading of the database's clock.
 */
import { sql } from 'kysely'
import { batched } from '../base/index.ts'
import type { Database } from '../database/index.ts'
import { CLOCK } from '../database/index.ts'
import { ELECTIONS } from '../lease/index.ts'
import { ClockStepDetector } from './clock-step.ts'

/** Who wants to lead. */
export interface Candidacy {
  name: string
  holder: string
  ttlMs: number
  meta: unknown
  priority: number
  /** Whether the term shall end with this process's connection. */
  failover: boolean
}

/** A question. */
export type Ask = Candidacy & {
  place: string | undefined
  waits: boolean
  witness: bigint | undefined
  over: string | undefined
}

/** As lockstep.campaign tells it (0002_election.sql). */
export interface Answer {
  outcome: 'granted' | 'kept' | 'waiting'
  token: string | null
  granted_at: Date
  expires_at: Date
  place: string
  first: boolean
  wait_ms: number
  leader_witness: string | null
  over: string | null
  ttl_ms: number
  now: Date
}

/** A place in line is an election's and a holder's. */
export const identity = ({ name, holder }: Candidacy) => `${name}\t${holder}`

export class Ballot {
  readonly steady = new ClockStepDetector()
  readonly #database: Database
  readonly #ask: (ask: Ask) => Promise<Answer>

  constructor(database: Database) {
    this.#database = database
    this.#ask = batched<Ask, Answer>((asks) => this.#askAll(asks), identity, 200)
  }

  /** Enters the line, looks whose turn it is, and is granted the term if it is one's own. @throws {UnavailableError} */
  ask(ask: Ask): Promise<Answer> {
    return this.#ask(ask)
  }

  async #askAll(asks: Ask[]): Promise<Answer[]> {
    const sent = performance.now()
    const text = JSON.stringify(
      asks.map(({ name, holder, ttlMs, meta, priority, failover, place, waits, witness, over }) => ({
        ...{ name: ELECTIONS.prefix + name, holder, ttl_ms: ttlMs, meta, priority, place, waits, failover, over },
        witness: witness?.toString(),
      })),
    )
    const answers = await this.#database.controlWithClock<Answer & { i: string }>(
      sql`select *, ${CLOCK} from lockstep.campaign(${text}::jsonb)`,
    )
    const received = performance.now()
    const last = answers.at(-1)
    if (last) this.steady.sample(sent, last.now.getTime(), received)
    const inOrder: Answer[] = []
    for (const answer of answers) inOrder[Number(answer.i) - 1] = answer
    return inOrder
  }

  /** Leaves the line. @throws {UnavailableError} */
  async withdraw({ name, holder }: Candidacy): Promise<void> {
    await this.#database.control(sql`select lockstep.withdraw(${ELECTIONS.prefix + name}, ${holder})`)
  }
}
