/** What the database tells of elections: who leads after a change, and whose turn is next. */

import type { SessionPool } from '../database/index.ts'
import { Notifier } from '../database/index.ts'

/** An election after a change. Without `revision` it did not fit into the message and has to be looked up. */
export interface Told {
  name: string
  revision?: string
  /** The leader was asked to step down. */
  deposed?: boolean
  leader?: {
    holder: string
    token: string
    grantedAt: string
    expiresAt: string
    ttlMs: number
    meta: unknown
  } | null
  /** The candidate whose turn is next. */
  next?: string | null
}

export type ElectionNotifier = Notifier<Told>

export const electionNotifier = (sessions: SessionPool): ElectionNotifier =>
  new Notifier(sessions, 'lockstep_leader', (message) => {
    const payload = JSON.parse(message) as Told
    return [{ name: payload.name, payload }]
  })
