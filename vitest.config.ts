import * as fs from 'node:fs'
import * as path from 'node:path'
import { defineConfig } from 'vitest/config'
import { BaseSequencer } from 'vitest/node'

/** Those that last longest begin first: begun last, one of them is waited for by a worker that has nothing to do. */
const LONGEST = [
  ...[
    'faults/verbs.long',
    'adapters/idle.long',
    'faults/server.long',
    'faults/locks.long',
    'chaos/short.long',
    'simulation/simulation.long',
    'database/pooler.long',
    'close/close',
    'close/growth.long',
    'task/loss',
  ],
  ...[
    'docs/samples',
    'setup/exclusive-migration.long',
    'faults/rooms.long',
    'http/bounds',
    'adapters/deadline.long',
    'http/followers.long',
    'task/zones',
    'lock/loss',
  ],
  ...['adapters/node', 'adapters/contract.long', 'time/skew.long', 'leader/loss', 'adapters/lambda-freeze'],
]

class LongestFirst extends BaseSequencer {
  override async sort(files: Parameters<BaseSequencer['sort']>[0]) {
    const place = ({ moduleId }: (typeof files)[number]) =>
      LONGEST.findIndex((name) => moduleId.endsWith(`/test/${name}.test.ts`))
    const rest = await super.sort(files.filter((file) => place(file) < 0))
    return [...files.filter((file) => place(file) >= 0).sort((a, b) => place(a) - place(b)), ...rest]
  }
}

// Hundreds of processes of ours are started, and each would strip the types of a hundred files anew: half a second of work.
process.env.NODE_COMPILE_CACHE ??= path.join(import.meta.dirname, 'node_modules/.compile-cache')

// Hundreds of databases are made and thrown away: in memory, where there is enough, that takes half of the system's time.
const MEMORY = '/dev/shm'
if (process.env.TMPDIR === undefined && canHold(MEMORY, 4 * 2 ** 30)) process.env.TMPDIR = MEMORY

/** A file system of so many free bytes, whose programs may run: a container's often has 64 MB, and forbids that. */
function canHold(folder: string, bytes: number): boolean {
  try {
    const { bavail, bsize } = fs.statfsSync(folder)
    const mount = fs
      .readFileSync('/proc/mounts', 'utf8')
      .split('\n')
      .findLast((line) => line.split(' ')[1] === folder)
    return bavail * bsize >= bytes && !mount?.split(' ')[3]?.split(',').includes('noexec')
  } catch {
    return false
  }
}

// A run where every setting and every parser is odd (test/tools/matrix.ts --odd): the tests' own clients are the standard ones.
const ODD = process.env.TEST_ODD !== undefined
const STANDARD_PG = path.join(import.meta.dirname, 'test/support/standard-pg.ts')
const standardPg = {
  name: 'standard-pg',
  enforce: 'pre' as const,
  resolveId: (source: string, importer = '') =>
    source === 'pg' && importer.includes('/test/') && !/\/test\/support\/(standard-pg|odd|odd-setup)\.ts/.test(importer)
      ? STANDARD_PG
      : undefined,
}

export default defineConfig({
  plugins: ODD ? [standardPg] : [],
  test: {
    include: ['test/**/*.test.ts'],
    setupFiles: ODD ? ['test/support/odd-setup.ts'] : [],
    globalSetup: 'test/support/global-setup.ts',
    pool: 'forks', // tests send signals and end connections: a process of its own for each file
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
})
