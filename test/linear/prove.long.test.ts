/** The referee, for a quarter of a minute beside pg-boss, which needs no server of its own. It downloads what the bench compares with. */
import { execFile } from 'node:child_process'
import * as path from 'node:path'
import { expect, test } from 'vitest'
import { INSTALL_MS, installPackages } from '../tools/packages.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const LIMIT = { timeout: INSTALL_MS + 300_000 }

function prove(...args: string[]): Promise<{ code: unknown; printed: string; errors: string }> {
  const command = ['test/tools/with.ts', 'test/bench', '--', 'node', 'prove/run.ts', ...args]
  return new Promise((resolve) => {
    execFile(process.execPath, command, { cwd: ROOT, maxBuffer: 2 ** 26 }, (error, printed, errors) =>
      resolve({ code: error ? error.code : 0, printed, errors }),
    )
  })
}

test(
  'the referee finds no double effect of a transactional handler, and tells each form beside pg-boss',
  LIMIT,
  async () => {
    await installPackages('test/bench')
    const { code, printed, errors } = await prove('--against', 'pg-boss', '--minutes', '0.25', '--seed', '22')
    expect(errors).not.toContain('has broken')
    expect(code).toBe(0)
    const lines = printed.split('\n').filter((line) => line.startsWith('{'))
    const results = lines.map((line) => JSON.parse(line))
    expect(results.map(({ system, how }) => `${system} ${how}`)).toEqual([
      ...['pg-boss plain', 'pg-boss transactional', 'lockstep plain', 'lockstep transactional'],
    ])
    for (const { effects } of results) expect(effects).toBeGreaterThan(50)
    expect(results.at(-1)).toMatchObject({ doubles: 0, lost: 0, history: 'linearizable' })
  },
)

test('the referee names the systems that it knows when it is asked for another one', LIMIT, async () => {
  await installPackages('test/bench')
  const { code, errors } = await prove('--against', 'paper')
  expect(code).toBe(2)
  expect(errors).toContain('redlock, etcd, zookeeper, pg-boss, bullmq, graphile')
})
