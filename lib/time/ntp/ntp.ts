/**
 * True time from NTP servers: several are asked at once, and they vote.
 *
 * A server's answer is an interval that contains true time, if the server is as exact as it claims. The answers of each server
 * are intersected, so that the interval shrinks to that of its fastest answer. Then the servers vote: with n servers of which
 * at most f = ⌊(n−1)/2⌋ are wrong, true time lies in the hull of the points on which n − f of them agree (time/interval.ts). A
 * server that does not answer counts as wrong, because n counts the *configured* servers: otherwise an attacker would only
 * need to silence the honest ones. A server whose interval does not overlap the result is a falseticker, and is named.
 *
 * ONE TRUSTED SERVER (`trusted`) is believed without a vote: Amazon Time Sync, or a site's own. The interval is that of its answer,
 * and as honest as it is: half its root delay, its root dispersion and precision, and the path. Nothing protects against an error
 * that it does not claim. If it does not answer there is no measurement, and the bounds grow. If it steps, its next answer
 * contradicts the known time: `disrupted`, until a second measurement agrees with the new time; then that is believed. A slow
 * error is believed at once. It is never combined with a vote: not in one set of servers, and not with the measurements of
 * other processes (true-offset.ts, and lockstep.offer_time).
 *
 * Three servers are the fewest that can outvote one. The same server under two names has one vote.
 *
 * A server that answers with a Kiss-o'-death (do not ask me) is not asked for an hour.
 *
 * @see RFC 5905 §11.2.1; RFC 8633 §3.2 (how many servers); RFC 4330 §8 (Kiss-o'-death)
 */
import {
  checkInteger,
  checkOptions,
  type Endpoint,
  endpointIn,
  known,
  onAbort,
  outOfRange,
  UnavailableError,
  wrongType,
} from '../../base/index.ts'
import { agree, type Interval, Offset, PAD_US, widened, width, within } from '../interval.ts'
import { LOCAL_DRIFT } from '../tolerances.ts'
import { addressesOf, askInTurn } from './addresses.ts'
import { type Address, exchange } from './exchange.ts'
import { offsetOf } from './packet.ts'

/**
 * The default servers: five public ones, of five institutions in five countries. Any two may be unreachable, or wrong.
 *
 * For a production service choose servers near to it (on AWS 169.254.169.123 among them). Do not mix servers that smear leap
 * seconds with servers that do not.
 */
export const NTP_SERVERS: readonly string[] = [
  'time.cloudflare.com',
  'time.nist.gov',
  'ptbtime1.ptb.de',
  'ntp.se',
  'ntp.nict.jp',
]

/** The options of {@link ntp}. */
export interface NtpOptions {
  /** The servers: `host` or `host:port`, an IPv6 address with a port as `[::1]:123`; 3–16 different ones. @default NTP_SERVERS */
  servers?: readonly string[] | undefined
  /**
   * One server that is believed without a vote, in place of `servers`: `host` or `host:port`. The status is then `trusted`.
   * @default none
   */
  trusted?: string | undefined
  /** How long to wait for an answer, including the lookup of the name: milliseconds, 100–10,000. @default 1_000 */
  timeoutMs?: number | undefined
}

/** The result of asking one server. */
export interface ServerReport {
  /** The server's name, as configured. */
  server: string
  /** The reason why the server gave no time; null: it gave one. */
  problem: string | null
  /** The round trip without the server's own processing: microseconds. Absent if there is a `problem`. */
  rttUs?: number
  /** The largest error of the server's clock, by its own claim: microseconds. Absent if there is a `problem`. */
  distanceUs?: number
  /** The server's distance from a reference clock, in NTP servers: 1–15. Absent if there is a `problem`. */
  stratum?: number
}

/**
 * The result of a vote: an interval that contains true time minus this process's monotonic clock (`performance.now() * 1000`),
 * in microseconds. Its ends are `lo` and `hi`.
 */
export interface Measurement extends Interval {
  /** The time at which the interval holds, by the monotonic clock: microseconds. */
  at: number
  /** The best estimate, within `lo`–`hi`: microseconds. */
  guess: number
  /** The servers whose interval does not overlap the result, by their configured names. */
  falsetickers: string[]
  /** The server on whose word this rests, without a vote. Absent or null: a vote. */
  trusted?: string | null
  /** One report for each configured server, in the configured order. */
  servers: ServerReport[]
}

/** A set of NTP servers, made by {@link ntp}. */
export interface Ntp {
  /** The servers, as configured. */
  readonly servers: readonly string[]
  /**
   * Asks all servers at once, and combines their answers by a vote.
   *
   * @param options.near    the approximate time, microseconds since 1970: it selects the NTP era. @default the wall clock
   * @param options.signal  ends the measurement: the call rejects with its reason.
   * @returns the interval that contains true time, and a report for each server.
   * @throws {UnavailableError} too few servers gave a time, or they do not agree: the text names each, with its reason.
   */
  measure(options?: { near?: number | undefined; signal?: AbortSignal | undefined }): Promise<Measurement>
  /** Drops the earlier answers: call it when the monotonic clock was found to have stood still. */
  forget(): void
}

const KISS_PAUSE_MS = 3_600_000
const NTP = known<NtpOptions>({ servers: true, trusted: true, timeoutMs: true })

/**
 * Makes a set of NTP servers for the option `time.ntp` of `createLockstep`. It asks nothing yet.
 *
 * @param options.servers    3–16 different servers: `host` or `host:port`. @default NTP_SERVERS
 * @param options.trusted    one server that is believed without a vote; not together with `servers`.
 * @param options.timeoutMs  how long to wait for an answer: milliseconds, 100–10,000. @default 1_000
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field` servers, trusted or timeoutMs.
 * @see RFC 5905 §11.2.1; RFC 8633 §3.2 (how many servers); RFC 4330 §8 (Kiss-o'-death)
 */
export function ntp(options: NtpOptions = {}): Ntp {
  checkOptions(options, NTP)
  const { servers = NTP_SERVERS, timeoutMs = 1_000 } = options
  const expected =
    "3–16 different servers, each like 'time.example.com', '10.0.0.1:123', '::1' or '[::1]:123', with a port of 1–65535"
  checkInteger('timeoutMs', timeoutMs, { min: 100, max: 10_000 })
  const { trusted } = options
  if (trusted !== undefined) {
    if (options.servers !== undefined) throw outOfRange('trusted', 'left out where servers are given', trusted)
    const one = "one server, like '169.254.169.123' or '[::1]:123', with a port of 1–65535"
    return new Servers([trusted], [endpointOf(trusted, one, 'trusted')], timeoutMs, trusted)
  }
  if (!Array.isArray(servers)) throw wrongType('servers', expected, servers)
  if (servers.length < 3 || servers.length > 16) {
    throw outOfRange('servers', expected, `${servers.length} of them`)
  }
  const endpoints = servers.map((server) => endpointOf(server, expected))
  const keys = endpoints.map(keyOf)
  const twice = servers.find((_, i) => keys.indexOf(keys[i] as string) < i)
  if (twice !== undefined) throw outOfRange('servers', expected, `${twice} twice`)
  return new Servers(servers, endpoints, timeoutMs)
}

type Place = Endpoint & { port: number }

interface Answered extends ServerReport {
  known: Interval
  guess: number
}

class Servers implements Ntp {
  readonly servers: readonly string[]
  readonly #endpoints: Place[]
  readonly #timeoutMs: number
  readonly #trusted: string | null
  readonly #offsets: Offset[]
  readonly #askAgainAt: number[]
  readonly #answeredBy: (string | undefined)[] = []

  constructor(servers: readonly string[], endpoints: Place[], timeoutMs: number, trusted: string | null = null) {
    this.servers = [...servers]
    this.#endpoints = endpoints
    this.#timeoutMs = timeoutMs
    this.#trusted = trusted
    this.#offsets = servers.map(() => new Offset(LOCAL_DRIFT))
    this.#askAgainAt = servers.map(() => -Infinity)
  }

  async measure({
    near = Date.now() * 1_000,
    signal,
  }: {
    near?: number | undefined
    signal?: AbortSignal | undefined
  } = {}) {
    signal?.throwIfAborted()
    const ended = new AbortController()
    const late = setTimeout(() => ended.abort(new Error('timeout')), this.#timeoutMs)
    const off = onAbort(signal, () => ended.abort(signal?.reason))
    try {
      const asked = new Map<string, string>() // by address
      const answers = await Promise.all(this.servers.map((_, i) => this.#ask(i, near, asked, ended.signal)))
      signal?.throwIfAborted()
      return this.#vote(answers)
    } finally {
      clearTimeout(late)
      off()
    }
  }

  forget(): void {
    for (const offset of this.#offsets) offset.forget()
  }

  async #ask(
    i: number,
    near: number,
    asked: Map<string, string>,
    signal: AbortSignal,
  ): Promise<Answered | ServerReport> {
    const server = this.servers[i] as string
    const wait = (this.#askAgainAt[i] as number) - performance.now()
    if (wait > 0) return { server, problem: `not asked for another ${Math.ceil(wait / 60_000)} min, after its KoD` }
    try {
      const { host, port } = this.#endpoints[i] as Place
      const addresses = await addressesOf(host, port, signal)
      // One server under two names may be asked by another address each time, so one address in common is enough.
      const keys = addresses.map((to) => `${to.address} ${to.port}`)
      const same = keys.map((key) => asked.get(key)).find((name) => name !== undefined)
      if (same !== undefined) return { server, problem: `the same server as ${same}` }
      for (const key of keys) asked.set(key, server)
      const last = addresses.findIndex(({ address }) => address === this.#answeredBy[i])
      if (last > 0) addresses.unshift(...addresses.splice(last, 1))
      const ask = (to: Address, stop: AbortSignal) => exchange(to, near, stop)
      const { answer, from } = await askInTurn(addresses, this.#timeoutMs / addresses.length, ask, signal)
      this.#answeredBy[i] = from.address
      const { before, after, received, sent, distance, stratum } = answer
      const offset = this.#offsets[i] as Offset
      const guess = (sent - after + (received - before)) / 2
      offset.add(widened(offsetOf(answer, before, after), PAD_US + LOCAL_DRIFT * (after - before)), after, guess)
      const rttUs = Math.round(after - before - (sent - received))
      const known = offset.at(after)
      return {
        server,
        problem: null,
        rttUs,
        distanceUs: Math.round(distance),
        stratum,
        known,
        guess: offset.best(after),
      }
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error) // an abort's reason can be any value
      if (problem.startsWith('KoD')) this.#askAgainAt[i] = performance.now() + KISS_PAUSE_MS
      return { server, problem }
    }
  }

  #vote(answers: (Answered | ServerReport)[]): Measurement {
    const n = this.servers.length
    const need = n - Math.floor((n - 1) / 2)
    const at = performance.now() * 1_000
    const answered = answers.flatMap((answer) => {
      if (!('known' in answer)) return []
      const offset = this.#offsets[this.servers.indexOf(answer.server)] as Offset
      return [{ ...answer, known: offset.at(at), guess: offset.best(at) }]
    })
    const silent = answers.filter(({ problem }) => problem !== null)
    if (answered.length < need) {
      const reasons = silent.map(({ server, problem }) => `${server}: ${problem}`)
      if (this.#trusted !== null) throw new UnavailableError(`The trusted NTP server gave no time: ${reasons}`)
      throw new UnavailableError(
        `Only ${answered.length} of ${n} NTP servers gave a time, and ${need} must: ${reasons.join('; ')}`,
      )
    }
    const result = agree(
      answered.map(({ known }) => known),
      need,
    )
    if (!result) {
      const times = answered.map(({ server, known }) => `${server}: ${new Date((at + known.lo) / 1_000).toISOString()}`)
      throw new UnavailableError(`Of ${n} NTP servers no ${need} agree: ${times.join('; ')}`)
    }
    const { lo, hi } = result
    const agreeing = answered.filter((_, i) => result.with[i])
    const best = agreeing.reduce((a, b) => (width(b.known) < width(a.known) ? b : a))
    const servers = answers.map(({ server, problem, ...rest }) => {
      const { rttUs, distanceUs, stratum } = rest
      return problem === null ? { server, problem, rttUs, distanceUs, stratum } : { server, problem }
    }) as ServerReport[]
    const falsetickers = answered.filter((_, i) => !result.with[i]).map(({ server }) => server)
    return { at, lo, hi, guess: within(best.guess, result), falsetickers, trusted: this.#trusted, servers }
  }
}

// One key for each server, so that it has one vote. Amazon Time Sync has an address of each family.
function keyOf({ host, port }: Place): string {
  const name = host.toLowerCase().replace(/\.$/, '')
  return `${name === 'fd00:ec2::123' ? '169.254.169.123' : name} ${port}`
}

function endpointOf(server: unknown, expected: string, field = 'servers'): Place {
  if (typeof server !== 'string') throw wrongType(field, expected, server)
  const endpoint = endpointIn(server)
  if (!endpoint) throw outOfRange(field, expected, server)
  return { host: endpoint.host, port: endpoint.port ?? 123 }
}
