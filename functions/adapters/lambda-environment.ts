/**
 * What an execution environment of Lambda has: a Lockstep, the parts that were asked for, and the application over them.
 *
 * The variables are checked before anything is opened, so that a wrong one ends the start of the function with a sentence, and not
 * its first request. The secrets and the database are asked for at the first invocation. If one of them is away, that invocation
 * is a 503, and the next one asks again.
 */
import { createLockstep, type Lockstep, UnavailableError } from '../../lib/index.ts'
import type { TickResult } from '../../lib/task/index.ts'
import type { Ntp } from '../../lib/time/ntp/index.ts'
import { createApp } from '../app.ts'
import { type Bindings, parseKeys } from '../http/index.ts'
import { ChangingSecret, checkAddress, type Environment, readSecret } from './aws-secrets.ts'
import { report, reportLoss, type ServiceOptions, type Services, upkeep } from './cloud.ts'

export interface ExecutionOptions extends ServiceOptions {
  /** Measures true time at each tick at which that is due, with or without tasks; the function must reach NTP servers by UDP. */
  ntp?: Ntp | undefined
  /** Milliseconds after which secrets are read again: the keys, and where the database is. ≥ 0. @default 300_000 */
  keysMs?: number | undefined
}

type Answer = (request: Request, bindings?: Bindings) => Response | Promise<Response>

/** Where the database is. `secret`: absent if the environment says it. */
interface Source {
  connectionString: string
  secret?: ChangingSecret
}

export class Execution {
  readonly services: Services
  readonly #options: ExecutionOptions
  readonly #env: Environment
  readonly #secret: ChangingSecret | undefined
  #application: { keys: string | undefined; readAt: number; answer: Answer } | undefined
  // When the secret of the database was last asked for; -Infinity: a request has failed since.
  #askedAt = Date.now()

  /** @throws {Error} the secret of the database cannot be read, or holds something else. */
  static async open(options: ExecutionOptions, env: Environment): Promise<Execution> {
    const time = options.ntp ? { ntp: options.ntp } : {}
    const source = await sourceOf(env)
    const { connectionString, secret } = source
    const connection = { connectionString, ...(secret && { password: () => secret.password() }) }
    const lockstep = createLockstep({ ...connection, directConnectionString: null, shared: true, time })
    return new Execution(options, env, secret, lockstep)
  }

  private constructor(
    options: ExecutionOptions,
    env: Environment,
    secret: ChangingSecret | undefined,
    lockstep: Lockstep,
  ) {
    this.#options = options
    this.#env = env
    this.#secret = secret
    this.services = { lockstep, tasks: options.tasks?.(lockstep), events: options.events?.(lockstep) }
  }

  /**
   * Whether the secret of the database names another user or host than the one that is used here. It is read after a failure, since
   * then one of these may be why, and as often as the keys. If it cannot be read, what was said last holds.
   */
  async outdated(): Promise<boolean> {
    const { keysMs = 300_000 } = this.#options
    if (!this.#secret) return false
    const asks = Math.abs(Date.now() - this.#askedAt) >= keysMs
    if (asks) this.#askedAt = Date.now()
    try {
      return await this.#secret.moved(asks)
    } catch (error) {
      report(error)
      return false
    }
  }

  /**
   * Answers with the present keys: they are read again if that was long ago. If they cannot be read, the last ones stay. If they
   * can, and there are none, nobody has a key any more.
   * @throws {Error} there are no keys.
   */
  async answer(request: Request, bindings: Bindings): Promise<Response> {
    const { keysMs = 300_000 } = this.#options
    const last = this.#application
    if (!last || Math.abs(Date.now() - last.readAt) >= keysMs) await this.#readKeys()
    if (!this.#application) throw new UnavailableError('The keys were taken away') // meanwhile, by another request
    const response = await this.#application.answer(request, bindings)
    if (response.status === 503) this.#askedAt = -Infinity
    return response
  }

  /** Does what is due, and measures true time. @throws as {@link upkeep}. */
  async tick(budgetMs: number): Promise<Partial<TickResult>> {
    const { lockstep, tasks } = this.services
    // A tick of tasks measures by itself.
    const signal = AbortSignal.timeout(budgetMs)
    const measured = this.#options.ntp && !tasks && lockstep.time.synchronize({ signal }).catch(() => {})
    try {
      return await upkeep(this.services, budgetMs)
    } catch (error) {
      this.#askedAt = -Infinity
      throw error
    } finally {
      await measured
    }
  }

  async #readKeys(): Promise<void> {
    const last = this.#application
    if (last) last.readAt = Date.now() // others need not wait
    let text: string | undefined
    try {
      text = await keysOf(this.#env)
    } catch (error) {
      if (!last) throw error
      return report(error)
    }
    if (last && last.keys === text) return
    this.#application = undefined
    const keys = checked(text, this.#env)
    const { lockstep, tasks, events } = this.services
    const { version, keepAliveMs, maxStreams, basePath } = this.#options
    const asked = { version, keepAliveMs, maxStreams, basePath }
    const app = createApp(lockstep, { ...asked, tasks, events, keys, onError: report, onLeaseLost: reportLoss })
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
  if (!env.DATABASE_URL) checkAddress(env)
  if (!env.LOCKSTEP_API_KEYS?.trim() && !env.LOCKSTEP_API_KEYS_SECRET_ARN) {
    throw new Error(
      'LOCKSTEP_API_KEYS or LOCKSTEP_API_KEYS_SECRET_ARN must be set, for a function URL is open to the world; ' +
        'LOCKSTEP_API_KEYS=off if something else guards it',
    )
  }
  if (env.LOCKSTEP_API_KEYS !== 'off') parseKeys(env.LOCKSTEP_API_KEYS)
}

async function sourceOf(env: Environment): Promise<Source> {
  if (env.DATABASE_URL) return { connectionString: env.DATABASE_URL }
  const secret = new ChangingSecret(env.DATABASE_SECRET_ARN as string, env)
  return { connectionString: await secret.open(), secret }
}

/** The text of the keys; undefined: none are needed. @throws {UnavailableError} their secret cannot be read. */
async function keysOf(env: Environment): Promise<string | undefined> {
  if (env.LOCKSTEP_API_KEYS === 'off') return undefined
  if (env.LOCKSTEP_API_KEYS?.trim()) return env.LOCKSTEP_API_KEYS
  return readSecret(env.LOCKSTEP_API_KEYS_SECRET_ARN as string)
}

function checked(keys: string | undefined, { LOCKSTEP_API_KEYS_SECRET_ARN: arn }: Environment): string | undefined {
  if (keys === undefined) return undefined
  try {
    if (parseKeys(keys).length > 0) return keys
  } catch (cause) {
    throw new UnavailableError(`The secret ${arn} has something else than keys in it`, { cause })
  }
  throw new UnavailableError(`The secret ${arn} has no keys yet: put the value of LOCKSTEP_API_KEYS into it`)
}
