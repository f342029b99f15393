/**
 * Leaders: one of many is in charge of a name, and everybody may know who.
 *
 * How one is elected and what is promised is told in election.ts; what a leader has in its hands, in term.ts.
 */
import { sql } from 'kysely'
import {
  type Closing,
  checkInteger,
  checkMs,
  checkOptions,
  checkText,
  checkToken,
  checkWord,
  combineSignals,
  freshHolder,
  LeaseHeldError,
  LIMITS,
  metaText,
  optionsAndWork,
  WAIT,
  warn,
  wrongType,
} from '../base/index.ts'
import type { Database, SessionPool } from '../database/index.ts'
import { ELECTIONS, type Grant, Leases, listHeld, Renewer } from '../lease/index.ts'
import type { Candidacy } from './campaign.ts'
import { type Elected, Elections } from './election.ts'
import { type Backoff, type LeadWork, lead } from './lead-loop.ts'
import { type Candidate, type ElectionState, type Leader, Watches } from './observe.ts'
import { proclaim, type Term, TermHold, type TermParts } from './term.ts'

export interface TryCampaignOptions {
  /**
   * The term ends after so many milliseconds, 1,000–3,600,000, unless it is renewed, which happens by itself.
   * @default 15_000
   */
  ttlMs?: number
  /**
   * Who wants to lead: 1–255 characters. Two candidates with the same holder are one: one place in line, one term.
   * @default a fresh one for every campaign
   */
  holder?: string
  /** What observers shall see: an address, a version. JSON of at most 4 KiB. */
  meta?: unknown
  /** The higher comes first, −1,000–1,000. It does not depose who leads. @default 0 */
  priority?: number
  /**
   * `connection`: the term also ends with this process's connection to the database, so that the next leader need not wait
   * for the ttl when this process dies. Then it may lead a moment before this process has noticed: for fenced work only.
   * Where there is no direct connection it is as `lease`; `term.failover` tells.
   * @default 'lease'
   */
  failover?: Term['failover']
}

export interface CampaignOptions extends TryCampaignOptions {
  /** Milliseconds to wait to be elected, ≥ 0. @default Infinity */
  waitMs?: number
  /** Ends the wait: the call rejects with `signal.reason`. After the election it means nothing. */
  signal?: AbortSignal
}

export interface LeadOptions extends TryCampaignOptions {
  /** Ends the loop: `work` is told by its signal, and when it has ended the loop does. */
  signal?: AbortSignal
  /** How long to wait before campaigning again, half of it at random. */
  backoff?: Backoff
  /**
   * Hears of every error that `work` or a campaign ended in; the loop goes on. What it throws ends the loop.
   * @default a warning of the process (`process.emitWarning`)
   */
  onError?: (error: unknown) => void
}

/** Who leads and who waits, as of a moment ago. */
export interface Members {
  leader: Leader | null
  /** In the order of their turns. */
  waiting: Candidate[]
}

export class Leaders {
  readonly #database: Database
  readonly #leases: Leases
  readonly #elections: Elections
  readonly #watches: Watches
  readonly #renewer = new Renewer()
  readonly #parts: TermParts
  readonly #closing: Closing

  constructor(database: Database, sessions: SessionPool, closing: Closing) {
    this.#database = database
    this.#leases = new Leases(database, ELECTIONS)
    this.#elections = new Elections(database, sessions, this.#leases, closing)
    this.#closing = closing
    const { news } = this.#elections
    this.#watches = new Watches(database, news)
    this.#parts = { database, leases: this.#leases, renewer: this.#renewer, news }
  }

  /**
   * Waits until it is elected: in the order of priority, and within a priority of arrival.
   *
   * At most one term of a name stands in the database. A leader that was paused may still run after its term passed on:
   * guard what it writes with {@link Term.assertHeld}, or compare `token`.
   *
   * @param name  of the election: 1–255 characters, no control characters. It excludes no lock of that name.
   * @returns the term, with a `token` greater than that of any term before it.
   * @throws {LeaseHeldError} somebody else still led after `waitMs`.
   * @throws {UnavailableError} the database cannot be reached. Once in line, the database is waited for.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   * @see etcd client/v3/concurrency/election.go · river internal/leadership/doc.go
   */
  async campaign(name: string, options: CampaignOptions = {}): Promise<Term> {
    this.#closing.check()
    const candidacy = request(name, options)
    const { waitMs = Infinity, signal } = options
    checkMs('waitMs', waitMs, WAIT)
    const elected = await this.#elections.campaign(candidacy, waitMs, signal)
    if (!elected) throw new LeaseHeldError(name, waitMs)
    return this.#term(elected, candidacy)
  }

  /**
   * Leads if nobody does and nobody waits with this priority or a higher one.
   * @returns the term, or `null`: an expected refusal is an answer.
   * @throws {UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async tryCampaign(name: string, options: TryCampaignOptions = {}): Promise<Term | null> {
    this.#closing.check()
    const candidacy = request(name, options)
    const elected = await this.#elections.campaign(candidacy, 0, undefined)
    return elected && this.#term(elected, candidacy)
  }

  /**
   * Campaigns, works while it leads, and campaigns again: when the term is lost, when `work` throws, when it returns
   * (which resigns). After each it waits a little, and longer each time. `work` is always awaited before the next
   * campaign, so there are never two at once.
   *
   * @returns when `signal` has aborted, `work` has ended and the term is given up.
   * @throws {UnavailableError} Lockstep was closed.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  lead(name: string, work: LeadWork): Promise<void>
  lead(name: string, options: LeadOptions, work: LeadWork): Promise<void>
  async lead(name: string, ...rest: unknown[]): Promise<void> {
    const [{ signal, backoff = {}, onError = warnOfWork, ...options }, work] = optionsAndWork<LeadOptions, LeadWork>(
      rest,
    )
    request(name, options)
    checkOptions(backoff, 'backoff')
    if (typeof onError !== 'function') throw wrongType('onError', 'a function', onError)
    const { firstMs = 500, mostMs = 30_000 } = backoff
    checkMs('backoff.firstMs', firstMs, WAIT)
    checkMs('backoff.mostMs', mostMs, WAIT)
    const campaign = () => this.campaign(name, { ...options, ...(signal && { signal }) })
    await lead(campaign, work, { firstMs, mostMs }, signal, this.#closing.signal, onError)
  }

  /** Who leads, as of a moment ago: to look at, never to decide by. One statement. */
  async leader(name: string): Promise<Leader | null> {
    return (await this.state(name)).leader
  }

  /** As {@link leader}, with the revision that {@link observe} counts by. */
  async state(name: string): Promise<ElectionState> {
    this.#closing.check()
    checkText('name', name)
    const { livesMs: _, ...state } = await this.#watches.look(name)
    return state
  }

  /** Who leads and who waits. Two statements, side by side. */
  async members(name: string): Promise<Members> {
    this.#closing.check()
    checkText('name', name)
    const [{ leader }, waiting] = await Promise.all([this.#watches.look(name), this.#watches.candidates(name)])
    return { leader, waiting }
  }

  /**
   * The latest state first, then every change: elected, proclaimed, resigned, run out.
   *
   * On a direct connection each change is told; behind a pooler, or while the database is away, only what is found when it
   * is asked again (once a second), so changes that were overtaken are left out. The same for an observer that is more than
   * 64 changes behind; fewer, where more than 16 observers of this process are behind: they keep 1,024 together. Never left out is the latest, and revisions never go back. While the database is away nothing is
   * told: the last state is what was known.
   *
   * @throws the `signal`'s reason, when it aborts.
   * @throws {UnavailableError} the database could not be asked to begin with, or Lockstep was closed.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  observe(name: string, options: { signal?: AbortSignal } = {}): AsyncGenerator<ElectionState, never, void> {
    checkText('name', name)
    checkOptions(options)
    return this.#observe(name, options.signal)
  }

  async *#observe(name: string, signal: AbortSignal | undefined): AsyncGenerator<ElectionState, never, void> {
    const stop = combineSignals(signal, this.#closing.signal)
    try {
      return yield* this.#watches.observe(name, stop.signal)
    } finally {
      stop.end()
    }
  }

  /**
   * Elections that have a leader, in the order of their names' code points.
   * @param options.limit  1–1,000. @default 100
   * @param options.after  the last name of the page before.
   */
  async list(
    options: { prefix?: string; limit?: number; after?: string } = {},
  ): Promise<(Leader & { name: string })[]> {
    this.#closing.check()
    const states = await listHeld(this.#database, options, ELECTIONS.prefix)
    // Only leases are terms, so that nothing of these is null.
    return states.map(({ held: _held, kind: _kind, ...leader }) => leader as Leader & { name: string })
  }

  /**
   * Asks whoever leads to step down: its signal aborts, at once where it hears of it and else at its next renewal. Nobody
   * can lead before that; the next one does when the leader has resigned, at the latest when its lease runs out.
   * @returns whether somebody led.
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

  // ── The verbs without memory: for a leader that lives elsewhere, over HTTP ──

  /**
   * Grants a term that nobody renews by itself; waits at most `waitMs` (default 0). The same `holder` again gets the same
   * term, renewed: so a call whose answer was lost can be made again.
   * @throws {LeaseHeldError | UnavailableError | TypeError | RangeError} as {@link campaign}.
   */
  async grant(name: string, options: Omit<CampaignOptions, 'failover'> = {}): Promise<Grant> {
    this.#closing.check()
    const candidacy = request(name, options)
    const { waitMs = 0, signal } = options
    checkMs('waitMs', waitMs, WAIT)
    const elected = await this.#elections.campaign(candidacy, waitMs, signal)
    if (elected) return elected.grant
    const { livesMs } = await this.#watches.look(name)
    throw new LeaseHeldError(name, waitMs, livesMs ?? undefined)
  }

  /**
   * Makes a term last `ttlMs` (default: as before) from now; with `meta`, changes what observers see.
   * @throws {LeaseLostError} not held under this token, or asked to step down.
   */
  async renew(name: string, token: bigint, options: { ttlMs?: number; meta?: unknown } = {}): Promise<Grant> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    checkOptions(options)
    const { ttlMs, meta } = options
    if (ttlMs !== undefined) checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
    metaText(meta)
    const grant = await this.#leases.renew(name, token, ttlMs ?? null)
    if (meta !== undefined) await proclaim(this.#parts, name, token, meta)
    return grant
  }

  /** Ends a term held under this token. @throws {LeaseLostError} not held under it, or no longer. */
  async revoke(name: string, token: bigint): Promise<void> {
    this.#closing.check()
    checkText('name', name)
    checkToken(token)
    return this.#leases.revoke(name, token)
  }

  /** A part of `lockstep.close()`: resigns what this process leads, as far as that is done when `late` resolves. */
  async close(late: Promise<void>): Promise<void> {
    this.#closing.close()
    await Promise.all([this.#elections.close(late), this.#renewer.close(late)])
  }

  #term({ grant, attempted, session }: Elected, { ttlMs }: Candidacy): Term {
    const term = new TermHold(this.#parts, grant, ttlMs, attempted, session)
    if (!this.#closing.closed) return term
    void term.release().catch(() => {})
    throw this.#closing.signal.reason
  }
}

function request(name: string, options: TryCampaignOptions): Candidacy {
  checkOptions(options)
  const { ttlMs = LIMITS.ttlMs.default, priority = LIMITS.priority.default, failover = 'lease', meta } = options
  const { holder = freshHolder() } = options
  checkText('name', name)
  checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
  checkText('holder', holder)
  checkInteger('priority', priority, LIMITS.priority)
  checkWord('failover', failover, ['lease', 'connection'])
  metaText(meta)
  return { name, holder, ttlMs, meta, priority, failover: failover === 'connection' }
}

const warnOfWork = (error: unknown) => warn("A leader's work failed", error)
