/**
 * The options of a deployment, read from the context of the CDK (`-c name=value`, or `context` in cdk.json).
 *
 * All options are checked here, before anything is built. Each error names the option and its allowed values. An unknown option
 * is an error too, because a deployment that ignores `-c proxi=true` is not the requested one.
 *
 * The defaults are those of a small deployment for production: the database runs in two zones and cannot be deleted by
 * accident. Cheaper choices must be made explicitly.
 */
import { RetentionDays } from 'aws-cdk-lib/aws-logs'

export interface Options {
  /** A new database, or the complete ARN of the secret of an existing one. */
  database: 'aurora' | 'rds' | `arn:${string}`
  /** Of an existing database: its address, if its secret does not have it. */
  databaseHost: string | undefined
  databasePort: number | undefined
  databaseName: string | undefined
  /** Of an existing database: its security group, which is opened to the functions. */
  databaseSecurityGroup: string | undefined
  /** The network of the functions: a new one, none, or an existing one. */
  vpc: 'new' | 'none' | `vpc-${string}`
  /** Of an existing VPC: private subnets, and the zone of each. */
  subnets: string[]
  zones: string[]
  /** Whether the functions reach a new database through an RDS Proxy. */
  proxy: boolean
  /** Of `rds`. */
  instanceType: string
  multiAz: boolean
  /** Of `aurora`, in ACU. At a minimum of 0 it pauses after five minutes without connections. */
  minCapacity: number
  maxCapacity: number
  /** Of a new database: whether it is protected against deletion. */
  deletionProtection: boolean
  /** The time between two ticks. */
  tickMinutes: number
  /** The limits of concurrent requests and of concurrent streams; undefined: the limit of the account. */
  maxConcurrency: number | undefined
  maxStreams: number | undefined
  /** Of all callers together. Beyond it API Gateway responds 429. */
  requestsPerSecond: number
  logRetentionDays: RetentionDays
  /** The receiver of alarms: an address, or an existing topic. */
  alarmEmail: string | undefined
  alarmTopic: string | undefined
  /** The number of responses `LEASE_LOST` in five minutes that raises the alarm. */
  lostLeases: number
  ntpServers: string
  /** One server that is believed without a vote. */
  trustedNtpServer: string | undefined
}

/** @throws {Error} one sentence that names the option and its allowed values. */
export function readOptions(context: Record<string, unknown>): Options {
  const { take, end } = reader(context)
  const database = take('database', DATABASE, required) as Options['database']
  const existing = database.startsWith('arn:')
  const vpc = take('vpc', VPC, existing ? 'none' : 'new') as Options['vpc']
  const existingVpc = vpc.startsWith('vpc-')
  const options: Options = {
    database,
    databaseHost: take('databaseHost', HOST),
    databasePort: numeric(take('databasePort', number(1, 65_535))),
    databaseName: take('databaseName', NAME),
    databaseSecurityGroup: take('databaseSecurityGroup', SECURITY_GROUP),
    vpc,
    subnets: list(take('subnets', SUBNETS, existingVpc ? required : undefined)),
    zones: list(take('zones', ZONES, existingVpc ? required : undefined)),
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
    trustedNtpServer: take('trustedNtpServer', SERVER),
  }
  end()
  checkTogether(options)
  return options
}

/** The values that an option may have; `words` follow "must be". */
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
const HOST = pattern('the name or the address of a host, without a port', /^([\w.-]+|\[[\da-f:.]+\]|[\da-f:.]+)$/i)
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
const EMAIL = pattern('an e-mail address', /^[^\s@]+@[^\s@]+\.[^\s@]+$/)
const TOPIC = pattern('the ARN of an SNS topic', /^arn:aws[\w-]*:sns:[a-z\d-]+:\d{12}:[\w-]+$/)
const SERVER = pattern('one NTP server, host[:port]', /^[\w.:[\]-]+$/)
const SERVERS = pattern('off, or host[:port],… (3–16 of them)', /^(off|[\w.:[\]-]+(,[\w.:[\]-]+){2,15})$/)

const required = Symbol('required')

/** Reads options one after another; `end` refuses those that were not read. */
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
      // The CDK's own keys contain a colon, a slash or a hyphen.
      const unknown = Object.keys(context).find((name) => /^\w+$/.test(name) && !known.includes(name))
      if (unknown) throw new Error(`There is no option ${unknown}: there are ${known.join(', ')}`)
    },
  }
}

/** Checks of options together. */
function checkTogether(options: Options): void {
  const { database, vpc, subnets, zones, proxy, minCapacity, maxCapacity, ntpServers, trustedNtpServer } = options
  const existing = database.startsWith('arn:')
  const refuse = (sentence: string | false) => {
    if (sentence) throw new Error(sentence)
  }
  refuse(
    trustedNtpServer !== undefined &&
      ntpServers !== 'off' &&
      'The option trustedNtpServer is one server without a vote, and ntpServers is a vote: set one of them',
  )
  refuse(
    existing &&
      proxy &&
      'The option proxy must be false for an existing database: set databaseHost to the host of its own proxy',
  )
  refuse(existing && vpc === 'new' && 'The option vpc must be none or a VPC (vpc-…) for an existing database')
  refuse(!existing && vpc === 'none' && 'The option vpc must be new or a VPC (vpc-…) for a new database')
  for (const name of ['databaseHost', 'databasePort', 'databaseName', 'databaseSecurityGroup'] as const) {
    refuse(
      !existing && options[name] !== undefined && `The option ${name} is for an existing database, not for ${database}`,
    )
  }
  refuse(
    vpc === 'none' &&
      options.databaseSecurityGroup !== undefined &&
      'The option databaseSecurityGroup needs a VPC: set the option vpc (vpc-…)',
  )
  refuse(subnets.length !== zones.length && 'The option zones must name as many as the option subnets')
  refuse(!existing && subnets.length === 1 && 'The option subnets must name two or more, for a new database')
  refuse(maxCapacity < Math.max(minCapacity, 1) && 'The option maxCapacity must be at least 1, and minCapacity')
  refuse(proxy && database === 'aurora' && minCapacity === 0 && 'The option minCapacity must not be 0 with proxy')
}

const list = (text: string | undefined): string[] => text?.split(',') ?? []
const numeric = (text: string | undefined): number | undefined => (text === undefined ? undefined : Number(text))
const limit = (text: string | undefined): number | undefined => (text === 'none' ? undefined : Number(text))
