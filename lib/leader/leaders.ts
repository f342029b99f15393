/**
 * Leaders: one process of many leads an election, and every process can see which.
 *
 * The essay of election.ts says how a leader is elected and what is promised; term.ts is what a leader has.
 */
import { sql } from 'kysely'
import {
  type Closing,
  checkMs,
  checkOptions,
  checkText,
  checkToken,
  combineSignals,
  exact,
  LeaseHeldError,
  LIMITS,
  metaText,
  optionsAndWork,
  type Page,
  SIGNAL,
  WAIT,
  warn,
  wrongType,
} from '../base/index.ts'
import type { Database, SessionPool } from '../database/index.ts'
import { ELECTIONS, type Grant, Leases, listHeld, Renewer } from '../lease/index.ts'
import type { Candidacy } from './campaign.ts'
import { Elections } from './election.ts'
import { type LeadWork, lead } from './lead-loop.ts'
import { ElectionObservers } from './observe.ts'
import { type CampaignOptions, candidacyOf, type LeadOptions, OPTIONS, type TryCampaignOptions } from './options.ts'
import type { ElectionState, Leader, Members } from './state.ts'
import { proclaim, type Term, TermHold, type TermParts } from './term.ts'

/** The elections of a database: `lockstep.leaders`. Each name has one leader at most; a process campaigns, leads, observes. */
export class Leaders {
  readonly #database: Database
  readonly #leases: Leases
  readonly #elections: Elections
  readonly #observers: ElectionObservers
  readonly #renewer = new Renewer()
  readonly #parts: TermParts
  readonly #closing: Closing

  constructor(database: Database, sessions: SessionPool, closing: Closing) {
    this.#database = database
    this.#leases = new Leases(database, ELECTIONS)
    this.#elections = new Elections(database, sessions, this.#leases, closing)
    this.#closing = closing
    const { notifier } = this.#elections
    this.#observers = new ElectionObservers(database, notifier)
    this.#parts = { database, leases: this.#leases, renewer: this.#renewer, notifier }
  }

  /**
   * Waits until this candidate is elected. Candidates are served by priority, and within a priority in the order of arrival.
   *
   * At most one unexpired term of a name exists in the database. A leader that was paused may still run after its term has
   * passed on: guard its writes with {@link Term.assertHeld}, or compare `token`.
   *
   * @param name  the name of the election: 1–255 characters, no control characters. It excludes no lock of that name.
   * @returns the term, with a `token` greater than that of any term before it.
   * @throws {LeaseHeldError} another candidate still led after `waitMs`.
   * @throws {UnavailableError} the database cannot be reached. A candidate that is in the queue waits for the database.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   * @see etcd client/v3/concurrency/election.go · river internal/leadership/doc.go
   */
  async campaign(name: string, options: CampaignOptions = {}): Promise<Term> {
    this.#closing.check()
    const candidacy = candidacyOf(name, options, OPTIONS.campaign)
    const { waitMs = Infinity, signal } = options
    checkMs('waitMs', waitMs, WAIT)
    const term = await this.#elect(candidacy, waitMs, signal)
    if (!term) throw new LeaseHeldError(name, waitMs)
    return term
  }

  /**
   * Is elected at once or not at all: if there is no leader, and no candidate waits with this priority or a higher one.
   * @returns the term, or `null` if it was not elected.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async tryCampaign(name: string, options: TryCampaignOptions = {}): Promise<Term | null> {
    this.#closing.check()
    const candidacy = candidacyOf(name, options, OPTIONS.tryCampaign)
    return this.#elect(candidacy, 0, undefined)
  }

  /**
   * Campaigns, runs `work` while leading, and campaigns again when the term is lost, when `work` throws, or when it returns
   * (which resigns). After each it pauses, longer each time. `work` is always awaited before the next campaign, so there are
   * never two at once.
   *
   * @param work  gets the term, and a signal that aborts when the term is lost or the loop is ended.
   * @returns when `signal` has aborted, `work` has ended and the term is resigned.
   * @throws {UnavailableError} Lockstep was closed.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  lead(name: string, work: LeadWork): Promise<void>
  lead(name: string, options: LeadOptions, work: LeadWork): Promise<void>
  async lead(name: string, ...rest: unknown[]): Promise<void> {
    const [{ signal, backoff = {}, onError = warnOfFailure, ...options }, work] = optionsAndWork<LeadOptions, LeadWork>(
      rest,
      OPTIONS.lead,
    )
    candidacyOf(name, options, OPTIONS.tryCampaign)
    checkOptions(backoff, OPTIONS.backoff, 'backoff')
    if (typeof onError !== 'function') throw wrongType('onError', 'a function', onError)
    const { firstMs = 500, mostMs = 30_000 } = backoff
    checkMs('backoff.firstMs', firstMs, WAIT)
    checkMs('backoff.mostMs', mostMs, WAIT)
    const campaign = () => this.campaign(name, { ...options, ...(signal && { signal }) })
    await lead(campaign, work, { firstMs, mostMs }, signal, this.#closing.signal, onError)
  }

  /**
   * Reads the state of an election: its leader, or `null`, and the revision of its last change, by which {@link observe} orders its
   * states. It may have changed since: show it, but do not decide by it. One statement.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async get(name: string): Promise<ElectionState> {
    this.#closing.check()
    checkText('name', name)
    const { livesMs: _, ...state } = await this.#observers.read(name)
    return exact(state)
  }

  /** @deprecated since 0.7: read `leader` of {@link get}. */
  async leader(name: string): Promise<Leader | null> {
    return (await this.get(name)).leader
  }

  /** @deprecated since 0.7: it is called {@link get}. */
  state(name: string): Promise<ElectionState> {
    return this.get(name)
  }

  /**
   * Reads the leader and the candidates. Two statements at the same time.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async members(name: string): Promise<Members> {
    this.#closing.check()
    checkText('name', name)
    const [{ leader }, waiting] = await Promise.all([this.#observers.read(name), this.#observers.candidates(name)])
    return { leader, waiting }
  }

  /**
   * Yields the latest state first, then every change: elected, proclaimed, resigned, expired.
   *
   * On a direct connection each change is notified. Without one, for example behind a pooler, the state is read once a
   * second, and changes between two reads are left out. An observer that is more than 64 changes behind loses the oldest ones;
   * where more than 16 observers of this process are behind, they keep 1,024 together, so each fewer. The latest state is never
   * left out, and revisions never go back. While the database is away nothing is yielded: the last state is what is known.
   *
   * @param options.signal  ends the observation.
   * @throws the `signal`'s reason, when it aborts.
   * @throws {UnavailableError} the first read found no database, or Lockstep was closed.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  observe(
    name: string,
    options: { signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<ElectionState, never, void> {
    checkText('name', name)
    checkOptions(options, SIGNAL)
    return this.#observe(name, options.signal)
  }

  async *#observe(name: string, signal: AbortSignal | undefined): AsyncGenerator<ElectionState, never, void> {
    const stop = combineSignals(signal, this.#closing.signal)
    try {
      return yield* this.#observers.observe(name, stop.signal)
    } finally {
      stop.end()
    }
  }

  /**
   * Lists the elections that have a leader, in the order of their names' code points.
   * @param options.prefix  the beginning of their names. @default ''
   * @param options.limit   1–1,000. @default 100
   * @param options.after   the last name of the page before.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async list(options: Page = {}): Promise<(Leader & { name: string })[]> {
    this.#closing.check()
    const states = await listHeld(this.#database, options, ELECTIONS.prefix)
    // Every term is a lease, so none of these fields is null.
    return states.map(({ held: _held, kind: _kind, ...leader }) => exact(leader as Leader & { name: string }))
  }

  /**
   * Asks the leader to step down: its signal aborts, at once if a notification reaches it, otherwise at its next renewal.
   * Nobody else can lead before that. The next term begins when the leader has resigned, at the latest when its lease expires.
   * @returns whether there was a leader.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async stepDown(name: string): Promise<boolean> {
    this.#closing.check()
    checkText('name', name)
    const { outcome } = await this.#leases.retryWhileBusy(async () => {
      const [row] = await this.#database.control<{ outcome: string }>(
        sql`select lockstep.step_down(${ELECTIONS.prefix + name}) as outcome`,
      )
      return { outcome: row?.outcome ?? 'none' }
    })
    return outcome === 'asked'
  }

  // ── Stateless verbs: for a leader in another process, over HTTP ──

  /**
   * Grants a term that is not renewed automatically; waits at most `waitMs` (default 0). The same `holder` again gets the same
   * term, renewed: so a call whose response was lost can be repeated.
   * @throws {LeaseHeldError | UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async grant(name: string, options: Omit<CampaignOptions, 'failover'> = {}): Promise<Grant> {
    this.#closing.check()
    const candidacy = candidacyOf(name, options, OPTIONS.grant)
    const { waitMs = 0, signal } = options
    checkMs('waitMs', waitMs, WAIT)
    const elected = await this.#elections.campaign(candidacy, waitMs, signal)
    if (elected) return elected.grant
    const { livesMs } = await this.#observers.read(name)
    throw new LeaseHeldError(name, waitMs, livesMs ?? undefined)
  }

  /**
   * Renews a term: it lasts `ttlMs` (default: as before) from now. With `meta`, it also changes what observers see.
   * @throws {LeaseLostError} not held under this token, or asked to step down.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async renew(
    name: string,
    token: bigint,
    options: { ttlMs?: number | undefined; meta?: unknown } = {},
  ): Promise<Grant> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    checkOptions(options, OPTIONS.renew)
    const { ttlMs, meta } = options
    if (ttlMs !== undefined) checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
    metaText(meta)
    const grant = await this.#leases.renew(name, token, ttlMs ?? null)
    if (meta !== undefined) await proclaim(this.#parts, name, token, meta)
    return grant
  }

  /**
   * Ends the term that is held under this token.
   * @throws {LeaseLostError} not held under it, or no longer.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async revoke(name: string, token: bigint): Promise<void> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    return this.#leases.revoke(name, token)
  }

  /** Part of `lockstep.close()`: resigns the terms of this process, as far as that is done when `late` resolves. */
  async close(late: Promise<void>): Promise<void> {
    this.#closing.close()
    await Promise.all([this.#elections.close(late), this.#renewer.close(late)])
  }

  async #elect(candidacy: Candidacy, waitMs: number, signal: AbortSignal | undefined): Promise<Term | null> {
    const elected = await this.#elections.campaign(candidacy, waitMs, signal)
    if (!elected) return null
    const { grant, attempted, session } = elected
    const lead = () => new TermHold(this.#parts, grant, candidacy.ttlMs, attempted, session)
    const term = await this.#leases.held(grant, lead)
    if (!term) return this.#elect(candidacy, waitMs, signal) // it was this holder's already, which has just resigned
    if (!this.#closing.closed) return term
    void term.release().catch(() => {})
    throw this.#closing.signal.reason
  }
}

const warnOfFailure = (error: unknown) => warn("A leader's work failed", error)
