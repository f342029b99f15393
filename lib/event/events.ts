/**
 * Events: what has happened, in order, in the same database and in the same transaction as your other data.
 *
 * PROMISE. A stream is a name with positions 1, 2, 3 … without gaps, in the order of commits. An append is on disk when
 * it resolves, or part of your transaction. With `expected` it is made only if the stream is still where you have read
 * it. All streams together have one order, that of cursors, and the order within each stream is the same in it. A
 * reader never skips an event that commits late, and never sees an event that does not commit. In a group each event is
 * applied by one consumer, and the events of a stream one after another; what the handler writes to this database
 * happens exactly once.
 *
 *   append ─► stream: its row is locked until the commit ─► 1 2 3 …            read, subscribe({ stream })
 *               └─► cursor, drawn under that lock ─► horizon ─► all streams    readAll, subscribe({ prefix })
 *                                                       └─► partition ─► lease ─► handler + checkpoint, one commit
 *                                                              └─ it failed: its stream stops, and is retried
 *
 * THE ORDER OF ALL STREAMS. The first design ordered by (transaction id, position), and readers stopped at the oldest
 * open transaction. Three things were wrong with it. A transaction that got its id early and appended late came before
 * events of the same stream that had committed before it. Any transaction that wrote anything, in any database of the
 * cluster, stalled all readers. And a dump that was restored into another cluster had ids from the future. So the
 * cursor is a number of a sequence, drawn while the stream is locked. Before a transaction draws its first cursor it
 * publishes the sequence's last number, in the key of an advisory lock that ends with the transaction. The lowest
 * published number is the horizon (0007_event.sql): readers stop there. So only a transaction that has appended can
 * hold readers up, and `lag` names it (event/group/lag.ts). A dump includes its sequences.
 *
 * FAILURES. The answer to an append is lost: append again, with ids. A consumer dies: its partitions go to other
 * consumers after its ttl; its transaction was rolled back, with its progress. A consumer is frozen: when it goes on,
 * its commits are refused. An event cannot be applied: it is retried, then parked and listed; its stream waits, so that
 * the order is kept; others go on.
 *
 * NOT PROMISED. Effects elsewhere (a mail, an API) happen a second time when a consumer dies between the effect and the
 * commit: use the stream and the position as their idempotency key. `at` is a clock's time, and clocks are set. After a
 * fail-over to a standby that had not received the last commits, the cursors of the lost events are assigned again: a
 * reader that keeps its cursor elsewhere may be past them; use synchronous replication. All streams together can be
 * read from the primary only: a standby does not know which transactions may still commit.
 *
 * Events are not part of `createLockstep`, as tasks are not: a program that only locks does not bundle them.
 */

import { checkOptions, known } from '../base/index.ts'
import type { Lockstep } from '../index.ts'
import type { Events, EventsOptions } from './api.ts'
import { PostgresEvents } from './postgres-events.ts'

const EVENTS = known<EventsOptions>({ connections: true, onError: true })

/**
 * Makes the events of a Lockstep, once in a process. `lockstep.close()` closes them too.
 *
 * ```ts
 * await using lockstep = createLockstep({ connectionString: 'postgres://…' })
 * const events = createEvents(lockstep)
 * ```
 *
 * @throws {TypeError | RangeError} `code` INVALID_ARGUMENT, `field`.
 */
export function createEvents(lockstep: Lockstep, options: EventsOptions = {}): Events {
  checkOptions(options, EVENTS)
  return new PostgresEvents(lockstep, options)
}
