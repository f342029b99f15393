/** The options of campaigns, and the checks of them. */
import {
  checkInteger,
  checkMs,
  checkOptions,
  checkText,
  checkWord,
  freshHolder,
  LIMITS,
  metaText,
} from '../base/index.ts'
import type { Candidacy } from './campaign.ts'
import type { Backoff } from './lead-loop.ts'
import type { Term } from './term.ts'

/** The options of {@link Leaders.tryCampaign}. */
export interface TryCampaignOptions {
  /**
   * The length of the term's lease in milliseconds, 1,000–3,600,000. It is renewed automatically, until the term is resigned
   * or lost.
   * @default 15_000
   */
  ttlMs?: number
  /**
   * The identity of the candidate, 1–255 characters. Two candidates with the same holder are one: one position in the queue,
   * one term.
   * @default a fresh one for every campaign
   */
  holder?: string
  /** What observers see of the candidate and the leader: an address, a version. JSON of at most 4 KiB. @default null */
  meta?: unknown
  /** −1,000–1,000; a higher one is served first. It does not depose the leader. @default 0 */
  priority?: number
  /**
   * `connection`: the term also ends with this process's connection to the database, so that the next leader need not wait for
   * the ttl when this process dies. The next leader may then lead a little before this process notices: for fenced work only.
   * Without a direct connection it is the same as `lease`; {@link Term.failover} shows which one it is.
   * @default 'lease'
   */
  failover?: Term['failover']
}

/** The options of {@link Leaders.campaign}. */
export interface CampaignOptions extends TryCampaignOptions {
  /** The longest wait to be elected, in milliseconds, ≥ 0. @default Infinity */
  waitMs?: number
  /** Ends the wait: the call rejects with `signal.reason`. It has no effect after the election. */
  signal?: AbortSignal
}

/** The options of {@link Leaders.lead}. */
export interface LeadOptions extends TryCampaignOptions {
  /** Ends the loop: the signal of `work` aborts, and when `work` has ended the loop ends. */
  signal?: AbortSignal
  /** The pauses between campaigns; half of each is random. @default { firstMs: 500, mostMs: 30_000 } */
  backoff?: Backoff
  /**
   * Is called with every error that `work` or a campaign throws; the loop goes on. An error that it throws ends the loop.
   * @default a warning of the process (`process.emitWarning`)
   */
  onError?: (error: unknown) => void
}

/** @throws {TypeError | RangeError} */
export function candidacyOf(name: string, options: TryCampaignOptions): Candidacy {
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
