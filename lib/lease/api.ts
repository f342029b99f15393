/** What a holder gets: the public types of grants and holds. What they promise is explained in leases.ts. */
import type { Transaction } from 'kysely'
import type { LeaseLostError } from '../base/index.ts'
import type { AnyTransaction } from '../database/index.ts'

/** A lease that was granted or renewed. In JSON its token is a decimal string. */
export interface Grant {
  /** The name that is held. */
  name: string
  /** Who holds it: the `holder` of the request. */
  holder: string
  /** The fencing token: ≥ 1, larger than that of any earlier grant of this name. */
  token: bigint
  /** When it was granted, on the database's clock. */
  grantedAt: Date
  /** When it ends unless it is renewed, on the database's clock. */
  expiresAt: Date
  /** Whether this holder held it before the call: it is the same grant, renewed. */
  renewed: boolean
}

/** A lock or a term that this process holds. */
export interface Hold extends AsyncDisposable {
  /** The name that is held. */
  readonly name: string
  /** Who holds it: the `holder` of the request, or a generated one. */
  readonly holder: string
  /** The fencing token: ≥ 1, larger than that of any earlier grant of this name. Pass it to the resource that you write to. */
  readonly token: bigint
  /** `lease`: ends after its ttl unless it is renewed. `connection`: ends with this process's connection. */
  readonly kind: 'lease' | 'connection'
  /** Aborts with a {@link LeaseLostError} when the hold is lost, or its release failed; never on a release that succeeds. */
  readonly signal: AbortSignal
  /** Whether the hold may be trusted now. It compares clocks when it is called, so a timer that fires late cannot make it wrong. */
  isTrusted(): boolean
  /**
   * Fences an open transaction by this hold: from the call to the end of the transaction nobody else is granted the name.
   *
   * The transaction may then also write to fenced tables, to the rows of every hold that it asserts. In a REPEATABLE READ
   * transaction call it first, or expect 40001.
   * @throws {LeaseLostError} it is not held any more; the transaction is then aborted and cannot commit.
   * @throws {TypeError} `code` INVALID_ARGUMENT, `field` trx: it is not an open transaction.
   */
  assertHeld(trx: AnyTransaction): Promise<void>
  /**
   * Runs `work` in a transaction of Lockstep's pool, fenced by this hold. `work` must neither begin nor end it.
   * @throws {LeaseLostError} the hold is lost: before the transaction, at its commit, or while it waited for a connection. Or a
   *   fenced table needs another hold, `leaseName`; then this one is not lost.
   * @throws {UnavailableError} none of the `max` connections came free within 5 s.
   * @throws {TransactionEndedError} `work` has ended the transaction.
   * @throws the error of `work`, unchanged.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the user's tables are the user's
  transaction<T>(work: (trx: Transaction<any>) => Promise<T>): Promise<T>
  /**
   * Gives the hold up. When it resolves others can be granted the name.
   *
   * It waits for transactions that are fenced by this hold. A second call answers as the first call did.
   * @param options.trx  an open transaction: the release commits with it, or not at all.
   * @throws {LeaseLostError} the hold had been lost before.
   * @throws {UnavailableError} the database did not answer, or a fenced transaction stayed open for 10 s. The release may have
   *   taken effect: the hold is not trusted any more, and `signal` aborts; a lease ends by its ttl. It may be called again.
   */
  release(options?: { trx?: AnyTransaction | undefined }): Promise<void>
  /** For JSON.stringify: name, holder, kind, and the token as a decimal string. */
  toJSON(): Record<string, unknown>
  /** Releases the hold. It does not throw if the hold was lost: `signal` has reported that. */
  [Symbol.asyncDispose](): Promise<void>
}
