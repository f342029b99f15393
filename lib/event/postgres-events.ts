/** The events of a Lockstep, made of the parts for streams and for groups. Their promise is in events.ts. */

import {
  Closing,
  checkInteger,
  checkOptions,
  GRACE_MS,
  type Page,
  RoomShutdown,
  UnavailableError,
  warn,
  wrongType,
} from '../base/index.ts'
import type { AnyTransaction, Database, Pool } from '../database/index.ts'
import { contextOf } from '../database/index.ts'
import type { Lockstep } from '../index.ts'
import { Renewer } from '../lease/index.ts'
import type { Events, EventsOptions } from './api.ts'
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
  WAIT_CONNECTIONS,
} from './stream/index.ts'

/** The verbs of {@link Events}, each by the part that does it; and their end. */
export class PostgresEvents implements Events {
  readonly #database: Database
  readonly #pool: Pool
  readonly #waitPool: Pool
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
    const waitPool = database.pool(WAIT_CONNECTIONS)
    const notifier = new StreamNotifier(sessions)
    this.#database = database
    this.#closing = new Closing(closing)
    this.#notifier = notifier
    this.#pool = pool
    this.#waitPool = waitPool
    this.#appender = new Appender(pool, waitPool, (streams) => notifier.announce(streams))
    this.#reader = new Reader(pool)
    this.#followers = new Followers(this.#reader, notifier, this.#closing)
    this.#groups = new Groups(database, pool)
    this.#polls = new Polls(pool, this.#groups, notifier)
    this.#lags = new Lags(pool, this.#groups)
    this.#retention = new Retention(pool, this.#reader)
    const report = (error: unknown) => {
      if (this.#closing.closed && error instanceof UnavailableError) return
      try {
        onError(error)
      } catch {} // an error of onError itself has no other handler
    }
    const parts = { database, pool, groups: this.#groups, renewer: this.#renewer, notifier, onError: report }
    this.#open = (group, options, handler) => {
      const consumer = new GroupConsumer(parts, group, options, handler, () => this.#consumers.delete(consumer))
      this.#consumers.add(consumer)
      return consumer
    }
    const steps = { drain: () => this.#drain(), end: (deadline: Promise<void>) => this.#end(deadline) }
    this.#ending = new RoomShutdown(this.#closing, rooms, steps)
  }

  append(stream: string, events: NewEvent | readonly NewEvent[], options?: AppendOptions): Promise<Appended> {
    return this.#closing.verb(() => this.#appender.append(stream, events, options))
  }

  read(stream: string, options: ReadOptions = {}): Promise<EventPage> {
    return this.#wait(options, (stoppable) => this.#followers.read(stream, stoppable))
  }

  readAll(options: AllOptions = {}): Promise<EventPage> {
    return this.#wait(options, (stoppable) => this.#followers.readAll(stoppable))
  }

  // biome-ignore lint/suspicious/noExplicitAny: typed in the interface
  subscribe(options?: SubscribeOptions): AsyncGenerator<any, never, void> {
    return this.#followers.subscribe(options)
  }

  getStream(stream: string): Promise<StreamState | null> {
    return this.#closing.verb(() => this.#reader.state(stream))
  }

  stream(stream: string): Promise<StreamState | null> {
    return this.getStream(stream)
  }

  async streams(page: Page = {}): Promise<StreamState[]> {
    return this.#closing.verb(() => this.#reader.states(page))
  }

  declareGroup(group: string, options?: GroupOptions): Promise<boolean> {
    return this.#closing.verb(() => this.#groups.declare(group, options))
  }

  consume(group: string, options: ConsumeOptions, handler: EventHandler): Consumer {
    this.#closing.check()
    return this.#open(group, options, handler)
  }

  getGroup(group: string): Promise<Group | null> {
    return this.#closing.verb(() => this.#groups.get(group))
  }

  group(group: string): Promise<Group | null> {
    return this.getGroup(group)
  }

  async groups(page?: Page): Promise<Group[]> {
    return this.#closing.verb(() => this.#groups.list(page))
  }

  deleteGroup(group: string): Promise<boolean> {
    return this.#closing.verb(() => this.#groups.delete(group))
  }

  parked(group: string, page?: { limit?: number | undefined; after?: string | undefined }): Promise<Parked[]> {
    return this.#closing.verb(() => this.#polls.parked(group, page))
  }

  redeliver(group: string, options?: { stream?: string | undefined; skip?: boolean | undefined }): Promise<number> {
    return this.#closing.verb(() => this.#polls.redeliver(group, options))
  }

  lag(group: string): Promise<GroupLag> {
    return this.#closing.verb(() => this.#lags.group(group))
  }

  streamLag(stream: string): Promise<StreamLag> {
    return this.#closing.verb(() => this.#lags.stream(stream))
  }

  poll(group: string, options: PollOptions): Promise<Batch[]> {
    return this.#wait(options, (stoppable) => this.#polls.poll(group, stoppable))
  }

  commit(group: string, batch: BatchEnd, options?: { trx?: AnyTransaction | undefined }): Promise<void> {
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

  sweep(options?: { signal?: AbortSignal | undefined }): Promise<Swept> {
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

  /** Runs a verb that may wait; its signal aborts with the caller's signal and with the close. */
  #wait<O extends { signal?: AbortSignal | undefined }, T>(options: O, run: (options: O) => Promise<T>): Promise<T> {
    return this.#closing.verb(async () => {
      checkOptions(options)
      return this.#closing.wait(options.signal, (signal) => run({ ...options, signal }))
    })
  }

  #drain(): Promise<void> | undefined {
    const stopping = [...this.#consumers].flatMap((consumer) => consumer.rest(GRACE_MS) ?? [])
    return stopping.length === 0 ? undefined : Promise.all(stopping).then(() => {})
  }

  async #end(deadline: Promise<void>): Promise<void> {
    void this.#waitPool.end() // for appends that wait for another transaction
    const ending = [...[...this.#consumers].map((consumer) => consumer.stop()), this.#closing.settled()]
    await Promise.race([Promise.allSettled(ending), deadline])
    await this.#renewer.close(deadline)
    this.#notifier.close()
    await this.#database.drop([this.#pool, this.#waitPool], deadline)
  }
}
