/**
 * What the routes of tasks have in common: the paths of queues and jobs, the options of a job, and a job as JSON.
 *
 * The ranges repeat those of lib/task/queue/options.ts. Here the library is imported for its types only, so that a deployment
 * without tasks does not contain pg-boss. If the two ever differ, the library still refuses, also with a 400.
 *
 * A handler's error is kept with its stack, for the people who run the handler. An answer never contains a stack: a caller
 * that may look at a job need not know the code that ran it.
 */
import type { Context } from 'hono'
import type { Job } from '../../lib/task/index.ts'
import { covers, described, type Env, field, named, optional, Problem, shape } from '../http/index.ts'

export const Queue = { name: field.queue }
export const JobPath = { name: field.queue, id: field.uuid }

const INT = 2_147_483_647
const YEAR_MS = 31_536_000_000
const DAY_MS = 86_400_000

const maxMs = field.integer({ min: 0, max: YEAR_MS })
const retries = {
  retryLimit: optional(field.integer({ min: 0, max: 1_000 }), { default: 2, description: 'Attempts after the first' }),
  retryDelayMs: optional(field.integer({ min: 0, max: YEAR_MS }), { default: 0 }),
  backoff: optional(
    field.either(
      field.boolean(`true, false or { maxMs: an integer, 0–${YEAR_MS} }`),
      field.object({ maxMs }),
      (value) => Number.isInteger((value as { maxMs?: unknown } | null)?.maxMs),
    ),
    { default: false, description: 'Doubles the delay each time, up to maxMs' },
  ),
  expireInMs: optional(field.integer({ min: 1_000, max: DAY_MS }), {
    default: 900_000,
    description: 'An attempt may take so long',
  }),
  deadLetter: optional(
    field.queue,
    'The queue that gets a copy of what has failed for good. The key must be for its name too',
  ),
}

export const Declare = named(
  'DeclareQueue',
  field.object({
    ...retries,
    heartbeatMs: optional(field.integer({ min: 10_000, max: DAY_MS }), {
      default: 30_000,
      description: 'After so long without a heartbeat a worker is considered dead',
    }),
    policy: optional(field.word('standard', 'short', 'singleton', 'stately', 'exclusive', 'key_strict_fifo'), {
      default: 'standard',
      description: 'Which jobs exclude each other. It cannot be changed',
    }),
    retentionSeconds: optional(field.integer({ min: 1, max: INT }), {
      default: 1_209_600,
      description: 'A job may wait so long to run',
    }),
    deleteAfterSeconds: optional(field.integer({ min: 0, max: INT }), {
      default: 604_800,
      description: 'A job that is over is kept so long; 0: it is never removed',
    }),
  }),
)

const RFC3339 = 'an instant of 1970–9999 as RFC 3339 says it, with its offset or Z'

export const Options = named(
  'JobOptions',
  field.refined(
    field.refined(
      field.object({
        id: optional(field.uuid, 'The same again is refused: so a retry is no second job'),
        priority: optional(field.integer({ min: -1_000_000, max: 1_000_000 }), {
          default: 0,
          description: 'The higher comes first',
        }),
        startAfterMs: optional(field.integer({ min: 0, max: 10 * YEAR_MS }), { default: 0 }),
        startAfter: optional(field.string(RFC3339, { format: 'date-time' }, isInstant), 'Instead of startAfterMs'),
        ...retries,
        singletonKey: optional(field.text({ min: 1, max: 255 })),
        singletonSeconds: optional(
          field.integer({ min: 1, max: 31_536_000 }),
          'At most one job (for each singletonKey) in every such slot of time: the first',
        ),
        replace: optional(
          field.boolean(),
          'With singletonSeconds: the job of the slot gets this data, if it has not begun; 409 if it has. Without waitMs',
        ),
        group: optional(
          field.object({ id: field.text({ min: 1, max: 255 }), tier: optional(field.text({ min: 1, max: 255 })) }),
        ),
      }),
      'left out where startAfterMs is given',
      (options) => !('startAfter' in options && 'startAfterMs' in options),
      'startAfter',
    ),
    'left out where there is no singletonSeconds, or an id',
    (options) => !options.replace || ('singletonSeconds' in options && !('id' in options)),
    'replace',
  ),
)

export const Counts = named(
  'QueueCounts',
  shape.object({
    queue: shape.string,
    ready: described(shape.integer, 'Could run now'),
    deferred: described(shape.integer, 'Wait for their time'),
    blocked: shape.integer,
    active: described(shape.integer, 'Run'),
    failed: described(shape.integer, 'Have failed for good, and are kept'),
  }),
)

export const JobState = named(
  'Job',
  shape.object({
    id: shape.uuid,
    queue: shape.string,
    state: shape.word('created', 'retry', 'active', 'completed', 'cancelled', 'failed'),
    data: shape.any,
    output: described(shape.any, 'Of the last attempt that ended: what it returned, or its error'),
    attempts: described(shape.integer, 'How many were begun'),
    retryLimit: shape.integer,
    priority: shape.integer,
    createdAt: shape.instant,
    startAfter: described(shape.instant, 'Of a job that a schedule sent: its slot'),
    startedAt: described(shape.nullable(shape.instant), 'The last attempt'),
    completedAt: shape.nullable(shape.instant),
    progress: described(
      shape.nullable(shape.object({ fraction: shape.number, note: shape.nullable(shape.string), at: shape.instant })),
      'The progress that the running, or last, attempt reported',
    ),
    holder: described(shape.nullable(shape.string), 'The holder that claimed it over HTTP, if it gave a name'),
  }),
)

// RFC 3339, and on the calendar: Date.parse takes 30 February for 2 March.
function isInstant(text: string): boolean {
  const [, day] = /^(\d{4}-\d\d-\d\d)T\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)$/.exec(text) ?? []
  const year = new Date(text).getUTCFullYear()
  if (day === undefined || !(year >= 1970 && year <= 9999)) return false
  return new Date(`${day}T00:00:00Z`).toISOString().startsWith(day)
}

/** A job as JSON. */
export function jobJson({ createdAt, startAfter, startedAt, completedAt, progress, output, ...rest }: Job) {
  return {
    ...rest,
    output: outputJson(rest.state, output),
    createdAt: createdAt.toISOString(),
    startAfter: startAfter.toISOString(),
    startedAt: startedAt?.toISOString() ?? null,
    completedAt: completedAt?.toISOString() ?? null,
    progress: progress && { ...progress, at: progress.at.toISOString() },
  }
}

/** The output of a job: of one that was completed all of it, of any other an error, without its stack. */
export function outputJson(state: string, output: unknown): unknown {
  return state === 'completed' ? output : stackless(output)
}

// An error may contain others: `cause`, `errors`.
function stackless(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(stackless)
  const entries = Object.entries(value).filter(([key]) => key !== 'stack')
  return Object.fromEntries(entries.map(([key, inner]) => [key, stackless(inner)]))
}

export function noJob(name: string, id: string): Problem {
  return new Problem(404, 'NOT_FOUND', `There is no job ${id} in the queue ${JSON.stringify(name)}`)
}

/** Throws a 403 if failed jobs would go to a queue that the key is not for. */
export function coversDeadLetter(c: Context<Env>, options: { deadLetter?: string | undefined } | undefined): void {
  covers(c, options?.deadLetter)
}
