/**
 * The words of events: everything that can be done with streams and groups. What is promised is told in events.ts, where they
 * are put together.
 */

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

/** The events of one process. Made by `createEvents`. */
export interface Events extends AsyncDisposable {
  // ── Streams ──

  /**
   * Appends events to a stream: on disk when this resolves; with `trx`, when that commits. All of them, or none. Appends of a
   * moment share a statement.
   *
   * @param stream  1–255 characters, no control characters. It is there from its first event on.
   * @param events  one, or 1–10,000, of 1 MiB each and 16 MiB together.
   * @returns the positions of the first and the last of them.
   * @throws {PositionConflictError} the stream is not where `expected` says. Nothing was appended.
   * @throws {UnavailableError} the database cannot be asked; they may have been appended. With ids, append them again.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`; also for an `id` that another event of the stream has.
   */
  append(stream: string, events: NewEvent | readonly NewEvent[], options?: AppendOptions): Promise<Appended>

  /**
   * Reads a page of a stream, in the order of its positions.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  read(stream: string, options?: ReadOptions): Promise<EventPage>

  /**
   * Reads a page of all streams, or of those under a prefix, in one order for all: that of their cursors. What commits late
   * is not skipped: the page ends before the first event that may still commit.
   * @throws {UnavailableError | TypeError | RangeError}
   */
  readAll(options?: AllOptions): Promise<EventPage>

  /**
   * Everything from a place on, then what follows, as it is appended. Ends by its `signal`, or `break`. An outage of the
   * database is waited out.
   *
   * Nothing is read before it is asked for, and then 256 KiB, or one event; of all who follow in this process together 32 MiB are
   * in memory at most, and who finds none left waits for its turn.
   */
  subscribe(options?: SubscribeOptions): AsyncGenerator<StoredEvent, never, void>
  /**
   * The same, of each event the JSON that HTTP shows, in pieces of at most 64 Ki characters: to be passed on without being parsed.
   */
  subscribe(options: SubscribeOptions & { as: 'json' }): AsyncGenerator<EventPiece, never, void>

  /** Where a stream stands; null: nothing was ever appended. */
  stream(stream: string): Promise<StreamState | null>

  /** Streams, in the order of their names' code points. @param page.limit  1–1,000. @default 100 */
  streams(page?: { prefix?: string; limit?: number; after?: string }): Promise<StreamState[]>

  // ── Groups ──

  /**
   * Makes a group, or changes how it retries. Its `prefix`, `partitions` and `from` are what they were when it was made.
   * @returns whether it was made.
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`; also for another prefix or number of partitions.
   */
  declareGroup(group: string, options?: GroupOptions): Promise<boolean>

  /**
   * Takes part in a group: each event goes to one of its consumers, those of one stream one after another. The handler's
   * writes in `trx` and the group's progress commit together, so that they happen exactly once. It neither begins nor ends that
   * transaction: a statement that would is refused, and where it cannot be, `onError` hears a TransactionEndedError.
   *
   * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
   */
  consume(group: string, options: ConsumeOptions, handler: EventHandler): Consumer

  /** A group; null: there is none. */
  group(group: string): Promise<Group | null>

  /** Groups, in the order of their names' code points. @param page.limit  1–1,000. @default 100 */
  groups(page?: { prefix?: string; limit?: number; after?: string }): Promise<Group[]>

  /** Ends a group: its progress is forgotten, and its consumers lose what they hold. @returns whether there was one. */
  deleteGroup(group: string): Promise<boolean>

  /** Streams of a group that wait for {@link redeliver}, since an event of theirs failed too often. @throws {NotFoundError} */
  parked(group: string, page?: { limit?: number; after?: string }): Promise<Parked[]>

  /**
   * Tries again what is parked: of one stream, or of all. With `skip` the event that failed is passed over.
   * @returns how many streams go on.
   * @throws {NotFoundError} no such group.
   */
  redeliver(group: string, options?: { stream?: string; skip?: boolean }): Promise<number>

  /** How far behind a group is, and what holds it up. @throws {NotFoundError} */
  lag(group: string): Promise<GroupLag>

  /** How far behind each group is that reads a stream. @throws {NotFoundError} nothing was ever appended to it. */
  streamLag(stream: string): Promise<StreamLag>

  // ── The verbs without memory: for a consumer that lives elsewhere ──

  /**
   * Takes a fair share of the partitions for `leaseMs`, and gives what is next of each; nothing, if there is nothing, or
   * nothing came while it waited.
   * @throws {NotFoundError} no such group. And as {@link read}; and the `signal`'s reason.
   */
  poll(group: string, options: PollOptions): Promise<Batch[]>

  /**
   * Says that a batch was applied; with `trx`, when that commits. Again is as good as once.
   * @throws {LeaseLostError} the partition has passed on, or the batch is not the last that was given.
   */
  commit(group: string, batch: BatchEnd, options?: { trx?: AnyTransaction }): Promise<void>

  /**
   * Says that an event of a batch failed, and that those before it in the batch were applied. It is given again after a
   * pause that doubles, and parked when it has failed too often; its stream waits for it, other streams do not.
   * @returns how it goes on.
   * @throws {LeaseLostError} as {@link commit}.
   */
  fail(group: string, batch: FailOptions): Promise<{ attempts: number; parked: boolean; retryAt: Date | null }>

  /** Gives up the partitions of a consumer, so that others have them at once. */
  leave(group: string, holder: string): Promise<void>

  // ── Keeping ──

  /**
   * How long events of streams under a prefix are kept; of several prefixes the longest counts; null: for ever. {@link sweep}
   * keeps to it. '' is every stream.
   */
  retain(prefix: string, rule: RetentionRule | null): Promise<void>

  /** The rules. */
  retention(): Promise<({ prefix: string } & RetentionRule)[]>

  /** Removes what need not be kept any more, but for what a group has yet to read. Called by the HTTP server. */
  sweep(options?: { signal?: AbortSignal }): Promise<Swept>

  /**
   * Removes the events of a stream before a position, but for what a group has yet to read, unless forced. Positions are
   * not used again.
   */
  truncate(stream: string, before: bigint, options?: TruncateOptions): Promise<Truncated>

  /** Lines of NDJSON, an event each, of what is there now: to be kept elsewhere before it is removed. */
  archive(options?: ArchiveOptions): AsyncGenerator<string, void, void>

  /** Stops the consumers and ends the subscriptions; every verb and every wait rejects. Done by `lockstep.close()` too. */
  close(): Promise<void>
}
