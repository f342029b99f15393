/** What a caller says of a lock that it wants, and its defaults. */
import { checkMs, checkText, freshHolder, known, LIMITS, metaText } from '../base/index.ts'
import type { GrantRequest } from '../lease/index.ts'

export interface TryOptions {
  /**
   * Hold by a lease of so many milliseconds, 1,000–3,600,000, which is renewed until its release.
   * @default a hold by this process's connection; behind a transaction pooler, a lease of 15,000
   */
  ttlMs?: number | undefined
  /**
   * The holder's identity: 1–255 characters. Two calls with the same holder are one holder: the second is granted at once what the first
   * has, with the same token and of the same kind. When one of them is released the name is free, and the other is lost. Only a
   * connection hold of another process is waited for: it belongs to that process.
   * @default a random one, so that every call competes with every other
   */
  holder?: string | undefined
  /** JSON of at most 4 KiB that `get` shows. */
  meta?: unknown
}

export interface AcquireOptions extends TryOptions {
  /** Milliseconds to wait while another holder has the name, ≥ 0. @default Infinity */
  waitMs?: number | undefined
  /** Ends the wait: the call rejects with `signal.reason`. After the grant it has no effect. */
  signal?: AbortSignal | undefined
}

export interface TransactionOptions {
  /** Milliseconds to wait while another holder has the name, or all `max` connections are in use, ≥ 0. @default Infinity */
  waitMs?: number | undefined
  /** Ends the wait: the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined
}

const TRY_NAMES = { ttlMs: true, holder: true, meta: true } as const
const WAIT_NAMES = { waitMs: true, signal: true } as const
/** The names of the options, by verb. */
export const OPTIONS = {
  tryAcquire: known<TryOptions>(TRY_NAMES),
  acquire: known<AcquireOptions>({ ...TRY_NAMES, ...WAIT_NAMES }),
  transaction: known<TransactionOptions>(WAIT_NAMES),
  renew: known<{ ttlMs?: number }>({ ttlMs: true }),
}

/** The lease that is asked for, also where a connection hold is and there can be none. @throws {TypeError | RangeError} */
export function grantRequest(name: string, options: TryOptions): GrantRequest {
  const { ttlMs = LIMITS.ttlMs.default, holder = freshHolder(), meta } = options
  checkMs('ttlMs', ttlMs, LIMITS.ttlMs)
  if (options.holder !== undefined) checkText('holder', holder)
  return { name, holder, ttlMs, meta: metaText(meta) }
}
