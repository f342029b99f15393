/**
 * NTP, against servers on loopback that are wrong in every way that is known of NTP servers, and against a real one (chronyd).
 *
 * The tables list the answers that ntp-client alone accepts, or fails on, with the result that they have here. True time is
 * the monotonic clock and an offset that the test sets, so that an interval is right or wrong to the microsecond.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import dgram from 'node:dgram'
import type { LookupAddress, LookupAllOptions } from 'node:dns'
import { getEventListeners, once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { setTimeout as delay, setImmediate as soon } from 'node:timers/promises'
import ntpClient from 'ntp-client'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { UnavailableError } from '../../lib/index.ts'
import { exchange } from '../../lib/time/ntp/exchange.ts'
import { type Measurement, NTP_SERVERS, ntp } from '../../lib/time/ntp/index.ts'
import {
  type Behaviour,
  chronyd,
  chronydAvailable,
  type FakeServer,
  fakeServer,
  stamp,
  wallOffset,
} from './ntp-server.ts'

// Names whose lookup a test answers, at a time that it chooses.
const lookups = new Map<string, PromiseWithResolvers<LookupAddress | LookupAddress[]>>()
vi.mock('node:dns/promises', async (original) => {
  const real = await original<typeof import('node:dns/promises')>()
  const known = (name: string) => lookups.get(name)?.promise.then((found) => [found].flat())
  return { ...real, lookup: (name: string, options: LookupAllOptions) => known(name) ?? real.lookup(name, options) }
})

const opened: FakeServer[] = []
/** How many UDP sockets this process has open. */
const sockets = () => process.getActiveResourcesInfo().filter((what) => what === 'UDPWrap').length
let openBefore = 0
beforeEach(() => {
  openBefore = sockets()
})
afterEach(async () => {
  vi.restoreAllMocks()
  lookups.clear()
  await Promise.all(opened.splice(0).map((each) => each[Symbol.asyncDispose]()))
  while (sockets() > openBefore) await soon() // a socket that is left open makes this reach the time limit
})
const open = async (behaviour?: Behaviour) => {
  const server = await fakeServer(behaviour)
  opened.push(server)
  return server
}
const several = (...behaviours: Behaviour[]) => Promise.all(behaviours.map(open))
const names = (servers: FakeServer[]) => servers.map(({ name }) => name)
const never = () => new Promise<void>(() => {})
const forever = new AbortController().signal
const HOUR = 3_600_000

/** Asks one server, without a vote. */
const ask = ({ port }: { port: number }, near = Date.now() * 1_000, signal = forever) =>
  exchange({ address: '127.0.0.1', family: 4, port }, near, signal)

function expectTruth({ at, lo, hi, guess }: Measurement, offset = wallOffset(), slack = 0): void {
  expect(lo).toBeLessThanOrEqual(offset + slack)
  expect(hi).toBeGreaterThanOrEqual(offset - slack)
  expect(guess).toBeGreaterThanOrEqual(lo)
  expect(guess).toBeLessThanOrEqual(hi)
  expect(at).toBeLessThanOrEqual(performance.now() * 1_000)
}

describe('an answer', () => {
  test('gives an interval that contains true time, to the microsecond', async () => {
    const server = await open()
    let whole = 0
    for (let i = 0; i < 200; i++) {
      const { before, after, received, sent, distance } = await ask(server)
      expect(sent - after).toBeLessThanOrEqual(wallOffset() + 1)
      expect(received - before).toBeGreaterThanOrEqual(wallOffset() - 1)
      if (sent % 1_000 === 0) whole += 1
      expect(distance).toBeCloseTo(1_500, -2)
    }
    expect(whole).toBeLessThan(100) // ntp-client's Dates are all whole milliseconds
  })

  // ntp-client gives a good Date for these (or 1900, 2036, an invalid Date). Here each is an error.
  test.each<[string, Behaviour, string]>([
    ['a Kiss-o’-death, without a time', { says: () => ({ stratum: 0, reference: 'RATE', sentUs: -1 }) }, 'KoD RATE'],
    ['a Kiss-o’-death, with a plausible time', { says: () => ({ stratum: 0, reference: 'DENY' }) }, 'KoD DENY'],
    ['of a server that has just started', { says: () => ({ stratum: 0, reference: 'INIT' }) }, 'not synchronized'],
    ['of stratum 0', { says: () => ({ stratum: 0, reference: '\u0001\u0002' }) }, 'not synchronized'],
    ['of a server that is not synchronized (leap 3)', { says: () => ({ leap: 3 }), wrongMs: HOUR }, 'not synchronized'],
    ['of a server that is not synchronized (stratum 16)', { says: () => ({ stratum: 16 }) }, 'not synchronized'],
    ['30 s from true time', { says: () => ({ rootDelay: 60 }) }, '30001 ms from true time, by its own claim'],
    [
      'that was sent before the request arrived',
      { says: (it) => ({ sentUs: it.receivedUs - 10 }) },
      'sent before it was received',
    ],
    [
      'that was longer at the server than we waited',
      { says: (it) => ({ sentUs: it.sentUs + 60e6 }) },
      'longer at the server than we waited',
    ],
    ['without a receive timestamp', { says: () => ({ receivedUs: -1 }) }, 'a timestamp of zero'],
    ['without a transmit timestamp', { says: () => ({ sentUs: -1 }) }, 'a timestamp of zero'],
  ])('%s is no time', async (_, behaviour, why) => {
    await expect(ask(await open(behaviour))).rejects.toThrow(new Error(why))
  })

  // ntp-client accepts the first datagram. Each of these arrives before the true answer, and is 42 s wrong.
  const later = (packet: Buffer) => {
    for (const at of [32, 40]) packet.writeUInt32BE(packet.readUInt32BE(at) + 42, at)
    return packet
  }
  const with42 = (change: (packet: Buffer) => void) => (packet: Buffer) => {
    change(later(packet))
    return packet
  }
  test.each<[string, Behaviour]>([
    ['of 0 bytes', { first: () => Buffer.alloc(0) }],
    ['of 20 bytes', { first: (packet) => packet.subarray(0, 20) }],
    ['of 44 bytes', { first: (packet) => packet.subarray(0, 44) }],
    ['of 47 bytes', { first: (packet) => later(packet).subarray(0, 47) }],
    ['to another request', { first: with42((packet) => packet.fill(7, 24, 32)) }],
    ['to a request that differs in the last bit', { first: with42((it) => it.writeUInt8(it.readUInt8(31) ^ 1, 31)) }],
    ['without a cookie', { first: with42((packet) => packet.fill(0, 24, 32)) }],
    ['from a socket other than the one that was asked', { first: later, fromElsewhere: true }],
    ['of a broadcaster (mode 5)', { first: with42((packet) => packet.writeUInt8((4 << 3) | 5, 0)) }],
    ['of version 7', { first: with42((packet) => packet.writeUInt8((7 << 3) | 4, 0)) }],
    ['that is our own request', { first: (_, request) => request }],
    ['of 0xff', { first: (packet) => packet.fill(255) }],
    ['of noise', { first: () => Buffer.alloc(48, 'noise!') }],
  ])('%s is ignored, and the call waits for the true one', async (_, behaviour) => {
    const { sent, received, after, before } = await ask(await open(behaviour))
    expect(sent - after).toBeLessThanOrEqual(wallOffset() + 1)
    expect(received - before).toBeGreaterThanOrEqual(wallOffset() - 1)
  })

  test('that does not arrive is waited for until the time limit', async () => {
    const server = await open({ sends: () => null })
    const stop = new AbortController()
    const asked = ask(server, undefined, stop.signal)
    asked.catch(() => {})
    while (server.asked === 0) await soon()
    stop.abort(new Error('timeout'))
    await expect(asked).rejects.toThrow('timeout')
  })

  test('to one request does not match the next: each has another cookie', async () => {
    const cookies: string[] = []
    const server = await open({
      sends: (packet, request) => {
        cookies.push(request.toString('hex', 40, 48))
        return packet
      },
    })
    for (let i = 0; i < 20; i++) await ask(server)
    expect(new Set(cookies).size).toBe(20)
  })

  test('of NTP’s next era, from 2036 on, is an instant of that era', async () => {
    const offset = Date.UTC(2040, 0, 1) * 1_000 - performance.now() * 1_000
    const server = await open({ offsetUs: () => offset })
    const { before, after, received, sent } = await ask(server, Date.UTC(2039, 0, 1) * 1_000)
    expect(sent - after).toBeLessThanOrEqual(offset + 1)
    expect(received - before).toBeGreaterThanOrEqual(offset - 1)
  })

  test('that comes back slowly gives a wider interval, not a wrong one', async () => {
    const server = await open({ back: () => delay(60) })
    const { before, after, received, sent } = await ask(server)
    expect(sent - after).toBeLessThanOrEqual(wallOffset() + 1)
    expect(received - before).toBeGreaterThanOrEqual(wallOffset() - 1)
    expect(after - before).toBeGreaterThan(50_000)
  })

  test('from a port without a server is refused at once', async () => {
    const server = await open()
    await server[Symbol.asyncDispose]()
    await expect(ask(server, undefined, forever)).rejects.toThrow('ECONNREFUSED')
  })

  test('is not waited for when the network is unreachable', async () => {
    // The system refuses to connect to a broadcast address, as it refuses every address when there is no network.
    const to = { address: '255.255.255.255', family: 4, port: 123 } as const
    await expect(exchange(to, Date.now() * 1_000, forever)).rejects.toThrow(/^E[A-Z]+$/)
  })

  test('over IPv6', async () => {
    const server = await open({ host: '::1' })
    const { sent, after } = await exchange(
      { address: '::1', family: 6, port: server.port },
      Date.now() * 1_000,
      forever,
    )
    expect(sent - after).toBeLessThanOrEqual(wallOffset() + 1)
  })

  /** An attacker on this machine, who has found the port of one of our sockets. */
  const forge = (packet: Buffer, to: dgram.Socket) => {
    const attacker = dgram.createSocket('udp4')
    return new Promise<void>((done) => {
      attacker.send(packet, (to.address() as AddressInfo).port, '127.0.0.1', () => attacker.close(done))
    })
  }
  const ANOTHER_SENDER = 'ntp-client was answered by another sender'

  test('that an attacker sends to ntp-client is detected', async () => {
    const server = await open({ back: never })
    const made = vi.spyOn(dgram, 'createSocket')
    const asked = ask(server)
    asked.catch(() => {})
    while (server.asked === 0) await soon()
    const { value } = made.mock.results[2] ?? {} // ours to the server, the proxy, ntp-client's
    const packet = Buffer.alloc(48)
    packet[0] = (4 << 3) | 4
    stamp(packet, 40, Date.now() * 1_000)
    await forge(packet, value as dgram.Socket)
    await expect(asked).rejects.toThrow(ANOTHER_SENDER)
  })

  test('that an attacker sends to ntp-client while the true one is on its way is detected', async () => {
    const { getNetworkTime } = ntpClient
    vi.spyOn(ntpClient, 'getNetworkTime').mockImplementation((host, port, callback) => {
      getNetworkTime(host, port, (error, date) => callback(error, date && new Date(date.getTime() + 5)))
    })
    await expect(ask(await open())).rejects.toThrow(ANOTHER_SENDER)
  })

  test('that an attacker requests from the proxy is not sent to them, and ntp-client is not left waiting', async () => {
    const server = await open({ back: never })
    const made = vi.spyOn(dgram, 'createSocket')
    const { getNetworkTime } = ntpClient
    vi.spyOn(ntpClient, 'getNetworkTime').mockImplementation((...call) => {
      void forge(Buffer.alloc(48, 0x1b), made.mock.results[1]?.value as dgram.Socket).then(() =>
        getNetworkTime(...call),
      )
    })
    await expect(ask(server)).rejects.toThrow(ANOTHER_SENDER)
  })

  test('that ntp-client cannot request leaves nothing open', async () => {
    vi.spyOn(ntpClient, 'getNetworkTime').mockImplementation((_host, _port, callback) => {
      setImmediate(() => callback(Object.assign(new Error('too many open files'), { code: 'EMFILE' }), null))
    })
    await expect(ask(await open())).rejects.toThrow('too many open files')
  })

  test.each([0, 1, 2, 5, 20])(
    'is not waited for after an abort, %i turns of the event loop after the request',
    async (turns) => {
      const server = await open({ back: never })
      const stop = new AbortController()
      const asked = ask(server, undefined, stop.signal)
      asked.catch(() => {})
      for (let i = 0; i < turns; i++) await soon()
      stop.abort(new Error('enough'))
      await expect(asked).rejects.toThrow('enough')
      await expect(ask(server, undefined, stop.signal)).rejects.toThrow('enough')
    },
  )
})

/** On a slow machine any width is possible, but each server reports its part of it. */
const reportedWidth = ({ servers }: Measurement) =>
  servers.reduce((sum, { rttUs = 0, distanceUs = 0 }) => sum + rttUs + 2 * distanceUs + 500, 0)

describe('a measurement', () => {
  test('contains true time, and reports on each server', async () => {
    const servers = await several({}, {}, {}, {})
    const measured = await ntp({ servers: names(servers) }).measure()
    expectTruth(measured)
    expect(measured.falsetickers).toEqual([])
    expect(measured.servers.map(({ server }) => server)).toEqual(names(servers))
    expect(measured.servers[0]).toMatchObject({ problem: null, stratum: 2, rttUs: expect.any(Number) })
    expect(measured.servers[0]?.distanceUs).toBeCloseTo(1_500, -2)
    expect(measured.hi - measured.lo).toBeLessThan(reportedWidth(measured))
  })

  test('one of four is wrong by ten seconds: it is named, and true time is contained', async () => {
    const servers = await several({}, {}, { wrongMs: -10_000 }, {})
    const measured = await ntp({ servers: names(servers) }).measure()
    expectTruth(measured)
    expect(measured.falsetickers).toEqual([servers[2]?.name])
    expect(measured.hi - measured.lo).toBeLessThan(reportedWidth(measured))
  })

  test('in NTP’s next era is right if the caller gives the approximate time', async () => {
    const year2040 = Date.UTC(2040, 0, 1) * 1_000
    const offset = year2040 - performance.now() * 1_000
    const servers = names(await several(...Array.from({ length: 3 }, () => ({ offsetUs: () => offset }))))
    // The packet is the same in 1904, 2040 and 2176.
    expectTruth(await ntp({ servers }).measure({ near: Date.UTC(1980, 0, 1) * 1_000 }), offset)
    expectTruth(await ntp({ servers }).measure({ near: Date.UTC(2100, 0, 1) * 1_000 }), offset)
    expect((await ntp({ servers }).measure({ near: Date.UTC(1970, 0, 1) * 1_000 })).hi).toBeLessThan(offset)
  })

  test('two of five are silent', async () => {
    const servers = await several({}, { says: () => ({ leap: 3 }) }, {}, { sends: () => null }, {})
    const measured = await ntp({ servers: names(servers), timeoutMs: 500 }).measure()
    expectTruth(measured)
    expect(measured.servers.map(({ problem }) => problem)).toEqual([null, 'not synchronized', null, 'timeout', null])
  })

  test('two of four are silent: too few, and each is named with its reason', async () => {
    const servers = await several({}, { says: () => ({ stratum: 0, reference: 'RATE' }) }, { sends: () => null }, {})
    const asked = ntp({ servers: names(servers), timeoutMs: 500 }).measure()
    await expect(asked).rejects.toThrow(UnavailableError)
    await expect(asked).rejects.toThrow(
      `Only 2 of 4 NTP servers gave a time, and 3 must: ${servers[1]?.name}: KoD RATE; ${servers[2]?.name}: timeout`,
    )
  })

  test('one silent and one wrong, of four: no three agree', async () => {
    const servers = await several({}, { sends: () => null }, {}, { wrongMs: 10_000 })
    await expect(ntp({ servers: names(servers), timeoutMs: 500 }).measure()).rejects.toThrow(
      'Of 4 NTP servers no 3 agree',
    )
  })

  test('the limit: two of three that are wrong in the same way win the vote', async () => {
    const servers = await several({}, { wrongMs: 200 }, { wrongMs: 200 })
    const measured = await ntp({ servers: names(servers) }).measure()
    expect(measured.lo).toBeGreaterThan(wallOffset())
    expect(measured.falsetickers).toEqual([servers[0]?.name])
  })

  test('the same server under two names has one vote', async () => {
    const [one, two] = await several({}, {})
    const servers = [`127.0.0.1:${one?.port}`, `localhost:${one?.port}`, `127.0.0.1:${two?.port}`]
    const measured = await ntp({ servers }).measure()
    expectTruth(measured)
    const problems = measured.servers.flatMap(({ problem }) => problem ?? [])
    expect(problems).toEqual([expect.stringMatching(/^the same server as (localhost|127\.0\.0\.1):\d+$/)])
  })

  /** Lets a name have these addresses. */
  const named = (name: string, ...addresses: string[]) => {
    const found = Promise.withResolvers<LookupAddress | LookupAddress[]>()
    found.resolve(addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 })))
    lookups.set(name, found)
  }

  test.each([
    ['IPv6 first, and only IPv4 answers', '127.0.0.1', ['::1', '127.0.0.1']],
    ['IPv4 first, and only IPv6 answers', '::1', ['127.0.0.1', '::1']],
    ['the third of a family', '127.0.0.1', ['127.0.0.66', '127.0.0.67', '127.0.0.1']],
    ['both of IPv6, and only IPv4 answers', '127.0.0.1', ['::1', '::2', '127.0.0.1']],
  ])('a name with several addresses gives the time by the one that answers: %s', async (_, host, addresses) => {
    const [one, two, three] = [await open(), await open(), await open({ host })]
    named('both.example', ...addresses)
    const asks = ntp({ servers: [one.name, two.name, `both.example:${three.port}`] })
    const measured = await asks.measure()
    expectTruth(measured)
    expect(measured.servers.map(({ problem }) => problem)).toEqual([null, null, null])
  })

  test('a family that is silent costs its share of the time once: afterwards the address that answered is asked first', async () => {
    const [one, two] = await several({}, {})
    const silent = await open({ host: '::1', back: never })
    const answers = await open({ port: silent.port })
    named('both.example', '::1', '127.0.0.1')
    const asks = ntp({ servers: names([one as FakeServer, two as FakeServer]).concat(`both.example:${silent.port}`) })
    for (let i = 0; i < 3; i++) expect((await asks.measure()).servers[2]?.problem).toBeNull()
    expect([silent.asked, answers.asked]).toEqual([1, 3])
  })

  test('addresses of which none answers are named, each with its reason', async () => {
    const servers = await several({}, {})
    const wrong = await open({ host: '::1', says: () => ({ leap: 3 }) })
    named('both.example', '::1', '127.0.0.1')
    const asks = ntp({ servers: [...names(servers), `both.example:${wrong.port}`] })
    expect((await asks.measure()).servers[2]?.problem).toBe('::1: not synchronized, 127.0.0.1: ECONNREFUSED')
  })

  test('a server that does not want to be asked is not asked by its other address', async () => {
    const servers = await several({}, {})
    const kisses = await open({ host: '::1', says: () => ({ stratum: 0, reference: 'RATE' }) })
    const other = await open({ port: kisses.port })
    named('both.example', '::1', '127.0.0.1')
    const asks = ntp({ servers: [...names(servers), `both.example:${kisses.port}`] })
    expect((await asks.measure()).servers[2]?.problem).toBe('KoD RATE')
    expect((await asks.measure()).servers[2]?.problem).toMatch(/^not asked for another/)
    expect(other.asked).toBe(0)
  })

  test('nor is the address after it, when an earlier one is silent', async () => {
    const servers = await several({}, {})
    const silent = await open({ host: '::1', back: never })
    const kisses = await open({ port: silent.port, says: () => ({ stratum: 0, reference: 'RATE' }) })
    const third = await open({ host: '127.0.0.66', port: silent.port })
    named('both.example', '::1', '127.0.0.1', '127.0.0.66')
    const asks = ntp({ servers: [...names(servers), `both.example:${silent.port}`] })
    expect((await asks.measure()).servers[2]?.problem).toBe('KoD RATE')
    expect([silent.asked, kisses.asked, third.asked]).toEqual([1, 1, 0])
  })

  test('two names with one address in common have one vote', async () => {
    const [one, two] = await several({}, {})
    const both = await open({ host: '::1' })
    await open({ port: both.port })
    named('both.example', '::1', '127.0.0.1')
    const servers = [one?.name ?? '', two?.name ?? '', `both.example:${both.port}`, `127.0.0.1:${both.port}`]
    const problems = (await ntp({ servers }).measure()).servers.flatMap(({ problem }) => problem ?? [])
    expect(problems).toEqual([expect.stringMatching(/^the same server as /)])
  })

  test('literals of both families are asked, with a port and with a zone', async () => {
    const servers = await Promise.all([open(), open({ host: '::1' }), open({ host: '::1' })])
    const [one, two, three] = servers
    const asks = ntp({ servers: [one.name, `[0:0::1]:${two.port}`, `[::1%lo]:${three.port}`] })
    const measured = await asks.measure()
    expectTruth(measured)
    expect(measured.servers.map(({ problem }) => problem)).toEqual([null, null, null])
  })

  test('a server that answers with a Kiss-o’-death is not asked again, and the others are', async () => {
    const servers = await several({}, {}, { says: () => ({ stratum: 0, reference: 'RATE' }) })
    const asks = ntp({ servers: names(servers) })
    for (let i = 0; i < 3; i++) expectTruth(await asks.measure())
    expect(servers.map(({ asked }) => asked)).toEqual([3, 3, 1])
    expect((await asks.measure()).servers[2]?.problem).toMatch(/^not asked for another (59|60) min, after its KoD$/)
  })

  test('an unknown name counts as a silent server, and is reported', async () => {
    const servers = await several({}, {})
    const lookup = Promise.withResolvers<LookupAddress | LookupAddress[]>()
    lookups.set('nowhere.example', lookup)
    const asked = ntp({ servers: [...names(servers), 'nowhere.example'] }).measure()
    lookup.reject(Object.assign(new Error('getaddrinfo ENOTFOUND nowhere.example'), { code: 'ENOTFOUND' }))
    const measured = await asked
    expectTruth(measured)
    expect(measured.servers[2]?.problem).toBe('no address: ENOTFOUND')
  })

  test('a name that is found too late counts as a silent server, and is not asked any more', async () => {
    const servers = await several({}, {}, {})
    const [found, failed] = [
      Promise.withResolvers<LookupAddress | LookupAddress[]>(),
      Promise.withResolvers<LookupAddress | LookupAddress[]>(),
    ]
    lookups.set('found.example', found)
    lookups.set('failed.example', failed)
    const [one, two, late] = names(servers)
    const asks = [one ?? '', two ?? '', `found.example:${late?.split(':')[1]}`, 'failed.example']
    const asked = ntp({ servers: [...asks, '127.0.0.1'], timeoutMs: 100 }).measure()
    await expect(asked).rejects.toThrow(/found\.example:\d+: timeout; failed\.example: timeout/)
    found.resolve({ address: '127.0.0.1', family: 4 })
    failed.reject(new Error('too late'))
    for (let i = 0; i < 20; i++) await soon()
    expect(servers[2]?.asked).toBe(0)
  })

  test('an abort waits neither for a name nor for an answer', async () => {
    const silent = await open({ back: never })
    lookups.set('slow.example', Promise.withResolvers())
    const stop = new AbortController()
    const servers = ['slow.example', silent.name, '127.0.0.1:1']
    const asked = ntp({ servers, timeoutMs: 10_000 }).measure({ signal: stop.signal })
    let settled: unknown
    asked.catch((error) => {
      settled = error.message
    })
    while (silent.asked === 0) await soon()
    stop.abort(new Error('enough'))
    for (let i = 0; i < 20; i++) await soon() // for our own promises to settle
    expect(settled).toBe('enough')
  })

  test.each(['enough', null, 7])('an abort with the reason %j, which is no Error, rejects with it', async (reason) => {
    const servers = await several({ back: never }, { back: never }, { back: never })
    const stop = new AbortController()
    const asked = ntp({ servers: names(servers) }).measure({ signal: stop.signal })
    asked.catch(() => {})
    while (servers.some((server) => server.asked === 0)) await soon()
    stop.abort(reason)
    await expect(asked).rejects.toBe(reason)
  })

  test('narrows by the best answer of each server, until forget()', async () => {
    let slow = false
    const behaviour = { back: () => (slow ? delay(40) : undefined) }
    const asks = ntp({ servers: names(await several(behaviour, behaviour, behaviour)) })
    const quick = await asks.measure()
    slow = true
    const kept = await asks.measure()
    expectTruth(kept)
    // No wider than it was, apart from the drift.
    expect(kept.hi - kept.lo).toBeLessThan(quick.hi - quick.lo + 2e-4 * (kept.at - quick.at) + 5)
    asks.forget()
    const anew = await asks.measure()
    expectTruth(anew)
    expect(anew.hi - anew.lo).toBeGreaterThan(38_000)
  })

  test('leaves no listener on a signal that is used again', async () => {
    const asks = ntp({ servers: names(await several({}, {}, {})) })
    const { signal } = new AbortController()
    await asks.measure({ signal })
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })

  test('an abort ends it with the reason', async () => {
    const servers = await several({ sends: () => null }, { sends: () => null }, {})
    const stop = new AbortController()
    const asked = ntp({ servers: names(servers) }).measure({ signal: stop.signal })
    asked.catch(() => {})
    while (servers.some((server) => server.asked === 0)) await soon()
    stop.abort(new Error('enough'))
    await expect(asked).rejects.toThrow('enough')
    await expect(ntp({ servers: names(servers) }).measure({ signal: stop.signal })).rejects.toThrow('enough')
  })

  test('2,000 times, through delays, with wrong servers and with errors within their claims: true time every time', async () => {
    let state = 20261125
    const random = () => {
      state = (state * 48_271) % 2_147_483_647
      return state / 2_147_483_647
    }
    // Each answer has another error, within the claim of the server.
    const behaviour = (): Behaviour => {
      let dispersion = 0
      return {
        wrongMs: () => {
          dispersion = random() * 0.02
          return (random() * 2 - 1) * dispersion * 1_000
        },
        says: () => ({ rootDelay: 0, rootDispersion: dispersion + 2 ** -16 }),
        back: () => (random() < 0.2 ? soon() : undefined),
      }
    }
    for (let round = 0; round < 100; round++) {
      const seed = state
      const n = 3 + Math.floor(random() * 3)
      const wrong = Math.floor(random() * (Math.floor((n - 1) / 2) + 1))
      const servers = await several(
        ...Array.from({ length: n }, (_, i) => (i < wrong ? { wrongMs: random() * 20_000 - 10_000 } : behaviour())),
      )
      const asks = ntp({ servers: names(servers) })
      for (let i = 0; i < 20; i++) {
        const { lo, hi } = await asks.measure()
        if (lo > wallOffset() || hi < wallOffset()) throw new Error(`Missed: seed ${seed}, measurement ${i}`)
      }
      await Promise.all(opened.splice(0).map((each) => each[Symbol.asyncDispose]()))
    }
  })

  test('the limit: servers whose error is larger than they claim win the vote, and true time is missed', async () => {
    const says = () => ({ rootDelay: 0, rootDispersion: 2 ** -16 })
    const servers = await several({ wrongMs: 40, says }, { wrongMs: 40, says }, { wrongMs: 40, says })
    const { lo } = await ntp({ servers: names(servers) }).measure()
    expect(lo).toBeGreaterThan(wallOffset())
  })
})

describe('one trusted server', () => {
  test('gives an interval that contains true time, which is never narrower than its claim and the path', async () => {
    const server = await open({ wrongMs: 4, says: () => ({ rootDelay: 0.006, rootDispersion: 0.002 }) })
    const asks = ntp({ trusted: server.name })
    expect(asks.servers).toEqual([server.name])
    for (let i = 0; i < 20; i++) {
      const measured = await asks.measure()
      expectTruth(measured)
      expect(measured).toMatchObject({ trusted: server.name, falsetickers: [] })
      expect(measured.servers[0]?.distanceUs).toBeGreaterThanOrEqual(4_980) // in parts of 2^-16 s
      expect(measured.hi - measured.lo).toBeGreaterThanOrEqual(2 * Number(measured.servers[0]?.distanceUs) - 1)
    }
  })

  test('that is slow to answer gives an interval as wide as the path', async () => {
    const server = await open({ back: () => delay(50) })
    const { lo, hi, servers } = await ntp({ trusted: server.name }).measure()
    expect(hi - lo).toBeGreaterThanOrEqual(50_000)
    expect(servers[0]?.rttUs).toBeGreaterThanOrEqual(49_000)
  })

  test('that does not answer, or is not synchronized, gives no time, and the error says why', async () => {
    const gone = ntp({ trusted: '127.0.0.1:1' }).measure()
    await expect(gone).rejects.toThrow('The trusted NTP server gave no time: 127.0.0.1:1: ECONNREFUSED')
    const { name } = await open({ says: () => ({ leap: 3 }) })
    const unsure = ntp({ trusted: name }).measure()
    await expect(unsure).rejects.toThrow(`The trusted NTP server gave no time: ${name}: not synchronized`)
    await expect(unsure).rejects.toBeInstanceOf(UnavailableError)
  })

  test('the limit: one that lies is believed', async () => {
    const server = await open({ wrongMs: 10_000 })
    expect((await ntp({ trusted: server.name }).measure()).lo).toBeGreaterThan(wallOffset())
  })

  test.each<[unknown, RegExp]>([
    ['', /got ""/],
    ['a.example,b.example', /one server, like '169\.254\.169\.123'/],
    ['[::1]:65536', /with a port of 1–65535, got "\[::1\]:65536"/],
    [['a.example'], /one server/],
    [null, /one server/],
  ])('%j is refused', (trusted, message) => {
    const made = () => ntp({ trusted: trusted as string })
    expect(made).toThrow(message)
    expect(made).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'trusted' }))
  })

  test('is not combined with a vote', () => {
    const made = () => ntp({ trusted: 'a.example', servers: ['b.example', 'c.example', 'd.example'] })
    expect(made).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'trusted' }))
  })
})

describe('configuration', () => {
  test.each<[string, unknown, RegExp]>([
    ['two servers', ['a.example', 'b.example'], /3–16 different servers.*got "2 of them"/],
    ['seventeen', Array.from({ length: 17 }, (_, i) => `${i}.example`), /got "17 of them"/],
    ['one twice', ['a.example', 'b.example', 'A.example:123'], /got "A.example:123 twice"/],
    ['port 0', ['a.example', 'b.example', 'c.example:0'], /got "c.example:0"/],
    ['port 65536', ['a.example', 'b.example', 'c.example:65536'], /got "c.example:65536"/],
    ['no host', ['a.example', 'b.example', ':123'], /got ":123"/],
    ['an empty one', ['a.example', 'b.example', ''], /got ""/],
    ['a URL', ['a.example', 'b.example', 'ntp://c.example'], /got "ntp:\/\/c.example"/],
    ['a blank', ['a.example', 'b.example', 'c example'], /got "c example"/],
    ['brackets around a name', ['a.example', 'b.example', '[c.example]:123'], /got "\[c.example\]:123"/],
    ['one twice, once with a dot', ['a.example', 'b.example', 'a.example.'], /got "a.example. twice"/],
    ['one twice, spelled out', ['::1', 'b.example', '[0:0:0:0:0:0:0:1]:123'], /got "\[0:0:0:0:0:0:0:1\]:123 twice"/],
    [
      'Amazon Time Sync by both families',
      ['169.254.169.123', 'b.example', 'fd00:ec2::123'],
      /got "fd00:ec2::123 twice"/,
    ],
    ['an address above 255', ['a.example', 'b.example', '10.0.0.256'], /got "10.0.0.256"/],
    ['an IPv6 address that is none', ['a.example', 'b.example', '[::g]:123'], /got "\[::g\]:123".*/],
    ['half a bracket', ['a.example', 'b.example', '[::1'], /port of 1–65535, got "\[::1"/],
    ['port 0 in brackets', ['a.example', 'b.example', '[::1]:0'], /port of 1–65535, got "\[::1\]:0"/],
    ['one twice, with a zone', ['fe80::1%lo', 'b.example', '[fe80:0::1%lo]'], /got "\[fe80:0::1%lo\] twice"/],
    ['one twice, mapped', ['10.0.0.1', 'b.example', '::ffff:a00:1'], /got "::ffff:a00:1 twice"/],
    ['a number', ['a.example', 'b.example', 3], /got 3/],
    ['a text', 'a.example,b.example', /got "a.example,b.example"/],
  ])('%s is refused', (_, servers, message) => {
    const made = () => ntp({ servers: servers as string[] })
    expect(made).toThrow(message)
    expect(made).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'servers' }))
  })

  test('null is refused', () => {
    expect(() => ntp(null as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'options' }))
  })

  test.each([99, 10_001, 1.5, Number.NaN, '1000'])('timeoutMs %s is refused', (timeoutMs) => {
    expect(() => ntp({ timeoutMs: timeoutMs as number })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'timeoutMs' }),
    )
  })

  test('takes names and addresses, with and without a port', () => {
    const servers = [
      'a.example',
      'b.example:1123',
      '10.0.0.1',
      '10.0.0.2:123',
      '::1',
      '[::2]',
      '[::3]:1123',
      'c.example.',
    ]
    expect(ntp({ servers }).servers).toEqual(servers)
  })

  test('by default there are five public servers', () => {
    expect(ntp().servers).toEqual(NTP_SERVERS)
    expect(new Set(NTP_SERVERS.map((name) => name.split('.').slice(-2).join('.'))).size).toBe(5)
  })
})

describe('afterwards', () => {
  test('nothing is left open: a process that has measured, and has failed to measure, exits', async () => {
    const servers = await several({}, {}, { sends: () => null }, { says: () => ({ stratum: 0, reference: 'RATE' }) })
    const port = (i: number) => servers[i]?.port
    const program = `
      import { ntp } from ${JSON.stringify(new URL('../../lib/time/ntp/ntp.ts', import.meta.url).href)}
      const name = (port) => '127.0.0.1:' + port
      const [a, b, silent, kisses] = [${port(0)}, ${port(1)}, ${port(2)}, ${port(3)}].map(name)
      const asks = ntp({ servers: [a, b, silent, '127.0.0.1:1', kisses], timeoutMs: 500 })
      await asks.measure().catch((error) => console.log(error.message))
      const good = ntp({ servers: [a, b, silent], timeoutMs: 500 })
      console.log((await good.measure()).falsetickers.length)
      for (const ms of [0, 1, 5]) {
        const stop = new AbortController()
        const asked = good.measure({ signal: stop.signal }).catch((error) => console.log(error.message))
        if (ms === 0) stop.abort(new Error('enough'))
        else setTimeout(() => stop.abort(new Error('enough')), ms)
        await asked
      }
      const patient = ntp({ servers: [a, b, '127.0.0.1:1'], timeoutMs: 10_000 })
      await patient.measure()
      const open = (kind) => process.getActiveResourcesInfo().filter((what) => what === kind).length
      while (open('UDPWrap') > 0) await new Promise((resolve) => setImmediate(resolve))
      console.log(open('Timeout') + ' timers')`
    const child: ChildProcess = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let out = ''
    child.stdout?.on('data', (bytes) => (out += bytes))
    child.stderr?.on('data', (bytes) => (out += bytes))
    const late = setTimeout(() => child.kill('SIGKILL'), 15_000)
    const [code] = await once(child, 'close')
    clearTimeout(late)
    expect(out).toMatch(/^Only 2 of 5 .*ECONNREFUSED.*\n0\n(enough\n)+0 timers\n$/)
    expect(code).toBe(0)
  })
})

describe.skipIf(!chronydAvailable())('chronyd, a real server', () => {
  const started: { name: string; stop(): Promise<void> }[] = []
  afterEach(() => Promise.all(started.splice(0).map((each) => each.stop())))
  /** Starts one, and waits until it answers. */
  const start = async (...options: Parameters<typeof chronyd>) => {
    const server = await chronyd(...options)
    started.push(server)
    const [address = '', port] = server.name.split(':')
    const refused = () =>
      exchange({ address, family: 4, port: Number(port) }, Date.now() * 1_000, AbortSignal.timeout(200)).then(
        () => false,
        ({ message }) => /ECONNREFUSED|timeout/.test(message),
      )
    while (await refused()) await delay(10)
    return server.name
  }

  test('three of them give the time, and a fourth, wrong server is named', async () => {
    const wrong = await open({ wrongMs: 10_000 })
    const honest = await Promise.all(['127.0.0.11', '127.0.0.12', '127.0.0.13'].map((host) => start({ host })))
    const asks = [...honest, wrong.name]
    const clock = ntp({ servers: asks })
    for (let i = 0; i < 50; i++) {
      const result = await clock.measure()
      expectTruth(result, undefined, 200) // the wall clock is tied to the monotonic one to within some microseconds, and slewed
      expect(result.falsetickers).toEqual([wrong.name])
    }
  })

  test('one of them that is trusted gives the time', async () => {
    const measured = await ntp({ trusted: await start({ host: '127.0.0.17' }) }).measure()
    expectTruth(measured, undefined, 200)
    expect(measured.hi - measured.lo).toBeGreaterThanOrEqual(2 * Number(measured.servers[0]?.distanceUs))
  })

  test('that has no source is not used', async () => {
    const hosts = ['127.0.0.14', '127.0.0.15', '127.0.0.16']
    const servers = await Promise.all(hosts.map((host) => start({ host, local: false })))
    await expect(ntp({ servers }).measure()).rejects.toThrow(/not synchronized/)
  })
})

if (!chronydAvailable()) console.log('The tests against chronyd are skipped: chrony is not installed')
