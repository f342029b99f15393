/** The options of campaigns, and the checks of them. */
import {
  checkInteger,
  checkMs,
  checkOptions,
  checkText,
  checkWord,
  freshHolder,
  type Known,
  known,
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
  ttlMs?: number | undefined
  /**
   * The identity of the candidate, 1–255 characters. Two candidates with the same holder are one: one position in the queue,
   * one term.
   * @default a fresh one for every campaign
   */
  holder?: string | undefined
  /** What observers see of the candidate and the leader: an address, a version. JSON of at most 4 KiB. @default null */
  meta?: unknown
  /** −1,000–1,000; a higher one is served first. It does not depose the leader. @default 0 */
  priority?: number | undefined
  /**
   * `connection`: the term also ends with this process's connection to the database, so that the next leader need not wait for
   * the ttl when this process dies. The next leader may then lead a little before this process notices: for fenced work only.
   * Without a direct connection it is the same as `lease`; {@link Term.failover} shows which one it is.
   * @default 'lease'
   */
  failover?: Term['failover'] | undefined
}

/** The options of {@link Leaders.campaign}. */
export interface CampaignOptions extends TryCampaignOptions {
  /** The longest wait to be elected, in milliseconds, ≥ 0. @default Infinity */
  waitMs?: number | undefined
  /** Ends the wait: the call rejects with `signal.reason`. It has no effect after the election. */
  signal?: AbortSignal | undefined
}

/** The options of {@link Leaders.lead}. */
export interface LeadOptions extends TryCampaignOptions {
  /** Ends the loop: the signal of `work` aborts, and when `work` has ended the loop ends. */
  signal?: AbortSignal | undefined
  /** The pauses between campaigns; half of each is random. @default { firstMs: 500, mostMs: 30_000 } */
  backoff?: Backoff | undefined
  /**
   * Is called with every error that `work` or a campaign throws; the loop goes on. An error that it throws ends the loop.
   * @default a warning of the process (`process.emitWarning`)
   */
  onError?: ((error: unknown) => void) | undefined
}

const TRY_NAMES = { ttlMs: true, holder: true, meta: true, priority: true, failover: true } as const
const { failover: _, ...GRANT_NAMES } = TRY_NAMES
const WAIT_NAMES = { waitMs: true, signal: true } as const
/** The names of the options, by verb. */
export const OPTIONS = {
  tryCampaign: known<TryCampaignOptions>(TRY_NAMES),
  campaign: known<CampaignOptions>({ ...TRY_NAMES, ...WAIT_NAMES }),
  lead: known<LeadOptions>({ ...TRY_NAMES, signal: true, backoff: true, onError: true }),
  backoff: known<Backoff>({ firstMs: true, mostMs: true }),
  grant: known<Omit<CampaignOptions, 'failover'>>({ ...GRANT_NAMES, ...WAIT_NAMES }),
  renew: known<{ ttlMs?: number; meta?: unknown }>({ ttlMs: true, meta: true }),
}

/** @throws {TypeError | RangeError} */
export function candidacyOf(name: string, options: TryCampaignOptions, names: Known): Candidacy {
  checkOptions(options, names)
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
