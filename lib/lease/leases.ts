/**
 * The heart: what it means to hold.
 *
 * PROMISE. A hold is a name, a token, and a way to learn that it is lost. At any moment at most one holder of a name
 * is in the database's eyes the holder. Every later grant of a name has a larger token than every earlier one. A
 * write made in a transaction that asserted its hold commits only if no other grant of that name came before the
 * commit; the next grant waits for it.
 *
 *           ┌───────────── expired, or its connection is dead ◄────────────┐
 *           ▼                                                              │ no renewal for ttlMs
 *         free ── grant: K gained, new token ──────────────► held ─────────┤
 *           ▲                                               │   ▲          │
 *           │                                               │   └─ renew ──┘ (same token, in time)
 *           └── revoke: waits for fenced transactions ◄─────┘
 *
 * HOW. One sentence: the advisory lock K(name) is the queue and the gate; the row is what a transaction can be fenced
 * against. Whoever grants has K at that moment, for the statement (a lease), for the connection, or for the
 * transaction: so the three exclude each other. Whoever takes or frees a row locks it FOR UPDATE; a fenced
 * transaction holds it FOR KEY SHARE; a renewal takes it FOR NO KEY UPDATE, which passes the fence but not the taker.
 * The SQL is db/migrations/0001_lease.sql, a function for each verb. A term is the same row under another name; nothing but
 * rows can hold it, so it does without K (0002_election.sql).
 *
 * Against the first design, two things are simpler. The design gave the row a unique (name, token), so that changing
 * the token would be a key update; taking the row lock explicitly does the same and leaves the token unindexed, so
 * that grants, renewals and releases are HOT updates and no index grows. And idle rows can be deleted (`sweep`),
 * because tokens come from a sequence, not from the row.
 *
 * TRUST. A holder believes in its lease from the moment the grant or renewal was *attempted*, for nine tenths of the
 * ttl (base/stopwatch.ts). Renewing and trusting have deadlines of their own: trust ends on time while a renewal hangs.
 * `isTrusted()` compares clocks when called, so that a timer that comes late cannot lie. When trust ends `signal`
 * aborts with a LeaseLostError, once; it never aborts on release.
 *
 * FAILURES. The process dies: a lease ends by its ttl, a connection hold with its connection. The answer to a grant is
 * lost: the lease runs out, or the same holder asks again and gets the same token. The answer to a renewal is lost:
 * it is tried again until trust ends. The answer to a release is lost: asked again it says "lost", which is true. A
 * revoke commits asynchronously; if the server crashes then, the old lease is there until its ttl: late, never wrong.
 *
 * NOT PROMISED. A signal cannot fire in a paused process: only the token, or the fence in the transaction, protects
 * what is written. A database clock that steps forward ends leases early, for those who trust their own clock; the
 * fence asks the database's clock and stays right (and terms are spared: leader/election.ts). A fail-over to a standby that had
 * not received the last commits forgets them: use synchronous replication where a token must never be granted twice. And
 * a crash, or a fail-over even to a synchronous standby, may forget tokens that nobody has committed anything under: the
 * sequence's log is ahead by 32, and only who commits waits for it. So a connection hold's token, or that of a transaction
 * which is open, may be handed out again, or a lower one after it. Leases' tokens are on disk before the grant is answered,
 * and so are those of fenced writes.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { type RawBuilder, sql, type Transaction } from 'kysely'
import { batched, LeaseLostError, Stopwatch, UnavailableError } from '../base/index.ts'
import { type AnyTransaction, CLOCK, column, type Database, within } from '../database/index.ts'
import { LOCKS, type Namespace } from './namespace.ts'

/** For how long a release waits for transactions of its own hold. */
export const RELEASE_WAITS_MS = 10_000
export const transactionStillOpen = () =>
  new UnavailableError(
    `A transaction fenced by this hold has been open for ${RELEASE_WAITS_MS} ms: end it first, or release inside it with release({ trx })`,
  )

/** A lease as it was granted or renewed. */
export interface Grant {
  name: string
  holder: string
  /** The fencing token: ≥ 1, larger than that of any earlier grant of this name. */
  token: bigint
  grantedAt: Date
  /** On the database's clock. */
  expiresAt: Date
  /** Whether this holder had it already: the same grant, renewed. */
  renewed: boolean
}

/** What the caller has. */
export interface Hold extends AsyncDisposable {
  readonly name: string
  readonly holder: string
  /** The fencing token: ≥ 1, larger than that of any earlier grant of this name. Give it to what you write to. */
  readonly token: bigint
  /** `lease`: ends by itself without renewal. `connection`: ends with this process's connection. */
  readonly kind: 'lease' | 'connection'
  /** Aborts with a {@link LeaseLostError} when the hold is lost, or its release failed; never on a release that succeeds. */
  readonly signal: AbortSignal
  /** Whether the hold may be believed now: compares clocks when called, so a late timer cannot lie. */
  isTrusted(): boolean
  /**
   * Fences an open transaction: from here to its end nobody else can be granted the name. Also lets it write to fenced
   * tables, to the rows of every hold that it asserts. In a REPEATABLE READ transaction call it first, or expect 40001.
   * @throws {LeaseLostError} not held any more; the transaction is then aborted and cannot commit.
   * @throws {TypeError} `code` INVALID_ARGUMENT, `field` trx: it is no open transaction.
   */
  assertHeld(trx: AnyTransaction): Promise<void>
  /**
   * Runs `work` in a transaction of Lockstep's pool, fenced by this hold; `work` neither begins nor ends it.
   * @throws {LeaseLostError} it is lost: before, at the commit, or while a connection was waited for; or a fenced table needs
   * another hold, `leaseName`, and this one is not lost.
   * @throws {UnavailableError} none of the `max` connections came free within 5 s.
   * @throws {TransactionEndedError} `work` has ended the transaction. And what `work` throws, as it is.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T>
  /**
   * Gives the hold up; others can have it when this resolves. Waits for the hold's own fenced transactions.
   * With `trx`: the release commits with that transaction, or not at all.
   * Calling it again answers as the first call did.
   * @throws {LeaseLostError} it had been lost before.
   * @throws {UnavailableError} the database could not be told, or a fenced transaction stayed open for 10 s. Perhaps it is
   * released: it is not trusted any more, and `signal` aborts; a lease ends by its ttl. It may be called again.
   */
  release(options?: { trx?: AnyTransaction }): Promise<void>
  /** Releases, and is silent if the hold was lost: `signal` has said so. */
  [Symbol.asyncDispose](): Promise<void>
}

export interface GrantRequest {
  name: string
  holder: string
  ttlMs: number
  meta: string | null
}
/** Somebody else has it; `waitMs`: for at most so long, if that is known and it is not renewed. */
export type Refusal = { waitMs: number | undefined }
type Outcome<K extends string> = { outcome: K | 'lost' | 'busy' }
type Renewal = Outcome<'renewed' | 'deposed'> & { holder: string; granted_at: Date; expires_at: Date }

/** The verbs, without memory: what an HTTP function needs. Calls of one tick, and all that meet, share a statement. */
export class Leases {
  readonly #database: Database
  readonly #namespace: Namespace
  readonly #grant: (ask: GrantRequest) => Promise<Grant | Refusal>
  readonly #renew: (ask: { name: string; token: bigint; ttlMs: number | null }) => Promise<Renewal>
  readonly #revoke: (ask: { name: string; token: bigint }) => Promise<Outcome<'revoked'>>

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
      500, // all of a process that are due
    )
    this.#revoke = batched(
      (asks) => revokeAll(asks, namespace, database),
      (ask) => ask.name,
    )
  }

  /** One try. A refusal says until when, if that is known. */
  grant(ask: GrantRequest): Promise<Grant | Refusal> {
    return this.#grant(ask)
  }

  /**
   * Makes a lease last `ttlMs` from now (default: as granted).
   * @throws {LeaseLostError} not held under this token.
   */
  async renew(name: string, token: bigint, ttlMs: number | null): Promise<Grant> {
    const answer = await this.retryWhileBusy(() => this.#renew({ name, token, ttlMs }))
    if (answer.outcome !== 'renewed') throw new LeaseLostError(name, token, 'it expired or passed on')
    return {
      name,
      holder: answer.holder,
      token,
      grantedAt: answer.granted_at,
      expiresAt: answer.expires_at,
      renewed: true,
    }
  }

  /** One attempt of a renewal: `busy` means that somebody has the row locked, and it is still ours. */
  tryRenew(name: string, token: bigint, ttlMs: number): Promise<Renewal> {
    return this.#renew({ name, token, ttlMs })
  }

  /**
   * Frees a name held under this token; waits for transactions fenced by it.
   * @throws {LeaseLostError} not held under this token, or no longer when asked.
   */
  async revoke(name: string, token: bigint): Promise<void> {
    let answer = await this.#revoke({ name, token })
    if (answer.outcome === 'busy') answer = await this.retryWhileBusy(() => this.#revoke({ name, token }))
    if (answer.outcome === 'lost') throw new LeaseLostError(name, token, 'it expired or passed on')
  }

  /** Whether the row still says (name, token), whatever the time. `busy`: a transaction that may change that is open. */
  async rowState(name: string, token: bigint): Promise<'held' | 'gone' | 'busy'> {
    const row = sql`from lockstep.lease where name = ${this.#namespace.prefix + name} and token = ${token} and holder is not null`
    const [state] = await this.#database.control<{ free: boolean; stands: boolean }>(sql`
      with found as (select ${row} for no key update skip locked)
      select exists (select from found) as free, exists (select ${row}) as stands`)
    return state?.free ? 'held' : state?.stands ? 'busy' : 'gone'
  }

  /** Fences a transaction by (name, token). Fails with LS001. */
  async assertHeld(trx: AnyTransaction, name: string, token: bigint): Promise<void> {
    await within(trx, sql`select lockstep.assert_held(${this.#namespace.prefix + name}, ${token})`)
  }

  /** Revokes inside a transaction, fenced by itself. Fails with LS001. */
  async releaseHeld(trx: AnyTransaction, name: string, token: bigint): Promise<void> {
    await within(
      trx,
      sql`select lockstep.${sql.raw(this.#namespace.release)}(${this.#namespace.prefix + name}, ${token})`,
    )
  }

  /** The name of its row. */
  rowName = (name: string): string => this.#namespace.prefix + name

  /**
   * Asks until the answer is another than `busy`. A busy row has an open transaction on it, ours or a taker's, which ends
   * soon or is at fault.
   * @throws {UnavailableError} after 10 s.
   */
  async retryWhileBusy<R extends { outcome: string }>(attempt: () => Promise<R>): Promise<R> {
    const since = new Stopwatch()
    for (let pause = 2; ; pause = Math.min(pause * 2, 100)) {
      const answer = await attempt()
      if (answer.outcome !== 'busy') return answer
      if (since.elapsed() > RELEASE_WAITS_MS) throw transactionStillOpen()
      await sleep(pause)
    }
  }
}

/** Grants what is free of `asks`, over the connection that `run` stands for. */
export async function grantAll(
  asks: GrantRequest[],
  run: (statement: RawBuilder<Granted>) => Promise<Granted[]>,
  prefix = '',
): Promise<(Grant | Refusal)[]> {
  const names = column(asks, 'text', (a) => prefix + a.name)
  const holders = column(asks, 'text', (a) => a.holder)
  const ttls = column(asks, 'integer', (a) => a.ttlMs)
  const metas = column(asks, 'text', (a) => a.meta)
  const [row] = await run(
    sql<Granted>`select * from lockstep.grant_leases(${names}, ${holders}, ${ttls}, ${metas}::jsonb[])`,
  )
  const answers: (Grant | Refusal)[] = asks.map(() => ({ waitMs: undefined }))
  const grant = (i: string, token: bigint, grantedAt: Date, expiresAt: Date | undefined, renewed: boolean) => {
    const { name, holder, ttlMs } = asks[Number(i) - 1] as GrantRequest
    expiresAt ??= new Date(grantedAt.getTime() + ttlMs)
    answers[Number(i) - 1] = { name, holder, token, grantedAt, expiresAt, renewed }
  }
  if (!row) throw new Error('grant_leases did not answer')
  for (const i of row.granted ?? []) {
    grant(i, BigInt(row.base) + 64n * (BigInt(i) - 1n), row.granted_at, undefined, false)
  }
  row.kept?.forEach((i, k) => {
    grant(i, BigInt(row.kept_tokens[k] ?? 0), row.kept_granted_at[k] as Date, row.kept_expires_at[k], true)
  })
  row.refused?.forEach((i, k) => {
    answers[Number(i) - 1] = { waitMs: row.refused_for[k] ?? undefined }
  })
  return answers
}
interface Granted {
  base: string
  granted_at: Date
  granted: string[] | null
  kept: string[] | null
  kept_tokens: string[]
  kept_granted_at: Date[]
  kept_expires_at: Date[]
  refused: string[] | null
  refused_for: (number | null)[]
}

async function revokeAll(
  asks: { name: string; token: bigint }[],
  namespace: Namespace,
  database: Database,
): Promise<Outcome<'revoked'>[]> {
  const names = column(asks, 'text', (a) => namespace.prefix + a.name)
  const tokens = column(asks, 'bigint', (a) => a.token)
  const [row] = await database.control<Record<'revoked' | 'busy', string[] | null>>(
    // Asynchronously: a release that is lost in a crash is late, never wrong.
    sql`select revoked, busy, set_config('synchronous_commit', 'off', true) from lockstep.${sql.raw(namespace.revoke)}(${names}, ${tokens})`,
  )
  const [revoked, busy] = [new Set(row?.revoked), new Set(row?.busy)]
  return asks.map((_, k) => {
    const i = String(k + 1)
    return { outcome: revoked.has(i) ? 'revoked' : busy.has(i) ? 'busy' : 'lost' }
  })
}
