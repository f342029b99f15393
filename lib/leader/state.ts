/** What an election shows of itself: its leader, its candidates, and the revision of its last change. */
import { exact } from '../base/index.ts'

/** The leader of an election, as last read. */
export interface Leader {
  /** The holder of the term, 1–255 characters. */
  holder: string
  /** The fencing token of the term, ≥ 1. Larger than that of any earlier term of this election. */
  token: bigint
  /** When the term began, on the database's clock. */
  grantedAt: Date
  /** When the term ends unless it is renewed, on the database's clock. A leader renews: a later reading shows a later time. */
  expiresAt: Date
  /** The length of the lease in milliseconds, from one renewal: 1,000–3,600,000. */
  ttlMs: number
  /** The leader's description of itself, as JSON: from its campaign, or from its last {@link Term.proclaim}. */
  meta: unknown
}

/** The state of an election, as last read. */
export interface ElectionState {
  /** The name of the election. */
  name: string
  /** The leader; `null` if there is none. */
  leader: Leader | null
  /** Rises with every change. 0: nobody ever campaigned. */
  revision: bigint
}

/** A candidate that waits to lead. */
export interface Candidate {
  /** The holder of the term, once it is granted: 1–255 characters. */
  holder: string
  /** −1,000–1,000; a higher one is served first. */
  priority: number
  /** When the candidate entered the queue, on the database's clock. */
  since: Date
  /** The candidate's description of itself, as JSON. */
  meta: unknown
}

/** The leader and the candidates of an election, as last read. */
export interface Members {
  /** The leader; `null` if there is none. */
  leader: Leader | null
  /** The candidates, the next leader first. */
  waiting: Candidate[]
}

/** A row of lockstep.leaders. */
export interface LeaderRow {
  holder: string | null
  token: string
  granted_at: Date
  expires_at: Date
  ttl_ms: number
  meta: unknown
  revision: string
  lives_ms: number | null
}

export function leaderOf(row: LeaderRow): Leader | null {
  if (row.holder === null) return null
  return exact({
    holder: row.holder,
    token: BigInt(row.token),
    grantedAt: row.granted_at,
    expiresAt: row.expires_at,
    ttlMs: row.ttl_ms,
    meta: row.meta,
  })
}
