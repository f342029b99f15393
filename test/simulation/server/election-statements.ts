/** The statements of elections, of their notifications, and of the witnesses of connections. */
import { SQLSTATE } from '../../../lib/base/index.ts'
import * as twin from './elections.ts'
import { PgError } from './pg-error.ts'
import { bool, CLOCKED, clock, instant, nothing, one, pairs, positions, type Twin, text, texts } from './values.ts'

const CAMPAIGN = {
  ...{ i: 'int8', outcome: 'text', token: 'int8', granted_at: 'timestamptz', expires_at: 'timestamptz', place: 'int8' },
  ...{ first: 'bool', wait_ms: 'float8', leader_witness: 'int8', over: 'int8', ttl_ms: 'int4', now: 'timestamptz' },
  ...CLOCKED,
}
const LEADERS = {
  ...{ i: 'int8', holder: 'text', token: 'int8', granted_at: 'timestamptz', expires_at: 'timestamptz', ttl_ms: 'int4' },
  ...{ meta: 'jsonb', revision: 'int8', lives_ms: 'float8' },
}
const CANDIDATES = { holder: 'text', priority: 'int4', since: 'timestamptz', meta: 'jsonb' }

const SAMPLE = {
  ...{ nonce_: 'text', us: 'int8', server: 'int8', revision: 'int8', at_us: 'int8', lo_us: 'int8', hi_us: 'int8' },
  ...{ guess_us: 'int8', rival_at_us: 'int8', rival_lo_us: 'int8', rival_hi_us: 'int8', falsetickers: 'text[]' },
  ...{ claimed: 'bool', trusted: 'text' },
  ...CLOCKED,
}

export const ELECTION_STATEMENTS: [RegExp, Twin][] = [
  [
    // A reading of the server's clock, after it was set. Nobody asks NTP servers here: nothing is anchored.
    /from lockstep\.sample_time\(/,
    (s, [nonce = '']) => {
      const { clock_us: us = null, clock_server: server = null } = clock(s)
      return one(SAMPLE, { nonce_: nonce, us, server, claimed: 'f', ...clock(s) })
    },
  ],
  [
    /from lockstep\.campaign\(/,
    (s, [asks = '']) => {
      const rows = twin.campaign(s, JSON.parse(asks)).map((row) => ({
        ...{ i: String(row.i), outcome: row.outcome, token: text(row.token), place: String(row.place) },
        ...{ granted_at: instant(row.grantedAt), expires_at: instant(row.expiresAt), over: text(row.over) },
        ...{ first: row.first === null ? null : bool(row.first), wait_ms: text(row.waitMs), ttl_ms: text(row.ttlMs) },
        ...{ leader_witness: row.leaderWitness, now: instant(s.server.now), ...clock(s) },
      }))
      return { types: CAMPAIGN, rows }
    },
  ],
  [
    /^select lockstep\.withdraw\(/,
    (s, [name = '', holder = '']) => {
      twin.withdraw(s, name, holder)
      return one({ withdraw: 'text' }, { withdraw: '' })
    },
  ],
  [
    /^select \* from lockstep\.candidates\(/,
    (s, [name = '']) => {
      const rows = twin.candidatesOf(s, name).map(({ holder, priority, since, meta }) => ({
        ...{ holder, priority: String(priority), since: instant(since), meta },
      }))
      return { types: CANDIDATES, rows }
    },
  ],
  [
    /^select \* from lockstep\.leaders\(/,
    (s, [names]) => {
      const rows = twin.leaders(s, texts(names)).map(({ i, revision, leader }) => ({
        ...{ i: String(i), revision: String(revision), holder: leader?.holder ?? null, token: text(leader?.token) },
        ...{ granted_at: instant(leader?.grantedAt ?? null), expires_at: instant(leader?.expiresAt ?? null) },
        ...{ ttl_ms: text(leader?.ttlMs), meta: leader?.meta ?? null },
        lives_ms: leader ? String(leader.expiresAt - s.server.now) : null,
      }))
      return { types: LEADERS, rows }
    },
  ],
  [
    /^select lockstep\.proclaim\(/,
    (s, [name = '', token = '', meta]) =>
      one({ outcome: 'text' }, { outcome: twin.proclaim(s, name, BigInt(token), meta ?? null) }),
  ],
  [/^select lockstep\.step_down\(/, (s, [name = '']) => one({ outcome: 'text' }, { outcome: twin.stepDown(s, name) })],
  [
    /from lockstep\.resign\(/,
    (s, v) => {
      const { revoked, busy } = twin.resign(s, pairs(v))
      const answer = { revoked: positions(revoked), busy: positions(busy), set_config: 'off' }
      return one({ revoked: 'int8[]', busy: 'int8[]', set_config: 'text' }, answer)
    },
  ],
  [
    /check_transaction\(\$1::xid8\).*select lockstep\.resign_held\(\$2, \$3\)/s,
    function* (s, [xid, name = '', token = '']) {
      if (s.trx.xid !== xid) throw new PgError(SQLSTATE.noTransaction, 'lockstep: not in that transaction')
      yield* twin.resignHeld(s, name, BigInt(token))
      return one({ row: 'text' }, { row: '{"resign_held": ""}' })
    },
  ],
  [
    /^select lockstep\.secret_channel\('leader'\) as channel$/,
    () => one({ channel: 'text' }, { channel: twin.SECRET_CHANNEL }),
  ],
  [
    /^show pool_version$/, // Pgpool-II would answer
    () => {
      throw new PgError('42704', 'unrecognized configuration parameter "pool_version"')
    },
  ],
  [
    /^listen (\w+)$/,
    ({ backend }, _, [, channel = '']) => {
      backend.listensTo(channel)
      return nothing
    },
  ],
  [
    /^unlisten (\w+)$/,
    ({ backend }, _, [, channel = '']) => {
      backend.channels.delete(channel)
      return nothing
    },
  ],
  [
    /^select pg_advisory_lock_shared\(\$1\), pg_advisory_unlock_shared\(\$1\)$/,
    function* ({ server, backend }, [key = '']) {
      yield* server.locks.lock(backend, key, 'share', 'session')
      server.locks.unlock(backend, key, 'share')
      return one(
        { pg_advisory_lock_shared: 'text', pg_advisory_unlock_shared: 'bool' },
        { pg_advisory_lock_shared: '', pg_advisory_unlock_shared: 't' },
      )
    },
  ],
]
