/**
 * `npm run test:mutants [-- --only WORDS]`: mutation tests. Each mutant is a fatal bug, put on purpose into a copy of the
 * project. The command prints which tests find each mutant; its exit code is 1 if no test finds one of them.
 *
 * The first three are bugs that a lock on a database can easily have without anybody's noticing.
 */
import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { parseArgs } from 'node:util'
import { serverUser, temporaryFolder } from '../../lib/setup/guarded-process.ts'
import { installPackages } from './packages.ts'

interface Mutant {
  bug: string
  file: string
  from: string
  to: string
  /** The tests that should find it: files of test/, and a part of some names. */
  files: string[]
  tests?: string
}

const LEASE = 'db/migrations/0001_lease.sql'
const FENCE = 'db/migrations/0010_fence.sql'
const MUTANTS: Mutant[] = [
  {
    bug: 'a follower that was notified is answered by a read that was sent before',
    file: 'lib/event/stream/shared-reads.ts',
    from: 'const read = sent?.page?.events.length ? sent',
    to: 'const read = sent ? sent',
    files: ['event/growth.test.ts'],
    tests: 'sent before a notification',
  },
  {
    bug: 'a completion that met a heartbeat of its job is taken for lost',
    file: 'db/migrations/0016_growth.sql',
    from: 'exit when cardinality(batch) = running;\n  end loop;\n  return done;\nend $$;\n\n-- As in 0004_task.sql.\ncreate or replace function lockstep.lease_jobs',
    to: 'exit;\n  end loop;\n  return done;\nend $$;\n\n-- As in 0004_task.sql.\ncreate or replace function lockstep.lease_jobs',
    files: ['task/growth.test.ts'],
    tests: 'meets a change of its job',
  },
  {
    bug: 'the fetch looks for the chosen jobs by what the planner knows of their queue',
    file: 'lib/task/pgboss/fetch.ts',
    from: '.replace(UPDATED,',
    to: ".replace('never',",
    files: ['task/growth.test.ts'],
    tests: 'that the planner does not know',
  },
  {
    bug: 'NaN is stored as null',
    file: 'lib/base/json.ts',
    from: "if (text?.includes('null')) JSON.stringify(value, finite)",
    to: '',
    files: ['base/json.test.ts'],
    tests: 'never turns a number into null',
  },
  {
    bug: 'a number of a body that JSON cannot hold is stored as null',
    file: 'functions/http/fields.ts',
    from: "!(json.includes('null') && infinite(value))",
    to: 'true',
    files: ['http/values.test.ts'],
    tests: 'never stored as null',
  },
  {
    bug: 'an option that does not exist is ignored',
    file: 'lib/base/options.ts',
    from: 'if (names !== undefined) {',
    to: 'if (names === null) {',
    files: ['close/options.test.ts'],
    tests: 'is refused by',
  },
  {
    bug: 'a holder trusts its hold after it has released it by another one',
    file: 'lib/lock/connection-hold.ts',
    from: "this.#endOthers('its holder has released it')",
    to: '',
    files: ['lock/lock.test.ts'],
    tests: 'is granted again what it has by acquire',
  },
  {
    bug: 'a holder trusts its lease after it has released it by another hold',
    file: 'lib/lease/renewer.ts',
    from: "other.lose('its holder has released it')",
    to: 'continue',
    files: ['lock/lock.test.ts'],
    tests: 'is granted again what it has by acquire',
  },
  {
    bug: 'a measurement of one trusted server makes a vote narrower',
    file: 'db/migrations/0014_read.sql',
    from: ' and a.trusted is not distinct from word then',
    to: ' then',
    files: ['time/time.test.ts'],
    tests: 'by a vote replaces the word of one server',
  },
  {
    bug: 'a vote is replaced by the word of one server at once',
    file: 'db/migrations/0014_read.sql',
    from: 'abs(now_us - a.at_us) <= 128000000',
    to: 'abs(now_us - a.at_us) <= 0',
    files: ['time/time.test.ts'],
    tests: 'does not replace a vote of the last 128 s',
  },
  {
    bug: 'a server that has sent a Kiss-o’-death is asked by its other address',
    file: 'lib/time/ntp/addresses.ts',
    from: 'if (kissed || ',
    to: 'if (',
    files: ['time/ntp.test.ts'],
    tests: 'is not asked by its other address',
  },
  {
    bug: 'what a dead process has left is listed as held',
    file: 'db/migrations/0014_read.sql',
    from: 'from lockstep.hold h join k on k.granted and k.pid = h.pid and k.key = h.key\n     where',
    to: 'from lockstep.hold h\n     where',
    files: ['lock/list.test.ts'],
    tests: 'that ended with its connection is not there',
  },
  {
    bug: 'web pages of every origin may ask',
    file: 'functions/http/origins.ts',
    from: 'throw refused(origin)',
    to: 'void refused(origin)',
    files: ['http/application.test.ts'],
    tests: 'of other origins are refused',
  },
  {
    bug: 'a proxy leaves a write in a transaction of its own, and it counts as done',
    file: 'lib/database/guarded-client.ts',
    from: 'if (!begun) throw new UnavailableError(BEGUN_BY_PROXY)',
    to: 'begun = true',
    files: ['database/engine.test.ts'],
    tests: 'in a transaction of its own fails',
  },
  {
    bug: 'a server on which all connections are one session is used',
    file: 'lib/database/proxies.ts',
    from: 'whyOneSession(product) ??',
    to: '',
    files: ['database/engine.test.ts'],
    tests: 'PGlite',
  },
  {
    bug: 'a process that holds something by its connection ends all the same',
    file: 'lib/database/session.ts',
    from: 'if (alive && !this.lost) this.users.add(dependent)',
    to: '',
    files: ['close/unclosed.test.ts'],
    tests: 'was never closed ends by itself once',
  },
  {
    bug: 'checkpoints are deleted before the row of their group',
    file: 'db/migrations/0014_read.sql',
    from: 'delete from lockstep.consumer_group g where g.name = delete_group.group_name;\n  if not found then\n    return false;\n  end if;\n  delete from lockstep.checkpoint c where c.group_name = delete_group.group_name;\n  delete from lockstep.stuck s where s.group_name = delete_group.group_name;\n  return true;',
    to: 'delete from lockstep.checkpoint c where c.group_name = delete_group.group_name;\n  delete from lockstep.stuck s where s.group_name = delete_group.group_name;\n  delete from lockstep.consumer_group g where g.name = delete_group.group_name;\n  return found;',
    files: ['event/group.test.ts'],
    tests: 'made while it is being deleted',
  },
  {
    bug: 'a claim takes all that it may, whatever its answer carries',
    file: 'db/migrations/0014_read.sql',
    from: 'short := fits > 0 and total > room;',
    to: 'short := false;',
    files: ['http/bounds.test.ts'],
    tests: 'a claim is never larger',
  },
  {
    bug: 'a job is fetched although its claim is not sent it',
    file: 'db/migrations/0014_read.sql',
    from: '  if short then\n    raise no_data_found;\n  end if;\n',
    to: '',
    files: ['http/bounds.test.ts'],
    tests: 'a claim is never larger',
  },
  {
    bug: 'each partition of a poll has the room of a whole answer',
    file: 'db/migrations/0014_read.sql',
    from: 'then room - used else 0 end, not given) r;',
    to: 'then room else room end, not given) r;',
    files: ['http/bounds.test.ts'],
    tests: 'a poll has one bound',
  },
  {
    bug: 'a wait outlasts the invocation of its request',
    file: 'functions/http/waiting.ts',
    from: 'if (!leftMs || !input) return input',
    to: 'if (leftMs || !input) return input',
    files: ['http/bounds.test.ts'],
    tests: 'the time that its adapter has left',
  },
  {
    bug: 'a Worker registers what is left to do when it has answered',
    file: 'functions/adapters/cloudflare.ts',
    from: 'context.waitUntil(done.promise)\n    let ended',
    to: 'void Promise.resolve().then(() => context.waitUntil(done.promise))\n    let ended',
    files: ['adapters/worker-gone.test.ts'],
  },
  {
    bug: 'keys that were taken away stay valid',
    file: 'functions/adapters/lambda-environment.ts',
    from: '    this.#application = undefined\n    const keys = checked(text, this.#env)',
    to: '    const keys = checked(text, this.#env)',
    files: ['adapters/lambda-rotation.long.test.ts'],
    tests: 'leaves no old key valid',
  },
  {
    bug: 'a secret that names another user or host is not followed',
    file: 'functions/adapters/aws-secrets.ts',
    from: 'else this.#moved = true',
    to: '',
    files: ['adapters/lambda-rotation.long.test.ts'],
    tests: 'another host|take turns|may not log in',
  },
  {
    bug: 'a path that goes one up is taken for another path',
    file: 'functions/http/path.ts',
    from: "throw invalid({ field: 'path'",
    to: "void invalid({ field: 'path'",
    files: ['adapters/contract.long.test.ts'],
    tests: 'takes `.` and `..`',
  },
  {
    bug: 'a fence is taken outside of a transaction',
    file: 'db/migrations/0012_transaction.sql',
    from: 'if pg_current_xact_id_if_assigned() is distinct from xid then',
    to: 'if false then',
    files: ['database/transaction.test.ts'],
    tests: 'outside of a transaction is refused|has ended is refused',
  },
  {
    bug: 'a COMMIT of another transaction than the one that was begun',
    file: 'lib/database/supervised-transaction.ts',
    from: "if (this.#xid === undefined) return this.#client.query('commit', undefined, {})",
    to: "if (this.#xid !== '') return this.#client.query('commit')",
    files: ['database/transaction.test.ts'],
    tests: 'rejects if its work has ended it',
  },
  {
    bug: 'an attempt whose handler ended its transaction is tried again',
    file: 'lib/task/job/attempts.ts',
    from: 'if (final) await',
    to: 'if (false) await',
    files: ['database/transaction.test.ts'],
    tests: 'has failed for good',
  },
  {
    bug: 'FOR KEY SHARE taken out: an assertion looks, and locks nothing',
    file: FENCE,
    from: '\n      for key share;\n  if not found then\n    raise exception',
    to: ';\n  if not found then\n    raise exception',
    files: ['lock/fence.test.ts', 'lock/interleave/interleave.test.ts'],
    tests: 'keeps a takeover out|statement by statement',
  },
  {
    bug: 'the row that an update leaves is not asked for its hold, only the row that it makes',
    file: FENCE,
    from: '      ignored := lockstep.check_hold(tg_relid, was);\n',
    to: '      ignored := true;\n',
    files: ['lock/fence-rows.test.ts'],
  },
  {
    bug: 'K in shared mode lets a transaction write',
    file: FENCE,
    from: "and l.granted and l.mode = 'ExclusiveLock' and",
    to: 'and l.granted and',
    files: ['lock/fence-rows.test.ts'],
  },
  {
    bug: 'the trust timer taken out: a hold that cannot be renewed is believed for ever',
    file: 'lib/lease/renewer.ts',
    from: 'for (const hold of this.#held) hold.check()\n',
    to: '\n',
    files: ['lock/loss.test.ts', 'leader/loss.test.ts'],
    tests: 'whose renewals hang|went silent',
  },
  {
    bug: 'the token from the row instead of the sequence',
    file: LEASE,
    from: `    base := nextval('lockstep.token');
    granted_at := clock_timestamp();`,
    to: `    base := coalesce((select max(l.token) from lockstep.lease l where l.name = any (names)), 0) + 1;
    granted_at := clock_timestamp();`,
    files: ['lock/lock.test.ts', 'lock/interleave/interleave.test.ts'],
  },
  {
    bug: 'trust begins with the answer, not with the attempt',
    file: 'lib/lease/renewer.ts',
    from: 'this.#kept = attempted\n        this.#pauseMs',
    to: 'this.#kept = new Stopwatch()\n        this.#pauseMs',
    files: ['lock/loss.test.ts', 'leader/loss.test.ts'],
  },
  {
    bug: 'a lease is granted without the gate that connection holds stand at',
    file: LEASE,
    from: `then pg_try_advisory_xact_lock(lockstep.key(a.name)) end),`,
    to: `then true end),`,
    files: ['lock/lock.test.ts', 'lock/interleave/interleave.test.ts'],
  },
  {
    bug: 'a slot is moved on, and not sent',
    file: 'lib/task/schedule/due.ts',
    from: `if (passes(reason)) return`,
    to: `if (false) return`,
    files: ['task/schedule.test.ts'],
    tests: 'a schedule that cannot be sent',
  },
  {
    bug: 'the trouble of one schedule holds up the others',
    file: 'lib/task/schedule/due.ts',
    from: `if (passes(reason)) return`,
    to: `if (passes(reason)) throw reason\n  if (false) return`,
    files: ['task/schedule.test.ts'],
    tests: 'a schedule that cannot be sent',
  },
  {
    bug: 'a walk goes on from a slot that is not later',
    file: 'lib/task/schedule/slots.ts',
    from: `if (slot === null || +slot > +than) return slot`,
    to: `if (than) return slot`,
    files: ['task/cron.test.ts'],
    tests: 'the same slot again', // the others would never end
  },
  {
    bug: 'a fixed time that is repeated comes twice',
    file: 'lib/task/schedule/slots.ts',
    from: `adjusts(shift) ? Math.max(0, -shift) : 0`,
    to: `0`,
    files: ['task/cron.test.ts', 'task/zones.test.ts'],
  },
  {
    bug: 'a fixed time that is skipped does not come',
    file: 'lib/task/schedule/slots.ts',
    from: `adjusts(next.shift) ? Math.max(0, next.shift) : 0`,
    to: `adjusts(0) ? 0 : 0`,
    files: ['task/cron.test.ts', 'task/zones.test.ts'],
  },
  {
    bug: 'the timekeeper of pg-boss sends slots a second time',
    file: 'db/migrations/0015_cron.sql',
    from: `before update of cron_on on`,
    to: `before update of bam_on on`,
    files: ['task/boss-schedule.test.ts'],
    tests: 'own timekeeper',
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
    bug: 'after a turn that failed what its connection has is taken for known',
    file: 'lib/database/lock-turns.ts',
    from: '      await this.#recover()\n',
    to: '',
    files: ['faults/locks.test.ts', 'faults/locks.long.test.ts'],
    tests: 'tries of the same names by others',
  },
  {
    bug: 'a hold whose release failed is believed again',
    file: 'lib/lease/hold.ts',
    from: `        this.lose('its release failed, and may have taken effect', error)\n`,
    to: '',
    files: ['faults/locks.test.ts', 'faults/locks.long.test.ts'],
    tests: 'a release of a lease|a resignation ',
  },
  {
    bug: 'each of a crowd throws away the session that another has opened',
    file: 'lib/database/session-pool.ts',
    from: 'if (this.#shared === opening) this.#shared = undefined',
    to: 'this.#shared = undefined',
    files: ['database/session.test.ts'],
    tests: 'callers of a lost session',
  },
  {
    bug: 'a row is written for a connection that does not have the lock',
    file: 'db/migrations/0011_hold.sql',
    from: 'if not exists (select from lockstep.keys_of(pid)',
    to: 'if exists (select from lockstep.keys_of(0)',
    files: ['database/session.test.ts'],
    tests: 'only by the connection',
  },
  {
    bug: 'a row is written under a token older than its own',
    file: 'db/migrations/0011_hold.sql',
    from: '    where l.token = excluded.token or l.holder is null and l.token < excluded.token;',
    to: '    where true;',
    files: ['database/session.test.ts'],
    tests: 'never written under a token older',
  },
  {
    bug: 'a migration that closes goes on without waiting until it is quiet',
    file: 'lib/setup/exclusive-migration.ts',
    from: 'if (blockers === null || blockers.length === 0) return blockers !== null',
    to: 'return true',
    files: ['setup/exclusive-migration.long.test.ts'],
  },
  {
    bug: 'a migration that closes waits for locks, and not for transactions that can still take them',
    file: 'db/migrations/0008_close.sql',
    from: 'and l.virtualtransaction = any (transactions)',
    to: 'and false',
    files: ['setup/exclusive-migration.long.test.ts'],
    tests: 'a transaction that was open|a call that began before',
  },
  {
    bug: 'a migration that closes refuses locks, and not appends',
    file: 'db/migrations/0008_close.sql',
    from: `        ('begin_append', refused),     -- what every append begins with, before it takes a gate\n`,
    to: '',
    files: ['setup/exclusive-migration.long.test.ts'],
    tests: 'a process of 0.6 that holds|killed after K',
  },
  {
    bug: 'K can be chosen: its hash can be inverted',
    file: 'db/migrations/0009_keys.sql',
    from: `return lockstep.key_of('lock', name);`,
    to: 'return hashtextextended(name collate "C", 5497548331942713701);',
    files: ['lock/keys.test.ts'],
  },
  {
    bug: "statements of Lockstep's own are parsed by the parsers of the process",
    file: 'lib/database/pool.ts',
    from: '...(!theirs && { types: PARSERS }),',
    to: '',
    files: ['database/odd-settings.long.test.ts'],
    tests: 'parsers',
  },
  {
    bug: 'a direct connection keeps the settings of its role',
    file: 'lib/database/pool-clients.ts',
    from: "const own = by === 'own' && (await greet(client as pg.Client))",
    to: 'const own = { odd: false }',
    files: ['database/odd-settings.long.test.ts'],
    tests: 'direct',
  },
  {
    bug: 'behind a pooler a statement runs with the settings of its role',
    file: 'lib/database/guarded-client.ts',
    from: "const pinned = !guard.users && isOdd(client) && client.getTransactionStatus() === 'I'",
    to: 'const pinned = false',
    files: ['database/odd-settings.long.test.ts'],
    tests: 'PgBouncer',
  },
]

const { values } = parseArgs({ options: { only: { type: 'string' } } })
const chosen = MUTANTS.filter(({ bug }) => bug.includes(values.only ?? ''))
if (chosen.length === 0) throw new Error(`--only is part of one of: ${MUTANTS.map(({ bug }) => bug).join(' · ')}`)
const root = path.resolve(import.meta.dirname, '../..')
// Tests in workerd find it in each copy.
const needsWrangler = (name: string) =>
  fs.readFileSync(path.join(root, 'test', name), 'utf8').includes('installWrangler')
if (chosen.some(({ files }) => files.some(needsWrangler))) await installPackages('infra/cloudflare')
let missed = 0
for (const mutant of chosen) {
  const found = tried(mutant)
  if (found.length === 0) missed += 1
  console.log(`${found.length > 0 ? 'found' : 'MISSED'}: ${mutant.bug}`)
  for (const name of found.slice(0, 5)) console.log(`    ${name}`)
  if (found.length > 5) console.log(`    and ${found.length - 5} more`)
}
process.exit(missed > 0 ? 1 : 0)

/** The names of the tests that fail with the mutant. */
function tried({ file, from, to, files, tests }: Mutant): string[] {
  const copy = fs.mkdtempSync(path.join(temporaryFolder(serverUser()), 'lockstep-mutant-'))
  try {
    for (const name of [
      'package.json',
      'tsconfig.json',
      'vitest.config.ts',
      'README.md',
      'docs',
      'db',
      'infra',
      'lib',
      'functions',
      'test',
    ]) {
      const filter = (file: string) => path.basename(file) !== 'node_modules'
      fs.cpSync(path.join(root, name), path.join(copy, name), { recursive: true, filter })
    }
    for (const each of ['node_modules', 'infra/cloudflare/node_modules']) {
      if (fs.existsSync(path.join(root, each))) fs.symlinkSync(path.join(root, each), path.join(copy, each))
    }
    const text = fs.readFileSync(path.join(copy, file), 'utf8')
    if (text.split(from).length !== 2) throw new Error(`${file} does not have exactly one place with ${from}`)
    fs.writeFileSync(
      path.join(copy, file),
      text.replace(from, () => to),
    )
    const report = path.join(copy, 'report.json')
    const args = [
      'vitest',
      'run',
      ...files.map((name) => `test/${name}`),
      '--bail=20',
      '--reporter=json',
      `--outputFile=${report}`,
    ]
    spawnSync('npx', [...args, ...(tests ? ['-t', tests] : [])], { cwd: copy, stdio: ['ignore', 'ignore', 'ignore'] })
    const { testResults } = JSON.parse(fs.readFileSync(report, 'utf8')) as Report
    return testResults.flatMap(({ name, assertionResults }) =>
      assertionResults
        .filter(({ status }) => status === 'failed')
        .map(({ title }) => `${path.basename(name)}: ${title}`),
    )
  } finally {
    fs.rmSync(copy, { recursive: true, force: true })
  }
}

interface Report {
  testResults: { name: string; assertionResults: { status: string; title: string }[] }[]
}
