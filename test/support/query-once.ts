/** Runs one statement on a new connection, for tests whose servers fail and break every older connection. */
import pg from 'pg'

// biome-ignore lint/suspicious/noExplicitAny: rows of any shape
export async function ask(url: string, text: string, values: unknown[] = []): Promise<any[]> {
  const client = new pg.Client(url)
  client.on('error', () => {})
  await client.connect()
  try {
    return (await client.query(text, values)).rows
  } finally {
    await client.end().catch(() => {})
  }
}
