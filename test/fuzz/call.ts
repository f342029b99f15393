/**
 * Calls of the library, with arguments of which some would not compile in TypeScript: as they come from JavaScript, from an
 * unchecked form, or from JSON that a client sent.
 *
 * Calls that wait get a short wait (and outcome.ts releases their results), so that no call is blocked by the one before it.
 */
import { inspect } from 'node:util'
import * as fc from 'fast-check'
import { createEvents } from '../../lib/event/index.ts'
import { createLockstep, cristian } from '../../lib/index.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { createTasks } from '../../lib/task/index.ts'
import { ntp } from '../../lib/time/ntp/index.ts'
import { NAMES, oddValue } from './odd.ts'
import { type Call, ENOUGH, type Rooms } from './outcome.ts'

// biome-ignore lint/suspicious/noExplicitAny: any function, with any arguments
type Any = any
type Arg = fc.Arbitrary<unknown>

const often = (right: Arg): Arg => fc.oneof({ weight: 7, arbitrary: right }, { weight: 1, arbitrary: oddValue })
const name = fc.constantFrom(...NAMES)
const queue = fc.constantFrom('a', 'b', 'a/b')
const token = fc.constantFrom(1n, 2n, 4_711n)
const id = fc.constant('00000000-0000-4000-8000-000000000000')
const ttlMs = fc.integer({ min: 1_000, max: 5_000 })
const waitMs = fc.integer({ min: 0, max: 20 })
const meta = fc.jsonValue({ maxDepth: 2 })
const number = fc.integer({ min: 0, max: 1_000 })
const flag = fc.boolean()
const instant = fc.constantFrom<unknown>(new Date(), 0, Date.now())
const signal = fc.nat({ max: 60 }).map((ms) => {
  const stop = new AbortController()
  setTimeout(() => stop.abort(ENOUGH), ms).unref()
  return stop.signal
})
const page = options({ prefix: fc.constantFrom('', 'a'), limit: fc.integer({ min: 1, max: 1_000 }), after: name })
const trx = fc.constantFrom<unknown>(undefined, {}, { query: 7 }, null)

/** An object with some of the options; or sometimes another value. */
function options(fields: Record<string, Arg>, always: Record<string, unknown> = {}): Arg {
  const each = Object.fromEntries(Object.entries(fields).map(([field, right]) => [field, often(right)]))
  const made = fc.record(each, { requiredKeys: [] }).map((some) => ({ ...always, ...some }))
  return often(made)
}

const candidacy = {
  ttlMs,
  holder: name,
  meta,
  priority: fc.constantFrom(-1_000, 0, 1_000),
  failover: fc.constant('lease'),
}
const retries = { retryLimit: number, retryDelayMs: number, backoff: flag, expireInMs: ttlMs, deadLetter: queue }
const sending = {
  ...retries,
  ...{
    id,
    priority: number,
    startAfterMs: number,
    startAfter: instant,
    singletonKey: name,
    singletonSeconds: ttlMs,
    replace: flag,
    trx,
  },
  group: options({ id: name, tier: name }),
}
const declared = {
  ...retries,
  heartbeatMs: fc.constant(10_000),
  policy: fc.constantFrom('standard', 'short'),
  retentionSeconds: ttlMs,
}
const event = options({ type: name, data: meta, meta, id: name })
const ended = { partition: fc.constant(0), token, next: fc.constantFrom('1.1', '0.0'), event: token, reason: meta }
const grouped = {
  prefix: fc.constantFrom('', 'a'),
  partitions: fc.constantFrom(1, 8),
  from: fc.constantFrom('start', 'end', 3n),
  retryLimit: number,
  retryDelayMs: number,
}
const work = fc.constant(undefined).map(() => async () => {})

const ENDLESS = new Map<Arg, 'waitMs' | 'signal'>()

/** Options of a call that by default waits without limit: {@link briefly} sets a limit. */
function waiting(fields: Record<string, Arg>, by: 'waitMs' | 'signal' = 'waitMs'): Arg {
  const made = options({ ...fields, waitMs, signal })
  ENDLESS.set(made, by)
  return made
}

function briefly(made: unknown, by: 'waitMs' | 'signal'): unknown {
  if (made !== undefined && (typeof made !== 'object' || made === null)) return made
  const { waitMs, signal } = (made ?? {}) as { waitMs?: unknown; signal?: unknown }
  const endless = waitMs === undefined || (typeof waitMs === 'number' && waitMs > 20)
  if (by === 'waitMs') return endless ? { ...made, waitMs: 20 } : made
  return signal === undefined ? { ...made, signal: AbortSignal.abort(ENOUGH) } : made
}

const of = {
  locks: ({ lockstep }: Rooms) => lockstep.locks,
  leaders: ({ lockstep }: Rooms) => lockstep.leaders,
  time: ({ lockstep }: Rooms) => lockstep.time,
  tasks: ({ tasks }: Rooms) => tasks,
  events: ({ events }: Rooms) => events,
  '': ({ lockstep }: Rooms) => ({
    createLockstep: (made: Any) => createLockstep(made),
    createTasks: (made: Any) => createTasks(lockstep, made),
    createEvents: (made: Any) => createEvents(lockstep, made),
    migrateGrant: (grant: Any) => migrate(lockstep.kysely, grant === undefined ? {} : { grant }),
    cristian,
    ntp,
  }),
}

const CALLS: [keyof typeof of, string, ...Arg[]][] = [
  ['locks', 'acquire', name, waiting({ ttlMs, holder: name, meta })],
  ['locks', 'tryAcquire', name, options({ ttlMs, holder: name, meta })],
  ['locks', 'using', name, waiting({ ttlMs, holder: name, meta }), work],
  ['locks', 'transaction', name, waiting({}), work],
  ['locks', 'query', name],
  ['locks', 'list', page],
  ['locks', 'grant', name, waiting({ ttlMs, holder: name, meta })],
  ['locks', 'renew', name, token, options({ ttlMs })],
  ['locks', 'revoke', name, token],
  ['locks', 'forceRevoke', name],
  ['locks', 'sweep'],
  ['leaders', 'campaign', name, waiting(candidacy)],
  ['leaders', 'tryCampaign', name, options(candidacy)],
  [
    'leaders',
    'lead',
    name,
    waiting({ ...candidacy, backoff: options({ firstMs: number, mostMs: number }), onError: work }, 'signal'),
    work,
  ],
  ['leaders', 'leader', name],
  ['leaders', 'state', name],
  ['leaders', 'members', name],
  ['leaders', 'observe', name, options({ signal })],
  ['leaders', 'list', page],
  ['leaders', 'stepDown', name],
  ['leaders', 'grant', name, waiting(candidacy)],
  ['leaders', 'renew', name, token, options({ ttlMs, meta })],
  ['leaders', 'revoke', name, token],
  ['time', 'now'],
  ['time', 'ready', waiting({ maxBoundMs: number, maxAgeMs: number })],
  ['time', 'after', instant],
  ['time', 'before', instant],
  ['time', 'waitUntilAfter', instant, options({ signal })],
  ['time', 'tick'],
  ['time', 'synchronize', options({ signal })],
  [
    'tasks',
    'define',
    queue,
    work,
    options({ ...declared, concurrency: number, transactional: flag, groupConcurrency: number, schema: meta }),
  ],
  ['tasks', 'declare', queue, options(declared)],
  ['tasks', 'queues', page],
  ['tasks', 'send', queue, meta, options(sending)],
  ['tasks', 'sendAll', queue, fc.array(often(fc.record({ data: meta })), { maxLength: 3 }), options({ trx })],
  ['tasks', 'run', queue, meta, waiting({ ...sending, pool: fc.constantFrom(1, 2) })],
  ['tasks', 'outcome', queue, meta, waiting(sending)],
  ['tasks', 'broadcast', queue, meta],
  ['tasks', 'work', fc.constant('nowhere')],
  [
    'tasks',
    'drain',
    options({ budgetMs: fc.constant(100), queues: fc.constant(['nowhere']), signal }, { budgetMs: 100 }),
  ],
  ['tasks', 'tick', options({ signal }, { budgetMs: 100 })],
  ['tasks', 'get', queue, id],
  ['tasks', 'cancel', queue, id],
  ['tasks', 'counts', queue],
  [
    'tasks',
    'schedule',
    name,
    fc.constantFrom('* * * * *', '0 0 1 1 *'),
    options({ queue, timezone: fc.constant('UTC'), data: meta, missed: fc.constantFrom('once', 'skip') }),
  ],
  ['tasks', 'unschedule', name],
  ['tasks', 'scheduled', name],
  ['tasks', 'schedules', page],
  ['tasks', 'preview', fc.constant('* * * * *'), fc.constant('UTC'), fc.constantFrom(1, 1_000)],
  ['tasks', 'claim', queue, waiting({ limit: fc.constant(1), holder: name, leaseMs: ttlMs })],
  ['tasks', 'complete', queue, id, token, meta],
  ['tasks', 'fail', queue, id, token, meta],
  ['tasks', 'extend', queue, id, token, options({ leaseMs: ttlMs })],
  ['tasks', 'progress', queue, id, token, fc.constant(0.5), name],
  ['tasks', 'handBack', queue, fc.array(often(fc.record({ id, token })), { maxLength: 2 })],
  [
    'events',
    'append',
    name,
    fc.oneof(event, fc.array(event, { maxLength: 3 })),
    options({ expected: fc.constantFrom('any', 'none', 0n, 3n), trx }),
  ],
  ['events', 'read', name, waiting({ from: token, limit: number, backwards: flag })],
  ['events', 'readAll', waiting({ prefix: name, from: token, limit: number })],
  ['events', 'subscribe', options({ stream: name, prefix: name, from: token, signal })],
  ['events', 'stream', name],
  ['events', 'streams', page],
  ['events', 'declareGroup', name, options(grouped)],
  [
    'events',
    'consume',
    name,
    options({ ...grouped, concurrency: number, batch: number, ttlMs, timeoutMs: ttlMs }),
    work,
  ],
  ['events', 'group', name],
  ['events', 'groups', page],
  ['events', 'deleteGroup', name],
  ['events', 'parked', name, page],
  ['events', 'redeliver', name, options({ stream: name, skip: flag })],
  ['events', 'lag', name],
  ['events', 'streamLag', name],
  ['events', 'poll', name, waiting({ limit: number, leaseMs: ttlMs, holder: name })],
  ['events', 'commit', name, options(ended), options({ trx })],
  ['events', 'fail', name, options(ended)],
  ['events', 'leave', name, name],
  ['events', 'retain', fc.constantFrom('', 'a'), options({ maxAgeMs: fc.constant(86_400_000), maxCount: number })],
  ['events', 'retention'],
  ['events', 'sweep', options({ signal })],
  ['events', 'truncate', name, token, options({ force: flag })],
  ['events', 'archive', options({ stream: name, prefix: name, from: token, signal })],
  [
    '',
    'createLockstep',
    options(
      {
        max: number,
        maxWaiting: number,
        applicationName: name,
        shared: flag,
        volatile: flag,
        time: options({ source: fc.constant('local'), background: flag }),
      },
      { connectionString: 'postgres://127.0.0.1:1/x' },
    ),
  ],
  ['', 'createTasks', options({ connections: number, onError: work })],
  ['', 'createEvents', options({ connections: number, onError: work })],
  ['', 'ntp', options({ servers: fc.constant(['a', 'b', 'c']), timeoutMs: ttlMs })],
  ['', 'migrateGrant', oddValue],
  [
    '',
    'cristian',
    options({
      time: fc.constant('2026-01-01T00:00:00Z'),
      earliest: fc.constant(null),
      latest: fc.constant(null),
      processingMs: number,
    }),
    number,
    number,
  ],
]

function argument(right: Arg): Arg {
  const by = ENDLESS.get(right)
  return by ? often(right).map((made) => briefly(made, by)) : often(right)
}

/** A call of each verb. */
export const VERBS: fc.Arbitrary<Call>[] = CALLS.map(([room, verb, ...args]) =>
  fc.tuple(...args.map(argument)).map((made): Call => {
    const shown = made.map((each) => inspect(each, { depth: 4, breakLength: Infinity, maxStringLength: 300 }))
    return {
      text: `${room}${room && '.'}${verb}(${shown.join(', ')})`,
      make: async (rooms) => (of[room](rooms) as Any)[verb](...made),
    }
  }),
)
