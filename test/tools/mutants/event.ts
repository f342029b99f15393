/** Bugs of streams and groups. */
import type { Mutant } from './mutant.ts'

export const EVENT: readonly Mutant[] = [
  {
    bug: 'checkpoints are deleted before the row of their group',
    file: 'db/migrations/0014_read.sql',
    from: 'delete from lockstep.consumer_group g where g.name = delete_group.group_name;\n  if not found then\n    return false;\n  end if;\n  delete from lockstep.checkpoint c where c.group_name = delete_group.group_name;\n  delete from lockstep.stuck s where s.group_name = delete_group.group_name;\n  return true;',
    to: 'delete from lockstep.checkpoint c where c.group_name = delete_group.group_name;\n  delete from lockstep.stuck s where s.group_name = delete_group.group_name;\n  delete from lockstep.consumer_group g where g.name = delete_group.group_name;\n  return found;',
    files: ['event/group.test.ts'],
    tests: 'made while it is being deleted',
  },
  {
    bug: 'leaving gives up the partitions first and the membership last',
    file: 'lib/event/group/polls.ts',
    from: 'if (!stays) {',
    to: 'if (false) {',
    files: ['event/group.test.ts'],
    tests: 'poll, commit, fail',
  },
  {
    bug: 'readers of all streams go past an event that may still commit',
    file: 'db/migrations/0007_event.sql',
    from: 'horizon := least(open_after, last, coalesce(top, 0));',
    to: 'horizon := least(last, coalesce(top, 0));',
    files: ['event/stream.test.ts'],
    tests: 'an event that commits late is not skipped|beside many writers',
  },
  {
    bug: 'a batch that was committed is committed again',
    file: 'db/migrations/0007_event.sql',
    from: 'if c.turn = turn + 1 and c.committed = next and again then',
    to: 'if c.turn = turn + 1 and c.committed = next then',
    files: ['event/group-exactly-once.test.ts', 'event/group.test.ts'],
  },
  {
    bug: 'an append that was queued between two transactions in a deadlock fails with them',
    file: 'lib/event/stream/append.ts',
    from: "if (sqlState(error) === '40P01') return each(requests, run)",
    to: '',
    files: ['event/loss.test.ts'],
    tests: 'that is queued between two transactions in a deadlock',
  },
  {
    bug: 'a follower that was notified is answered by a read that was sent before',
    file: 'lib/event/stream/shared-reads.ts',
    from: 'const read = sent?.page?.events.length ? sent',
    to: 'const read = sent ? sent',
    files: ['event/growth.test.ts'],
    tests: 'sent before a notification',
  },
]
