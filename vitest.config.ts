import { configDefaults, defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // minutes, not seconds: TEST_LONG=1 npx vitest run test/chaos
    exclude: [...configDefaults.exclude, ...(process.env.TEST_LONG ? [] : ['test/bench/**', 'test/chaos/**'])],
    globalSetup: 'test/setup.ts',
    pool: 'forks', // tests send signals and end connections: a process of its own for each file
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
})
