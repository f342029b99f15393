/** The exports of this room. */

export { abortable, combineSignals, onAbort } from './abortable.ts'
export {
  budgeted,
  checkInteger,
  checkMs,
  checkPage,
  checkText,
  checkToken,
  checkWord,
  freshHolder,
  isDots,
  LIMITS,
  optionsAndWork,
  type Page,
  WAIT,
} from './arguments.ts'
export { BackoffDelays } from './backoff.ts'
export { batched } from './batch.ts'
export { BoundedMap } from './bounded-map.ts'
export { endsConnection, isReadOnly, notConnected } from './connection-errors.ts'
export { type Endpoint, endpointIn, ipv6In, isBadIPv4, isPort } from './endpoint.ts'
export {
  type EndedOutcome,
  type ErrorCode,
  type Expected,
  ForbiddenError,
  fromDatabase,
  HandedBackError,
  type InvalidArgument,
  JobFailedError,
  LeaseHeldError,
  LeaseLostError,
  NotFoundError,
  noConnectionLeft,
  outOfRange,
  PositionConflictError,
  RunTimeoutError,
  TransactionEndedError,
  UnavailableError,
  wrongType,
} from './errors.ts'
export { type Exact, exact, exactJson, jsonText, metaText, storableError } from './json.ts'
export { checkOptions, GRACE, type Known, known, SIGNAL, TRX } from './options.ts'
export { CLOSE_MS, Closing, Deadline, GRACE_MS, RoomShutdown, type Shutdown } from './shutdown.ts'
export { SQLSTATE } from './sqlstates.ts'
export { Stopwatch, trusted } from './stopwatch.ts'
export { Waker } from './waker.ts'
export { warn } from './warning.ts'
