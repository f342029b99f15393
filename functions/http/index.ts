/** What others use of this room. */

export { allow, authenticate, covers, type Env, listable, needs, parseKeys } from './auth.ts'
export * as field from './fields.ts'
export { checked } from './fields.ts'
export { answer, documented, gone, invalid, Problem, problem, problemBody, problems, unavailable } from './problem.ts'
export { body, defined, instant, json, List, Name, NoQuery, next, nextOf, position, token, waiting } from './schemas.ts'
export { type Piece, type StreamOptions, Streams, wantsStream } from './sse.ts'
