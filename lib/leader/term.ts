/**
 * A term: the lease of who leads, and how a leader changes what others see of it or gives it up.
 */
import { sql, type Transaction } from 'kysely'
import type { Stopwatch } from '../base/index.ts'
import { LeaseLostError, metaText } from '../base/index.ts'
import type { AnyTransaction, Database, Session } from '../database/index.ts'
import { ELECTIONS, type Grant, LeaseHold, type Leases, type Renewer } from '../lease/index.ts'
import type { ElectionNotifier } from './notifications.ts'

/** What a leader has. */
export interface Term extends AsyncDisposable {
  /** Of the election. */
  readonly name: string
  readonly holder: string
  /** The fencing token: ≥ 1, larger than that of any earlier term of this election. Give it to what you write to. */
  readonly token: bigint
  /** `lease`: the next leader waits for the ttl when this process dies. `connection`: it takes over at once. */
  readonly failover: 'lease' | 'connection'
  /**
   * Aborts with a {@link LeaseLostError} when the term is lost, or its leader is asked to step down: before anybody else
   * can lead. Never on resignation.
   */
  readonly signal: AbortSignal
  /** Whether the term may be believed now: compares clocks when called, so a late timer cannot lie. */
  isTrusted(): boolean
  /**
   * Fences an open transaction: from here to its end nobody else can lead. Also lets it write to fenced tables; several
   * terms and holds may be asserted in one transaction.
   * @throws {LeaseLostError} the term is over; the transaction is then aborted and cannot commit.
   * @throws {TypeError} `code` INVALID_ARGUMENT, `field` trx: it is no open transaction.
   */
  assertHeld(trx: AnyTransaction): Promise<void>
  /**
   * Runs `work` in a transaction of Lockstep's pool, fenced by this term; `work` neither begins nor ends it.
   * @throws {LeaseLostError} it is lost: before, at the commit, or while a connection was waited for; or a fenced table needs
   * another hold, whose name is `leaseName`.
   * @throws {UnavailableError} none of the `max` connections came free within 5 s.
   * @throws {TransactionEndedError} `work` has ended the transaction. And what `work` throws, as it is.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T>
  /**
   * Changes what observers see of this leader.
   * @param meta  JSON of at most 4 KiB.
   * @throws {LeaseLostError | UnavailableError | TypeError | RangeError}
   */
  proclaim(meta: unknown): Promise<void>
  /**
   * Gives the term up; the next leader is elected at once. Waits for the term's own fenced transactions. With `trx`: the
   * resignation commits with that transaction, or not at all. Calling it again answers as the first call did.
   * @throws {LeaseLostError} it had been lost before; a successor's term is not touched.
   * @throws {UnavailableError} the database could not be told: the term ends by its ttl.
   */
  resign(options?: { trx?: AnyTransaction }): Promise<void>
  /** Resigns, and is silent if the term was lost: `signal` has said so. */
  [Symbol.asyncDispose](): Promise<void>
}

export interface TermParts {
  database: Database
  leases: Leases
  renewer: Renewer
  news: ElectionNotifier
}

/** A term, kept by renewals, and by its process's connection too if the next leader shall not wait for the ttl. */
export class TermHold extends LeaseHold implements Term {
  readonly failover: Term['failover']
  readonly #parts: TermParts
  readonly #session: Session | null
  readonly #unsubscribe: () => void

  /** @param session  the term ends with it; `null`: by its ttl only. */
  constructor(parts: TermParts, grant: Grant, ttlMs: number, attempted: Stopwatch, session: Session | null) {
    super(parts.database, parts.leases, parts.renewer, grant, ttlMs, attempted)
    this.#parts = parts
    this.#session = session
    this.failover = session ? 'connection' : 'lease'
    this.#unsubscribe = parts.news.on(grant.name, (told) => {
      if (told?.deposed && told.leader?.token === String(this.token)) this.lose('it was asked to step down')
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

  async resign(options?: { trx?: AnyTransaction }): Promise<void> {
    try {
      await this.release(options)
    } catch (error) {
      // Lost or deposed, its lease may stand for a while. Its leader has stopped: nobody need wait for the rest of it.
      if (error instanceof LeaseLostError && !options?.trx) {
        await this.#parts.leases.revoke(this.name, this.token).catch(() => {})
      }
      throw error
    }
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
