/**
 * The interface of events: all verbs of streams and of groups. What they promise is in events.ts.
 */

import type { Page } from '../base/index.ts'
import type { AnyTransaction } from '../database/index.ts'
import type {
  Batch,
  BatchEnd,
  ConsumeOptions,
  Consumer,
  EventHandler,
  FailOptions,
  Group,
  GroupLag,
  GroupOptions,
  Parked,
  PollOptions,
  StreamLag,
} from './group/index.ts'
import type {
  AllOptions,
  Appended,
  AppendOptions,
  ArchiveOptions,
  EventPage,
  EventPiece,
  NewEvent,
  ReadOptions,
  RetentionRule,
  StoredEvent,
  StreamState,
  SubscribeOptions,
  Swept,
  Truncated,
  TruncateOptions,
} from './stream/index.ts'

/** Options of `createEvents`. */
export interface EventsOptions {
  /** The most database connections for events, 1–100. @default 4 */
  connections?: number | undefined
  /** Called with errors that reach no caller, for example that an event was parked. @default a warning of the process */
  onError?: ((error: unknown) => void) | undefined
}

/** The events of one process. Made by `createEvents`. */
export interface Events extends AsyncDisposable {
  // ── Streams ──

  /**
   * Appends events to a stream, all of them or none. They are on disk when this resolves; with `trx`, when that
   * commits. Appends that are made at the same time share a statement.
   *
   * @param stream  1–255 characters, no control characters. A stream exists from its first event on.
   * @param events  one event, or 1–10,000; at most 1 MiB each and 16 MiB together.
   * @returns the positions of the first and the last event.
   * @throws {PositionConflictError} the stream is not where `expected` says. Nothing was appended.
   * @throws {UnavailableError} the database cannot be reached; the events may have been appended. With ids, append them again.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`; also for an `id` that another event of the stream has.
   */
  append(stream: string, events: NewEvent | readonly NewEvent[], options?: AppendOptions): Promise<Appended>

  /**
   * Reads a page of a stream, in the order of positions. A stream without events has an empty page.
   *
   * @throws {UnavailableError | TypeError | RangeError} and `signal.reason`.
   */
  read(stream: string, options?: ReadOptions): Promise<EventPage>

  /**
   * Reads a page of all streams, or of those under a prefix, in the order of cursors. An event that commits late is not
   * skipped: the page ends before the first event that may still commit.
   *
   * @throws {UnavailableError | TypeError | RangeError} and `signal.reason`.
   */
  readAll(options?: AllOptions): Promise<EventPage>

  /**
   * Follows one stream or many: yields all events from `from` on, then new ones as they are appended. It ends with its
   * `signal`, or with `break`. During an outage of the database it waits and goes on.
   *
   * Nothing is read before the consumer asks for it, and then 256 KiB, or one event if that is larger. All
   * subscriptions of this process together have at most 32 MiB in memory; one that finds none free waits for its turn.
   *
   * @throws {UnavailableError} the first read fails, or Lockstep is closed. And `signal.reason`.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  subscribe(options?: SubscribeOptions): AsyncGenerator<StoredEvent, never, void>
  /**
   * Follows as above, and yields the JSON of each event as HTTP shows it, in pieces of at most 64 Ki characters: to
   * pass it on without parsing.
   */
  subscribe(options: SubscribeOptions & { as: 'json' }): AsyncGenerator<EventPiece, never, void>

  /** The state of a stream; null: nothing was ever appended to it. @throws {UnavailableError | TypeError | RangeError} */
  getStream(stream: string): Promise<StreamState | null>

  /** @deprecated since 0.7: it is called {@link getStream}. */
  stream(stream: string): Promise<StreamState | null>

  /**
   * Lists streams, in the order of their names' code points.
   *
   * @param page.prefix  what their names begin with. @default ''
   * @param page.limit   1–1,000. @default 100
   * @param page.after   the last name of the page before. @default ''
   * @throws {UnavailableError | TypeError | RangeError}
   */
  streams(page?: Page): Promise<StreamState[]>

  // ── Groups ──

  /**
   * Makes a group, or changes how an existing one retries. `prefix`, `partitions` and `from` are fixed when it is made.
   *
   * @param group  1–255 characters, no control characters.
   * @returns whether it was made now.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`; also for another prefix or number of partitions.
   * @throws {UnavailableError}
   */
  declareGroup(group: string, options?: GroupOptions): Promise<boolean>

  /**
   * Starts a consumer of a group. Each event goes to one consumer of the group; the events of a stream are handled one
   * after another. The handler's writes in `trx` and the group's progress commit together, so they happen exactly once.
   * The handler must neither begin nor end that transaction: a statement that would is refused; where it cannot be
   * refused, `onError` is called with a TransactionEndedError.
   *
   * @param group    1–255 characters; the group is made with these options if it does not exist.
   * @param handler  applies an event; if it throws, the event is retried, then parked.
   * @returns the consumer, at once: it starts in the background, and its errors go to `onError`.
   * @throws {UnavailableError} Lockstep is closed.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  consume(group: string, options: ConsumeOptions, handler: EventHandler): Consumer

  /** A group; null: there is none of that name. @throws {UnavailableError | TypeError | RangeError} */
  getGroup(group: string): Promise<Group | null>

  /** @deprecated since 0.7: it is called {@link getGroup}. */
  group(group: string): Promise<Group | null>

  /**
   * Lists groups, in the order of their names' code points.
   *
   * @param page.prefix  what their names begin with. @default ''
   * @param page.limit   1–1,000. @default 100
   * @param page.after   the last name of the page before. @default ''
   * @throws {UnavailableError | TypeError | RangeError}
   */
  groups(page?: Page): Promise<Group[]>

  /**
   * Deletes a group and its progress; its consumers lose their partitions and stop.
   *
   * @returns whether there was such a group.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  deleteGroup(group: string): Promise<boolean>

  /**
   * Lists the parked streams of a group: each waits for {@link redeliver}, since one of its events failed too often.
   *
   * @param page.limit  1–1,000. @default 100
   * @param page.after  the last stream of the page before. @default ''
   * @throws {NotFoundError} no such group.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  parked(group: string, page?: { limit?: number | undefined; after?: string | undefined }): Promise<Parked[]>

  /**
   * Retries parked events.
   *
   * @param options.stream  one stream. @default all parked streams of the group
   * @param options.skip    goes on after the event that failed, without applying it. @default false
   * @returns the number of streams that go on.
   * @throws {NotFoundError} no such group.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  redeliver(group: string, options?: { stream?: string | undefined; skip?: boolean | undefined }): Promise<number>

  /**
   * How far behind a group is, and what holds it up.
   *
   * @throws {NotFoundError} no such group.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  lag(group: string): Promise<GroupLag>

  /**
   * How far behind each group is that reads a stream.
   *
   * @throws {NotFoundError} nothing was ever appended to the stream.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  streamLag(stream: string): Promise<StreamLag>

  // ── Groups for consumers elsewhere: each verb is one call, nothing is kept in this process ──

  /**
   * Takes the consumer's share of the partitions for `leaseMs`, and returns the next batch of each. The array is empty
   * if there is no event, also after `waitMs`.
   *
   * @throws {NotFoundError} no such group.
   * @throws {UnavailableError | TypeError | RangeError} and `signal.reason`.
   */
  poll(group: string, options: PollOptions): Promise<Batch[]>

  /**
   * Commits a batch: all its events were applied. A repeated commit of the same batch succeeds, except in a `trx`:
   * there it is refused, since the effects in `trx` would happen twice.
   *
   * @param options.trx  the transaction of the effects: the commit counts if that commits.
   * @throws {LeaseLostError} the partition went to another consumer, or this is not the last batch that was delivered.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  commit(group: string, batch: BatchEnd, options?: { trx?: AnyTransaction | undefined }): Promise<void>

  /**
   * Reports that an event of a batch failed, and that the events before it in the batch were applied. The event is
   * delivered again after a pause that doubles each time, and parked when it has failed too often. Its stream waits for
   * it; others go on.
   *
   * @returns how often the event was tried, whether it is parked, and when it is due again (null: parked).
   * @throws {LeaseLostError} as {@link commit}.
   * @throws {NotFoundError} the batch has no such event.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  fail(group: string, batch: FailOptions): Promise<{ attempts: number; parked: boolean; retryAt: Date | null }>

  /**
   * Ends a consumer's membership and releases its partitions, so that other consumers can take them at once.
   *
   * @throws {NotFoundError} no such group.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  leave(group: string, holder: string): Promise<void>

  // ── Retention ──

  /**
   * Sets how long events of the streams under a prefix are kept; {@link sweep} applies it. If several prefixes match a
   * stream, the longest prefix counts.
   *
   * @param prefix  what the names of the streams begin with; '': all streams.
   * @param rule    null: removes the rule of this prefix.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  retain(prefix: string, rule: RetentionRule | null): Promise<void>

  /** All retention rules, in the order of their prefixes. @throws {UnavailableError} */
  retention(): Promise<({ prefix: string } & RetentionRule)[]>

  /**
   * Removes the events that the retention rules do not keep, except those that a group has not read yet. The HTTP
   * server calls it.
   *
   * @param options.signal  ends it between two statements: it rejects with `signal.reason`.
   * @throws {UnavailableError | TypeError}
   */
  sweep(options?: { signal?: AbortSignal | undefined }): Promise<Swept>

  /**
   * Removes the events of a stream before a position, except those that a group has not read yet, unless `force` is
   * set. Positions are not used again.
   *
   * @param before  the first position to keep, ≥ 1n.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  truncate(stream: string, before: bigint, options?: TruncateOptions): Promise<Truncated>

  /**
   * Yields the events that can be read now as lines of NDJSON, one event a line: to store them elsewhere before they
   * are removed.
   *
   * @throws {UnavailableError | TypeError | RangeError}
   */
  archive(options?: ArchiveOptions): AsyncGenerator<string, void, void>

  /**
   * Stops the consumers and ends the subscriptions; from then on every verb rejects with an UnavailableError, and so do
   * waits in progress. `lockstep.close()` calls it too.
   */
  close(): Promise<void>
}
