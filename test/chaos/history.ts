/**
 * The checks of a history of events: the reports of the processes are compared with the tables at the end. The promises are
 * in lib/event/api.ts.
 *
 * THE ORDER IN WHICH EVENTS WERE APPLIED is that of `applied.n`, although it comes from a sequence. A consumer's transaction first
 * locks its partition's checkpoint, draws its numbers under that lock, and keeps the lock until it commits. So, of two
 * transactions of a partition, all numbers of one come before all numbers of the other; a stream is in one partition; and
 * rolled-back numbers are not in the table. In SQLite there is one writer at a time, and each new row has the next number.
 */
import { execFileSync } from 'node:child_process'
import { type Kysely, type RawBuilder, sql } from 'kysely'

/** The reports of the processes. */
export interface Reports {
  /** Appends that were acknowledged. */
  done: { kind: string; tag: string; stream: string; first: bigint; last: bigint }[]
  /** Appends that were rolled back; that were refused, because the stream had another position; and those without an answer. */
  back: Set<string>
  conflicts: Set<string>
  unknown: Set<string>
  /** The events that each reader saw, in that order. */
  seen: Record<'follower' | 'pager', Seen[]>
}
export interface Seen {
  cursor: bigint
  stream: string
  position: bigint
}

/** The content of the tables. */
export interface Stored {
  /** In the order of their cursors. */
  events: Event[]
  /** The positions of the streams, by their rows. */
  positions: Map<string, bigint>
  /** The rows that writers wrote in the transactions of their appends. */
  committed: Row[]
  /** In the order in which they were applied. */
  applied: Applied[]
}
interface Event extends Seen {
  /** Its append: this is event `i` of `of`, and `row` tells whether the transaction wrote a row too. */
  tag: string
  i: number
  of: number
  row: boolean
}
interface Row {
  tag: string
  stream: string
  first: bigint
}
interface Applied {
  stream: string
  position: bigint
  /** Not known for a consumer over HTTP. */
  partition?: number
  token?: bigint
}

export async function storedEvents(observed: Kysely<unknown>): Promise<Event[]> {
  type Data = Pick<Event, 'tag' | 'i' | 'of' | 'row'>
  const rows = await all<{ stream: string; position: string; seq: string; data: Data }>(
    observed,
    sql`select s.name as stream, e.position, e.seq, e.data
          from lockstep.event e join lockstep.stream s on s.id = e.stream order by e.seq`,
  )
  return rows.map(({ stream, position, seq, data: { tag, i, of, row } }) => ({
    ...{ stream, position: BigInt(position), cursor: BigInt(seq), tag, i, of, row },
  }))
}

/** @param file  the SQLite database in which events were applied; '': they were applied in this database. */
export async function storedRest(observed: Kysely<unknown>, file: string): Promise<Omit<Stored, 'events'>> {
  const streams = await all<{ name: string; position: string }>(
    observed,
    sql`select name, position from lockstep.stream`,
  )
  const committed = await all<{ tag: string; stream: string; first: string }>(observed, sql`select * from committed`)
  return {
    positions: new Map(streams.map(({ name, position }) => [name, BigInt(position)])),
    committed: committed.map(({ first, ...row }) => ({ ...row, first: BigInt(first) })),
    applied: file === '' ? await appliedInPostgres(observed) : appliedInSqlite(file),
  }
}

async function appliedInPostgres(observed: Kysely<unknown>): Promise<Applied[]> {
  const rows = await all<{ stream: string; position: string; partition: number; token: string }>(
    observed,
    sql`select stream, position, partition, token from applied order by n`,
  )
  return rows.map(({ position, token, ...row }) => ({ ...row, position: BigInt(position), token: BigInt(token) }))
}

// Read by Python, because the workers over HTTP need it too: the SQLite of Node is too new.
function appliedInSqlite(file: string): Applied[] {
  const program = `import json, sqlite3, sys
rows = sqlite3.connect(sys.argv[1]).execute("select stream, position from applied order by rowid")
print(json.dumps(rows.fetchall()))`
  const text = execFileSync('python3', ['-c', program, file], { encoding: 'utf8', maxBuffer: 2 ** 30 })
  return (JSON.parse(text) as [string, number][]).map(([stream, position]) => ({ stream, position: BigInt(position) }))
}

const all = async <R>(observed: Kysely<unknown>, statement: RawBuilder<R>): Promise<R[]> =>
  (await statement.execute(observed)).rows

// ---- The checks -------------------------------------------------------------------------------------------

/** @param prefix  the prefix of the streams that the group and the readers read. */
export function check(stored: Stored, reports: Reports, prefix: string): string[] {
  const read = stored.events.filter(({ stream }) => stream.startsWith(prefix))
  return [
    ...checkStreams(stored),
    ...checkAppends(stored, reports),
    ...checkRows(stored),
    ...checkApplied(read, stored.applied),
    ...checkSeen('the follower', read, reports.seen.follower),
    ...checkSeen('the pager', read, reports.seen.pager),
  ]
}

// Positions are 1, 2, 3 … in the order of cursors, up to the position in the stream's row.
function checkStreams({ events, positions }: Stored): string[] {
  const violations: string[] = []
  const last = new Map<string, bigint>()
  for (const { stream, position } of events) {
    const expected = (last.get(stream) ?? 0n) + 1n
    if (position !== expected) violations.push(`${stream} has ${position} where ${expected} would be next`)
    last.set(stream, position)
  }
  for (const [stream, position] of positions) {
    const is = last.get(stream) ?? 0n
    if (position !== is) violations.push(`${stream} is at ${position}, its last event at ${is}`)
  }
  return violations
}

// Each append is stored as a whole, once, at its acknowledged position; and none that was rolled back or refused.
function checkAppends({ events }: Stored, reports: Reports): string[] {
  const violations: string[] = []
  const appends = Map.groupBy(events, ({ tag }) => tag)
  for (const [tag, those] of appends) {
    const [{ stream, position }] = those as [Event]
    const whole = those.every(
      (event, k) =>
        event.stream === stream &&
        event.position === position + BigInt(k) &&
        event.i === k &&
        event.of === those.length,
    )
    if (!whole) violations.push(`append ${tag} is not stored as a whole: ${those.map(({ i, of }) => `${i} of ${of}`)}`)
  }
  for (const { kind, tag, stream, first, last } of reports.done) {
    const those = appends.get(tag)
    const [is, to] = [those?.[0], those?.at(-1)]
    if (!is || !to) violations.push(`append ${tag} (${kind}) was acknowledged and is lost`)
    else if (is.stream !== stream || is.position !== first || to.position !== last) {
      const where = `${is.stream} ${is.position}–${to.position}`
      violations.push(`append ${tag} (${kind}) was acknowledged at ${stream} ${first}–${last} and is at ${where}`)
    }
  }
  const known = new Set([...reports.done.map(({ tag }) => tag), ...reports.unknown])
  for (const tag of appends.keys()) {
    if (reports.back.has(tag)) violations.push(`append ${tag} was rolled back and is stored`)
    else if (reports.conflicts.has(tag)) violations.push(`append ${tag} was refused and is stored`)
    else if (!known.has(tag)) violations.push(`append ${tag} is stored and was never made`)
  }
  return violations
}

// Of a transaction, both the append and the row are stored, or neither.
function checkRows({ events, committed }: Stored): string[] {
  const violations: string[] = []
  const firsts = new Map(events.filter(({ i }) => i === 0).map((event) => [event.tag, event]))
  for (const { tag, stream, first } of committed) {
    const is = firsts.get(tag)
    if (is?.stream !== stream || is.position !== first) violations.push(`append ${tag} is not stored, its row is`)
  }
  const rows = new Set(committed.map(({ tag }) => tag))
  for (const [tag, { row }] of firsts) {
    if (row && !rows.has(tag)) violations.push(`append ${tag} is stored, its row is not`)
  }
  return violations
}

// Each event was applied once, those of a stream in order, and nothing else; and no consumer wrote after it had lost the partition.
function checkApplied(events: Event[], applied: Applied[]): string[] {
  const violations: string[] = []
  const stored = new Set(events.map(placeOf))
  const times = new Map<string, number>()
  const last = new Map<string, bigint>()
  const tokens = new Map<number, bigint>()
  for (const { stream, position, partition, token } of applied) {
    const place = placeOf({ stream, position })
    times.set(place, (times.get(place) ?? 0) + 1)
    if (!stored.has(place)) violations.push(`${place} was applied and is no event`)
    const before = last.get(stream) ?? 0n
    if (position <= before) violations.push(`${place} was applied after ${before}`)
    else if (position > before + 1n) violations.push(`${place} was applied after ${before}, without those between`)
    last.set(stream, position)
    if (partition === undefined || token === undefined) continue
    const largest = tokens.get(partition) ?? 0n
    if (token < largest) violations.push(`${place} was applied under token ${token}, after ${largest}`)
    else tokens.set(partition, token)
  }
  for (const place of stored) {
    const n = times.get(place) ?? 0
    if (n !== 1) violations.push(`${place} was applied ${n} times`)
  }
  return violations
}
const placeOf = ({ stream, position }: { stream: string; position: bigint }) => `${stream} ${position}`

// Each event was seen once, in the order of cursors, which includes the order of each stream.
function checkSeen(reader: string, events: Event[], seen: Seen[]): string[] {
  const violations: string[] = []
  const keyOf = ({ cursor, ...place }: Seen) => `${placeOf(place)} (${cursor})`
  const stored = new Set(events.map(keyOf))
  const before = new Set<string>()
  let last = 0n
  for (const one of seen) {
    const key = keyOf(one)
    if (!stored.has(key)) violations.push(`${reader} saw ${key}, which is no event`)
    if (before.has(key)) violations.push(`${reader} saw ${key} twice`)
    else if (one.cursor <= last) violations.push(`${reader} saw ${key} after ${last}`)
    before.add(key)
    last = one.cursor
  }
  for (const key of stored) if (!before.has(key)) violations.push(`${reader} never saw ${key}`)
  return violations
}
