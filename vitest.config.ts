import * as path from 'node:path'
import { configDefaults, defineConfig } from 'vitest/config'
import { BaseSequencer } from 'vitest/node'

/** Those that last longest begin first: begun last, one of them is waited for by a worker that has nothing to do. */
const LONG = [
  'chaos',
  'pooled',
  'node',
  'contract',
  'package',
  'failover',
  'loss',
  'task.loss',
  'postgres',
  'skew',
  'cloudflare',
]

class LongestFirst extends BaseSequencer {
  override async sort(files: Parameters<BaseSequencer['sort']>[0]) {
    const place = ({ moduleId }: (typeof files)[number]) => LONG.indexOf(path.basename(moduleId, '.test.ts'))
    const rest = await super.sort(files.filter((file) => place(file) < 0))
    return [...files.filter((file) => place(file) >= 0).sort((a, b) => place(a) - place(b)), ...rest]
  }
}

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // minutes, not seconds: TEST_LONG=1 npx vitest run test/chaos
    exclude: [...configDefaults.exclude, ...(process.env.TEST_LONG ? [] : ['test/bench/**', 'test/chaos/**'])],
    globalSetup: 'test/setup.ts',
    pool: 'forks', // tests send signals and end connections: a process of its own for each file
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
})
