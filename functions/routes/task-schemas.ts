/**
 * What the routes of tasks have in common: where a queue and a job are, what a job may ask for, and how it is shown.
 *
 * The ranges are those of lib/task/queue/options.ts, said again: the library is imported for its types only, so that a deployment
 * without tasks does not carry pg-boss. Should they come apart, the library still refuses, with a 400 as well.
 *
 * A handler's error is kept with its stack, for who runs the handler. An answer never contains one: whoever may look at a
 * job need not know what the code looks like that ran it.
 */
import { z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import type { Job } from '../../lib/task/index.ts'
import { covers, type Env, field, instant, Problem } from '../http/index.ts'

export const common = { tags: ['tasks'], security: [{ key: [] }] }

export const Queue = z.object({ name: field.queue })
export const JobPath = z.object({ name: field.queue, id: field.uuid })

const INT = 2_147_483_647
const YEAR_MS = 31_536_000_000
const DAY_MS = 86_400_000

const maxMs = field.integer({ min: 0, max: YEAR_MS })
const retries = {
  retryLimit: field
    .integer({ min: 0, max: 1_000 })
    .openapi({ default: 2, description: 'Attempts after the first' })
    .optional(),
  retryDelayMs: field.integer({ min: 0, max: YEAR_MS }).openapi({ default: 0 }).optional(),
  backoff: z
    .union([z.boolean(), field.strict({ maxMs })], { error: `true, false or { maxMs: an integer, 0–${YEAR_MS} }` })
    .openapi({ default: false, description: 'Doubles the delay each time, up to maxMs' })
    .optional(),
  expireInMs: field
    .integer({ min: 1_000, max: DAY_MS })
    .openapi({ default: 900_000, description: 'An attempt may take so long' })
    .optional(),
  deadLetter: field.queue
    .openapi({
      description: 'The queue that gets a copy of what has failed for good. The key must be for its name too',
    })
    .optional(),
}

export const Declare = field
  .strict({
    ...retries,
    heartbeatMs: field
      .integer({ min: 10_000, max: DAY_MS })
      .openapi({ default: 30_000, description: 'After so long without a sign of life a worker is taken for dead' })
      .optional(),
    policy: field
      .word('standard', 'short', 'singleton', 'stately', 'exclusive', 'key_strict_fifo')
      .openapi({ default: 'standard', description: 'Which jobs exclude each other. It cannot be changed' })
      .optional(),
    retentionSeconds: field
      .integer({ min: 1, max: INT })
      .openapi({ default: 1_209_600, description: 'A job may wait so long to run' })
      .optional(),
    deleteAfterSeconds: field
      .integer({ min: 0, max: INT })
      .openapi({ default: 604_800, description: 'A job that is over is kept so long, 0: for ever' })
      .optional(),
  })
  .openapi('DeclareQueue')

const RFC3339 = 'an instant of 1970–9999 as RFC 3339 says it, with its offset or Z'

export const Options = field
  .strict({
    id: field.uuid.openapi({ description: 'The same again is refused: so a retry is no second job' }).optional(),
    priority: field
      .integer({ min: -1_000_000, max: 1_000_000 })
      .openapi({ default: 0, description: 'The higher comes first' })
      .optional(),
    startAfterMs: field
      .integer({ min: 0, max: 10 * YEAR_MS })
      .openapi({ default: 0 })
      .optional(),
    startAfter: z
      .string({ error: RFC3339 })
      .refine(isInstant, { error: RFC3339 })
      .openapi({ format: 'date-time', description: 'Instead of startAfterMs' })
      .optional(),
    ...retries,
    singletonKey: field.text({ min: 1, max: 255 }).optional(),
    singletonSeconds: field
      .integer({ min: 1, max: 31_536_000 })
      .openapi({ description: 'At most one job (for each singletonKey) in every such slot of time' })
      .optional(),
    group: field
      .strict({ id: field.text({ min: 1, max: 255 }), tier: field.text({ min: 1, max: 255 }).optional() })
      .optional(),
  })
  .refine(({ startAfter, startAfterMs }) => startAfter === undefined || startAfterMs === undefined, {
    error: 'left out where startAfterMs is given',
    path: ['startAfter'],
  })
  .openapi('JobOptions')

export const Counts = z
  .object({
    queue: z.string(),
    ready: z.int().openapi({ description: 'Could run now' }),
    deferred: z.int().openapi({ description: 'Wait for their time' }),
    blocked: z.int(),
    active: z.int().openapi({ description: 'Run' }),
    failed: z.int().openapi({ description: 'Have failed for good, and are kept' }),
  })
  .openapi('QueueCounts')

export const JobState = z
  .object({
    id: z.uuid(),
    queue: z.string(),
    state: z.enum(['created', 'retry', 'active', 'completed', 'cancelled', 'failed']),
    data: z.any(),
    output: z.any().openapi({ description: 'Of the last attempt that ended: what it returned, or its error' }),
    attempts: z.int().openapi({ description: 'How many were begun' }),
    retryLimit: z.int(),
    priority: z.int(),
    createdAt: instant,
    startAfter: instant.openapi({ description: 'Of a job that a schedule sent: its slot' }),
    startedAt: instant.nullable().openapi({ description: 'The last attempt' }),
    completedAt: instant.nullable(),
    progress: z
      .object({ fraction: z.number(), note: z.string().nullable(), at: instant })
      .nullable()
      .openapi({ description: 'What the running, or last, attempt said of itself' }),
    holder: z.string().nullable().openapi({ description: 'Who claimed it over HTTP, if they said so' }),
  })
  .openapi('Job')

// RFC 3339, and on the calendar: Date.parse takes 30 February for 2 March.
function isInstant(text: string): boolean {
  const [, day] = /^(\d{4}-\d\d-\d\d)T\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)$/.exec(text) ?? []
  const year = new Date(text).getUTCFullYear()
  if (day === undefined || !(year >= 1970 && year <= 9999)) return false
  return new Date(`${day}T00:00:00Z`).toISOString().startsWith(day)
}

/** A job as an answer says it. */
export function shown({ createdAt, startAfter, startedAt, completedAt, progress, output, ...rest }: Job) {
  return {
    ...rest,
    output: said(rest.state, output),
    createdAt: createdAt.toISOString(),
    startAfter: startAfter.toISOString(),
    startedAt: startedAt?.toISOString() ?? null,
    completedAt: completedAt?.toISOString() ?? null,
    progress: progress && { ...progress, at: progress.at.toISOString() },
  }
}

/** What a job said in the end: of one that was completed all of it, of any other an error, without its stack. */
export function said(state: string, output: unknown): unknown {
  return state === 'completed' ? output : stackless(output)
}

// An error has others inside: `cause`, `errors`.
function stackless(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(stackless)
  const entries = Object.entries(value).filter(([key]) => key !== 'stack')
  return Object.fromEntries(entries.map(([key, inner]) => [key, stackless(inner)]))
}

export function noJob(name: string, id: string): Problem {
  return new Problem(404, 'NOT_FOUND', `There is no job ${id} in the queue ${JSON.stringify(name)}`)
}

/** Throws a 403 if what fails would be written to a queue that the key is not for. */
export function coversDeadLetter(c: Context<Env>, options: { deadLetter?: string | undefined } | undefined): void {
  covers(c, options?.deadLetter)
}
