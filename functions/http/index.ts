/** The exports of this folder. */

export { checkOptions, known } from '../../lib/base/index.ts'

export { allow, authenticate, covers, type Env, listable, parseKeys } from './auth.ts'
export { documentOf } from './document.ts'
export * as field from './fields.ts'
export { Name } from './fields.ts'
export { fitting, List, More, nameOf, pageOf } from './list.ts'
export { checkOrigins, isListed, type OriginOptions, webPages } from './origins.ts'
export { below, checkBasePath, type PathOptions, refuseDots } from './path.ts'
export {
  type AnswerHooks,
  answer,
  clientGone,
  invalid,
  isProblem,
  type LostRequest,
  Problem,
  problemAnswer,
  problemBody,
  problemResponse,
  problemResponses,
  sendProblem,
  unavailable,
} from './problem.ts'
export { json, Router, route } from './route.ts'
export { described, named, optional, type ValueOf } from './schema.ts'
export * as shape from './shapes.ts'
export { type Piece, type StreamOptions, Streams, wantsStream } from './sse.ts'
export { type Bindings, inTime, waiting } from './waiting.ts'
