/**
 * A term: the lease of a leader. The leader proves it, changes what observers see of it, and gives it up.
 */
import { sql, type Transaction } from 'kysely'
import type { Stopwatch } from '../base/index.ts'
import { LeaseLostError, metaText } from '../base/index.ts'
import type { AnyTransaction, Database, Session } from '../database/index.ts'
import { ELECTIONS, type Grant, LeaseHold, type Leases, type Renewer } from '../lease/index.ts'
import type { ElectionNotifier } from './notifications.ts'

/** A term of office: what a leader has from its election until it resigns or loses it. */
export interface Term extends AsyncDisposable {
  /** The name of the election, 1–255 characters. */
  readonly name: string
  /** The identity of the leader, 1–255 characters: the `holder` of its campaign. */
  readonly holder: string
  /**
   * The fencing token: ≥ 1, larger than that of any earlier term of this election. Send it along with writes to other
   * systems, so that they can refuse a smaller one.
   */
  readonly token: bigint
  /**
   * What ends the term when this process dies. `lease`: the next leader waits until the ttl has passed. `connection`: it takes
   * over at once, when the connection of this process has ended.
   */
  readonly failover: 'lease' | 'connection'
  /**
   * Aborts with a {@link LeaseLostError} when the term is lost or its leader is asked to step down: before anybody else can
   * lead (with `failover: 'connection'` perhaps a little later). Never on resignation.
   */
  readonly signal: AbortSignal
  /**
   * Whether this process may believe now that it leads. It compares clocks when it is called, so the answer is right even if a
   * timer is late.
   */
  isTrusted(): boolean
  /**
   * Fences an open transaction: from this call to its end nobody else can lead. The transaction may then also write to fenced
   * tables. Several terms and holds may be asserted in one transaction.
   * @throws {LeaseLostError} the term has ended; the transaction is then aborted and cannot commit.
   * @throws {TypeError} `code` INVALID_ARGUMENT, `field` trx: it is not an open transaction.
   */
  assertHeld(trx: AnyTransaction): Promise<void>
  /**
   * Runs `work` in a transaction of Lockstep's pool that is fenced by this term. `work` must neither begin nor end it.
   * @returns the result of `work`, after the commit.
   * @throws {LeaseLostError} the term is lost: before, at the commit, or while the call waited for a connection; or a fenced
   * table needs another hold, whose name is `leaseName`.
   * @throws {UnavailableError} none of the `max` connections became free within 5 s.
   * @throws {TransactionEndedError} `work` has ended the transaction. Errors of `work` are thrown unchanged.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T>
  /**
   * Changes what observers see of this leader.
   * @param meta  JSON of at most 4 KiB. It replaces the `meta` of the campaign or of the last `proclaim`.
   * @throws {LeaseLostError} the term has ended, or its leader was asked to step down.
   * @throws {UnavailableError} the database cannot be reached; observers may see the change all the same.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field` meta.
   * @see etcd client/v3/concurrency/election.go
   */
  proclaim(meta: unknown): Promise<void>
  /**
   * Gives the term up; the next leader is elected at once. The call waits until the transactions of {@link Term.transaction} have
   * ended. A second call has the result of the first.
   * @param options.trx  an open transaction: the resignation commits with it, or not at all.
   * @throws {LeaseLostError} the term was lost before. The term of a successor is not touched.
   * @throws {UnavailableError} the database cannot be reached: the term ends by its ttl.
   */
  resign(options?: { trx?: AnyTransaction | undefined }): Promise<void>
  /** For JSON.stringify: name, holder, failover, and the token as a decimal string. */
  toJSON(): Record<string, unknown>
  /** Resigns. It does not throw if the term was lost, because `signal` has shown that. */
  [Symbol.asyncDispose](): Promise<void>
}

export interface TermParts {
  database: Database
  leases: Leases
  renewer: Renewer
  notifier: ElectionNotifier
}

/** A term that is kept by renewals; with `failover: 'connection'` it also ends with its process's connection. */
export class TermHold extends LeaseHold implements Term {
  readonly failover: Term['failover']
  readonly #parts: TermParts
  readonly #session: Session | null
  readonly #unsubscribe: () => void

  /** @param session  the session that the term ends with; `null`: it ends by its ttl only. */
  constructor(parts: TermParts, grant: Grant, ttlMs: number, attempted: Stopwatch, session: Session | null) {
    super(parts.database, parts.leases, parts.renewer, grant, ttlMs, attempted)
    this.#parts = parts
    this.#session = session
    this.failover = session ? 'connection' : 'lease'
    this.#unsubscribe = parts.notifier.on(grant.name, (notification) => {
      if (!notification?.deposed || notification.leader?.token !== String(this.token)) return
      this.lose('it was asked to step down')
    })
    session?.attach(this)
  }

  protected override withinTrust(): boolean {
    return super.withinTrust() && (this.#session?.isTrusted() ?? true)
  }

  connectionLost(error: Error): void {
    this.lose('its connection is lost', error)
  }

  protected override ended(): void {
    super.ended()
    this.#unsubscribe()
    this.#session?.detach(this)
  }

  async proclaim(meta: unknown): Promise<void> {
    this.assertNotOver()
    await proclaim(this.#parts, this.name, this.token, meta)
  }

  async resign(options?: { trx?: AnyTransaction | undefined }): Promise<void> {
    try {
      await this.release(options)
    } catch (error) {
      // The lease of a term that is lost or deposed may stand for a while. Its leader has stopped: the next need not wait for the
      // rest of it.
      if (error instanceof LeaseLostError && !options?.trx) {
        await this.#parts.leases.revoke(this.name, this.token).catch(() => {})
      }
      throw error
    }
  }

  override toJSON(): Record<string, unknown> {
    const { name, holder, token, failover } = this
    return { name, holder, token: String(token), failover }
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await this.resign().catch((error) => {
      if (!(error instanceof LeaseLostError)) throw error
    })
  }
}

/** @throws {LeaseLostError} not held under this token. */
export async function proclaim(
  { database, leases }: Pick<TermParts, 'database' | 'leases'>,
  name: string,
  token: bigint,
  meta: unknown,
): Promise<void> {
  const text = metaText(meta)
  const { outcome } = await leases.retryWhileBusy(async () => {
    const [row] = await database.control<{ outcome: string }>(
      sql`select lockstep.proclaim(${ELECTIONS.prefix + name}, ${token}, ${text}::jsonb) as outcome`,
    )
    return { outcome: row?.outcome ?? 'lost' }
  })
  if (outcome === 'lost') throw new LeaseLostError(name, token, 'it expired, passed on, or is to step down')
}
