/**
 * A history of events, and what must be true of it: of what the processes said (lib/event/api.ts), and of what is there in the end.
 *
 * THE ORDER IN WHICH EVENTS WERE APPLIED is that of `applied.n`, though it comes from a sequence. A consumer's transaction begins
 * with locking its partition's checkpoint, draws its numbers under that lock, and keeps it until it commits. So of two transactions
 * of a partition all numbers of the one are before all of the other; a stream is in one partition; and numbers of what was
 * rolled back are not there. In SQLite there is one writer at a time, and a new row's number is one more than the last.
 */
import { execFileSync } from 'node:child_process'
import { type RawBuilder, sql } from 'kysely'
import type { Lockstep } from '../../lib/index.ts'

/** What the processes said. */
export interface Told {
  /** Appends that were acknowledged. */
  done: { kind: string; tag: string; stream: string; first: bigint; last: bigint }[]
  /** Rolled back; refused, since the stream was elsewhere; and those of which it was never told. */
  back: Set<string>
  conflicts: Set<string>
  unknown: Set<string>
  /** By who saw them, in the order in which they did. */
  seen: Record<'follower' | 'pager', Seen[]>
}
export interface Seen {
  cursor: bigint
  stream: string
  position: bigint
}

/** What is there. */
export interface There {
  /** In the order of their cursors. */
  events: Event[]
  /** Where the streams say that they are. */
  positions: Map<string, bigint>
  /** The rows that writers wrote in the transactions of their appends. */
  committed: Row[]
  /** In the order in which it was. */
  applied: Applied[]
}
interface Event extends Seen {
  /** Of the append that it is of: the i-th of so many, together with a row or not. */
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
  /** Not known of who consumes by HTTP. */
  partition?: number
  token?: bigint
}

export async function eventsThere(lockstep: Lockstep): Promise<Event[]> {
  type Data = Pick<Event, 'tag' | 'i' | 'of' | 'row'>
  const rows = await all<{ stream: string; position: string; seq: string; data: Data }>(
    lockstep,
    sql`select s.name as stream, e.position, e.seq, e.data
          from lockstep.event e join lockstep.stream s on s.id = e.stream order by e.seq`,
  )
  return rows.map(({ stream, position, seq, data: { tag, i, of, row } }) => ({
    ...{ stream, position: BigInt(position), cursor: BigInt(seq), tag, i, of, row },
  }))
}

/** @param file  the SQLite database in which events were applied; '': they were in ours. */
export async function restThere(lockstep: Lockstep, file: string): Promise<Omit<There, 'events'>> {
  const streams = await all<{ name: string; position: string }>(
    lockstep,
    sql`select name, position from lockstep.stream`,
  )
  const committed = await all<{ tag: string; stream: string; first: string }>(lockstep, sql`select * from committed`)
  return {
    positions: new Map(streams.map(({ name, position }) => [name, BigInt(position)])),
    committed: committed.map(({ first, ...row }) => ({ ...row, first: BigInt(first) })),
    applied: file === '' ? await appliedHere(lockstep) : appliedElsewhere(file),
  }
}

async function appliedHere(lockstep: Lockstep): Promise<Applied[]> {
  const rows = await all<{ stream: string; position: string; partition: number; token: string }>(
    lockstep,
    sql`select stream, position, partition, token from applied order by n`,
  )
  return rows.map(({ position, token, ...row }) => ({ ...row, position: BigInt(position), token: BigInt(token) }))
}

// By Python, which is there if its workers were: the SQLite of Node is too young.
function appliedElsewhere(file: string): Applied[] {
  const program = `import json, sqlite3, sys
rows = sqlite3.connect(sys.argv[1]).execute("select stream, position from applied order by rowid")
print(json.dumps(rows.fetchall()))`
  const text = execFileSync('python3', ['-c', program, file], { encoding: 'utf8', maxBuffer: 2 ** 30 })
  return (JSON.parse(text) as [string, number][]).map(([stream, position]) => ({ stream, position: BigInt(position) }))
}

const all = async <R>(lockstep: Lockstep, statement: RawBuilder<R>): Promise<R[]> =>
  (await statement.execute(lockstep.kysely)).rows

// ---- What must be true -------------------------------------------------------------------------------------------

/** @param prefix  of the streams that the group and the readers read. */
export function check(there: There, told: Told, prefix: string): string[] {
  const read = there.events.filter(({ stream }) => stream.startsWith(prefix))
  return [
    ...checkStreams(there),
    ...checkAppends(there, told),
    ...checkRows(there),
    ...checkApplied(read, there.applied),
    ...checkSeen('the follower', read, told.seen.follower),
    ...checkSeen('the pager', read, told.seen.pager),
  ]
}

// Positions are 1, 2, 3 … in the order of cursors, up to where the stream is.
function checkStreams({ events, positions }: There): string[] {
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

// Each append is there as a whole, once, where it was acknowledged; and none that was rolled back or refused.
function checkAppends({ events }: There, told: Told): string[] {
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
    if (!whole) violations.push(`append ${tag} is not there as a whole: ${those.map(({ i, of }) => `${i} of ${of}`)}`)
  }
  for (const { kind, tag, stream, first, last } of told.done) {
    const those = appends.get(tag)
    const [is, to] = [those?.[0], those?.at(-1)]
    if (!is || !to) violations.push(`append ${tag} (${kind}) was acknowledged and is lost`)
    else if (is.stream !== stream || is.position !== first || to.position !== last) {
      const where = `${is.stream} ${is.position}–${to.position}`
      violations.push(`append ${tag} (${kind}) was acknowledged at ${stream} ${first}–${last} and is at ${where}`)
    }
  }
  const known = new Set([...told.done.map(({ tag }) => tag), ...told.unknown])
  for (const tag of appends.keys()) {
    if (told.back.has(tag)) violations.push(`append ${tag} was rolled back and is there`)
    else if (told.conflicts.has(tag)) violations.push(`append ${tag} was refused and is there`)
    else if (!known.has(tag)) violations.push(`append ${tag} is there and was never made`)
  }
  return violations
}

// What a transaction appended, and the row that it wrote: both or neither.
function checkRows({ events, committed }: There): string[] {
  const violations: string[] = []
  const firsts = new Map(events.filter(({ i }) => i === 0).map((event) => [event.tag, event]))
  for (const { tag, stream, first } of committed) {
    const is = firsts.get(tag)
    if (is?.stream !== stream || is.position !== first) violations.push(`append ${tag} is not there, its row is`)
  }
  const rows = new Set(committed.map(({ tag }) => tag))
  for (const [tag, { row }] of firsts) {
    if (row && !rows.has(tag)) violations.push(`append ${tag} is there, its row is not`)
  }
  return violations
}

// Each event was applied once, those of a stream in order, and nothing else; and no partition by who had lost it.
function checkApplied(events: Event[], applied: Applied[]): string[] {
  const violations: string[] = []
  const there = new Set(events.map(placeOf))
  const times = new Map<string, number>()
  const last = new Map<string, bigint>()
  const tokens = new Map<number, bigint>()
  for (const { stream, position, partition, token } of applied) {
    const place = placeOf({ stream, position })
    times.set(place, (times.get(place) ?? 0) + 1)
    if (!there.has(place)) violations.push(`${place} was applied and is no event`)
    const before = last.get(stream) ?? 0n
    if (position <= before) violations.push(`${place} was applied after ${before}`)
    else if (position > before + 1n) violations.push(`${place} was applied after ${before}, without what is between`)
    last.set(stream, position)
    if (partition === undefined || token === undefined) continue
    const largest = tokens.get(partition) ?? 0n
    if (token < largest) violations.push(`${place} was applied under token ${token}, after ${largest}`)
    else tokens.set(partition, token)
  }
  for (const place of there) {
    const n = times.get(place) ?? 0
    if (n !== 1) violations.push(`${place} was applied ${n} times`)
  }
  return violations
}
const placeOf = ({ stream, position }: { stream: string; position: bigint }) => `${stream} ${position}`

// Each event was seen once, in the order of cursors, which keeps that of each stream.
function checkSeen(who: string, events: Event[], seen: Seen[]): string[] {
  const violations: string[] = []
  const keyOf = ({ cursor, ...place }: Seen) => `${placeOf(place)} (${cursor})`
  const there = new Set(events.map(keyOf))
  const were = new Set<string>()
  let last = 0n
  for (const one of seen) {
    const key = keyOf(one)
    if (!there.has(key)) violations.push(`${who} saw ${key}, which is no event`)
    if (were.has(key)) violations.push(`${who} saw ${key} twice`)
    else if (one.cursor <= last) violations.push(`${who} saw ${key} after ${last}`)
    were.add(key)
    last = one.cursor
  }
  for (const key of there) if (!were.has(key)) violations.push(`${who} never saw ${key}`)
  return violations
}
