/** What the command prints of an error. */

let lastOutage = Number.NEGATIVE_INFINITY

/** A 500 is a bug and comes with its stack; an outage of the database is one line every ten seconds. */
export function report(where: string, error: unknown): void {
  if ((error as { code?: unknown }).code !== 'UNAVAILABLE') {
    console.error(`${where}:`, error)
  } else if (performance.now() - lastOutage > 10_000) {
    lastOutage = performance.now()
    console.error(sentence(error))
  }
}

/** One line, with the cause if it tells more, and never a connection string. */
export function sentence(error: unknown): string {
  const words: string[] = []
  for (let e: unknown = error; e instanceof Error; e = e instanceof AggregateError ? e.errors[0] : e.cause) {
    const [line = ''] = e.message.split('\n')
    if (line !== '' && !words.some((word) => word.includes(line))) words.push(line)
  }
  const [first = String(error), ...causes] = words
  const text = `${first}${causes.length > 0 ? ` (${causes.join('; ')})` : ''}`
  return process.env.DATABASE_URL ? text.replaceAll(process.env.DATABASE_URL, 'DATABASE_URL') : text
}
