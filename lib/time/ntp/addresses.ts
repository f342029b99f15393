/**
 * The addresses of a server, and the order in which they are asked.
 *
 * A name may have addresses of both families of which one answers: IPv6 may be routed nowhere, and the server may have only one of
 * them. Nothing tells which one before it is asked. So the addresses are asked in turn, the families in alternation, the next one as
 * soon as one has failed or has been silent for its share of the time; and the first good answer counts. An address that has
 * answered is the first the next time.
 *
 * At most four are asked, so that a server is not asked by every name of a large pool. A Kiss-o'-death ends all: a server that does
 * not want to be asked is not asked by its other address.
 *
 * @see RFC 8305 (Happy Eyeballs), §4 and §5
 */
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { abortable, onAbort } from '../../base/index.ts'
import type { Address } from './exchange.ts'

const MOST = 4

/** The addresses of a host, at most four, IPv6 and IPv4 in alternation. @throws {Error} it has none; the signal's reason. */
export async function addressesOf(host: string, port: number, signal: AbortSignal): Promise<Address[]> {
  const literal = isIP(host)
  if (literal) return [{ address: host, family: literal as 4 | 6, port }]
  // A lookup cannot be cancelled: after an abort its answer is ignored.
  const found = lookup(host, { all: true }).catch((error: NodeJS.ErrnoException) => {
    throw new Error(`no address: ${error.code ?? error.message}`)
  })
  const all = (await abortable(signal, found)).map(({ address, family }) => ({
    address,
    family: family as 4 | 6,
    port,
  }))
  const first = all.filter(({ family }) => family === all[0]?.family)
  const other = all.filter(({ family }) => family !== all[0]?.family)
  const mixed = Array.from({ length: Math.max(first.length, other.length) }, (_, i) => [first[i], other[i]]).flat()
  return mixed.filter((each) => each !== undefined).slice(0, MOST)
}

/**
 * Asks one address after another, until one answers.
 *
 * @param shareMs  how long an address may be silent before the next is asked, too.
 * @param ask      asks an address once; it rejects when its signal aborts.
 * @returns the first answer, and its address.
 * @throws {Error} the reason why none has answered; of several addresses, with the reason of each.
 */
export function askInTurn<T>(
  addresses: readonly Address[],
  shareMs: number,
  ask: (to: Address, signal: AbortSignal) => Promise<T>,
  signal: AbortSignal,
): Promise<{ answer: T; from: Address }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ answer: T; from: Address }>()
  const ended = new AbortController()
  const problems = new Map<Address, unknown>()
  let next = 0
  let finished = false
  let timer: NodeJS.Timeout | undefined
  const off = onAbort(signal, () => ended.abort(signal.reason))

  const finish = (settle: () => void) => {
    finished = true
    clearTimeout(timer)
    off()
    settle()
    ended.abort(new Error('another address has answered'))
  }
  const failed = (from: Address, error: unknown) => {
    problems.set(from, error)
    const kissed = error instanceof Error && error.message.startsWith('KoD')
    if (kissed || problems.size === addresses.length) finish(() => reject(kissed ? error : whyNone(problems)))
    else if (problems.size === next) begin()
  }
  const begin = () => {
    clearTimeout(timer)
    const to = addresses[next++]
    if (!to || finished) return
    ask(to, ended.signal).then(
      (answer) => finish(() => resolve({ answer, from: to })),
      (error) => (signal.aborted ? finish(() => reject(signal.reason)) : failed(to, error)),
    )
    if (next < addresses.length) timer = setTimeout(begin, shareMs)
  }
  begin()
  return promise
}

function whyNone(problems: ReadonlyMap<Address, unknown>): unknown {
  const all = [...problems].map(([{ address }, error]) => [address, error instanceof Error ? error.message : error])
  const [first] = problems.values()
  return new Set(all.map(([, text]) => text)).size === 1
    ? first
    : new Error(all.map((each) => each.join(': ')).join(', '))
}
