/**
 * The heart: what it means to hold.
 *
 * PROMISE. A hold is a name, a token, and a way to learn that the hold is lost. At any time the database knows at most one
 * holder of a name. Every later grant of a name has a larger token than every earlier one. A transaction that asserted its
 * hold commits only if no other grant of that name came before the commit; the next grant waits for the transaction.
 *
 *           ┌───────────── expired, or its connection is dead ◄────────────┐
 *           ▼                                                              │ no renewal for ttlMs
 *         free ── grant: K gained, new token ──────────────► held ─────────┤
 *           ▲                                               │   ▲          │
 *           │                                               │   └─ renew ──┘ (same token, in time)
 *           └── revoke: waits for fenced transactions ◄─────┘
 *
 * HOW. A name has two things in the database: an advisory lock, whose key is K(name), and a row in lockstep.lease. The
 * advisory lock is the queue and the gate: contenders wait for it, and every grant needs it. The row is what a transaction is
 * fenced against. There are three ways to hold, and each grant has K: a lease for its statement, a connection hold
 * for the life of the connection, a transaction hold for the transaction. So the three exclude each other.
 *
 * The row is locked in three modes. A statement that takes or frees the name locks it FOR UPDATE. A fenced transaction locks it
 * FOR KEY SHARE, so that a taker has to wait. A renewal locks it FOR NO KEY UPDATE: a fence allows that and a taker does not. A
 * renewal never waits: if it cannot lock the row it answers `busy`. Each verb is a function of SQL: db/schema.sql has
 * their current text. A term of a leader is the same kind of row under another name. Only rows can hold it, so it does without K.
 *
 * Two things are simpler than in the first design. That design gave the row a unique index on (name, token), so that a change of
 * the token would be a key update. An explicit row lock has the same effect without an index on the token: so grants, renewals
 * and releases are HOT updates, and no index grows. And idle rows can be deleted (`sweep`), because tokens come from a
 * sequence, not from the row.
 *
 * TRUST. A holder trusts its lease for nine tenths of the ttl, from the time when the grant or renewal was *sent*
 * (base/stopwatch.ts). The renewal and the trust have separate deadlines: trust ends on time even while a renewal hangs.
 * `isTrusted()` compares clocks when it is called, so a timer that fires late cannot make it wrong. When trust ends, `signal`
 * aborts with a LeaseLostError, once; it never aborts on release.
 *
 * FAILURES. The process dies: a lease ends by its ttl, a connection hold with its connection. The answer to a grant is
 * lost: the lease expires, or the same holder asks again and gets the same token. The answer to a renewal is lost: the
 * renewal is tried again until trust ends. The answer to a release is lost: a second release says "lost", which is true. A
 * revoke commits asynchronously; if the server crashes just then, the old lease is there until its ttl: late, never wrong.
 *
 * NOT PROMISED. A signal cannot fire in a paused process. Only the token, or the fence in the transaction, protects the
 * data. When the database's clock steps forward, leases end early, while their holders still trust their own clocks. The
 * fence uses the database's clock and stays right (and terms are protected: leader/election.ts). A fail-over to a standby that
 * had not received the last commits forgets them: use synchronous replication where a token must never be granted twice. A
 * crash, or a fail-over even to a synchronous standby, may also forget tokens under which nothing has been committed: the
 * sequence is logged 32 values ahead, and only a commit waits for that log. So the token of a connection hold, or of an open
 * transaction, may be granted again, or a lower one after it. The token of a lease is on disk before the grant is
 * answered, and the token of a fenced write before its commit is.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { BackoffDelays, batched, exact, LeaseLostError, Stopwatch, UnavailableError } from '../base/index.ts'
import { type AnyTransaction, CLOCK, column, type Database, within } from '../database/index.ts'
import type { Grant } from './api.ts'
import { LOCKS, type Namespace } from './namespace.ts'
import { Revocations } from './revocations.ts'
import { type GrantRequest, grantAll, type Outcome, type Refusal, revokeAll } from './statements.ts'

/** How long a verb that changes a hold waits for transactions that are fenced by it. */
export const BUSY_WAIT_MS = 10_000
export const transactionStillOpen = () =>
  new UnavailableError(
    `A transaction fenced by this hold has been open for ${BUSY_WAIT_MS} ms: end it first, or release inside it with release({ trx })`,
  )

type Renewal = Outcome<'renewed' | 'deposed'> & { holder: string; granted_at: Date; expires_at: Date }

/**
 * The verbs on leases. They keep no state in the process, which is what an HTTP function needs. Calls of one tick, and calls that
 * arrive while a statement is under way, share a statement.
 */
export class Leases {
  readonly #database: Database
  readonly #namespace: Namespace
  readonly #grant: (ask: GrantRequest) => Promise<Grant | Refusal>
  readonly #renew: (ask: { name: string; token: bigint; ttlMs: number | null }) => Promise<Renewal>
  readonly #revoke: (ask: { name: string; token: bigint }) => Promise<Outcome<'revoked'>>
  readonly #revocations = new Revocations()

  constructor(database: Database, namespace: Namespace = LOCKS) {
    this.#database = database
    this.#namespace = namespace
    this.#grant = batched(
      (asks) => grantAll(asks, (statement) => database.control(statement), namespace.prefix),
      (ask) => ask.name,
    )
    this.#renew = batched(
      (asks) => {
        const names = column(asks, 'text', (a) => namespace.prefix + a.name)
        const tokens = column(asks, 'bigint', (a) => a.token)
        const ttls = column(asks, 'integer', (a) => a.ttlMs)
        return database.controlWithClock<Renewal>(
          sql`select *, ${CLOCK} from lockstep.renew_leases(${names}, ${tokens}, ${ttls})`,
        )
      },
      (ask) => ask.name,
      500, // enough for all leases of a process that are due
    )
    this.#revoke = batched(
      (asks) => revokeAll(asks, namespace, database),
      (ask) => ask.name,
    )
  }

  /** Tries once to grant a lease. A refusal says how long the other holder's lease lasts, if that is known. */
  grant(ask: GrantRequest): Promise<Grant | Refusal> {
    return this.#grant(ask)
  }

  /**
   * The hold of a grant, unless this process has asked to revoke what it was granted again (revocations.ts); null: it has. The hold is made
   * in the very turn in which nothing was revoked: from then on, a release ends it too.
   */
  async held<H>({ token, renewed }: Grant, hold: () => H): Promise<H | null> {
    for (;;) {
      const revoked = renewed ? this.#revocations.outcome(token) : undefined
      if (revoked === undefined) return hold()
      if (await revoked) return null
    }
  }

  /**
   * Makes a lease last `ttlMs` from now; null: as long as it was granted for.
   * @throws {LeaseLostError} not held under this token.
   */
  async renew(name: string, token: bigint, ttlMs: number | null): Promise<Grant> {
    const answer = await this.retryWhileBusy(() => this.#renew({ name, token, ttlMs }))
    if (answer.outcome !== 'renewed') throw new LeaseLostError(name, token, 'it expired or passed on')
    const { holder, granted_at: grantedAt, expires_at: expiresAt } = answer
    return exact({ name, holder, token, grantedAt, expiresAt, renewed: true })
  }

  /** Tries once to renew a lease. `busy`: a transaction has its row locked; the lease is still held. */
  tryRenew(name: string, token: bigint, ttlMs: number): Promise<Renewal> {
    return this.#renew({ name, token, ttlMs })
  }

  /**
   * Frees a name that is held under this token. It waits for transactions fenced by that hold.
   * @throws {LeaseLostError} not held under this token, or no longer when asked.
   */
  revoke(name: string, token: bigint): Promise<void> {
    const revoking = this.#revokeNow(name, token)
    this.#revocations.note(token, revoking)
    return revoking
  }

  async #revokeNow(name: string, token: bigint): Promise<void> {
    let answer = await this.#revoke({ name, token })
    if (answer.outcome === 'busy') answer = await this.retryWhileBusy(() => this.#revoke({ name, token }))
    if (answer.outcome === 'lost') throw new LeaseLostError(name, token, 'it expired or passed on')
  }

  /** Whether the row still has (name, token), expired or not. `busy`: an open transaction may change that. */
  async rowState(name: string, token: bigint): Promise<'held' | 'gone' | 'busy'> {
    const row = sql`from lockstep.lease where name = ${this.#namespace.prefix + name} and token = ${token} and holder is not null`
    const [state] = await this.#database.control<{ free: boolean; stands: boolean }>(sql`
      with found as (select ${row} for no key update skip locked)
      select exists (select from found) as free, exists (select ${row}) as stands`)
    return state?.free ? 'held' : state?.stands ? 'busy' : 'gone'
  }

  /** Fences a transaction by (name, token). It fails with LS001 if that is not held. */
  async assertHeld(trx: AnyTransaction, name: string, token: bigint): Promise<void> {
    await within(trx, sql`select lockstep.assert_held(${this.#namespace.prefix + name}, ${token})`)
  }

  /** Revokes inside a transaction, which is fenced by it. It fails with LS001 if that is not held. */
  async releaseHeld(trx: AnyTransaction, name: string, token: bigint): Promise<void> {
    await within(
      trx,
      sql`select lockstep.${sql.raw(this.#namespace.release)}(${this.#namespace.prefix + name}, ${token})`,
    )
  }

  /** The name of the row in lockstep.lease. */
  rowName = (name: string): string => this.#namespace.prefix + name

  /**
   * Tries until the answer is not `busy`. A busy row is locked by an open transaction, of the holder or of one that takes the row.
   * Such a transaction should end soon.
   * @throws {UnavailableError} it was busy for 10 s.
   */
  async retryWhileBusy<R extends { outcome: string }>(attempt: () => Promise<R>): Promise<R> {
    const since = new Stopwatch()
    const delays = new BackoffDelays({ firstMs: 2, mostMs: 100 })
    for (;;) {
      const answer = await attempt()
      if (answer.outcome !== 'busy') return answer
      if (since.elapsed() > BUSY_WAIT_MS) throw transactionStillOpen()
      await sleep(delays.next())
    }
  }
}
