/**
 * What of an answer is compared. Tokens, process ids and instants differ between two servers: a token becomes its place in the order
 * in which tokens were first seen, a process id the number of its session, an instant the word for it.
 */
import type { QueryResult } from 'pg'

/** A parameter of a statement: itself, the k-th token that was seen, the process id or the transaction of a session, or JSON of these. */
export type Value =
  | string
  | number
  | boolean
  | null
  | { token: number }
  | { pid: number }
  | { xid: number }
  | { json: Json }
  | Value[]
/** JSON in which a token may stand. */
type Json = string | number | boolean | null | undefined | Json[] | { [name: string]: Json }

export interface Answered {
  session: number
  /** The SQLSTATE. */
  code?: string
  columns?: [name: string, oid: number][]
  rows?: unknown[][]
  /** The transaction that it ran in; not compared. */
  xid?: string
}

const TOKENS = new Set(['token', 'tokens', 'try_key', 'base', 'kept_tokens', 'place', 'over', 'revision'])
const PIDS = new Set(['pid', 'gate_pid', 'waiting_pids'])
const WAITS = new Set(['wait_ms', 'refused_for', 'lives_ms'])
/** They say how fast a clock goes, how a client is called, or a secret. */
const IGNORED = new Set(['clock_us', 'clock_server', 'gate_application', 'channel'])

/** Arrays in no promised order, and those that are in the same order. */
const TOGETHER = [
  ['granted'],
  ['kept', 'kept_tokens', 'kept_granted_at', 'kept_expires_at'],
  ['refused', 'refused_for'],
  ['revoked'],
  ['busy'],
]

/** The tokens and transactions that a side has seen. */
export class Known {
  readonly tokens: bigint[] = []
  readonly xids: string[] = []

  /** The place of a token. */
  label(token: unknown): unknown {
    if (token === null || token === undefined) return null
    if (Array.isArray(token)) return token.map((each) => this.label(each))
    const value = BigInt(token as string)
    if (!this.tokens.includes(value)) this.tokens.push(value)
    return `token ${this.tokens.indexOf(value)}`
  }

  /** The places of all tokens, in the order of the tokens. */
  order(): number[] {
    return this.tokens
      .map((_, i) => i)
      .sort((a, b) => ((this.tokens[a] as bigint) < (this.tokens[b] as bigint) ? -1 : 1))
  }

  #inJson(value: unknown): unknown {
    if (typeof value !== 'object' || value === null || !('token' in value)) return value
    return String(this.tokens[value.token as number] ?? 1)
  }

  resolved(values: Value[], pids: number[]): unknown[] {
    return values.map((value) => {
      if (value === null || typeof value !== 'object') return value
      if (Array.isArray(value)) return this.resolved(value, pids)
      if ('token' in value) return String(this.tokens[value.token] ?? 1)
      if ('pid' in value) return pids[value.pid]
      if ('json' in value) return JSON.stringify(value.json, (_, each) => this.#inJson(each))
      return this.xids[value.xid] ?? '1'
    })
  }
}

export function answered(session: number, result: QueryResult, known: Known, pids: number[]): Answered {
  const fields = result.fields.filter(({ name }) => !IGNORED.has(name))
  const rows = result.rows.map(inOrder).map((row) => fields.map(({ name }) => compared(name, row[name], known, pids)))
  const xid = result.rows[0]?.xid as string | undefined
  // What returns void is never read.
  const columns = fields.map(({ name, dataTypeID: oid }): [string, number] => [name, oid === 2278 ? 25 : oid])
  return { session, columns, rows, ...(typeof xid === 'string' && { xid }) }
}

function inOrder(row: Record<string, unknown>): Record<string, unknown> {
  const sorted = { ...row }
  for (const [first = '', ...others] of TOGETHER) {
    const positions = row[first]
    if (!Array.isArray(positions)) continue
    const order = positions.map((_, i) => i).sort((a, b) => Number(positions[a]) - Number(positions[b]))
    for (const name of [first, ...others]) {
      const values = row[name]
      if (Array.isArray(values)) sorted[name] = order.map((i) => values[i])
    }
  }
  return sorted
}

export function failed(session: number, error: { code?: string; message: string }): Answered {
  return { session, code: error.code ?? error.message }
}

function compared(name: string, value: unknown, known: Known, pids: number[]): unknown {
  if (value === null || value === undefined) return null
  if (TOKENS.has(name)) return known.label(value)
  if (PIDS.has(name))
    return Array.isArray(value) ? value.map((pid) => pids.indexOf(pid)) : pids.indexOf(value as number)
  if (WAITS.has(name)) return Array.isArray(value) ? value.map(wait) : wait(value)
  if (name === 'xid') return 'a transaction'
  return Array.isArray(value) ? value.map(instant) : instant(value)
}

const wait = (ms: unknown) => (ms === null || ms === 20 || ms === 100 ? ms : 'until a lease ends')
const instant = (value: unknown) => (value instanceof Date ? 'an instant' : value)
