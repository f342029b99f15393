/** What both experiments have in common. */
import pg from 'pg'

export interface Plan {
  /** PostgreSQL, and the peer's server: where they really are, without a network that breaks. */
  databaseUrl: string
  peerUrl: string
  /** How long there are faults. */
  seconds: number
  seed: number
}

export interface Result {
  system: string
  how: string
  /** Effects at the resource, and how many of them were double: two acted where one should have. */
  effects: number
  doubles: number
  /** Jobs without an effect at the end. */
  lost: number
  /** Acts that a holder gave up, or that the resource refused. */
  refused: number
  /** The judgement of the history checker. */
  history: 'linearizable' | 'not linearizable' | 'undecided'
  /** The double effects, each with the one before and the one after. */
  evidence?: unknown[]
  /** How often there was each fault. */
  faults?: Record<string, number>
}

// biome-ignore lint/suspicious/noExplicitAny: rows of any shape
export async function rows(url: string, text: string, values: unknown[] = []): Promise<any[]> {
  const client = new pg.Client(url)
  await client.connect()
  try {
    return (await client.query(text, values)).rows
  } finally {
    await client.end()
  }
}
