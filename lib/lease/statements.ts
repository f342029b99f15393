/** The statements that grant and free many leases at once (db/schema.sql): their parameters, and what their answers mean. */
import { type RawBuilder, sql } from 'kysely'
import { exact } from '../base/index.ts'
import { column, type Database } from '../database/index.ts'
import type { Grant } from './api.ts'
import type { Namespace } from './namespace.ts'

/** A request for one lease. */
export interface GrantRequest {
  name: string
  holder: string
  ttlMs: number
  /** JSON text. */
  meta: string | null
}
/** Another holder has it; `waitMs`: for at most this long unless it is renewed; undefined: unknown. */
export type Refusal = { waitMs: number | undefined }
/** The outcome for one lease. `lost`: it is not held under that token; `busy`: a transaction has its row locked. */
export type Outcome<K extends string> = { outcome: K | 'lost' | 'busy' }

/** Grants those of `asks` that are free. @param run  runs the statement, on any connection. */
export async function grantAll(
  asks: GrantRequest[],
  run: (statement: RawBuilder<Granted>) => Promise<Granted[]>,
  prefix = '',
): Promise<(Grant | Refusal)[]> {
  const names = column(asks, 'text', (a) => prefix + a.name)
  const holders = column(asks, 'text', (a) => a.holder)
  const ttls = column(asks, 'integer', (a) => a.ttlMs)
  const metas = column(asks, 'text', (a) => a.meta)
  const [row] = await run(
    sql<Granted>`select * from lockstep.grant_leases(${names}, ${holders}, ${ttls}, ${metas}::jsonb[])`,
  )
  const answers: (Grant | Refusal)[] = asks.map(() => ({ waitMs: undefined }))
  const grant = (i: string, token: bigint, grantedAt: Date, expiresAt: Date | undefined, renewed: boolean) => {
    const { name, holder, ttlMs } = asks[Number(i) - 1] as GrantRequest
    expiresAt ??= new Date(grantedAt.getTime() + ttlMs)
    answers[Number(i) - 1] = exact({ name, holder, token, grantedAt, expiresAt, renewed })
  }
  if (!row) throw new Error('grant_leases did not answer')
  for (const i of row.granted ?? []) {
    grant(i, BigInt(row.base) + 64n * (BigInt(i) - 1n), row.granted_at, undefined, false)
  }
  row.kept?.forEach((i, k) => {
    grant(i, BigInt(row.kept_tokens[k] ?? 0), row.kept_granted_at[k] as Date, row.kept_expires_at[k], true)
  })
  row.refused?.forEach((i, k) => {
    answers[Number(i) - 1] = { waitMs: row.refused_for[k] ?? undefined }
  })
  return answers
}
interface Granted {
  base: string
  granted_at: Date
  granted: string[] | null
  kept: string[] | null
  kept_tokens: string[]
  kept_granted_at: Date[]
  kept_expires_at: Date[]
  refused: string[] | null
  refused_for: (number | null)[]
}

/** Frees the leases that are held under their tokens. */
export async function revokeAll(
  asks: { name: string; token: bigint }[],
  namespace: Namespace,
  database: Database,
): Promise<Outcome<'revoked'>[]> {
  const names = column(asks, 'text', (a) => namespace.prefix + a.name)
  const tokens = column(asks, 'bigint', (a) => a.token)
  const [row] = await database.control<Record<'revoked' | 'busy', string[] | null>>(
    // Asynchronously: a release that is lost in a crash is late, never wrong.
    sql`select revoked, busy, set_config('synchronous_commit', 'off', true) from lockstep.${sql.raw(namespace.revoke)}(${names}, ${tokens})`,
  )
  const [revoked, busy] = [new Set(row?.revoked), new Set(row?.busy)]
  return asks.map((_, k) => {
    const i = String(k + 1)
    return { outcome: revoked.has(i) ? 'revoked' : busy.has(i) ? 'busy' : 'lost' }
  })
}
