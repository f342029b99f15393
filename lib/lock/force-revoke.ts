/** Takes a name from its holder, whatever it is held by. */
import { sql } from 'kysely'
import { ForbiddenError } from '../base/index.ts'
import type { LockContext } from './context.ts'

/** @returns whether there was a holder. @throws {ForbiddenError | UnavailableError} as `locks.forceRevoke`. */
export async function forceRevoke({ database, leases }: LockContext, name: string): Promise<boolean> {
  const { outcome } = await leases.retryWhileBusy(async () => {
    const forcing = sql<{ outcome: string }>`select lockstep.force_revoke(${name}) as outcome`
    return (await database.control(forcing))[0] ?? { outcome: 'none' }
  })
  if (outcome === 'forbidden') {
    throw new ForbiddenError(
      `${JSON.stringify(name)} is held by a connection of another database role, which this one may not end: grant it pg_signal_backend, or membership of that role`,
    )
  }
  return outcome === 'forced'
}
