/** Every verb of every room, with valid arguments, for tests that call all of them. A verb that is missing is an error. */
import type { Events } from '../../lib/event/index.ts'
import type { Lockstep } from '../../lib/index.ts'
import type { Tasks } from '../../lib/task/index.ts'

type Room = Record<string, (...args: unknown[]) => unknown>

const LOCKS = {
  acquire: ['x'],
  tryAcquire: ['x'],
  using: ['x', () => {}],
  transaction: ['x', () => {}],
  get: ['x'],
  query: ['x'],
  list: [],
  grant: ['x'],
  renew: ['x', 1n],
  revoke: ['x', 1n],
  forceRevoke: ['x'],
  sweep: [],
}
const LEADERS = {
  campaign: ['x'],
  tryCampaign: ['x'],
  lead: ['x', () => {}],
  get: ['x'],
  leader: ['x'],
  state: ['x'],
  members: ['x'],
  observe: ['x'],
  list: [],
  stepDown: ['x'],
  grant: ['x'],
  renew: ['x', 1n],
  revoke: ['x', 1n],
}
const TIME = { ready: [], waitUntilAfter: [0], tick: [], synchronize: [] }
const ID = '00000000-0000-4000-8000-000000000000'
const TASKS = {
  define: ['defined'],
  declare: ['q'],
  queues: [],
  send: ['q', 1],
  sendAll: ['q', [{ data: 1 }]],
  run: ['q', 1],
  outcome: ['q', 1],
  broadcast: ['q', 1],
  work: [],
  drain: [],
  tick: [],
  get: ['q', ID],
  cancel: ['q', ID],
  counts: ['q'],
  schedule: ['x', '0 0 1 1 *', { queue: 'q' }],
  unschedule: ['x'],
  getSchedule: ['x'],
  scheduled: ['x'],
  schedules: [],
  claim: ['q'],
  complete: ['q', ID, 1n],
  fail: ['q', ID, 1n, 'why'],
  extend: ['q', ID, 1n],
  progress: ['q', ID, 1n, 0.5],
  handBack: ['q', [{ id: ID, token: 1n }]],
}
const BATCH = { partition: 0, token: 1n, next: '1.1' }
const EVENTS = {
  append: ['x', { type: 't' }],
  read: ['x'],
  readAll: [],
  subscribe: [{ stream: 'x' }],
  getStream: ['x'],
  stream: ['x'],
  streams: [],
  declareGroup: ['x'],
  consume: ['x', {}, () => {}],
  getGroup: ['x'],
  group: ['x'],
  groups: [],
  deleteGroup: ['x'],
  parked: ['x'],
  redeliver: ['x'],
  lag: ['x'],
  streamLag: ['x'],
  poll: ['x', { holder: 'me' }],
  commit: ['x', BATCH],
  fail: ['x', { ...BATCH, event: 1n }],
  leave: ['x', 'me'],
  retain: ['x', null],
  retention: [],
  sweep: [],
  truncate: ['x', 1n],
  archive: [],
}
/** Verbs that do not ask the database: they answer from what is known. */
const ASKS_NOTHING = ['constructor', 'close', 'now', 'after', 'before', 'preview', 'background']

/** The name of each verb, and a function that calls it; of an iterator, it reads the first item. */
export function calls(lockstep: Lockstep, tasks: Tasks, events: Events): [string, () => Promise<unknown>][] {
  const rooms: [string, object, Record<string, unknown[]>][] = [
    ['locks', lockstep.locks, LOCKS],
    ['leaders', lockstep.leaders, LEADERS],
    ['time', lockstep.time, TIME],
    ['tasks', tasks, TASKS],
    ['events', events, EVENTS],
  ]
  const verbs = rooms.flatMap(([name, room, table]) => {
    const there = Object.getOwnPropertyNames(Object.getPrototypeOf(room)).filter((verb) => !ASKS_NOTHING.includes(verb))
    const missing = there.filter((verb) => !(verb in table))
    if (missing.length > 0) throw new Error(`test/close/every-verb.ts lacks ${name}: ${missing.join(', ')}`)
    return there.map((verb): [string, () => Promise<unknown>] => [
      `${name}.${verb}`,
      async () => {
        const answer = (room as Room)[verb]?.(...(table[verb] as unknown[]))
        const { next } = (answer ?? {}) as Partial<AsyncGenerator>
        return next ? next.call(answer) : answer
      },
    ])
  })
  return [
    ...verbs,
    ['ready', () => lockstep.ready()],
    ['kysely', () => lockstep.kysely.selectFrom('lockstep.lease').select('name').execute()],
    ['a transaction', () => lockstep.kysely.transaction().execute(async () => {})],
  ]
}
