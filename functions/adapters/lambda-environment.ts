/**
 * What an execution environment of Lambda has: a Lockstep, the parts that were asked for, and the application over them.
 *
 * The variables are checked before anything is opened, so that a wrong one ends the start of the function with a sentence, and not
 * its first request. The secrets and the database are asked for at the first invocation. If one of them is away, that invocation
 * is a 503, and the next one asks again.
 */
import { createLockstep, type Lockstep, UnavailableError } from '../../lib/index.ts'
import type { Ntp } from '../../lib/time/ntp/index.ts'
import { createApp } from '../app.ts'
import { type Bindings, parseKeys } from '../http/index.ts'
import { addressOf, type Environment, readDatabaseSecret, readSecret } from './aws-secrets.ts'
import { report, reportLoss, type ServiceOptions, type Services } from './cloud.ts'

export interface ExecutionOptions extends ServiceOptions {
  /** Measures true time at each tick; the function must reach NTP servers by UDP. */
  ntp?: Ntp
  /** Milliseconds after which keys are read again from their secret, ≥ 0. @default 300_000 */
  keysMs?: number
}

type Answer = (request: Request, bindings?: Bindings) => Response | Promise<Response>

export class Execution {
  readonly services: Services
  readonly #options: ExecutionOptions
  readonly #env: Environment
  #application: { keys: string | undefined; readAt: number; answer: Answer } | undefined

  /** @throws {Error} the secret of the database cannot be read, or holds something else. */
  static async open(options: ExecutionOptions, env: Environment): Promise<Execution> {
    const time = options.ntp ? { ntp: options.ntp } : {}
    const connection = await connectionOf(env)
    const lockstep = createLockstep({ ...connection, directConnectionString: null, shared: true, time })
    return new Execution(options, env, lockstep)
  }

  private constructor(options: ExecutionOptions, env: Environment, lockstep: Lockstep) {
    this.#options = options
    this.#env = env
    this.services = { lockstep, tasks: options.tasks?.(lockstep), events: options.events?.(lockstep) }
  }

  /**
   * Answers with the present keys: they are read again if that was long ago. If they cannot be read, the last ones stay.
   * @throws {Error} there are no keys yet.
   */
  async answer(request: Request, bindings: Bindings): Promise<Response> {
    const { keysMs = 300_000 } = this.#options
    const last = this.#application
    if (!last || Math.abs(Date.now() - last.readAt) >= keysMs) {
      if (last) last.readAt = Date.now()
      await this.#readKeys().catch((error) => {
        if (!last) throw error
        report(error)
      })
    }
    return (this.#application as { answer: Answer }).answer(request, bindings)
  }

  async #readKeys(): Promise<void> {
    const keys = await keysOf(this.#env)
    if (this.#application && this.#application.keys === keys) return
    const { lockstep, tasks, events } = this.services
    const { tasks: _, events: __, ...rest } = this.#options
    const services = { ...(tasks && { tasks }), ...(events && { events }) }
    const app = createApp(lockstep, { ...rest, ...services, keys, onError: report, onLeaseLost: reportLoss })
    this.#application = { keys, readAt: Date.now(), answer: (request, bindings) => app.fetch(request, bindings) }
  }

  close(): Promise<void> {
    return this.services.lockstep.close()
  }
}

/** @throws {Error} in one sentence: a variable is missing, or cannot be read. */
export function checkEnvironment(env: Environment): void {
  if (!env.DATABASE_URL && !env.DATABASE_SECRET_ARN) {
    throw new Error('DATABASE_URL or DATABASE_SECRET_ARN must be set: where the database is')
  }
  if (!env.LOCKSTEP_API_KEYS?.trim() && !env.LOCKSTEP_API_KEYS_SECRET_ARN) {
    throw new Error(
      'LOCKSTEP_API_KEYS or LOCKSTEP_API_KEYS_SECRET_ARN must be set, for a function URL is open to the world; ' +
        'LOCKSTEP_API_KEYS=off if something else guards it',
    )
  }
  if (env.LOCKSTEP_API_KEYS !== 'off') parseKeys(env.LOCKSTEP_API_KEYS)
}

async function connectionOf(env: Environment) {
  if (env.DATABASE_URL) return { connectionString: env.DATABASE_URL }
  const arn = env.DATABASE_SECRET_ARN as string
  let secret = readDatabaseSecret(arn)
  const connectionString = addressOf(await secret, env)
  let fresh = true // the first connection uses the password that was just read
  const password = async () => {
    if (!fresh) secret = readDatabaseSecret(arn)
    fresh = false
    return (await secret).password
  }
  return { connectionString, password }
}

async function keysOf(env: Environment): Promise<string | undefined> {
  if (env.LOCKSTEP_API_KEYS === 'off') return undefined
  if (env.LOCKSTEP_API_KEYS?.trim()) return env.LOCKSTEP_API_KEYS
  const arn = env.LOCKSTEP_API_KEYS_SECRET_ARN as string
  const keys = await readSecret(arn)
  try {
    if (parseKeys(keys).length > 0) return keys
  } catch (cause) {
    throw new UnavailableError(`The secret ${arn} has something else than keys in it`, { cause })
  }
  throw new UnavailableError(`The secret ${arn} has no keys yet: put the value of LOCKSTEP_API_KEYS into it`)
}
