/**
 * Makes a process odd, in a run where everything is (TEST_ODD): what Lockstep reads through the parsers of the process is absurd. That
 * is: of every statement that mentions Lockstep's schemas, unless it was sent with parsers of its own, or by a client of a test
 * (standard-pg.ts). The values of a test's own statements are as ever, since the tests look at them.
 */
import pg from 'pg'
import { absurd, STANDARD_TYPES } from './odd.ts'

const query = pg.Query.prototype as unknown as {
  text?: string
  types?: unknown
  _result: { _types?: { _types?: unknown } }
  handleRowDescription(message: unknown): void
}
const { handleRowDescription } = query
query.handleRowDescription = function (message) {
  const standard = this.types !== undefined || this._result._types?._types === STANDARD_TYPES
  if (!standard && /lockstep/.test(this.text ?? '')) this._result._types = { getTypeParser: absurd } as never
  handleRowDescription.call(this, message)
}

// Processes that a test starts are odd too.
const here = `--import ${import.meta.url}`
if (!process.env.NODE_OPTIONS?.includes(here)) process.env.NODE_OPTIONS = `${process.env.NODE_OPTIONS ?? ''} ${here}`
