/** Histories of concurrent operations: recorded by processes, and judged. */
export * from './checker.ts'
export * from './judge.ts'
export * from './lock-model.ts'
export * from './record.ts'
export * from './stream-model.ts'
