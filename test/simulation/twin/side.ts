/**
 * The two sides that one script runs on: a real database, and the simulated server. Both are asked by pg, so that what is compared is
 * what the code of lib/ would be given: columns, types, values, SQLSTATEs, notifications, the state of the transaction.
 *
 * After each step a side settles: every session has answered, or waits for a lock, or is gone. Then its rows and its locks are read.
 */
import type pg from 'pg'
import { SECRET_CHANNEL } from '../server/elections.ts'
import { type Answered, answered, failed, Known, type Value } from './compared.ts'

/** What a script does in one step. */
export type Step =
  | { session: number; text: string; values: Value[] }
  | { expire: string }
  | { cancel: number }
  | { terminate: number }
  | { end: number }

/** What is compared after a step. */
export interface State {
  answers: Answered[]
  /** Of each session: I, T or E, as ReadyForQuery says it; what it waits in; or that it has ended. */
  sessions: string[]
  rows: Record<string, unknown>[]
  candidates: Record<string, unknown>[]
  /** Of each name that somebody has or waits for: the session that has it, and those that wait, in their order. */
  locks: Record<string, { holder: number; waiting: number[] }>
}

/** A connection, seen from its client. */
export class Session {
  readonly client: pg.Client
  pending = false
  ended = false
  status = 'I'
  /** How many statements were sent, and after how many of them the server was ready for the next: after an error it says so separately. */
  sent = 0
  ready = 0
  pid = 0
  readonly heard: string[] = []

  /** @param secret  the name that the channel of elections has on this side. */
  constructor(client: pg.Client, secret: string) {
    this.client = client
    client.on('error', () => {})
    client.on('end', () => {
      this.ended = true
    })
    client.on('notification', ({ channel, payload }) =>
      this.heard.push(`${channel === secret ? SECRET_CHANNEL : channel} ${said(payload)}`),
    )
    const { connection } = client as unknown as { connection: NodeJS.EventEmitter }
    connection.on('readyForQuery', ({ status }: { status: string }) => {
      this.status = status
      this.ready++
    })
  }

  get shown(): string {
    return this.ended ? 'ended' : this.pending ? 'waits' : this.status
  }
}

/** A notification, without its tokens and instants. */
function said(payload = ''): string {
  if (payload === '') return ''
  const { name, deposed, leader, next } = JSON.parse(payload)
  return JSON.stringify([name, deposed, leader && [leader.holder, leader.ttlMs, leader.meta], next])
}

export abstract class Side {
  readonly names: string[]
  sessions: Session[] = []
  readonly known = new Known()
  /** The name that the channel of elections has on this side. */
  protected secret = SECRET_CHANNEL
  protected answers: Answered[] = []

  constructor(names: string[]) {
    this.names = names
  }

  /** Opens a session in the place of one that has ended. */
  abstract open(at: number): Promise<void>
  /** @param expected  the state of the other side: a session that has ended there may end a moment later here. */
  abstract step(step: Step, expected?: State): Promise<State>
  abstract close(): Promise<void>

  /** Sends a statement; its answer is noted when it comes. */
  protected send(at: number, text: string, values: Value[]): void {
    const session = this.sessions[at] as Session
    session.pending = true
    session.sent++
    const pids = this.sessions.map(({ pid }) => pid)
    session.client.query(text.replace(SECRET_CHANNEL, this.secret), this.known.resolved(values, pids)).then(
      (result) => this.#note(at, session, answered(at, result, this.known, pids)),
      (error) => this.#note(at, session, failed(at, error)),
    )
  }

  #note(at: number, session: Session, answer: Answered): void {
    session.pending = false
    const { xid, ...compared } = answer
    if (xid !== undefined) this.known.xids[at] = xid
    else if (session.status === 'I') delete this.known.xids[at]
    this.answers.push(compared)
  }

  protected seen(rows: Record<string, unknown>[], candidates: Record<string, unknown>[], locks: State['locks']): State {
    for (const row of [...rows, ...candidates]) {
      for (const name of ['token', 'revision', 'place']) if (name in row) row[name] = this.known.label(row[name])
    }
    const answers = this.answers.sort((a, b) => a.session - b.session)
    this.answers = []
    return { answers, sessions: this.sessions.map(({ shown }) => shown), rows, candidates, locks }
  }

  /** The transaction that a session is known to be in. */
  transactionOf(at: number): string | undefined {
    return this.known.xids[at]
  }

  /** The notifications that each session has been sent since it was opened. */
  heard(): string[][] {
    return this.sessions.map(({ heard, ended }) => (ended ? [] : [...heard].sort()))
  }
}
