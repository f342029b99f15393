/**
 * The notifications that the database sends about elections: who leads after a change, and which candidate is next.
 *
 * They are believed: observers are shown the leader that a message names, and a leader that it deposes stops. So no other role may
 * send one, and the name of their channel is a secret.
 */
import { sql } from 'kysely'
import type { Session, SessionPool } from '../database/index.ts'
import { Notifier } from '../database/index.ts'

/** An election after a change. Without `revision` the change did not fit into the message and must be read from the database. */
export interface ElectionNotification {
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
  /** The holder of the candidate that is next. */
  next?: string | null
}

export type ElectionNotifier = Notifier<ElectionNotification>

export const electionNotifier = (sessions: SessionPool): ElectionNotifier =>
  new Notifier(sessions, channelOf, (message) => {
    const notification = JSON.parse(message) as ElectionNotification
    return [{ name: notification.name, payload: notification }]
  })

async function channelOf(session: Session): Promise<string> {
  const [row] = await session.run<{ channel: string }>(sql`select lockstep.secret_channel('leader') as channel`)
  if (!row) throw new Error('The database names no channel for elections')
  return row.channel
}
