/**
 * A backend of the simulated server: it reads the messages of one connection and does one after another. A statement may wait; then
 * nothing behind it is done. After an error it skips what follows until the next Sync, as PostgreSQL does.
 *
 * What may fail is decided at each statement by the world (faults.ts): before its effect, after it, or with the connection.
 */
import { type Asked, Reader, type Row, SAYS } from '../protocol.ts'
import type { Line, Peer } from '../socket.ts'
import type { Blocked } from './locks.ts'
import { PgError } from './pg-error.ts'
import { Transaction } from './rows.ts'
import type { Server } from './server.ts'
import { statement } from './statements.ts'

/** What a statement answers. */
export interface Answer {
  types: Record<string, string>
  rows: Row[]
}

/** What befalls one statement. */
export interface Fate {
  /** An error instead of the effect, or after it; the effect is rolled back, but for session locks. */
  error?: { code: string; after: boolean } | undefined
  /** The connection ends before the effect or after it, and no answer comes; `fatal`: with a last word. */
  end?: { after: boolean; fatal: boolean } | undefined
}

type Work = Generator<Blocked, void>

export class Backend implements Peer {
  /** Its own; behind a pooler, that of the backend that the transaction was given. */
  pid: number
  readonly server: Server
  readonly #number: number
  line: Line | undefined
  ended = false
  /** What it listens to. */
  readonly channels = new Set<string>()
  /** After so many ms of silence the server ends it; undefined: never. */
  silentMs: number | undefined
  heardAt: number
  trx: Transaction | undefined
  /** Whether BEGIN has been answered and the transaction has not ended. */
  #explicit = false
  #failed = false
  #skipping = false
  readonly #reader = new Reader()
  readonly #asked: Asked[] = []
  readonly #prepared = new Map<string, string>()
  #bound: { text: string; values: (string | null)[] } | undefined
  #answer: Answer | undefined
  #work: Work | undefined
  /** What its statement waits for. */
  waitsFor: Blocked | undefined
  #cancelled = false
  #inWork = false

  constructor(server: Server, pid: number) {
    this.server = server
    this.pid = pid
    this.#number = pid
    this.heardAt = server.world.now
  }

  connected(line: Line): void {
    if (this.ended) return // the connection broke while it was made
    this.line = line
    this.heardAt = this.server.world.now
    this.server.backends.add(this)
  }

  heard(data: Buffer): void {
    this.heardAt = this.server.world.now
    for (const asked of this.#reader.read(data)) this.#asked.push(asked)
    this.#goOn()
  }

  /** The client has ended its side: a backend that waits notices within two seconds. */
  left(): void {
    if (this.#work) this.server.world.after(this.server.random() * 2_000, () => this.end(), undefined)
    else this.end()
  }

  listensTo(channel: string): void {
    if (this.server.pooled) this.server.world.fail(new Error('A session listens through a pooler'))
    this.channels.add(channel)
  }

  /** pg_cancel_backend: a statement that waits fails; one that does not is over already. */
  cancel(): void {
    this.#cancelled = this.#work !== undefined
    this.wake()
  }

  /** What it waited for may be there. */
  wake(): void {
    this.server.world.after(0, () => this.#goOn(), undefined)
  }

  /** Ends the connection, and with it its transaction and its locks. @param code  a last word. */
  end(code?: string): void {
    if (this.ended) return
    this.ended = true
    const work = this.#work
    this.#work = undefined
    if (work && !this.#inWork) work.return(undefined)
    this.#finish(false)
    this.server.locks.endSession(this)
    this.server.gone(this)
    if (code !== undefined) this.#say(SAYS.error(code, 'terminating connection', true))
    this.line?.hangUp()
  }

  #goOn(): void {
    if (this.#inWork) return
    while (!this.ended) {
      if (!this.#work) {
        const asked = this.#asked.shift()
        if (!asked) return
        this.#work = this.#do(asked)
      }
      this.#inWork = true
      this.waitsFor = undefined
      try {
        const cancelled = this.#cancelled
        this.#cancelled = false
        const why = 'canceling statement due to user request'
        const { value } = cancelled ? this.#work.throw(new PgError('57014', why)) : this.#work.next()
        this.waitsFor = value ?? undefined
      } catch (error) {
        this.#fail(error)
      } finally {
        this.#inWork = false
      }
      if (this.waitsFor !== undefined) return
      this.#work = undefined
    }
  }

  #fail(error: unknown): void {
    if (!(error instanceof PgError)) {
      this.server.world.fail(error)
      return
    }
    this.#skipping = true
    this.#failed = this.#explicit
    this.#finish(false) // at once: an aborted transaction has neither locks nor rows, though it is still open
    this.#say(SAYS.error(error.code, error.message, false, error.detail))
  }

  *#do(asked: Asked): Work {
    if (this.#skipping && asked.type !== 'sync' && asked.type !== 'terminate') return
    switch (asked.type) {
      case 'startup':
        return this.#greet()
      case 'parse':
        if (asked.name !== '' && this.#prepared.has(asked.name)) throw new PgError('42P05', 'exists already')
        this.#prepared.set(asked.name, asked.text)
        return this.#say(SAYS.parsed)
      case 'bind': {
        const text = this.#prepared.get(asked.statement)
        if (text === undefined) throw new PgError('26000', `no prepared statement ${asked.statement}`)
        this.#bound = { text, values: asked.values }
        return this.#say(SAYS.bound)
      }
      case 'describe': {
        // The answer is needed for its columns. Nothing can come between a Describe and its Execute.
        const { text, values } = this.#bound as { text: string; values: (string | null)[] }
        this.#answer = yield* this.#run(text, values)
        if (this.ended) return
        const { types } = this.#answer
        return this.#say(Object.keys(types).length === 0 ? SAYS.noData : SAYS.columns(types))
      }
      case 'execute':
        return this.#sayRows(this.#answer as Answer)
      case 'close':
        return this.#say(SAYS.closed)
      case 'sync':
        if (!this.#explicit) this.#finish(!this.#skipping)
        this.#skipping = false
        return this.#say(SAYS.ready(this.#status))
      case 'query':
        return yield* this.#simple(asked.text)
      case 'terminate':
        return this.end()
      case 'flush':
        return
    }
  }

  // A text of several statements: the first error ends it.
  *#simple(text: string): Work {
    try {
      for (const each of text.split(';').map((one) => one.trim())) {
        if (each === '') continue
        const answer = yield* this.#run(each, [])
        if (this.ended) return
        if (Object.keys(answer.types).length > 0) this.#say(SAYS.columns(answer.types))
        this.#sayRows(answer)
      }
      if (!this.#explicit) this.#finish(true)
    } catch (error) {
      this.#fail(error)
      this.#skipping = false
    }
    this.#say(SAYS.ready(this.#status))
  }

  *#run(text: string, values: (string | null)[]): Generator<Blocked, Answer> {
    const control = /^\s*(begin|start transaction|commit|rollback)\b/i.exec(text)?.[1]?.toLowerCase()
    if (this.#failed && control !== 'rollback' && control !== 'commit') {
      throw new PgError('25P02', 'current transaction is aborted')
    }
    const fate = this.server.fate(this, text)
    if (fate.end && !fate.end.after) return this.#breaks(fate.end.fatal)
    if (fate.error && control === 'commit') {
      this.#control('rollback') // a COMMIT that fails has rolled back
      throw new PgError(fate.error.code, 'injected, at COMMIT')
    }
    if (fate.error && !fate.error.after) throw new PgError(fate.error.code, 'injected, before the effect')
    const answer = control ? this.#control(control) : yield* this.#statement(text, values)
    if (this.ended) return answer
    if (fate.error) throw new PgError(fate.error.code, 'injected, after the effect')
    if (fate.end) {
      if (!this.#explicit) this.#finish(true)
      return this.#breaks(fate.end.fatal)
    }
    return answer
  }

  *#statement(text: string, values: (string | null)[]): Generator<Blocked, Answer> {
    this.trx ??= this.#begin()
    return yield* statement({ server: this.server, backend: this, trx: this.trx }, text, values)
  }

  // A pooler gives each transaction another backend.
  #begin(): Transaction {
    if (this.server.pooled) this.pid = 10 * this.#number + Math.floor(this.server.random() * 10)
    return new Transaction(this.server.nextXid(), this)
  }

  #breaks(fatal: boolean): Answer {
    this.server.ended(this)
    this.end(fatal ? '57P01' : undefined)
    return { types: {}, rows: [] }
  }

  #control(control: string): Answer {
    if (control === 'begin' || control === 'start transaction') {
      this.#explicit = true
      this.trx ??= this.#begin()
    } else {
      const commit = control === 'commit' && !this.#failed
      this.#explicit = false
      this.#failed = false
      this.#finish(commit)
    }
    return { types: {}, rows: [] }
  }

  #finish(commit: boolean): void {
    const { trx } = this
    this.trx = undefined
    if (trx) this.server.endTransaction(trx, commit)
    this.server.locks.endTransaction(this)
    const left = this.server.pooled && this.server.locks.keysOf(this).length > 0
    if (left) this.server.world.fail(new Error('A lock of a session was taken through a pooler'))
  }

  get #status(): 'I' | 'T' | 'E' {
    return this.#failed ? 'E' : this.#explicit ? 'T' : 'I'
  }

  #greet(): void {
    const refusal = this.server.refusal()
    if (refusal !== undefined) {
      this.end(refusal)
      return
    }
    this.#say(SAYS.authenticated, SAYS.parameter('client_encoding', 'UTF8'), SAYS.key(this.server.announced(this)))
    this.#say(SAYS.ready('I'))
  }

  #sayRows({ types, rows }: Answer): void {
    this.#say(...rows.map((row) => SAYS.row(row, types)), SAYS.complete(`SELECT ${rows.length}`))
  }

  #say(...messages: Buffer[]): void {
    this.line?.answer(messages.length === 1 ? (messages[0] as Buffer) : Buffer.concat(messages))
  }

  /** A notification of a transaction that has committed. */
  notified(channel: string, payload: string): void {
    this.#say(SAYS.notification(this.pid, channel, payload))
  }
}
