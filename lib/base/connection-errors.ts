/** What an error says about its connection: it could not be opened, or it can only be read. */
import { fromDatabase, UnavailableError } from './errors.ts'
import { READ_ONLY, whyRefused } from './refusals.ts'

/** The error for a connection that could not be opened, whatever the reason: each runtime, pooler and server words it differently. */
export function notConnected(error: unknown): UnavailableError {
  nameEach(error)
  const known = fromDatabase(error)
  if (known instanceof UnavailableError) return known
  const { severity, code } = (error ?? {}) as { severity?: unknown; code?: unknown }
  const why = severity === undefined ? 'The database cannot be reached' : whyRefused(String(code))
  return new UnavailableError(why, { cause: error })
}

// A name with several addresses of which none answers: Node's error has one of each address, and no text of its own.
function nameEach(error: unknown): void {
  if (error instanceof AggregateError && error.message === '') {
    error.message = error.errors.map((each) => (each as Error).message).join('; ')
  }
}

/** Whether the server refused to write. The connection may be at fault: it keeps the setting that its role had when it was opened. */
export function isReadOnly(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === READ_ONLY
}

/**
 * Whether the connection has ended with this error: it comes from the network and not from the server (it has no severity), or it is
 * the server's last. 57P0x: it stops, or the backend was terminated; 25P03 and 25P04: a timeout of the transaction; 08: the protocol.
 * The severity itself says nothing: it is translated, as lc_messages says.
 */
export function endsConnection(error: unknown): boolean {
  const { severity, code = '' } = (error ?? {}) as { severity?: string; code?: string }
  return severity === undefined || /^(57P0|25P0[34]|08)/.test(code)
}
