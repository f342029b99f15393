/**
 * The hold that lasts as long as this process's connection.
 *
 * The database knows only its advisory lock K, until a fence is asserted: then the hold is registered, that is, its row is written
 * over the connection that has K, and a transaction can be fenced against it. A registered hold frees its row before K passes on:
 * its token is dead before the next holder works, also when the next holder is of the same process.
 *
 * Calls of this process with one holder are one holder: each has a hold of its own, and all of them have one token, one row and one K.
 * The first that is released or lost ends them all.
 */

import { LeaseLostError, SQLSTATE } from '../base/index.ts'
import type { Database, Session } from '../database/index.ts'
import { sqlState } from '../database/index.ts'
import { AbstractHold, type Leases } from '../lease/index.ts'
import type { ShownEntry, ShownHolds } from './shown-holds.ts'

/** The callers that wait for the name behind such a hold. */
export interface NameQueue {
  readonly name: string
  passOn(dead: boolean): Promise<void>
}

/** What its caller said of it. */
export interface ConnectionRequest {
  holder: string
  /** Whether the caller named the holder; if not, others see which process it is. */
  named: boolean
  meta: unknown
}

interface Parts {
  readonly database: Database
  readonly leases: Leases
  readonly shown: ShownHolds
}

/** What the holds of one holder have in common. */
interface Held {
  readonly holds: Set<ConnectionHold>
  /** The row is written or being written; undefined: it was not, or the attempt failed, and the row may be there all the same. */
  registered: Promise<void> | undefined
  /** Whether there may be a row: from the first attempt on. */
  mayHaveRow: boolean
  passed: Promise<void> | undefined
  /** What others are shown of them. */
  shown: ShownEntry | undefined
}

/** A hold that lasts as long as this process's connection lives. */
export class ConnectionHold extends AbstractHold {
  readonly kind = 'connection'
  readonly #queue: NameQueue
  readonly #leases: Leases
  readonly #session: Session
  readonly #request: ConnectionRequest
  readonly #parts: Parts
  readonly #held: Held

  constructor(
    queue: NameQueue,
    parts: Parts,
    session: Session,
    token: bigint,
    request: ConnectionRequest,
    held: Held = { holds: new Set(), registered: undefined, mayHaveRow: false, passed: undefined, shown: undefined },
  ) {
    super(parts.database, parts.leases, queue.name, request.holder, token)
    this.#queue = queue
    this.#parts = parts
    this.#leases = parts.leases
    this.#session = session
    this.#request = request
    this.#held = held
    held.holds.add(this)
    if (!held.shown) {
      const { holder, named, meta } = request
      const shown = { name: queue.name, kind: 'connection', token, pid: session.pid, meta } as const
      held.shown = parts.shown.add({ ...shown, holder: named ? holder : undefined })
    }
    session.attach(this)
  }

  /** Another hold of the same holder. */
  again(): ConnectionHold {
    return new ConnectionHold(
      ...([this.#queue, this.#parts, this.#session] as const),
      ...([this.token, this.#request, this.#held] as const),
    )
  }

  protected withinTrust(): boolean {
    return this.#session.isTrusted()
  }

  protected fence(): Promise<void> {
    const held = this.#held
    held.mayHaveRow = true
    held.registered ??= this.#session
      .register(this.name, this.holder, this.token, this.#request.meta)
      .catch((error) => {
        held.registered = undefined // the next fence tries again; what was written all the same it finds
        if (sqlState(error) === SQLSTATE.leaseLost) this.lose('the database says so', error)
        throw error
      })
    return held.registered
  }

  // The row first, then K, so that its token is dead before the next holder works. Whatever fails, K must go: of a row without
  // it the next grant knows that nobody has it.
  protected async giveUp(): Promise<void> {
    this.#endOthers('its holder has released it')
    if (!this.#held.mayHaveRow) return this.#passOn(true) // nothing of it is in the database but K
    const written = await this.#held.registered?.then(
      () => true,
      () => false,
    )
    try {
      await this.#leases.revoke(this.name, this.token)
    } catch (error) {
      const gone = error instanceof LeaseLostError
      await this.#passOn(gone)
      if (gone && !written) return // it had not been written
      throw error
    }
    await this.#passOn(true)
  }

  #passOn(dead: boolean): Promise<void> {
    this.#held.passed ??= this.#queue.passOn(dead)
    return this.#held.passed
  }

  // Before K passes on: none of them is trusted when the next holder works.
  #endOthers(why: string): void {
    for (const other of this.#held.holds) if (other !== this) other.#end(why)
  }

  #end(why: string): void {
    super.lose(why)
  }

  connectionLost(error: Error): void {
    this.lose('its connection is lost', error)
  }

  protected ended(): void {
    this.#session.detach(this)
    this.#held.holds.delete(this)
    if (this.#held.shown) this.#parts.shown.remove(this.#held.shown) // the first that ends them ends all of them
  }

  // Lost with its connection, or taken by force: either way the next caller is served.
  override lose(why: string, cause?: unknown): void {
    if (this.over) return
    super.lose(why, cause)
    this.#endOthers(why)
    this.#passOn(!this.#held.mayHaveRow).catch(() => {})
  }
}
