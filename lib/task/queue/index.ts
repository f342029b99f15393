/** The exports of this folder. */

export type { Handler, HandlerContext, TransactionalContext } from './handler.ts'
export {
  checkDefinition,
  checkId,
  checkQueue,
  DECLARE,
  DEFINE,
  type DeclareOptions,
  type DefineOptions,
  type Definition,
  type RetryOptions,
  RUN,
  type SendOptions,
  WORKER_QUEUES,
} from './options.ts'
export { Queues } from './queues.ts'
export { Sender } from './send.ts'
export { type StandardSchema, validated } from './standard-schema.ts'
