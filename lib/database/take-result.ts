/** The answer of the database to a session that has K of a name: its token, or in how many milliseconds to ask again. */
export type TakeResult = { token: bigint; waitMs: null } | { token: null; waitMs: number }

/** Reads it from the row of lockstep.take or lockstep.queue. */
export function takeResultOf(row: unknown[] | undefined): TakeResult {
  const [token, waitMs] = row as [string | null, number | null]
  return token === null ? { token, waitMs: waitMs ?? 0 } : { token: BigInt(token), waitMs: null }
}
