/** The Kysely types of the tables in the schema `lockstep`. The comments in db/migrations explain the columns. */

/** Lockstep's tables, for a Kysely of your own: `Kysely<YourTables & Tables>`. */
export interface Tables {
  'lockstep.lease': {
    name: string
    holder: string | null
    token: string
    granted_at: Date
    expires_at: Date
    ttl_ms: number | null
    meta: unknown
    revision: string | null
    witness: string | null
    deposed: boolean
    over_at: Date | null
  }
  'lockstep.candidate': {
    name: string
    holder: string
    priority: number
    place: string
    since: Date
    meta: unknown
    witness: string | null
    expires_at: Date
  }
  /** Times are microseconds since 1970; a `bigint` comes as a string. See db/migrations/0006_time.sql. */
  'lockstep.time_anchor': {
    id: number
    server: string | null
    epoch: number
    revision: string
    at_us: string | null
    lo_us: string | null
    hi_us: string | null
    guess_us: string | null
    guess_width_us: string | null
    rival_at_us: string | null
    rival_lo_us: string | null
    rival_hi_us: string | null
    rival_writer: string | null
    falsetickers: string[]
    servers: unknown
    writer: string | null
    claimed_until: Date | null
  }
  'lockstep.stream': {
    id: string
    name: string
    bucket: number
    position: string
    first: string
  }
  /** `seq` is the cursor of the event, `key` the id that the caller chose. */
  'lockstep.event': {
    seq: string
    stream: string
    position: string
    at: Date
    bytes: number
    bucket: number
    type: string
    data: unknown
    meta: unknown
    key: string | null
  }
  'lockstep.consumer_group': {
    name: string
    prefix: string
    partitions: number
    retry_limit: number
    retry_delay_ms: number
  }
  'lockstep.checkpoint': {
    group_name: string
    partition: number
    seq: string
    turn: string
    committed: string | null
  }
  'lockstep.stuck': {
    group_name: string
    stream: string
    partition: number
    position: string
    attempts: number
    due_at: Date
    reason: unknown
    at: Date
  }
  'lockstep.retention': {
    prefix: string
    max_age_ms: string | null
    max_count: string | null
  }
}
