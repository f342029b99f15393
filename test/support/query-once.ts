/** One statement over a connection of its own, where none survives what befalls the server. */
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
