/**
 * What locks and leaders have in common over HTTP: a grant for a token that the caller keeps, and a wait for it.
 *
 * A wait ends when the client hangs up, so nothing is granted to a client that has gone. If the grant and the hang-up cross,
 * the grant is taken back. A wait also ends, with a 503, when the server stops.
 */
import type { Context } from 'hono'
import type { Grant } from '../../lib/index.ts'
import { clientGone, field, invalid, named, optional, shape, waiting } from '../http/index.ts'

/** The query of a release. */
export const Release = {
  token: optional(field.token),
  force: optional(field.flag, 'Needs the scope admin'),
}

export const Granted = named(
  'Grant',
  shape.object({
    name: shape.string,
    holder: shape.string,
    token: shape.token,
    grantedAt: shape.instant,
    expiresAt: shape.instant,
  }),
)

/** The token that a DELETE names; undefined: it asks for force. Throws a 400 unless it is one of the two. */
export function tokenOf({ token, force }: { token?: bigint; force?: true }): bigint | undefined {
  if ((token === undefined) === (force === undefined)) {
    throw invalid({ field: 'token', expected: 'given, unless `force=true` is; not both' })
  }
  return token
}

/** Locks or leaders. */
interface Granter {
  grant(name: string, options: object): Promise<Grant>
  revoke(name: string, token: bigint): Promise<void>
}

/** Grants what the body asks for. A wait ends when the client hangs up or the server stops. */
export async function grantTo(
  c: Context,
  granter: Granter,
  name: string,
  asked: { waitMs?: number },
  stop?: AbortSignal,
) {
  const grant = await waiting(c, asked.waitMs, stop, (until) => granter.grant(name, { ...asked, ...until }))
  if (c.req.raw.signal.aborted && !grant.renewed) {
    // Should this fail, the lease runs out by itself.
    await granter.revoke(name, grant.token).catch(() => {})
    throw clientGone()
  }
  return grant
}

export function grantJson({ name, holder, token, grantedAt, expiresAt }: Grant) {
  return {
    name,
    holder,
    token: String(token),
    grantedAt: grantedAt.toISOString(),
    expiresAt: expiresAt.toISOString(),
  }
}
