/**
 * NTP, against servers on loopback that are wrong in every way that is known of them, and against a real one (chronyd).
 *
 * The table of what ntp-client alone takes for the time is in the tests: each row is an answer that it believes, or dies of,
 * and what becomes of it here. True time is the monotonic clock and an offset that the test chose, so that an interval is
 * right or wrong by the microsecond.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import dgram from 'node:dgram'
import { once } from 'node:events'
import { setTimeout as delay, setImmediate as soon } from 'node:timers/promises'
import ntpClient from 'ntp-client'
import { afterEach, describe, expect, test } from 'vitest'
import { exchange } from '../lib/exchange.ts'
import { UnavailableError } from '../lib/index.ts'
import { type Measurement, NTP_SERVERS, ntp } from '../lib/ntp.ts'
import {
  type Behaviour,
  chronyd,
  chronydAvailable,
  type FakeServer,
  fakeServer,
  stamp,
  wallOffset,
} from './ntp.server.ts'

const opened: FakeServer[] = []
afterEach(() => Promise.all(opened.splice(0).map((each) => each[Symbol.asyncDispose]())))
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
const ask = ({ port }: { port: number }, near = Date.now() * 1_000, signal = AbortSignal.timeout(400)) =>
  exchange({ address: '127.0.0.1', family: 4, port }, near, signal)

function expectTruth({ at, lo, hi, guess }: Measurement, offset = wallOffset(), slack = 0): void {
  expect(lo).toBeLessThanOrEqual(offset + slack)
  expect(hi).toBeGreaterThanOrEqual(offset - slack)
  expect(guess).toBeGreaterThanOrEqual(lo)
  expect(guess).toBeLessThanOrEqual(hi)
  expect(at).toBeLessThanOrEqual(performance.now() * 1_000)
}

describe('an answer', () => {
  test('is a bracket of true time, to the microsecond', async () => {
    const server = await open()
    for (let i = 0; i < 200; i++) {
      const { before, after, received, sent, distance } = await ask(server)
      expect(sent - after).toBeLessThanOrEqual(wallOffset() + 1)
      expect(received - before).toBeGreaterThanOrEqual(wallOffset() - 1)
      expect(sent % 1_000).not.toBe(0) // ntp-client's Date has lost it
      expect(distance).toBeCloseTo(1_500, -2)
    }
  })

  // What ntp-client hands on as a good Date (or as 1900, 2036, an invalid one), and what it is here.
  const sent = (change: (packet: Buffer, question: Buffer) => void) => (packet: Buffer, question: Buffer) => {
    change(packet, question)
    return packet
  }
  test.each<[string, Behaviour, string]>([
    ['of 0 bytes', { sends: () => Buffer.alloc(0) }, 'timeout'],
    ['of 20 bytes', { sends: (packet) => packet.subarray(0, 20) }, 'timeout'],
    ['of 44 bytes', { sends: (packet) => packet.subarray(0, 44) }, 'timeout'],
    ['a Kiss-o’-death, without a time', { says: () => ({ stratum: 0, reference: 'RATE', sentUs: -1 }) }, 'KoD RATE'],
    ['a Kiss-o’-death, with a plausible time', { says: () => ({ stratum: 0, reference: 'DENY' }) }, 'KoD DENY'],
    ['of a server that has just begun', { says: () => ({ stratum: 0, reference: 'INIT' }) }, 'not synchronized'],
    ['of stratum 0', { says: () => ({ stratum: 0, reference: '\u0001\u0002' }) }, 'not synchronized'],
    ['of a server that is not synchronized (leap 3)', { says: () => ({ leap: 3 }), wrongMs: HOUR }, 'not synchronized'],
    ['of a server that is not synchronized (stratum 16)', { says: () => ({ stratum: 16 }) }, 'not synchronized'],
    ['to another question', { says: () => ({ cookie: Buffer.alloc(8, 7) }), wrongMs: 42_000 }, 'timeout'],
    ['from another socket than was asked', { fromElsewhere: true }, 'timeout'],
    ['of a broadcaster (mode 5)', { says: () => ({ mode: 5 }) }, 'timeout'],
    ['of version 7', { says: () => ({ version: 7 }) }, 'timeout'],
    ['30 s from true time', { says: () => ({ rootDelay: 60 }) }, '30001 ms from true time, by its own account'],
    [
      'that was sent before the question came',
      { says: (it) => ({ sentUs: it.receivedUs - 10 }) },
      'sent before it was received',
    ],
    [
      'that was longer there than we waited',
      { says: (it) => ({ sentUs: it.sentUs + 5e6 }) },
      'longer there than we waited',
    ],
    ['without a receive timestamp', { says: () => ({ receivedUs: -1 }) }, 'a timestamp of zero'],
    ['without a transmit timestamp', { says: () => ({ sentUs: -1 }) }, 'a timestamp of zero'],
    ['that is our own question', { sends: (_, question) => question }, 'timeout'],
    ['of 0xff', { sends: sent((packet) => packet.fill(255)) }, 'timeout'],
    ['of noise', { sends: sent((packet) => packet.set(Buffer.alloc(48, 'noise!'))) }, 'timeout'],
    ['none', { sends: () => null }, 'timeout'],
  ])('%s is no time', async (_, behaviour, why) => {
    const server = await open(behaviour)
    const signal = new AbortController()
    const asked = ask(server, undefined, signal.signal)
    asked.catch(() => {})
    if (why === 'timeout') {
      await heardAndAnswered(server)
      signal.abort(new Error('timeout'))
    }
    await expect(asked).rejects.toThrow(new Error(why))
  })

  /** It was asked, and what it answered has come, whatever it was. */
  async function heardAndAnswered(server: FakeServer): Promise<void> {
    while (server.asked === 0) await soon()
    await delay(20)
  }

  test('after one to another question is waited for', async () => {
    const server = await open({
      sends: (packet, question) => {
        const forged = Buffer.from(packet)
        forged.fill(1, 24, 32)
        stamp(forged, 40, 0)
        const socket = server as unknown as { name: string }
        expect(socket.name).toBeTruthy()
        return question.length === 48 ? packet : forged
      },
    })
    expect((await ask(server)).stratum).toBe(2)
  })

  test('of NTP’s next era, from 2036 on, is an instant of that era', async () => {
    const offset = Date.UTC(2040, 0, 1) * 1_000 - performance.now() * 1_000
    const server = await open({ offsetUs: () => offset })
    const { before, after, received, sent } = await ask(server, Date.UTC(2039, 0, 1) * 1_000)
    expect(sent - after).toBeLessThanOrEqual(offset + 1)
    expect(received - before).toBeGreaterThanOrEqual(offset - 1)
  })

  test('that came back slowly is a wider bracket, not a wrong one', async () => {
    const server = await open({ back: () => delay(60) })
    const { before, after, received, sent } = await ask(server)
    expect(sent - after).toBeLessThanOrEqual(wallOffset() + 1)
    expect(received - before).toBeGreaterThanOrEqual(wallOffset() - 1)
    expect(after - before).toBeGreaterThan(50_000)
  })

  test('is refused at once where nobody listens', async () => {
    const server = await open()
    await server[Symbol.asyncDispose]()
    await expect(ask(server, undefined, forever)).rejects.toThrow('ECONNREFUSED')
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

  test('that somebody else gives to ntp-client is found out', async () => {
    const server = await open({ back: never })
    const { getNetworkTime } = ntpClient
    ntpClient.getNetworkTime = (_host, _port, callback) => callback(null, new Date())
    try {
      await expect(ask(server, undefined, forever)).rejects.toThrow('ntp-client was answered by somebody else')
      ntpClient.getNetworkTime = (host, port, callback) => {
        getNetworkTime(host, port, (error, date) => callback(error, date && new Date(date.getTime() + 5)))
      }
      server.behaviour = {}
      await expect(ask(server, undefined, forever)).rejects.toThrow('ntp-client was answered by somebody else')
    } finally {
      ntpClient.getNetworkTime = getNetworkTime
    }
  })

  test.each([0, 1, 2, 5, 20])(
    'is not waited for after an abort, %i turns of the loop after the question',
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

describe('a measurement', () => {
  test('contains true time, and says who said what', async () => {
    const servers = await several({}, {}, {}, {})
    const measured = await ntp({ servers: names(servers) }).measure()
    expectTruth(measured)
    expect(measured.falsetickers).toEqual([])
    expect(measured.servers.map(({ server }) => server)).toEqual(names(servers))
    expect(measured.servers[0]).toMatchObject({ problem: null, stratum: 2, rttUs: expect.any(Number) })
    expect(measured.hi - measured.lo).toBeLessThan(30_000)
  })

  test('one of four lies by ten seconds: it is named, and true time is contained', async () => {
    const servers = await several({}, {}, { wrongMs: -10_000 }, {})
    const measured = await ntp({ servers: names(servers) }).measure()
    expectTruth(measured)
    expect(measured.falsetickers).toEqual([servers[2]?.name])
    expect(measured.hi - measured.lo).toBeLessThan(100_000)
  })

  test('two of five are silent', async () => {
    const servers = await several({}, { says: () => ({ leap: 3 }) }, {}, { sends: () => null }, {})
    const measured = await ntp({ servers: names(servers), timeoutMs: 200 }).measure()
    expectTruth(measured)
    expect(measured.servers.map(({ problem }) => problem)).toEqual([null, 'not synchronized', null, 'timeout', null])
  })

  test('two of four are silent: too few, and each is named with its reason', async () => {
    const servers = await several({}, { says: () => ({ stratum: 0, reference: 'RATE' }) }, { sends: () => null }, {})
    const asked = ntp({ servers: names(servers), timeoutMs: 200 }).measure()
    await expect(asked).rejects.toThrow(UnavailableError)
    await expect(asked).rejects.toThrow(
      `Only 2 of 4 NTP servers gave a time, and 3 must: ${servers[1]?.name}: KoD RATE; ${servers[2]?.name}: timeout`,
    )
  })

  test('one silent and one that lies, of four: no three agree', async () => {
    const servers = await several({}, { sends: () => null }, {}, { wrongMs: 10_000 })
    await expect(ntp({ servers: names(servers), timeoutMs: 200 }).measure()).rejects.toThrow(
      'Of 4 NTP servers no 3 agree',
    )
  })

  test('the limit: two of three that lie alike are believed', async () => {
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

  test('a server that asks not to be asked is not, and the others are', async () => {
    const servers = await several({}, {}, { says: () => ({ stratum: 0, reference: 'RATE' }) })
    const asks = ntp({ servers: names(servers) })
    for (let i = 0; i < 3; i++) expectTruth(await asks.measure())
    expect(servers.map(({ asked }) => asked)).toEqual([3, 3, 1])
    expect((await asks.measure()).servers[2]?.problem).toMatch(/^not asked for another (59|60) min, as it wished$/)
  })

  test('an unknown name is a silent server, and says so', async () => {
    const servers = await several({}, {})
    const measured = await ntp({ servers: [...names(servers), 'nowhere.invalid'], timeoutMs: 2_000 }).measure()
    expectTruth(measured)
    expect(measured.servers[2]?.problem).toMatch(/^(no address: |timeout)/)
  })

  test('narrows with what each server said best, until it is told to forget', async () => {
    let slow = false
    const behaviour = { back: () => (slow ? delay(40) : undefined) }
    const asks = ntp({ servers: names(await several(behaviour, behaviour, behaviour)) })
    await asks.measure()
    slow = true
    const remembered = await asks.measure()
    expectTruth(remembered)
    expect(remembered.hi - remembered.lo).toBeLessThan(30_000)
    asks.forget()
    const anew = await asks.measure()
    expectTruth(anew)
    expect(anew.hi - anew.lo).toBeGreaterThan(30_000)
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

  test('2,000 times, through delays, with liars and within what servers say of themselves: true time every time', async () => {
    let state = 20261125
    const random = () => {
      state = (state * 48_271) % 2_147_483_647
      return state / 2_147_483_647
    }
    // Wrong by less than they say, or a liar; each anew at every question.
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
      const liars = Math.floor(random() * (Math.floor((n - 1) / 2) + 1))
      const servers = await several(
        ...Array.from({ length: n }, (_, i) => (i < liars ? { wrongMs: random() * 20_000 - 10_000 } : behaviour())),
      )
      const asks = ntp({ servers: names(servers) })
      for (let i = 0; i < 20; i++) {
        const { lo, hi } = await asks.measure()
        if (lo > wallOffset() || hi < wallOffset()) throw new Error(`Missed: seed ${seed}, measurement ${i}`)
      }
      await Promise.all(opened.splice(0).map((each) => each[Symbol.asyncDispose]()))
    }
  })

  test('teeth: servers that are more wrong than they say are believed, and true time is missed', async () => {
    const says = () => ({ rootDelay: 0, rootDispersion: 2 ** -16 })
    const servers = await several({ wrongMs: 40, says }, { wrongMs: 40, says }, { wrongMs: 40, says })
    const { lo } = await ntp({ servers: names(servers) }).measure()
    expect(lo).toBeGreaterThan(wallOffset())
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
    ['a number', ['a.example', 'b.example', 3], /got 3/],
    ['a text', 'a.example,b.example', /got "a.example,b.example"/],
  ])('%s is refused', (_, servers, message) => {
    const made = () => ntp({ servers: servers as string[] })
    expect(made).toThrow(message)
    expect(made).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', field: 'servers' }))
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

  test('without any, it is five public servers', () => {
    expect(ntp().servers).toEqual(NTP_SERVERS)
    expect(new Set(NTP_SERVERS.map((name) => name.split('.').slice(-2).join('.'))).size).toBe(5)
  })
})

describe('afterwards', () => {
  test('nothing is left open: a process that has measured, and failed to, ends by itself', async () => {
    const servers = await several({}, {}, { sends: () => null }, { says: () => ({ stratum: 0, reference: 'RATE' }) })
    const port = (i: number) => servers[i]?.port
    const program = `
      import { ntp } from ${JSON.stringify(new URL('../lib/ntp.ts', import.meta.url).href)}
      const name = (port) => '127.0.0.1:' + port
      const [a, b, silent, kisses] = [${port(0)}, ${port(1)}, ${port(2)}, ${port(3)}].map(name)
      const asks = ntp({ servers: [a, b, silent, '127.0.0.1:1', kisses], timeoutMs: 100 })
      await asks.measure().catch((error) => console.log(error.message))
      const good = ntp({ servers: [a, b, silent], timeoutMs: 100 })
      console.log((await good.measure()).falsetickers.length)
      for (const ms of [0, 1, 5]) {
        const stop = new AbortController()
        const asked = good.measure({ signal: stop.signal }).catch((error) => console.log(error.message))
        if (ms === 0) stop.abort(new Error('enough'))
        else setTimeout(() => stop.abort(new Error('enough')), ms)
        await asked
      }
      console.log('done')`
    const child: ChildProcess = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let out = ''
    child.stdout?.on('data', (bytes) => (out += bytes))
    child.stderr?.on('data', (bytes) => (out += bytes))
    const late = setTimeout(() => child.kill('SIGKILL'), 15_000)
    const [code] = await once(child, 'close')
    clearTimeout(late)
    expect(out).toMatch(/^Only 2 of 5 .*ECONNREFUSED.*\n0\n(enough\n)+done\n$/)
    expect(code).toBe(0)
  })

  test('a stranger who writes to every loopback port in sight ends no measurement', async () => {
    const servers = await several({ back: () => delay(30) }, { back: () => delay(30) }, { back: () => delay(30) })
    const noise = dgram.createSocket('udp4')
    const asks = ntp({ servers: names(servers) })
    const asked = asks.measure()
    while (servers.some((server) => server.asked === 0)) await soon()
    const handles = process.getActiveResourcesInfo().filter((what) => what === 'UDPWrap')
    expect(handles.length).toBeGreaterThan(3)
    // The guard's own port is not known to a stranger; what is known is the servers'.
    for (const { port } of servers) noise.send(Buffer.alloc(48, 1), port, '127.0.0.1')
    expectTruth(await asked)
    noise.close()
  })
})

describe.skipIf(!chronydAvailable())('chronyd, a real server', () => {
  const started: { name: string; stop(): Promise<void> }[] = []
  afterEach(() => Promise.all(started.splice(0).map((each) => each.stop())))
  /** Once it answers, one way or another. */
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

  test('three of them say what time it is, and one more that lies is named', async () => {
    const liar = await open({ wrongMs: 10_000 })
    const honest = await Promise.all(['127.0.0.11', '127.0.0.12', '127.0.0.13'].map((host) => start({ host })))
    const asks = [...honest, liar.name]
    const clock = ntp({ servers: asks })
    for (let i = 0; i < 50; i++) {
      const result = await clock.measure()
      expectTruth(result, undefined, 200) // the wall clock is tied to the monotonic one to within some microseconds, and slewed
      expect(result.falsetickers).toEqual([liar.name])
    }
  })

  test('that has no source is not believed', async () => {
    const hosts = ['127.0.0.14', '127.0.0.15', '127.0.0.16']
    const servers = await Promise.all(hosts.map((host) => start({ host, local: false })))
    await expect(ntp({ servers }).measure()).rejects.toThrow(/not synchronized/)
  })
})

if (!chronydAvailable()) console.log('The tests against chronyd are skipped: chrony is not installed')
