/** How a Lockstep connects: its options, their checks and their defaults. */
import { outOfRange, wrongType } from '../base/index.ts'
import { checkedConnectionString } from './connection-string.ts'

/** How to reach the database, and with how many connections. */
export interface ConnectOptions {
  /**
   * `postgres://user:password@host:port/database?…`, direct or through a transaction pooler. Special characters are percent-encoded
   * (`#` as `%23`). One host. `sslmode=prefer`, `require` and `verify-ca` mean the same as `verify-full`.
   */
  connectionString: string
  /**
   * A connection string that goes around the pooler, for session locks and LISTEN. `null`: never try one (a Lambda, a Worker).
   * @default connectionString
   */
  directConnectionString?: string | null | undefined
  /** Connections for your own transactions, an integer ≥ 1. @default 10 */
  max?: number | undefined
  /** Connections that may wait in the database's lock queues, an integer ≥ 0. A caller without one polls instead. @default 8 */
  maxWaiting?: number | undefined
  /**
   * Called at each new connection for its password, instead of the one in `connectionString`: for a secret that rotates, or an IAM
   * token.
   * @default the password in connectionString
   */
  password?: (() => string | Promise<string>) | undefined
  /**
   * Whether all statements of this process share one pool. Then they need only one connection while they run one after another:
   * for a Lambda or a Worker, where each process serves one request. `max` and the limits of the rooms stay as they are.
   * @default false: separate pools
   */
  shared?: boolean | undefined
  /**
   * Whether every statement that reads calls a volatile function, so that no proxy answers it from a cache (Cloudflare's Hyperdrive).
   * @default false
   */
  volatile?: boolean | undefined
  /**
   * The `application_name` in pg_stat_activity, and the `holder` that `get` shows for a connection hold in its first 250 ms.
   * @default 'lockstep'
   */
  applicationName?: string | undefined
}

/**
 * Checks the options that could be wrong, and fills in their defaults.
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function checkedConnectOptions(options: ConnectOptions) {
  if (typeof options !== 'object' || options === null) throw wrongType('options', 'an object', options)
  const { directConnectionString: direct, max = 10, maxWaiting = 8 } = options
  const connectionString = checkedConnectionString('connectionString', options.connectionString)
  const directConnectionString =
    direct === null ? null : checkedConnectionString('directConnectionString', direct ?? connectionString)
  for (const [field, value, min] of [
    ['max', max, 1],
    ['maxWaiting', maxWaiting, 0],
  ] as const) {
    if (!Number.isInteger(value) || value < min) throw outOfRange(field, `an integer ≥ ${min}`, value)
  }
  return { connectionString, directConnectionString, max, maxWaiting }
}
