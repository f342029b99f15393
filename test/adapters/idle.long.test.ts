/** What a server costs that nobody asks anything: a minute on the wire. It is what infra/node/README.md says. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { freshDatabase } from '../support/database.ts'
import { fakeServer } from '../time/ntp-server.ts'
import { wiretap } from './runtime/wiretap.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const MOST = 25 // 21 to 25 were seen, and 39 to 41 with a heartbeat every 2 s

test.each(['without NTP', 'with NTP', 'with NTP servers that do not answer'])(
  '%s: at most 25 statements a minute, 12 of them to keep its session',
  { timeout: 150_000 },
  async (which) => {
    await using database = await freshDatabase()
    await using wire = await wiretap(database.url)
    const servers = which === 'with NTP' ? await Promise.all([0, 0, 0].map((wrongMs) => fakeServer({ wrongMs }))) : []
    const names = which === 'without NTP' ? 'off' : servers.map(({ name }) => name).join(',')
    const cwd = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-idle-')) // one of its own, which is removed again
    const { PATH = '' } = process.env
    const child = spawn(process.execPath, [path.join(ROOT, 'functions/cli/index.ts')], {
      cwd,
      env: {
        ...{ PATH, PORT: '0', DATABASE_URL: wire.url },
        LOCKSTEP_NTP_SERVERS: names || '127.0.0.1:1,127.0.0.1:2,127.0.0.1:3',
      },
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    const ended = once(child, 'close')
    try {
      for await (const chunk of child.stdout) if (String(chunk).includes('listening')) break
      await delay(10_000) // what it does at first is over
      const before = wire.runs.length
      await delay(60_000)
      const runs = wire.runs.slice(before)
      const counted = Object.entries(Object.groupBy(runs, (text) => text.trim().slice(0, 80)))
      const told = counted.map(([text, all]) => `${all?.length} ${text}`).join('\n')
      expect(runs.length, told).toBeLessThanOrEqual(MOST)
      expect(runs.filter((text) => text === 'select 1').length, told).toBeLessThanOrEqual(12)
    } finally {
      child.kill('SIGTERM')
      await ended
      fs.rmSync(cwd, { recursive: true, force: true })
      for (const server of servers) await server[Symbol.asyncDispose]()
    }
  },
)
