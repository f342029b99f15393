/**
 * The promises about groups, as a suite that runs on a direct connection (group.test.ts) and through a transaction pooler
 * (database/pooler.long.test.ts). Two Locksteps stand for two processes: `ours` and `theirs`.
 */
import { sql } from 'kysely'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { SQLSTATE } from '../../lib/base/errors.ts'
import {
  type Batch,
  type ConsumeOptions,
  type Consumer,
  createEvents,
  type EventHandler,
  type Events,
} from '../../lib/event/index.ts'
import { createLockstep, type Lockstep } from '../../lib/index.ts'
import { type FreshDatabase, freshDatabase, type PooledDatabase } from '../support/database.ts'
import { until } from '../support/until.ts'

export function groupSuite({ pooled }: { pooled: boolean }) {
  let db: FreshDatabase
  let a: Lockstep
  let b: Lockstep
  let ours: Events
  let theirs: Events
  const errors: unknown[] = []
  beforeAll(async () => {
    db = pooled ? await freshDatabase({ pooled: true }) : await freshDatabase()
    const connectionString = pooled ? (db as PooledDatabase).pooledUrl : db.url
    a = createLockstep({ connectionString, max: 20 })
    b = createLockstep({ connectionString, max: 20 })
    ours = createEvents(a, { onError: (error) => errors.push(error) })
    theirs = createEvents(b, { onError: (error) => errors.push(error) })
    await db.pool.query(`
      create table effect (n bigserial, stream text, position bigint, by text);
      create table once (id text, constraint once_only unique (id) deferrable initially deferred)`)
  })
  afterAll(async () => {
    await Promise.all([a?.close(), b?.close()])
    await db?.close()
  })
  const consumers: Consumer[] = []
  afterEach(async () => {
    await Promise.all(consumers.splice(0).map((consumer) => consumer.stop({ graceMs: 0 })))
    expect(errors.splice(0)).toEqual([])
  })

  let n = 0
  /** The name of a new group, and the prefix of the streams that it reads. */
  const fresh = () => ({ group: `group-${n}`, folder: `folder-${n++}/` })
  function consumes(events: Events, group: string, options: ConsumeOptions, handler: EventHandler): Consumer {
    const consumer = events.consume(group, options, handler)
    consumers.push(consumer)
    return consumer
  }
  const writes: EventHandler = async ({ stream, position }, { trx, token }) => {
    await sql`insert into effect (stream, position, by) values (${stream}, ${position}, ${String(token)})`.execute(trx)
  }
  const fill = async (folder: string, streams: number, each: number) => {
    await Promise.all(
      Array.from({ length: streams }, (_, s) =>
        ours.append(
          folder + s,
          Array.from({ length: each }, (_, i) => ({ type: String(i + 1) })),
        ),
      ),
    )
  }
  /** The effects of handlers, in their order, by stream. */
  async function effects(folder: string): Promise<Record<string, number[]>> {
    const { rows } = await db.pool.query<{ stream: string; position: string }>(
      'select stream, position from effect where starts_with(stream, $1) order by n',
      [folder],
    )
    const found: Record<string, number[]> = {}
    for (const { stream, position } of rows) {
      const name = stream.slice(folder.length)
      found[name] = [...(found[name] ?? []), Number(position)]
    }
    return found
  }
  const upTo = (count: number) => Array.from({ length: count }, (_, i) => i + 1)
  /** A consumer makes its group when it starts. */
  const made = (group: string) => until(`${group} is made`, async () => (await ours.group(group)) !== null)
  const isParked = async (group: string) => {
    await made(group)
    await until('it is parked', async () => (await ours.parked(group)).length > 0)
  }
  const done = async (group: string) => {
    await made(group)
    await until(`${group} has applied everything`, async () => {
      const { behind, partitions } = await ours.lag(group)
      return behind === 0 && partitions.every(({ retrying, parked }) => retrying === 0 && parked === 0)
    })
  }
  const poll = async (events: Events, group: string, holder: string, options = {}): Promise<Batch> => {
    const [batch] = await events.poll(group, { holder, ...options })
    if (!batch) throw new Error('Expected a batch')
    return batch
  }
  const positions = (batch: Batch | undefined) =>
    batch?.events.map(({ stream, position }) => `${stream.split('/')[1]}:${position}`)
  /** Lets all leases of a holder in a group expire, as if it had not renewed them. */
  const expire = (group: string, holder: string) =>
    db.pool.query(
      `update lockstep.lease set expires_at = clock_timestamp() - interval '1 ms' where starts_with(name, $1) and holder = $2`,
      [`group\t${group}\t`, holder],
    )

  describe('consume', () => {
    test('each event is applied once, and the events of a stream in order, by any number of consumers', async () => {
      const { group, folder } = fresh()
      await fill(folder, 20, 10)
      const options = { prefix: folder, partitions: 8, batch: 7 }
      for (const events of [ours, theirs, ours]) consumes(events, group, options, writes)
      await done(group)
      await fill(folder, 25, 10)
      await done(group)
      const found = await effects(folder)
      for (let s = 0; s < 25; s++) expect(found[s]).toEqual(upTo(s < 20 ? 20 : 10))
    })

    test('reads only streams under its prefix, and also events that are appended later', async () => {
      const { group, folder } = fresh()
      const seen: string[] = []
      consumes(theirs, group, { prefix: folder, partitions: 2 }, ({ stream }) => void seen.push(stream))
      await ours.append(`other-${folder}`, { type: 'x' })
      await ours.append(`${folder}a`, { type: 'x' })
      await until('it came', () => seen.length > 0)
      await ours.append(`${folder}a`, { type: 'x' })
      await until('both came', () => seen.length > 1)
      expect(seen).toEqual([`${folder}a`, `${folder}a`])
    })

    test('a new group begins at the start, at the end, or at a cursor', async () => {
      const { folder } = fresh()
      await ours.append(`${folder}a`, [{ type: '1' }, { type: '2' }])
      const { events } = await ours.read(`${folder}a`)
      const from = { start: 'start', end: 'end', second: events[1]?.cursor as bigint } as const
      for (const where of ['start', 'end', 'second'] as const) {
        await ours.declareGroup(`${folder}${where}`, { prefix: folder, partitions: 1, from: from[where] })
      }
      await ours.append(`${folder}a`, { type: '3' })
      for (const [where, expected] of [
        ['start', ['1', '2', '3']],
        ['second', ['2', '3']],
        ['end', ['3']],
      ] as const) {
        const batch = await poll(theirs, `${folder}${where}`, 'h')
        expect(batch.events.map(({ type }) => type)).toEqual(expected)
      }
    })

    test('partitions are shared evenly, and evenly again when a consumer comes or goes', async () => {
      const { group, folder } = fresh()
      const options = { prefix: folder, partitions: 8, ttlMs: 2_000 }
      const shares = async (...expected: number[]) => {
        const sum = expected.reduce((x, y) => x + y)
        await until(`shares of ${expected}`, () => {
          const sizes = members.map(({ partitions }) => partitions.length).sort()
          return (
            String(sizes) === String(expected) && new Set(members.flatMap(({ partitions }) => partitions)).size === sum
          )
        })
      }
      const members = [consumes(ours, group, options, writes)]
      await shares(8)
      members.push(consumes(theirs, group, options, writes))
      await shares(4, 4)
      members.push(consumes(theirs, group, options, writes))
      await shares(2, 3, 3)
      await members.shift()?.stop()
      await shares(4, 4)
      const { partitions } = await ours.lag(group)
      expect(new Set(partitions.map(({ holder }) => holder))).toEqual(new Set(members.map(({ id }) => id)))
    })

    test('more consumers than partitions: some have none, and take over when others stop', async () => {
      const { group, folder } = fresh()
      const options = { prefix: folder, partitions: 1, ttlMs: 2_000 }
      const members = [consumes(ours, group, options, writes), consumes(theirs, group, options, writes)]
      await until('one has it', () => members.some(({ partitions }) => partitions.length === 1))
      const leader = members.find(({ partitions }) => partitions.length === 1) as Consumer
      const other = members.find((member) => member !== leader) as Consumer
      expect(other.partitions).toEqual([])
      await leader.stop()
      expect(leader.partitions).toEqual([])
      await until('the other has it', () => other.partitions.length === 1)
    })

    test('at most `concurrency` partitions are handled at the same time', async () => {
      const { group, folder } = fresh()
      await fill(folder, 16, 3)
      let [now, most] = [0, 0]
      consumes(ours, group, { prefix: folder, partitions: 8, concurrency: 2, batch: 2 }, async (_, { trx }) => {
        most = Math.max(most, ++now)
        await sql`select pg_sleep(0.002)`.execute(trx)
        now--
      })
      await done(group)
      expect(most).toBe(2)
    })

    test('the writes of a handler that fails are rolled back, and the events before its event are applied once', async () => {
      const { group, folder } = fresh()
      await fill(folder, 3, 4)
      const attempts: number[] = []
      consumes(ours, group, { prefix: folder, partitions: 1, retryDelayMs: 10 }, async (event, context) => {
        await writes(event, context)
        if (event.stream === `${folder}1` && event.position === 3n) {
          attempts.push(context.attempt)
          if (context.attempt < 3) throw new Error('not yet')
        }
      })
      await done(group)
      expect(await effects(folder)).toEqual({ 0: upTo(4), 1: upTo(4), 2: upTo(4) })
      expect([...new Set(attempts)]).toEqual([1, 2, 3])
    })

    test('an event that cannot be applied is parked and listed; its stream waits, others do not', async () => {
      const { group, folder } = fresh()
      await fill(folder, 4, 5)
      let broken = true
      consumes(
        theirs,
        group,
        { prefix: folder, partitions: 2, retryLimit: 2, retryDelayMs: 10 },
        async (event, context) => {
          if (broken && event.stream === `${folder}1` && event.position === 2n)
            throw Object.assign(new Error('broken'), { name: 'Broken' })
          await writes(event, context)
        },
      )
      await isParked(group)
      await until('the others are done', async () => (await ours.lag(group)).behind === 0)
      expect(await effects(folder)).toEqual({ 0: upTo(5), 1: [1], 2: upTo(5), 3: upTo(5) })
      expect(await ours.parked(group)).toEqual([
        {
          ...{ stream: `${folder}1`, position: 2n, attempts: 3, at: expect.any(Date) },
          reason: { name: 'Broken', message: 'broken', stack: expect.any(String) },
        },
      ])
      const lag = await ours.lag(group)
      expect(lag.partitions.reduce((sum, { parked }) => sum + parked, 0)).toBe(1)
      expect(await ours.streamLag(`${folder}1`)).toMatchObject({
        groups: [{ group, position: 1n, behind: 4n, state: 'parked' }],
      })
      expect(errors.splice(0)).toMatchObject([{ message: expect.stringContaining('has parked') }])

      // an event that is appended meanwhile waits too
      await ours.append(`${folder}1`, { type: '6' })
      await ours.append(`${folder}0`, { type: '6' })
      await until('the other goes on', async () => (await effects(folder))[0]?.length === 6)
      expect((await effects(folder))[1]).toEqual([1])

      broken = false
      expect(await ours.redeliver(group)).toBe(1)
      await done(group)
      expect((await effects(folder))[1]).toEqual(upTo(6))
      expect(await ours.parked(group)).toEqual([])
      expect(await ours.redeliver(group)).toBe(0)
    })

    test('a parked event can be skipped', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 4)
      consumes(theirs, group, { prefix: folder, partitions: 1, retryLimit: 0 }, async (event, context) => {
        if (event.position === 2n || event.position === 4n) throw new Error('never')
        await writes(event, context)
      })
      await isParked(group)
      expect(await ours.redeliver(group, { stream: `${folder}other` })).toBe(0)
      expect(await ours.redeliver(group, { stream: `${folder}0`, skip: true })).toBe(1)
      await until('the last is parked', async () => (await ours.parked(group))[0]?.position === 4n)
      expect(await ours.redeliver(group, { skip: true })).toBe(1)
      await done(group)
      expect(await effects(folder)).toEqual({ 0: [1, 3] })
      expect(errors.splice(0)).toHaveLength(2)
      await ours.append(`${folder}0`, { type: '5' })
      await done(group)
      expect(await effects(folder)).toEqual({ 0: [1, 3, 5] })
    })

    test('an event whose writes only the COMMIT refuses fails, and no other event does', async () => {
      const { group, folder } = fresh()
      await fill(folder, 5, 2)
      const options = { prefix: folder, partitions: 1, retryLimit: 0 }
      consumes(ours, group, options, async (event, context) => {
        await writes(event, context)
        const id = event.stream === `${folder}3` ? `${folder}twice` : `${event.stream}:${event.position}`
        await sql`insert into once values (${id})`.execute(context.trx)
      })
      await isParked(group)
      await until('the others are done', async () => (await ours.lag(group)).behind === 0)
      expect(await effects(folder)).toEqual({ 0: [1, 2], 1: [1, 2], 2: [1, 2], 3: [1], 4: [1, 2] })
      expect(await ours.parked(group)).toMatchObject(
        [{ stream: `${folder}3`, position: 2n, reason: { message: /once_only/ } }].map(() => ({
          stream: `${folder}3`,
          position: 2n,
        })),
      )
      errors.splice(0)
    })

    test('a handler that never returns is cut off, and its event fails', async () => {
      const { group, folder } = fresh()
      await fill(folder, 2, 2)
      let signal: AbortSignal | undefined
      const options = { prefix: folder, partitions: 1, retryLimit: 0, timeoutMs: 1_000 }
      consumes(ours, group, options, async (event, context) => {
        await writes(event, context)
        if (event.stream === `${folder}0` && event.position === 2n) {
          signal = context.signal
          await new Promise(() => {})
        }
      })
      await isParked(group)
      expect(signal?.aborted).toBe(true)
      await until('the others are done', async () => (await ours.lag(group)).behind === 0)
      expect(await effects(folder)).toEqual({ 0: [1], 1: [1, 2] })
      errors.splice(0)
    })

    test('a consumer that has lost its partition commits nothing', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 3)
      const options = { prefix: folder, partitions: 1, ttlMs: 1_000 }
      const holding = Promise.withResolvers<void>()
      const expired = Promise.withResolvers<void>()
      let zombie: Consumer | undefined
      let begun = 0
      // It handles its first event, in its transaction. Nobody can take the partition until that ends, so the test takes it now.
      const first = consumes(ours, group, options, async (event, context) => {
        if (++begun === 1) {
          holding.resolve()
          await expired.promise
        }
        await writes(event, context)
      })
      await holding.promise
      zombie = first
      // from here on the database knows another holder
      const taken = db.pool.query(
        `update lockstep.lease set token = token + 1, holder = 'another holder' where name = $1 returning token`,
        [`group\t${group}\t0`],
      )
      expired.resolve()
      await taken
      await until('it has noticed', () => zombie?.partitions.length === 0)
      const { rows } = await db.pool.query('select seq from lockstep.checkpoint where group_name = $1', [group])
      const applied = (await effects(folder))[0] ?? []
      // either its transaction committed before the change of holders, or it was rolled back
      expect(applied).toEqual(rows[0].seq === '0' ? [] : upTo(3))
      await expire(group, 'another holder')
      await done(group)
      expect(await effects(folder)).toEqual({ 0: upTo(3) })
    })

    test('stop lets a batch end within the grace period, and rolls it back after that', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 2)
      for (const graceMs of [0, 20_000]) {
        const begun = Promise.withResolvers<void>()
        const finish = Promise.withResolvers<void>()
        const consumer = consumes(ours, group, { prefix: folder, partitions: 1 }, async (event, context) => {
          await writes(event, context)
          begun.resolve()
          await Promise.race([finish.promise, new Promise((_, no) => context.signal.addEventListener('abort', no))])
        })
        await begun.promise
        const stopped = consumer.stop({ graceMs })
        if (graceMs > 0) finish.resolve()
        await stopped
        expect(await effects(folder)).toEqual(graceMs > 0 ? { 0: [1, 2] } : {})
        expect(consumer.partitions).toEqual([])
      }
    })

    test('its signal stops a consumer, also one that aborted before the start', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 1)
      const stop = new AbortController()
      const consumer = consumes(ours, group, { prefix: folder, partitions: 1, signal: stop.signal }, writes)
      await done(group)
      stop.abort()
      await consumer.stop()
      const { partitions } = await ours.lag(group)
      expect(partitions[0]?.holder).toBeNull()
      const never = consumes(ours, group, { signal: AbortSignal.abort() }, writes)
      await never.stop()
      await ours.append(`${folder}0`, { type: '2' })
      expect((await ours.lag(group)).behind).toBe(1)
    })

    test('the prefix and the partitions of a group are fixed', async () => {
      const { group, folder } = fresh()
      expect(await ours.declareGroup(group, { prefix: folder, partitions: 4, retryLimit: 1 })).toBe(true)
      expect(await ours.declareGroup(group, { retryLimit: 7, retryDelayMs: 20 })).toBe(false)
      expect(await theirs.group(group)).toEqual({
        name: group,
        prefix: folder,
        partitions: 4,
        retryLimit: 7,
        retryDelayMs: 20,
      })
      await expect(ours.declareGroup(group, { partitions: 5 })).rejects.toMatchObject({ field: 'partitions' })
      await expect(ours.declareGroup(group, { prefix: 'x' })).rejects.toMatchObject({ field: 'prefix' })
      const consumer = consumes(ours, group, { partitions: 5 }, writes)
      await until('it has stopped', () => errors.length > 0)
      await consumer.stop()
      expect(errors.splice(0)).toMatchObject([{ field: 'partitions' }])
      expect((await ours.groups({ prefix: group })).map(({ name }) => name)).toContain(group)
    })

    test('a deleted group ends its consumers, and its name can be used again', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 2)
      const consumer = consumes(ours, group, { prefix: folder, partitions: 1 }, writes)
      await done(group)
      expect(await theirs.deleteGroup(group)).toBe(true)
      expect(await theirs.deleteGroup(group)).toBe(false)
      await ours.append(`${folder}0`, { type: '3' })
      await until('it has stopped', () => errors.length > 0)
      await consumer.stop()
      expect(errors.splice(0)).toMatchObject([{ code: 'NOT_FOUND' }])
      await expect(ours.lag(group)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      consumes(theirs, group, { prefix: folder, partitions: 2 }, writes)
      await done(group)
      expect(await effects(folder)).toEqual({ 0: [1, 2, 1, 2, 3] })
    })

    test('made while it is being deleted has its checkpoints, and can be made again', async () => {
      const { group } = fresh()
      const blocker = await db.pool.connect()
      try {
        await blocker.query(
          `begin; insert into lockstep.stuck values ('${group}', 1, 0, 1, 1, 'infinity', null, now())`,
        )
        await blocker.query(`commit; begin; select from lockstep.stuck where group_name = '${group}' for update`)
        const { rows } = await blocker.query('select pg_backend_pid() as pid')
        let ended = false
        const deleting = theirs.deleteGroup(group).finally(() => {
          ended = true
        })
        const waits = 'select from pg_stat_activity where $1 = any (pg_blocking_pids(pid))'
        await until(
          'it waits or has ended',
          async () => ended || (await db.pool.query(waits, [rows[0].pid])).rows.length > 0,
        )
        expect(await ours.declareGroup(group, { partitions: 3 })).toBe(true)
        await blocker.query('commit')
        await deleting
      } finally {
        blocker.release()
      }
      const { rows } = await db.pool.query('select from lockstep.checkpoint where group_name = $1', [group])
      expect(rows.length).toBe((await ours.getGroup(group))?.partitions ?? 0)
      await ours.declareGroup(group)
      expect((await ours.lag(group)).partitions).toHaveLength((await ours.getGroup(group))?.partitions ?? -1)
    })

    test.each<[string, object | null]>([
      ['options', null],
      ['prefix', { prefix: 7 }],
      ['partitions', { partitions: 0 }],
      ['from', { from: {} }],
      ['retryLimit', { retryLimit: [] }],
      ['signal', { signal: 'x' }],
      ['concurrency', { concurrency: 0 }],
      ['batch', { batch: 1_001 }],
      ['ttlMs', { ttlMs: 999 }],
      ['timeoutMs', { timeoutMs: 10 }],
    ])('refuses %s of %o', (field, options) => {
      expect(() => ours.consume('g', options as object, writes)).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT', field }),
      )
    })
    test('refuses a handler that is no function, and an invalid name', () => {
      expect(() => ours.consume('g', {}, 'x' as never)).toThrow(expect.objectContaining({ field: 'handler' }))
      expect(() => ours.consume('', {}, writes)).toThrow(expect.objectContaining({ field: 'group' }))
    })
    test.each<[string, object]>([
      ['partitions', { partitions: 0 }],
      ['partitions', { partitions: 257 }],
      ['from', { from: 0n }],
      ['from', { from: 'now' }],
      ['retryLimit', { retryLimit: -1 }],
      ['retryDelayMs', { retryDelayMs: 3_600_001 }],
      ['prefix', { prefix: 'x'.repeat(256) }],
      ['options', null as never],
    ])('a group refuses %s of %o', async (field, options) => {
      await expect(ours.declareGroup('refused', options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
      expect(await ours.group('refused')).toBeNull()
    })
  })

  describe('poll, commit, fail', () => {
    test('a batch is delivered again until it is committed, and the commit can be repeated', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 5)
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const first = await poll(ours, group, 'h', { limit: 2 })
      expect(positions(first)).toEqual(['0:1', '0:2'])
      expect(await poll(ours, group, 'h', { limit: 2 })).toEqual(first)
      await ours.commit(group, first)
      await ours.commit(group, first)
      const second = await poll(ours, group, 'h', { limit: 2 })
      expect(positions(second)).toEqual(['0:3', '0:4'])
      expect(second.token).toBe(first.token)
      await ours.commit(group, first)
      await ours.commit(group, second)
      expect(positions(await poll(ours, group, 'h'))).toEqual(['0:5'])
    })

    test('a commit in a transaction counts if the transaction commits', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 1)
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const batch = await poll(ours, group, 'h')
      const attempt = (fails: boolean) =>
        a.kysely.transaction().execute(async (trx) => {
          await ours.commit(group, batch, { trx })
          await sql`insert into effect (stream, position) values (${`${folder}0`}, 1)`.execute(trx)
          if (fails) throw new Error('undone')
        })
      await expect(attempt(true)).rejects.toThrow('undone')
      expect(await effects(folder)).toEqual({})
      expect(await poll(ours, group, 'h')).toEqual(batch)
      await attempt(false)
      expect(await effects(folder)).toEqual({ 0: [1] })
      expect(await ours.poll(group, { holder: 'h' })).toEqual([])
    })

    test('two holders share the partitions, and a holder that polls no more loses its share', async () => {
      const { group, folder } = fresh()
      await fill(folder, 30, 1)
      await ours.declareGroup(group, { prefix: folder, partitions: 4 })
      const alone = await ours.poll(group, { holder: 'one' })
      expect(alone.map(({ partition }) => partition).sort()).toEqual([0, 1, 2, 3])
      expect(await theirs.poll(group, { holder: 'two' })).toEqual([])
      const one = await ours.poll(group, { holder: 'one' })
      const two = await theirs.poll(group, { holder: 'two' })
      expect([one.length, two.length]).toEqual([2, 2])
      const all = [...one, ...two].flatMap(({ events }) => events.map(({ stream }) => stream))
      expect(new Set(all).size).toBe(30)

      await expire(group, 'one')
      await theirs.poll(group, { holder: 'two' })
      const [lost] = one
      await expect(ours.commit(group, lost as Batch)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      const again = await theirs.poll(group, { holder: 'two' })
      expect(again.flatMap(({ events }) => events).length).toBe(30)
      for (const batch of again) await theirs.commit(group, batch)
      expect((await ours.lag(group)).behind).toBe(0)
    })

    test('a holder that leaves frees its partitions at once', async () => {
      const { group, folder } = fresh()
      await fill(folder, 10, 1)
      await ours.declareGroup(group, { prefix: folder, partitions: 2 })
      await ours.poll(group, { holder: 'one' })
      expect(await theirs.poll(group, { holder: 'two' })).toEqual([])
      await ours.leave(group, 'one')
      await ours.leave(group, 'one')
      const batches = await theirs.poll(group, { holder: 'two' })
      expect(batches.flatMap(({ events }) => events)).toHaveLength(10)
    })

    const nobodyHas = async (group: string) =>
      expect((await ours.lag(group)).partitions.map(({ holder }) => holder)).toEqual([null])

    /** A poll that is stopped while it takes its partition, by a trigger. Call the returned function to let it go on. */
    async function pollsInto(group: string, lock: number, options = {}) {
      await db.pool.query(`
        create function gate_${lock}() returns trigger language plpgsql as $$
          begin perform pg_advisory_xact_lock_shared(${lock}); return new; end $$;
        create trigger gate_${lock} before insert or update on lockstep.lease for each row
          when (new.name = '${`group\t${group}\t0`}' and new.holder = 'one') execute function gate_${lock}()`)
      const gate = await db.pool.connect()
      await gate.query('select pg_advisory_lock($1)', [lock])
      const polled = ours.poll(group, { holder: 'one', ...options })
      polled.catch(() => {})
      await until('it takes its partition', async () => {
        const { rows } = await gate.query(
          `select from pg_locks where locktype = 'advisory' and objid = $1 and not granted
              and database = (select oid from pg_database where datname = current_database())`,
          [lock],
        )
        return rows.length > 0
      })
      return async () => {
        await gate.query('select pg_advisory_unlock($1)', [lock])
        await db.pool.query(`drop trigger gate_${lock} on lockstep.lease; drop function gate_${lock}`)
        gate.release()
        return await polled
      }
    }

    test('a holder that leaves while its poll takes a partition holds none afterwards', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 1)
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const answers = await pollsInto(group, 9_001)
      await theirs.leave(group, 'one')
      expect(await answers()).toEqual([])
      await nobodyHas(group)
    })

    test('a holder that leaves while its poll waits does not become a member again', async () => {
      const { group, folder } = fresh()
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const waiting = ours.poll(group, { holder: 'one', waitMs: 20_000 })
      await until('it waits', async () => (await ours.lag(group)).partitions[0]?.holder === 'one')
      await theirs.leave(group, 'one')
      await theirs.append(`${folder}a`, { type: 'x' })
      expect(await waiting).toEqual([])
      await nobodyHas(group)
    })

    test('a partition that is granted to a poll whose caller has gone is released', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 1)
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const stop = new AbortController()
      const answers = await pollsInto(group, 9_003, { signal: stop.signal })
      stop.abort(new Error('gone'))
      await expect(answers()).rejects.toThrow('gone')
      await nobodyHas(group)
    })

    test('waits for an event', async () => {
      const { group, folder } = fresh()
      await ours.declareGroup(group, { prefix: folder, partitions: 3 })
      expect(await ours.poll(group, { holder: 'h', waitMs: 10 })).toEqual([])
      const waiting = ours.poll(group, { holder: 'h', waitMs: 20_000 })
      await theirs.append(`${folder}a`, { type: 'x' })
      expect(positions((await waiting)[0])).toEqual(['a:1'])
      const stop = new AbortController()
      const { partition, token, next } = await poll(ours, group, 'h')
      await ours.commit(group, { partition, token, next })
      const stopped = ours.poll(group, { holder: 'h', waitMs: 20_000, signal: stop.signal })
      stop.abort(new Error('enough'))
      await expect(stopped).rejects.toThrow('enough')
    })

    test('a failed event is delivered again when it is due, with its stream; others go on', async () => {
      const { group, folder } = fresh()
      await ours.append(`${folder}a`, [{ type: '1' }, { type: '2' }])
      await ours.append(`${folder}b`, [{ type: '1' }])
      await ours.append(`${folder}a`, [{ type: '3' }])
      await ours.declareGroup(group, { prefix: folder, partitions: 1, retryDelayMs: 0, retryLimit: 1 })
      const batch = await poll(ours, group, 'h')
      expect(positions(batch)).toEqual(['a:1', 'a:2', 'b:1', 'a:3'])
      const [, event] = batch.events
      const failed = { ...batch, event: event?.cursor as bigint, reason: { message: 'no' } }
      expect(await ours.fail(group, failed)).toEqual({ attempts: 1, parked: false, retryAt: expect.any(Date) })
      // the first batch cannot be committed any more: a:3 must not count as applied
      await expect(ours.commit(group, batch)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await expect(ours.fail(group, failed)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      const retried = await poll(ours, group, 'h')
      expect(positions(retried)).toEqual(['a:2'])
      expect(retried.events[0]?.attempt).toBe(2)
      const cursor = retried.events[0]?.cursor as bigint
      expect(await ours.fail(group, { ...retried, event: cursor })).toEqual({
        attempts: 2,
        parked: true,
        retryAt: null,
      })
      const others = await poll(ours, group, 'h')
      expect(positions(others)).toEqual(['b:1'])
      await ours.commit(group, others)
      expect(await ours.poll(group, { holder: 'h' })).toEqual([])
      await ours.redeliver(group)
      const back = await poll(ours, group, 'h')
      expect(positions(back)).toEqual(['a:2', 'a:3'])
      await ours.commit(group, back)
      await ours.commit(group, back)
      expect(await ours.poll(group, { holder: 'h' })).toEqual([])
      await ours.append(`${folder}a`, { type: '4' })
      expect(positions(await poll(ours, group, 'h'))).toEqual(['a:4'])
    })

    test('no event is lost of a stream that catches up while a batch without it is outstanding', async () => {
      const { group, folder } = fresh()
      await ours.append(`${folder}a`, [{ type: '1' }])
      await ours.declareGroup(group, { prefix: folder, partitions: 1, retryDelayMs: 0, retryLimit: 0 })
      const first = await poll(ours, group, 'h')
      await ours.fail(group, { ...first, event: first.events[0]?.cursor as bigint })
      await ours.append(`${folder}b`, [{ type: '1' }])
      await ours.append(`${folder}a`, [{ type: '2' }])
      await ours.append(`${folder}b`, [{ type: '2' }])
      const passes = await poll(ours, group, 'h')
      expect(positions(passes)).toEqual(['b:1', 'b:2'])
      await ours.redeliver(group)
      const caught = await poll(ours, group, 'h')
      expect(positions(caught)).toEqual(['a:1'])
      await ours.commit(group, caught)
      await expect(ours.commit(group, passes)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      const rest = await poll(ours, group, 'h')
      expect(positions(rest)).toEqual(['b:1', 'a:2', 'b:2'])
      await ours.commit(group, rest)
      expect(await ours.poll(group, { holder: 'h' })).toEqual([])
    })

    test('long stretches without an event of the group are skipped, and not read again', async () => {
      const { group, folder } = fresh()
      await ours.append(`${folder}a`, { type: '1' })
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      await ours.commit(group, await poll(ours, group, 'h'))
      for (let i = 0; i < 6; i++)
        await theirs.append(
          'elsewhere',
          Array.from({ length: 10_000 }, () => ({ type: 'x' })),
        )
      await ours.append(`${folder}a`, { type: '2' })
      expect(positions(await poll(ours, group, 'h'))).toEqual(['a:2'])
      const { rows } = await db.pool.query('select seq from lockstep.checkpoint where group_name = $1', [group])
      expect(Number(rows[0].seq)).toBeGreaterThan(40_000)
    })

    test('a commit of a deleted group does not move the checkpoint of a new group with its name', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 2)
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const batch = await poll(ours, group, 'h')
      await theirs.deleteGroup(group)
      await expect(ours.commit(group, batch)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await theirs.declareGroup(group, { prefix: folder, partitions: 1 })
      await expect(ours.commit(group, batch)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      expect(positions(await poll(ours, group, 'h'))).toEqual(['0:1', '0:2'])
    })

    test('from SQL, in any language: commit_events in the transaction of the effects', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 2)
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const { partition, token, next } = await poll(ours, group, 'h')
      const [seq, turn] = next.split('.')
      await db.pool.query('select lockstep.commit_events($1, $2, $3, $4, $5)', [group, partition, token, seq, turn])
      expect(await ours.poll(group, { holder: 'h' })).toEqual([])
      await expect(
        db.pool.query('select lockstep.commit_events($1, $2, $3, $4, $5)', [group, partition, token + 1n, seq, turn]),
      ).rejects.toMatchObject({ code: SQLSTATE.leaseLost })
    })

    test('refuses unknown groups, and invalid batches', async () => {
      const { group, folder } = fresh()
      await fill(folder, 1, 1)
      await expect(ours.poll(group, { holder: 'h' })).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(ours.parked(group)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(ours.redeliver(group)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(ours.streamLag(`${folder}none`)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await ours.declareGroup(group, { prefix: folder, partitions: 1 })
      const batch = await poll(ours, group, 'h')
      for (const [field, wrong] of [
        ['partition', { ...batch, partition: -1 }],
        ['token', { ...batch, token: 0n }],
        ['token', { ...batch, token: 1 }],
        ['next', { ...batch, next: '12' }],
        ['next', { ...batch, next: 12n }],
      ] as [string, never][]) {
        await expect(ours.commit(group, wrong)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
      }
      await expect(ours.commit(group, { ...batch, partition: 7 })).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await expect(ours.commit('other', batch)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await expect(ours.fail(group, { ...batch, event: 0n })).rejects.toMatchObject({ field: 'event' })
      await expect(ours.fail(group, { ...batch, event: 2n ** 62n })).rejects.toMatchObject({ code: 'NOT_FOUND' })
      for (const [field, options] of [
        ['holder', { holder: '' }],
        ['limit', { holder: 'h', limit: 0 }],
        ['leaseMs', { holder: 'h', leaseMs: 10 }],
        ['waitMs', { holder: 'h', waitMs: -1 }],
      ] as const) {
        await expect(ours.poll(group, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', field })
      }
      expect(await poll(ours, group, 'h')).toEqual(batch)
    })
  })
}
