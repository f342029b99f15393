/**
 * What may be chosen: the options of a deployment, read from the context of the CDK (`-c name=value`, or `context` in
 * cdk.json).
 *
 * Everything that can be wrong is found here, before anything is built, and each error names the option and what it
 * may be. An option that does not exist is an error too, for a deployment that ignores `-c proxi=true` is not the one
 * that was asked for.
 *
 * The defaults are those of a small deployment that may be trusted with production: the database stands in two zones
 * and cannot be deleted by accident. What is cheaper has to be asked for.
 */
import { RetentionDays } from 'aws-cdk-lib/aws-logs'

export interface Options {
  /** A database of its own, or the complete ARN of the secret of one that is there. */
  database: 'aurora' | 'rds' | `arn:${string}`
  /** Of a given database: where it is, if its secret does not say so. */
  databaseHost: string | undefined
  databasePort: number | undefined
  databaseName: string | undefined
  /** Of a given database: its security group, which is opened to the functions. */
  databaseSecurityGroup: string | undefined
  /** Where the functions are: in a network of their own, in none, or in one that is there. */
  vpc: 'new' | 'none' | `vpc-${string}`
  /** Of a VPC that is there: private subnets, and the zone of each. */
  subnets: string[]
  zones: string[]
  /** Whether the functions reach a database of their own through an RDS Proxy. */
  proxy: boolean
  /** Of `rds`. */
  instanceType: string
  multiAz: boolean
  /** Of `aurora`, in ACU. At a minimum of 0 it pauses when nobody was connected for five minutes. */
  minCapacity: number
  maxCapacity: number
  /** Of a database of its own: whether it refuses to be deleted. */
  deletionProtection: boolean
  /** Between two ticks. */
  tickMinutes: number
  /** How many requests, and how many streams, are served at once; undefined: as many as the account allows. */
  maxConcurrency: number | undefined
  maxStreams: number | undefined
  /** Of all callers together, beyond which API Gateway answers 429. */
  requestsPerSecond: number
  logRetentionDays: RetentionDays
  /** Who is told of alarms: an address, or a topic that is there. */
  alarmEmail: string | undefined
  alarmTopic: string | undefined
  /** Answers `LEASE_LOST` in five minutes that raise the alarm. */
  lostLeases: number
  ntpServers: string
}

/** @throws {Error} one sentence that names the option, and what it may be. */
export function readOptions(context: Record<string, unknown>): Options {
  const { take, end } = reader(context)
  const database = take('database', DATABASE, required) as Options['database']
  const given = database.startsWith('arn:')
  const vpc = take('vpc', VPC, given ? 'none' : 'new') as Options['vpc']
  const ours = vpc.startsWith('vpc-')
  const options: Options = {
    database,
    databaseHost: take('databaseHost', HOST),
    databasePort: numeric(take('databasePort', number(1, 65_535))),
    databaseName: take('databaseName', NAME),
    databaseSecurityGroup: take('databaseSecurityGroup', SECURITY_GROUP),
    vpc,
    subnets: list(take('subnets', SUBNETS, ours ? required : undefined)),
    zones: list(take('zones', ZONES, ours ? required : undefined)),
    proxy: take('proxy', BOOLEAN, 'false') === 'true',
    instanceType: take('instanceType', INSTANCE, 't4g.micro') as string,
    multiAz: take('multiAz', BOOLEAN, 'true') === 'true',
    minCapacity: Number(take('minCapacity', CAPACITY, '0.5')),
    maxCapacity: Number(take('maxCapacity', CAPACITY, '4')),
    deletionProtection: take('deletionProtection', BOOLEAN, 'true') === 'true',
    tickMinutes: Number(take('tickMinutes', number(1, 60), '1')),
    maxConcurrency: limit(take('maxConcurrency', LIMIT, '20')),
    maxStreams: limit(take('maxStreams', LIMIT, '10')),
    requestsPerSecond: Number(take('requestsPerSecond', number(1, 10_000), '100')),
    logRetentionDays: Number(take('logRetentionDays', RETENTION, '30')),
    alarmEmail: take('alarmEmail', EMAIL),
    alarmTopic: take('alarmTopic', TOPIC),
    lostLeases: Number(take('lostLeases', number(1, 1_000_000), '10')),
    ntpServers: take('ntpServers', SERVERS, 'off') as string,
  }
  end()
  checkTogether(options)
  return options
}

/** What one option may be, in words that follow "must be". */
interface Kind {
  words: string
  fits(text: string): boolean
}

const pattern = (words: string, what: RegExp): Kind => ({ words, fits: (text) => what.test(text) })
const number = (min: number, max: number): Kind => ({
  words: `a whole number, ${min}–${max}`,
  fits: (text) => /^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max,
})

const DATABASE = pattern(
  'aurora, rds, or the complete ARN of a secret (arn:aws:secretsmanager:region:account:secret:name-AbCdEf)',
  /^(aurora|rds|arn:aws[\w-]*:secretsmanager:[a-z\d-]+:\d{12}:secret:[\w/+=.@-]+-\w{6})$/,
)
const HOST = pattern('the name of a host', /^[\w.-]+$/)
const NAME = pattern('the name of a database', /^[\w-]{1,63}$/)
const SECURITY_GROUP = pattern('a security group (sg-…)', /^sg-\w+$/)
const VPC = pattern('new, none, or the id of a VPC (vpc-…)', /^(new|none|vpc-\w+)$/)
const SUBNETS = pattern('the ids of private subnets (subnet-…,subnet-…)', /^subnet-\w+(,subnet-\w+)*$/)
const ZONES = pattern('the zones of the subnets, in their order (eu-west-1a,eu-west-1b)', /^[a-z\d-]+(,[a-z\d-]+)*$/)
const BOOLEAN = pattern('true or false', /^(true|false)$/)
const INSTANCE = pattern('a class of instances without db. (t4g.micro)', /^[a-z]\w+\.\w+$/)
const CAPACITY: Kind = {
  words: 'ACU in steps of a half, 0–256',
  fits: (text) => /^\d{1,3}(\.[05])?$/.test(text) && Number(text) <= 256,
}
const LIMIT: Kind = {
  words: `${number(1, 10_000).words}, or none`,
  fits: (text) => text === 'none' || number(1, 10_000).fits(text),
}
const DAYS = Object.values(RetentionDays).filter((days) => typeof days === 'number' && days < 9_999)
const RETENTION: Kind = { words: `one of ${DAYS.join(', ')}`, fits: (text) => DAYS.map(String).includes(text) }
const EMAIL = pattern('an address of e-mail', /^[^\s@]+@[^\s@]+\.[^\s@]+$/)
const TOPIC = pattern('the ARN of a topic of SNS', /^arn:aws[\w-]*:sns:[a-z\d-]+:\d{12}:[\w-]+$/)
const SERVERS = pattern('off, or host[:port],… (3–16 of them)', /^(off|[\w.:-]+(,[\w.:-]+){2,15})$/)

const required = Symbol('required')

/** Takes options one after another; `end` finds those that nobody took. */
function reader(context: Record<string, unknown>) {
  const known: string[] = []
  return {
    take(name: string, { words, fits }: Kind, otherwise?: string | typeof required): string | undefined {
      known.push(name)
      const value = context[name]
      if (value === undefined || value === '') {
        if (otherwise === required) throw new Error(`The option ${name} is missing: it must be ${words}`)
        return otherwise
      }
      const text = String(value).trim()
      if (!fits(text)) throw new Error(`The option ${name} must be ${words}, not ${JSON.stringify(value)}`)
      return text
    },
    end() {
      // The CDK's own keys have a colon, a slash or a hyphen in them.
      const unknown = Object.keys(context).find((name) => /^\w+$/.test(name) && !known.includes(name))
      if (unknown) throw new Error(`There is no option ${unknown}: there are ${known.join(', ')}`)
    },
  }
}

/** What fits by itself, but not with the others. */
function checkTogether(options: Options): void {
  const { database, vpc, subnets, zones, proxy, minCapacity, maxCapacity } = options
  const given = database.startsWith('arn:')
  const refuse = (sentence: string | false) => {
    if (sentence) throw new Error(sentence)
  }
  refuse(given && proxy && 'The option proxy must be false for a given database: give the host of its own proxy')
  refuse(given && vpc === 'new' && 'The option vpc must be none or a VPC (vpc-…) for a given database')
  refuse(!given && vpc === 'none' && 'The option vpc must be new or a VPC (vpc-…) for a database of its own')
  for (const name of ['databaseHost', 'databasePort', 'databaseName', 'databaseSecurityGroup'] as const) {
    refuse(!given && options[name] !== undefined && `The option ${name} is for a given database, not for ${database}`)
  }
  refuse(
    vpc === 'none' &&
      options.databaseSecurityGroup !== undefined &&
      'The option databaseSecurityGroup needs a VPC: set the option vpc (vpc-…)',
  )
  refuse(subnets.length !== zones.length && 'The option zones must name as many as the option subnets')
  refuse(!given && subnets.length === 1 && 'The option subnets must name two or more, for a database')
  refuse(maxCapacity < Math.max(minCapacity, 1) && 'The option maxCapacity must be at least 1, and minCapacity')
  refuse(proxy && database === 'aurora' && minCapacity === 0 && 'The option minCapacity must not be 0 with proxy')
}

const list = (text: string | undefined): string[] => text?.split(',') ?? []
const numeric = (text: string | undefined): number | undefined => (text === undefined ? undefined : Number(text))
const limit = (text: string | undefined): number | undefined => (text === 'none' ? undefined : Number(text))
