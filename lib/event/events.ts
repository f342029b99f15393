/**
 * Events: what has happened, in order, in the same database and in the same transaction as the rest.
 *
 * PROMISE. A stream is a name with positions 1, 2, 3 … without gaps, in the order of commits. An append is on disk, or in your
 * transaction; with `expected` it is made only where the stream is as you have read it. All streams together have one order, that of
 * cursors, in which each stream's own is kept; a reader never skips an event that commits late, and never sees one that does not
 * commit. In a group each event is applied by one consumer, those of a stream one after another; what its handler writes to this
 * database happens exactly once.
 *
 *   append ─► stream: its row is locked until the commit ─► 1 2 3 …            read, subscribe({ stream })
 *               └─► cursor, drawn under that lock ─► horizon ─► everything     readAll, subscribe({ prefix })
 *                                                       └─► partition ─► lease ─► handler + checkpoint, one commit
 *                                                              └─ it failed: its stream stands still, and is tried again
 *
 * THE ORDER OF EVERYTHING. The first design ordered by (transaction id, position), and readers stopped at the oldest transaction
 * that was open. Three things were wrong with it. A transaction that had its id early and appended late came before events of the
 * same stream that had committed before it. Any transaction that wrote anything, in any database of the cluster, stalled all
 * readers. And a dump restored into another cluster had ids from the future. So the cursor is a number of a sequence, drawn while
 * the stream is locked; and before it draws one, a transaction publishes the number it began at, in the key of an advisory
 * lock that ends with it. The lowest that is published is the horizon (0007_event.sql): only who has appended can hold it up,
 * and is named (event/group/lag.ts); and a dump brings its sequences along.
 *
 * FAILURES. The answer to an append is lost: append again, with ids. A consumer dies: its partitions go to others after its ttl;
 * its transaction was rolled back with its progress. It is frozen: when it comes to itself its commits are refused. An event
 * cannot be applied: it is tried again, then parked and listed; its stream waits, so that the order is kept, the others do not.
 *
 * NOT PROMISED. Effects elsewhere (a mail, an API) happen once more when a consumer dies between them and the commit: give them the
 * stream and the position as their key for once. `at` is a clock's, and clocks are set. After a fail-over to a standby that had not
 * received the last commits, cursors of the lost events are given out again: who keeps a cursor elsewhere may have passed them;
 * use synchronous replication. All streams can be read from the primary only: a standby does not know what may still commit.
 *
 * A room apart from `createLockstep`, as tasks are: who only locks does not bundle it.
 */

import {
  Closing,
  checkInteger,
  checkOptions,
  GRACE_MS,
  RoomShutdown,
  UnavailableError,
  warn,
  wrongType,
} from '../base/index.ts'
import type { AnyTransaction, Database, Pool } from '../database/index.ts'
import { contextOf } from '../database/index.ts'
import type { Lockstep } from '../index.ts'
import { Renewer } from '../lease/index.ts'
import type { Events } from './api.ts'
import type { EventHandler } from './group/index.ts'
import {
  type Batch,
  type BatchEnd,
  type ConsumeOptions,
  type Consumer,
  type FailOptions,
  type Group,
  GroupConsumer,
  type GroupLag,
  type GroupOptions,
  Groups,
  Lags,
  type Parked,
  type PollOptions,
  Polls,
  type StreamLag,
} from './group/index.ts'
import type { NewEvent } from './stream/index.ts'
import {
  type AllOptions,
  type Appended,
  Appender,
  type AppendOptions,
  type ArchiveOptions,
  type EventPage,
  Followers,
  Reader,
  type ReadOptions,
  Retention,
  type RetentionRule,
  StreamNotifier,
  type StreamState,
  type SubscribeOptions,
  type Swept,
  type Truncated,
  type TruncateOptions,
  WAITERS,
} from './stream/index.ts'

export interface EventsOptions {
  /** Connections for events, 1–100. @default 4 */
  connections?: number
  /** Hears of what no caller is there to hear. @default a warning of the process */
  onError?: (error: unknown) => void
}

/**
 * Makes the events of a Lockstep. One for a process; it is closed with it.
 *
 * ```ts
 * await using lockstep = createLockstep({ connectionString: 'postgres://…' })
 * const events = createEvents(lockstep)
 * ```
 *
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function createEvents(lockstep: Lockstep, options: EventsOptions = {}): Events {
  checkOptions(options)
  return new Room(lockstep, options)
}

/** Its verbs are told in api.ts. */
class Room implements Events {
  readonly #database: Database
  readonly #pool: Pool
  readonly #waiters: Pool
  readonly #closing: Closing
  readonly #ending: RoomShutdown
  readonly #renewer = new Renewer()
  readonly #notifier: StreamNotifier
  readonly #consumers = new Set<GroupConsumer>()
  readonly #appender: Appender
  readonly #reader: Reader
  readonly #followers: Followers
  readonly #groups: Groups
  readonly #polls: Polls
  readonly #lags: Lags
  readonly #retention: Retention
  readonly #open: (group: string, options: ConsumeOptions, handler: EventHandler) => Consumer

  constructor(lockstep: Lockstep, { connections = 4, onError = (error) => warn('Events', error) }: EventsOptions) {
    const { database, sessions, closing, rooms } = contextOf(lockstep)
    checkInteger('connections', connections, { min: 1, max: 100 })
    if (typeof onError !== 'function') throw wrongType('onError', 'a function', onError)
    const pool = database.pool(connections, 'raise `connections` of createEvents')
    const waiters = database.pool(WAITERS)
    const tidings = new StreamNotifier(sessions)
    this.#database = database
    this.#closing = new Closing(closing)
    this.#notifier = tidings
    this.#pool = pool
    this.#waiters = waiters
    this.#appender = new Appender(pool, waiters, (streams) => tidings.announce(streams))
    this.#reader = new Reader(pool)
    this.#followers = new Followers(this.#reader, tidings, this.#closing)
    this.#groups = new Groups(database, pool)
    this.#polls = new Polls(pool, this.#groups, tidings)
    this.#lags = new Lags(pool, this.#groups)
    this.#retention = new Retention(pool, this.#reader)
    const told = (error: unknown) => {
      if (this.#closing.closed && error instanceof UnavailableError) return
      try {
        onError(error)
      } catch {} // there is nobody left to tell
    }
    const parts = { database, pool, groups: this.#groups, renewer: this.#renewer, tidings, onError: told }
    this.#open = (group, options, handler) => {
      const consumer = new GroupConsumer(parts, group, options, handler, () => this.#consumers.delete(consumer))
      this.#consumers.add(consumer)
      return consumer
    }
    const how = { drain: () => this.#rest(), end: (late: Promise<void>) => this.#end(late) }
    this.#ending = new RoomShutdown(this.#closing, rooms, how)
  }

  append(stream: string, events: NewEvent | readonly NewEvent[], options?: AppendOptions): Promise<Appended> {
    return this.#closing.verb(() => this.#appender.append(stream, events, options))
  }

  read(stream: string, options: ReadOptions = {}): Promise<EventPage> {
    return this.#wait(options, (asked) => this.#followers.read(stream, asked))
  }

  readAll(options: AllOptions = {}): Promise<EventPage> {
    return this.#wait(options, (asked) => this.#followers.readAll(asked))
  }

  // biome-ignore lint/suspicious/noExplicitAny: typed in the words
  subscribe(options?: SubscribeOptions): AsyncGenerator<any, never, void> {
    return this.#followers.subscribe(options)
  }

  stream(stream: string): Promise<StreamState | null> {
    return this.#closing.verb(() => this.#reader.state(stream))
  }

  async streams(page: { prefix?: string; limit?: number; after?: string } = {}): Promise<StreamState[]> {
    return this.#closing.verb(() => this.#reader.states(page))
  }

  declareGroup(group: string, options?: GroupOptions): Promise<boolean> {
    return this.#closing.verb(() => this.#groups.declare(group, options))
  }

  consume(group: string, options: ConsumeOptions, handler: EventHandler): Consumer {
    this.#closing.check()
    return this.#open(group, options, handler)
  }

  group(group: string): Promise<Group | null> {
    return this.#closing.verb(() => this.#groups.get(group))
  }

  async groups(page?: { prefix?: string; limit?: number; after?: string }): Promise<Group[]> {
    return this.#closing.verb(() => this.#groups.list(page))
  }

  deleteGroup(group: string): Promise<boolean> {
    return this.#closing.verb(() => this.#groups.delete(group))
  }

  parked(group: string, page?: { limit?: number; after?: string }): Promise<Parked[]> {
    return this.#closing.verb(() => this.#polls.parked(group, page))
  }

  redeliver(group: string, options?: { stream?: string; skip?: boolean }): Promise<number> {
    return this.#closing.verb(() => this.#polls.redeliver(group, options))
  }

  lag(group: string): Promise<GroupLag> {
    return this.#closing.verb(() => this.#lags.group(group))
  }

  streamLag(stream: string): Promise<StreamLag> {
    return this.#closing.verb(() => this.#lags.stream(stream))
  }

  poll(group: string, options: PollOptions): Promise<Batch[]> {
    return this.#wait(options, (asked) => this.#polls.poll(group, asked))
  }

  commit(group: string, batch: BatchEnd, options?: { trx?: AnyTransaction }): Promise<void> {
    return this.#closing.verb(() => this.#polls.commit(group, batch, options))
  }

  fail(group: string, batch: FailOptions): Promise<{ attempts: number; parked: boolean; retryAt: Date | null }> {
    return this.#closing.verb(() => this.#polls.fail(group, batch))
  }

  leave(group: string, holder: string): Promise<void> {
    return this.#closing.verb(() => this.#polls.leave(group, holder))
  }

  retain(prefix: string, rule: RetentionRule | null): Promise<void> {
    return this.#closing.verb(() => this.#retention.retain(prefix, rule))
  }

  retention(): Promise<({ prefix: string } & RetentionRule)[]> {
    return this.#closing.verb(() => this.#retention.rules())
  }

  sweep(options?: { signal?: AbortSignal }): Promise<Swept> {
    return this.#closing.verb(() => this.#retention.sweep(options))
  }

  truncate(stream: string, before: bigint, options?: TruncateOptions): Promise<Truncated> {
    return this.#closing.verb(() => this.#retention.truncate(stream, before, options))
  }

  async *archive(options?: ArchiveOptions): AsyncGenerator<string, void, void> {
    this.#closing.check()
    const lines = this.#retention.archive(options)
    for (;;) {
      const { done, value } = await this.#closing.abortable(lines.next())
      if (done) return
      yield value
    }
  }

  close(): Promise<void> {
    return this.#ending.now()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** A verb that waits as long as its options say. */
  #wait<O extends { signal?: AbortSignal }, T>(options: O, run: (options: O) => Promise<T>): Promise<T> {
    return this.#closing.verb(async () => {
      checkOptions(options)
      return this.#closing.wait(options.signal, (signal) => run({ ...options, signal }))
    })
  }

  #rest(): Promise<void> | undefined {
    const resting = [...this.#consumers].flatMap((consumer) => consumer.rest(GRACE_MS) ?? [])
    return resting.length === 0 ? undefined : Promise.all(resting).then(() => {})
  }

  async #end(late: Promise<void>): Promise<void> {
    void this.#waiters.end() // who waits for somebody else's transaction
    const over = [...[...this.#consumers].map((consumer) => consumer.stop()), this.#closing.settled()]
    await Promise.race([Promise.allSettled(over), late])
    await this.#renewer.close(late)
    this.#notifier.close()
    await this.#database.drop([this.#pool, this.#waiters], late)
  }
}
