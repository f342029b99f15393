/** What others use of this room. */

export type { Reading, TimeSource, TimeStatus } from './reading.ts'
export { cristian, type RemoteTime, type TimeAnswer } from './remote-time.ts'
export { type ReadyOptions, Time, type TimeOptions } from './time.ts'
