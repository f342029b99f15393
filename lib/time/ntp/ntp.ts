/**
 * True time from NTP servers: several are asked at once, and vote.
 *
 * A server's answer is an interval that true time lies in, if the server is as good as it says. Each server's answers are
 * remembered, and intersected with the next, so the interval shrinks to that of its quickest answer. Then they
 * vote: with n servers of which at most f = ⌊(n−1)/2⌋ are wrong, true time lies in the hull of what n − f of them agree on
 * (time/interval.ts). A server that says nothing counts as one that is wrong, since f is of those that are *configured*: else
 * an attacker need only keep the honest ones silent. Who stands outside of the result is a falseticker, and is named.
 *
 * Three servers are the fewest that can outvote one. The same server under two names has one vote.
 *
 * A server that asks not to be asked (a Kiss-o'-death) is not, for an hour.
 *
 * @see RFC 5905 §11.2.1; RFC 8633 §3.2 (how many servers); RFC 4330 §8 (Kiss-o'-death)
 */
import { lookup } from 'node:dns/promises'
import { isIP, SocketAddress } from 'node:net'
import { abortable, checkInteger, checkOptions, outOfRange, UnavailableError, wrongType } from '../../base/index.ts'
import { agree, type Interval, Offset, PAD_US, widened, width, within } from '../interval.ts'
import { LOCAL_DRIFT } from '../tolerances.ts'
import { type Address, exchange } from './exchange.ts'
import { offsetOf } from './packet.ts'

/**
 * Public servers of five institutions in five countries: any two may be away, or wrong. For a service of your own take
 * servers near to it (on AWS 169.254.169.123 among them), and do not mix those that smear leap seconds with those that do not.
 */
export const NTP_SERVERS: readonly string[] = [
  'time.cloudflare.com',
  'time.nist.gov',
  'ptbtime1.ptb.de',
  'ntp.se',
  'ntp.nict.jp',
]

export interface NtpOptions {
  /** `host` or `host:port`, an IPv6 address with a port as `[::1]:123`; 3–16 different ones. @default NTP_SERVERS */
  servers?: readonly string[]
  /** For an answer, its name's lookup included: 100–10,000. @default 1_000 */
  timeoutMs?: number
}

/** What one server said. */
export interface ServerReport {
  server: string
  /** Why it gave no time; null: it did. */
  problem: string | null
  /** Microseconds. */
  rttUs?: number
  /** How far it may be from true time, by its own account. Microseconds. */
  distanceUs?: number
  stratum?: number
}

/** True time minus this process's monotonic clock (`performance.now() * 1000`), in microseconds. */
export interface Measurement extends Interval {
  /** When it holds, on that clock. */
  at: number
  /** The likeliest, in between. */
  guess: number
  /** Who is outside of it, as configured. */
  falsetickers: string[]
  /** One for each that is configured, in order. */
  servers: ServerReport[]
}

export interface Ntp {
  readonly servers: readonly string[]
  /**
   * Asks all servers at once, and lets them vote.
   *
   * @param options.near  microseconds since 1970, roughly now: it chooses among NTP's eras. @default the wall clock
   * @throws {UnavailableError} too few gave a time, or they do not agree: each is named, with the reason.
   */
  measure(options?: { near?: number; signal?: AbortSignal }): Promise<Measurement>
  /** Forgets earlier answers: our clock was found to have stood still. */
  forget(): void
}

const KISSED_MS = 3_600_000

/** @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field` servers or timeoutMs. */
export function ntp(options: NtpOptions = {}): Ntp {
  checkOptions(options)
  const { servers = NTP_SERVERS, timeoutMs = 1_000 } = options
  const expected = "3–16 different servers, each like 'time.example.com' or '10.0.0.1:123'"
  checkInteger('timeoutMs', timeoutMs, { min: 100, max: 10_000 })
  if (!Array.isArray(servers)) throw wrongType('servers', expected, servers)
  if (servers.length < 3 || servers.length > 16) {
    throw outOfRange('servers', expected, `${servers.length} of them`)
  }
  const places = servers.map((server) => placeOf(server, expected))
  const keys = places.map(({ host, port }) => `${host.toLowerCase().replace(/\.$/, '')} ${port}`)
  const twice = servers.find((_, i) => keys.indexOf(keys[i] as string) < i)
  if (twice !== undefined) throw outOfRange('servers', expected, `${twice} twice`)
  return new Servers(servers, places, timeoutMs)
}

interface Place {
  host: string
  port: number
}

interface Seen extends ServerReport {
  known: Interval
  guess: number
}

class Servers implements Ntp {
  readonly servers: readonly string[]
  readonly #places: Place[]
  readonly #timeoutMs: number
  readonly #offsets: Offset[]
  readonly #askAgainAt: number[]

  constructor(servers: readonly string[], places: Place[], timeoutMs: number) {
    this.servers = [...servers]
    this.#places = places
    this.#timeoutMs = timeoutMs
    this.#offsets = servers.map(() => new Offset(LOCAL_DRIFT))
    this.#askAgainAt = servers.map(() => -Infinity)
  }

  async measure({ near = Date.now() * 1_000, signal }: { near?: number; signal?: AbortSignal } = {}) {
    signal?.throwIfAborted()
    const ended = new AbortController()
    const late = setTimeout(() => ended.abort(new Error('timeout')), this.#timeoutMs)
    const aborted = () => ended.abort(signal?.reason)
    signal?.addEventListener('abort', aborted)
    try {
      const asked = new Map<string, string>()
      const answers = await Promise.all(this.servers.map((_, i) => this.#ask(i, near, asked, ended.signal)))
      signal?.throwIfAborted()
      return this.#vote(answers)
    } finally {
      clearTimeout(late)
      signal?.removeEventListener('abort', aborted)
    }
  }

  forget(): void {
    for (const offset of this.#offsets) offset.forget()
  }

  async #ask(i: number, near: number, asked: Map<string, string>, signal: AbortSignal): Promise<Seen | ServerReport> {
    const server = this.servers[i] as string
    const wait = (this.#askAgainAt[i] as number) - performance.now()
    if (wait > 0) return { server, problem: `not asked for another ${Math.ceil(wait / 60_000)} min, as it wished` }
    try {
      const to = await addressOf(this.#places[i] as Place, signal)
      const same = asked.get(`${to.address} ${to.port}`)
      if (same !== undefined) return { server, problem: `the same server as ${same}` }
      asked.set(`${to.address} ${to.port}`, server)
      const answer = await exchange(to, near, signal)
      const { before, after, received, sent, distance, stratum } = answer
      const offset = this.#offsets[i] as Offset
      const guess = (sent - after + (received - before)) / 2
      offset.learn(widened(offsetOf(answer, before, after), PAD_US + LOCAL_DRIFT * (after - before)), after, guess)
      const rttUs = Math.round(after - before - (sent - received))
      const known = offset.at(after)
      return {
        server,
        problem: null,
        rttUs,
        distanceUs: Math.round(distance),
        stratum,
        known,
        guess: offset.guess(after),
      }
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error) // an abort's reason is anything
      if (problem.startsWith('KoD')) this.#askAgainAt[i] = performance.now() + KISSED_MS
      return { server, problem }
    }
  }

  #vote(answers: (Seen | ServerReport)[]): Measurement {
    const n = this.servers.length
    const need = n - Math.floor((n - 1) / 2)
    const at = performance.now() * 1_000
    const seen = answers.flatMap((answer) => {
      if (!('known' in answer)) return []
      const offset = this.#offsets[this.servers.indexOf(answer.server)] as Offset
      return [{ ...answer, known: offset.at(at), guess: offset.guess(at) }]
    })
    const silent = answers.filter(({ problem }) => problem !== null)
    if (seen.length < need) {
      const whys = silent.map(({ server, problem }) => `${server}: ${problem}`)
      throw new UnavailableError(
        `Only ${seen.length} of ${n} NTP servers gave a time, and ${need} must: ${whys.join('; ')}`,
      )
    }
    const result = agree(
      seen.map(({ known }) => known),
      need,
    )
    if (!result) {
      const said = seen.map(({ server, known }) => `${server}: ${new Date((at + known.lo) / 1_000).toISOString()}`)
      throw new UnavailableError(`Of ${n} NTP servers no ${need} agree: ${said.join('; ')}`)
    }
    const { lo, hi } = result
    const agreeing = seen.filter((_, i) => result.with[i])
    const best = agreeing.reduce((a, b) => (width(b.known) < width(a.known) ? b : a))
    const servers = answers.map(({ server, problem, ...rest }) => {
      const { rttUs, distanceUs, stratum } = rest
      return problem === null ? { server, problem, rttUs, distanceUs, stratum } : { server, problem }
    }) as ServerReport[]
    const falsetickers = seen.filter((_, i) => !result.with[i]).map(({ server }) => server)
    return { at, lo, hi, guess: within(best.guess, result), falsetickers, servers }
  }
}

// `host`, `host:port`, an IPv6 address as it is or in brackets.
function placeOf(server: unknown, expected: string): Place {
  if (typeof server !== 'string') throw wrongType('servers', expected, server)
  const bracketed = /^\[([^\]]+)\](?::(\d{1,5}))?$/.exec(server)
  const plain = /^([^:[\]]+)(?::(\d{1,5}))?$/.exec(server)
  const [, host = '', digits = '123'] = bracketed ?? plain ?? (isIP(server) === 6 ? ['', server] : [])
  const port = Number(digits)
  const named = bracketed ? isIP(host) === 6 : isIP(host) > 0 || (host.length <= 253 && NAME.test(host))
  if (!named || port < 1 || port > 65_535) throw outOfRange('servers', expected, server)
  return { host: canonical(host), port }
}

// An address has one spelling, or it could vote once for each: `0:0::1` is `::1`, and `::ffff:10.0.0.1` is `10.0.0.1`.
function canonical(host: string): string {
  if (isIP(host) !== 6 || host.includes('%')) return host // SocketAddress forgets a zone
  const { address } = new SocketAddress({ address: host, family: 'ipv6' })
  const mapped = address.replace(/^::ffff:/, '')
  return isIP(mapped) === 4 ? mapped : address
}
const NAME = /^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?$/i

// A lookup cannot be ended; its answer is not waited for.
async function addressOf({ host, port }: Place, signal: AbortSignal): Promise<Address> {
  const literal = isIP(host)
  if (literal) return { address: host, family: literal as 4 | 6, port }
  const found = lookup(host).catch((error: NodeJS.ErrnoException) => {
    throw new Error(`no address: ${error.code ?? error.message}`)
  })
  const { address, family } = await abortable(signal, found)
  return { address, family: family as 4 | 6, port }
}
