/**
 * The requests of candidates to the database. All candidates of a process that ask at the same time share one statement.
 * Each response is also a reading of the database's clock.
 */
import { sql } from 'kysely'
import { batched } from '../base/index.ts'
import type { Database } from '../database/index.ts'
import { CLOCK } from '../database/index.ts'
import { ELECTIONS } from '../lease/index.ts'
import { ClockStepDetector } from './clock-step.ts'

/** A candidate of one election. */
export interface Candidacy {
  name: string
  holder: string
  ttlMs: number
  meta: unknown
  priority: number
  /** Whether the term also ends with this process's connection. */
  failover: boolean
}

export type CampaignRequest = Candidacy & {
  /** The position in the queue that an earlier response gave. */
  position: string | undefined
  /** Whether to enter the queue; otherwise the candidate only tries. */
  waits: boolean
  /** The advisory lock of the candidate's connection. */
  witness: bigint | undefined
  /** The token of a term that has ended by our own clock too. */
  expiredToken: string | undefined
}

/** A row of lockstep.campaign (0002_election.sql). */
export interface CampaignResponse {
  /** `granted`: a new term. `kept`: the holder led already, and its term is renewed. */
  outcome: 'granted' | 'kept' | 'waiting'
  token: string | null
  granted_at: Date
  expires_at: Date
  /** The position in the queue. */
  place: string
  /** Whether nobody is before this candidate. */
  first: boolean
  /** Milliseconds until it is useful to ask again. */
  wait_ms: number
  /** The advisory lock of the leader's connection, if the term ends with that connection. */
  leader_witness: string | null
  /** The token of an expired term. A candidate that has watched the database's clock may ask again with it. */
  over: string | null
  /** The ttl of the term that stands, or that stood last. */
  ttl_ms: number
  now: Date
}

/** A position in the queue belongs to an election and a holder. */
export const candidateKey = ({ name, holder }: Candidacy) => `${name}\t${holder}`

export class CampaignRequests {
  readonly clockSteps = new ClockStepDetector()
  readonly #database: Database
  readonly #send: (request: CampaignRequest) => Promise<CampaignResponse>

  constructor(database: Database) {
    this.#database = database
    this.#send = batched<CampaignRequest, CampaignResponse>((requests) => this.#sendAll(requests), candidateKey, 200)
  }

  /** Enters the queue, looks which candidate is next, and grants the term if it is this one. @throws {UnavailableError} */
  send(request: CampaignRequest): Promise<CampaignResponse> {
    return this.#send(request)
  }

  async #sendAll(requests: CampaignRequest[]): Promise<CampaignResponse[]> {
    const sent = performance.now()
    const text = JSON.stringify(
      requests.map(({ name, holder, ttlMs, meta, priority, failover, position, waits, witness, expiredToken }) => ({
        ...{ name: ELECTIONS.prefix + name, holder, ttl_ms: ttlMs, meta, priority, failover, waits },
        ...{ place: position, witness: witness?.toString(), over: expiredToken },
      })),
    )
    const rows = await this.#database.controlWithClock<CampaignResponse & { i: string }>(
      sql`select *, ${CLOCK} from lockstep.campaign(${text}::jsonb)`,
    )
    const received = performance.now()
    const last = rows.at(-1)
    if (last) this.clockSteps.sample(sent, last.now.getTime(), received)
    const inOrder: CampaignResponse[] = []
    for (const row of rows) inOrder[Number(row.i) - 1] = row
    return inOrder
  }

  /** Leaves the queue. @throws {UnavailableError} */
  async withdraw({ name, holder }: Candidacy): Promise<void> {
    await this.#database.control(sql`select lockstep.withdraw(${ELECTIONS.prefix + name}, ${holder})`)
  }
}
