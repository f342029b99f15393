/**
 * The CDK application of infra/aws, as templates: nothing is deployed, and no network is used.
 *
 * Each kind of deployment is synthesised with cdk-nag, but with a small folder in place of the bundle; one test runs everything
 * with the CDK's own command. The promises of infra/aws/README.md are checked in the template. The findings of cdk-nag
 * are compared with its findings when nothing is accepted. So the test shows that cdk-nag did look, and that every reason in
 * the code is needed.
 */
import { execFile } from 'node:child_process'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Stack } from '../../infra/aws/testing.ts'
import { lambdaFolder } from '../adapters/runtime/runtimes.ts'
import { environmentOf, installPackages } from '../tools/packages.ts'

await installPackages('infra/aws') // outside of any hook, because the imports need it
const { App, AwsSolutionsChecks, ec2, LockstepStack, lambda, Match, readOptions, s3, Template } = await import(
  '../../infra/aws/testing.ts'
)

const ROOT = path.resolve(import.meta.dirname, '../..')
const SECRET = 'arn:aws:secretsmanager:eu-west-1:123456789012:secret:my/database-AbCdEf'
const SUBNETS = ['subnet-0aaaaaaaaaaaaaaaa', 'subnet-0bbbbbbbbbbbbbbbb']
const OURS = { vpc: 'vpc-0123456789abcdef0', subnets: SUBNETS.join(), zones: 'eu-west-1a,eu-west-1b' }

/** The kinds of deployment that the README describes, and the number of accepted findings of cdk-nag in each, by rule. */
const SHAPES: Record<string, { options: Record<string, string>; accepted: Record<string, number> }> = {
  'aurora, with a proxy': {
    options: { database: 'aurora', proxy: 'true', alarmEmail: 'ops@example.com' },
    accepted: { IAM5: 8, SMG4: 3, APIG4: 1, SQS3: 1 },
  },
  'aurora that pauses': {
    options: {
      database: 'aurora',
      minCapacity: '0',
      tickMinutes: '30',
      alarmTopic: 'arn:aws:sns:eu-west-1:123456789012:ops',
    },
    accepted: { IAM5: 8, SMG4: 3, APIG4: 1, SQS3: 1 },
  },
  'rds, in two zones': {
    options: { database: 'rds' },
    accepted: { IAM5: 8, SMG4: 3, APIG4: 1, SQS3: 1 },
  },
  'rds, as cheap as possible': {
    options: { database: 'rds', multiAz: 'false', deletionProtection: 'false', maxConcurrency: 'none' },
    accepted: { IAM5: 8, SMG4: 3, APIG4: 1, SQS3: 1, RDS3: 1, RDS10: 1 },
  },
  'rds, in an existing network': {
    options: { database: 'rds', proxy: 'true', ...OURS },
    accepted: { IAM5: 8, SMG4: 3, APIG4: 1, SQS3: 1 },
  },
  'an existing database, without a network': {
    options: { database: SECRET },
    accepted: { SMG4: 2, APIG4: 1, SQS3: 1 },
  },
  'an existing database, in its network': {
    options: { database: SECRET, databaseHost: 'db.internal', databaseSecurityGroup: 'sg-0123456789abcdef0', ...OURS },
    accepted: { IAM5: 8, SMG4: 2, APIG4: 1, SQS3: 1 },
  },
}
const names = Object.keys(SHAPES)

type Synthesised = ReturnType<typeof synthesise>
let folder: string
const templates = new Map<string, Synthesised>()

beforeAll(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-aws-'))
  fs.mkdirSync(path.join(folder, 'code'))
  fs.writeFileSync(path.join(folder, 'code', 'index.mjs'), 'export const handler = () => {}\n')
  for (const name of names) templates.set(name, synthesise(SHAPES[name]?.options ?? {}))
})

afterAll(() => fs.rmSync(folder, { recursive: true, force: true }))

function synthesise(options: Record<string, string>, more: (stack: Stack) => void = () => {}) {
  const { context } = JSON.parse(fs.readFileSync(path.join(ROOT, 'infra/aws/cdk.json'), 'utf8'))
  const app = new App({ outdir: fs.mkdtempSync(path.join(folder, 'out-')), context })
  const code = lambda.Code.fromAsset(path.join(folder, 'code'))
  const stack = new LockstepStack(app, 'Lockstep', { options: readOptions(options), code })
  more(stack)
  return { template: Template.fromStack(stack), stack }
}

/** The number of findings of each rule; `accepting`: without those that are accepted with a reason. */
function findings(stack: Stack, accepting: boolean): Record<string, number> {
  const pack = new AwsSolutionsChecks()
  if (!accepting) Object.assign(pack, { isAcknowledged: () => false })
  const counts: Record<string, number> = {}
  for (const { ruleName, violatingResources } of pack.validateScope(stack).violations) {
    const rule = ruleName.replace(/^AwsSolutions-|\[.*$/g, '')
    counts[rule] = (counts[rule] ?? 0) + violatingResources.length
  }
  return counts
}

// biome-ignore lint/suspicious/noExplicitAny: a template is any JSON
type Resource = { Type: string; Properties: any; DependsOn?: string[]; DeletionPolicy?: string }

function resources(name: string): Record<string, Resource> {
  return templates.get(name)?.template.toJSON().Resources
}
const ofType = (name: string, type: string) => Object.values(resources(name)).filter((each) => each.Type === type)

/** The function with this handler, with its logical id. */
function functionOf(name: string, handler: string): Resource & { id: string } {
  const at = handler === 'migrate' ? 'migrate.handler' : `index.${handler}`
  const found = Object.entries(resources(name)).find(([, each]) => each.Properties?.Handler === at)
  if (!found) throw new Error(`no function ${handler} in ${name}`)
  return { id: found[0], ...found[1] }
}

/** Every statement of every policy, of principals and of resources. */
function statements(name: string) {
  return Object.entries(resources(name)).flatMap(([id, { Properties }]) =>
    [
      Properties?.PolicyDocument,
      ...(Properties?.Policies ?? []).map((each: Resource['Properties']) => each.PolicyDocument),
    ]
      .flatMap((document) => document?.Statement ?? [])
      .map((statement) => ({ id, ...statement })),
  )
}

/** All resources that must be created before a resource, also indirectly. */
function before(name: string, id: string, seen = new Set<string>()): Set<string> {
  const { DependsOn = [], Properties } = resources(name)[id] as Resource
  const text = JSON.stringify(Properties ?? {})
  const referred = [...text.matchAll(/\{"(?:Ref|Fn::GetAtt)":\[?"(\w+)"/g)].map(([, other = '']) => other)
  for (const other of [DependsOn, referred].flat()) {
    if (seen.has(other) || !(other in resources(name))) continue
    seen.add(other)
    before(name, other, seen)
  }
  return seen
}

describe.each(names)('%s', (name) => {
  test('cdk-nag has only findings that are accepted with a reason, and every reason is needed', () => {
    const { stack } = templates.get(name) ?? {}
    expect(findings(stack as Stack, true)).toEqual({})
    expect(findings(stack as Stack, false)).toEqual(SHAPES[name]?.accepted)
  })

  test('roles have the rights that they need, and no managed policies', () => {
    const all = Object.values(resources(name))
    const roles = all.filter(({ Type }) => Type === 'AWS::IAM::Role')
    expect(roles.length).toBeGreaterThanOrEqual(6) // four functions, the scheduler, the step that migrates
    expect(JSON.stringify(roles.map(({ Properties }) => Properties.ManagedPolicyArns ?? []))).not.toMatch(/arn/)
    const allowed = statements(name).filter(({ Effect }) => Effect === 'Allow')
    expect(allowed.length).toBeGreaterThan(10)
    const wild = allowed.filter(({ Action }) => /\*/.test(JSON.stringify(Action)))
    expect(wild).toEqual([])
    const onAll = allowed.filter(({ Resource }) => [Resource].flat().includes('*')).map(({ Action }) => Action)
    const inNetwork = ofType(name, 'AWS::Lambda::Function').filter(({ Properties }) => Properties.VpcConfig)
    expect(onAll).toEqual(inNetwork.map(() => ['ec2:DescribeNetworkInterfaces', 'ec2:DescribeSubnets']))
    const denied = statements(name).filter(({ Action, Effect }) => Effect === 'Deny' && /ec2:/.test(String(Action)))
    expect(denied.length).toBe(inNetwork.length)
    for (const each of denied) expect(JSON.stringify(each.Condition)).toContain('lambda:SourceFunctionArn')
  })

  test('every function writes its own log, which is kept as long as the option says', () => {
    const functions = ofType(name, 'AWS::Lambda::Function')
    const logs = functions.map(({ Properties }) => Properties.LoggingConfig?.LogGroup?.Ref)
    expect(new Set(logs).size).toBe(5)
    for (const log of logs) expect(resources(name)[log]?.Properties.RetentionInDays).toBe(30)
    for (const each of ofType(name, 'AWS::Logs::LogGroup')) expect(each.Properties.RetentionInDays).toBe(30)
    for (const { Properties } of functions) {
      const role = statements(name).filter(({ id }) => id === Properties.Role['Fn::GetAtt'][0])
      const writes = role.filter(({ Action }) => String(Action).includes('logs:'))
      expect(writes.map(({ Resource }) => Resource)).toEqual([
        { 'Fn::GetAtt': [Properties.LoggingConfig.LogGroup.Ref, 'Arn'] },
      ])
    }
  })

  test('each function may read the secrets in its environment, and no others', () => {
    for (const handler of ['handler', 'stream', 'scheduled', 'migrate']) {
      const { Properties } = functionOf(name, handler)
      const variables = Object.entries(Properties.Environment.Variables).filter(([key]) => key.endsWith('SECRET_ARN'))
      const reads = statements(name).find(
        ({ id, Action }) => id === Properties.Role['Fn::GetAtt'][0] && Action === 'secretsmanager:GetSecretValue',
      )
      expect(reads?.Resource).toEqual(variables.map(([, arn]) => arn))
    }
    const owner = functionOf(name, 'migrate').Properties.Environment.Variables.DATABASE_SECRET_ARN
    const { DATABASE_SECRET_ARN, LOCKSTEP_API_KEYS_SECRET_ARN } = functionOf(name, 'handler').Properties.Environment
      .Variables
    expect(owner).not.toEqual(DATABASE_SECRET_ARN)
    const keys = resources(name)[LOCKSTEP_API_KEYS_SECRET_ARN.Ref]
    expect(keys?.Properties).toMatchObject({ SecretString: 'no keys yet' }) // the functions refuse it: it is not a key
  })

  test('the functions have the settings that the runtime needs', () => {
    for (const handler of ['handler', 'stream', 'scheduled', 'migrate']) {
      const { Properties } = functionOf(name, handler)
      expect(Properties).toMatchObject({ Runtime: 'nodejs24.x', Architectures: ['arm64'], MemorySize: 512 })
      expect(Properties.LoggingConfig.LogFormat).toBe('JSON')
      const { NODE_EXTRA_CA_CERTS, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME } = Properties.Environment.Variables
      expect(NODE_EXTRA_CA_CERTS).toBe('/var/runtime/ca-cert.pem')
      for (const each of [DATABASE_HOST, DATABASE_PORT, DATABASE_NAME]) expect(each).toBeTruthy()
    }
    expect(functionOf(name, 'handler').Properties.Timeout).toBeLessThan(30) // the limit of API Gateway
    expect(functionOf(name, 'stream').Properties.Timeout).toBe(120)
    expect(functionOf(name, 'scheduled').Properties.Timeout).toBeLessThanOrEqual(900)
  })

  test('migrations run after the database and before everything that uses it', () => {
    const [trigger] = Object.entries(resources(name)).find(([, { Type }]) => Type === 'Custom::Trigger') ?? []
    const earlier = before(name, trigger as string)
    expect(earlier).toContain(functionOf(name, 'migrate').id)
    for (const [id, { Type }] of Object.entries(resources(name))) {
      if (/RDS::DB(Cluster|Instance)$|VPCEndpoint$|SecurityGroupIngress$/.test(Type)) {
        const ofProxy = /ProxyGroupfrom/.test(id) // which is created later
        expect(earlier.has(id) || ofProxy, id).toBe(true)
      }
      if (
        /DBProxy$|DBProxyTargetGroup$|Lambda::Url$|Scheduler::Schedule$|ApiGatewayV2::(Route|Integration)$/.test(Type)
      ) {
        expect([...before(name, id)], id).toContain(trigger)
      }
    }
    for (const handler of ['handler', 'stream', 'scheduled']) {
      expect(functionOf(name, handler).DependsOn, handler).toContain(trigger)
    }
  })

  test('requests are limited and logged; streams are streamed', () => {
    const { template } = templates.get(name) as Synthesised
    template.hasResourceProperties('AWS::ApiGatewayV2::Stage', {
      DefaultRouteSettings: { ThrottlingRateLimit: 100, ThrottlingBurstLimit: 200 },
      AccessLogSettings: { DestinationArn: Match.anyValue(), Format: Match.stringLikeRegexp('"status"') },
    })
    const [stage] = ofType(name, 'AWS::ApiGatewayV2::Stage')
    expect(stage?.Properties.AccessLogSettings.Format).not.toMatch(/querystring|authorization/i) // tokens, keys
    const [route] = ofType(name, 'AWS::ApiGatewayV2::Route')
    expect(route?.Properties.RouteKey).toBe('$default')
    const [integration] = ofType(name, 'AWS::ApiGatewayV2::Integration')
    expect(integration?.Properties).toMatchObject({ PayloadFormatVersion: '2.0' })
    expect(integration?.Properties.IntegrationUri['Fn::GetAtt'][0]).toBe(functionOf(name, 'handler').id)
    const [url, ...others] = ofType(name, 'AWS::Lambda::Url')
    expect(others).toEqual([])
    expect(url?.Properties).toMatchObject({ AuthType: 'NONE', InvokeMode: 'RESPONSE_STREAM' })
    expect(url?.Properties.TargetFunctionArn['Fn::GetAtt'][0]).toBe(functionOf(name, 'stream').id)
  })

  test('the scheduler calls the scheduled function, and may call no other', () => {
    const minutes = Number(SHAPES[name]?.options.tickMinutes ?? 1)
    const { id, Properties } = functionOf(name, 'scheduled')
    const [schedule] = ofType(name, 'AWS::Scheduler::Schedule')
    expect(schedule?.Properties.ScheduleExpression).toBe(minutes === 1 ? 'rate(1 minute)' : `rate(${minutes} minutes)`)
    expect(Properties.Timeout).toBeLessThan(minutes * 60)
    const { Arn, RoleArn, DeadLetterConfig } = schedule?.Properties.Target ?? {}
    expect(Arn).toEqual({ 'Fn::GetAtt': [id, 'Arn'] })
    const may = statements(name).filter((each) => each.id === RoleArn['Fn::GetAtt'][0])
    expect(may.map(({ Action, Resource }) => [Action, Resource])).toEqual([
      ['lambda:InvokeFunction', Arn],
      ['sqs:SendMessage', DeadLetterConfig.Arn],
    ])
    const trust = JSON.stringify(resources(name)[RoleArn['Fn::GetAtt'][0]]?.Properties.AssumeRolePolicyDocument)
    for (const part of ['scheduler.amazonaws.com', 'aws:SourceAccount']) expect(trust).toContain(part)
  })

  test('alarms: lost leases, failed and missing ticks, errors; each is sent to the topic', () => {
    const alarms = ofType(name, 'AWS::CloudWatch::Alarm').map(({ Properties }) => Properties)
    const topic = SHAPES[name]?.options.alarmTopic ?? {
      Ref: Object.keys(resources(name)).find((id) => /^AlarmsTopic\w{8}$/.test(id)),
    }
    for (const alarm of alarms) expect(alarm).toMatchObject({ AlarmActions: [topic], OKActions: [topic] })
    const of = (metric: string, wanted: object) => {
      expect(alarms.filter(({ MetricName }) => MetricName === metric)).toEqual(
        expect.arrayContaining([expect.objectContaining(wanted)]),
      )
    }
    const scheduled = [{ Name: 'FunctionName', Value: { Ref: functionOf(name, 'scheduled').id } }]
    of('LostLeases', { Namespace: 'Lockstep/Lockstep', Threshold: 10, Statistic: 'Sum', Period: 300 })
    of('InternalErrors', { Namespace: 'Lockstep/Lockstep', Threshold: 1 })
    of('Errors', { Namespace: 'AWS/Lambda', Dimensions: scheduled, Threshold: 1 })
    of('Invocations', { Dimensions: scheduled, ComparisonOperator: 'LessThanThreshold', TreatMissingData: 'breaching' })
    of('5xx', { Namespace: 'AWS/ApiGateway', Threshold: 10 })
    of('ApproximateNumberOfMessagesVisible', { Namespace: 'AWS/SQS', Threshold: 1 })

    const counted = ofType(name, 'AWS::Logs::MetricFilter').map(({ Properties }) => Properties)
    const logOf = (handler: string) => functionOf(name, handler).Properties.LoggingConfig.LogGroup
    const lost = counted.filter(({ FilterPattern }) => FilterPattern === '{ $.message.code = "LEASE_LOST" }')
    expect(lost.map(({ LogGroupName }) => LogGroupName)).toEqual([logOf('handler'), logOf('stream')])
    expect(lost[0]?.MetricTransformations).toEqual([
      { MetricName: 'LostLeases', MetricNamespace: 'Lockstep/Lockstep', MetricValue: '1' },
    ])
  })
})

describe('a new database', () => {
  const created = names.filter((name) => SHAPES[name]?.options.database !== SECRET)

  test.each(created)('%s: is encrypted, private and protected', (name) => {
    const made = [...ofType(name, 'AWS::RDS::DBCluster'), ...ofType(name, 'AWS::RDS::DBInstance')]
    const [first] = made
    expect(first?.Properties).toMatchObject({
      StorageEncrypted: true,
      DeletionProtection: SHAPES[name]?.options.deletionProtection !== 'false',
      BackupRetentionPeriod: 7,
    })
    expect(first?.DeletionPolicy).toBe('Snapshot')
    for (const { Type, Properties } of made) {
      if (Type === 'AWS::RDS::DBInstance') expect(Properties.PubliclyAccessible).toBe(false)
    }
    for (const group of ofType(name, 'AWS::EC2::SecurityGroup'))
      expect(group.Properties.SecurityGroupIngress).toBeUndefined()
    for (const rule of ofType(name, 'AWS::EC2::SecurityGroupIngress')) {
      expect(rule.Properties.SourceSecurityGroupId).toBeTruthy()
      expect(rule.Properties.CidrIp).toBeUndefined()
    }
  })

  test('a new network has no way out, and costs no NAT', () => {
    const name = 'rds, in two zones'
    for (const type of ['NatGateway', 'InternetGateway', 'Route']) expect(ofType(name, `AWS::EC2::${type}`)).toEqual([])
    const [endpoint, ...others] = ofType(name, 'AWS::EC2::VPCEndpoint')
    expect(others).toEqual([])
    expect(JSON.stringify(endpoint?.Properties.ServiceName)).toContain('secretsmanager')
    for (const each of ofType('rds, in an existing network', 'AWS::EC2::VPC')) expect(each).toBeUndefined()
  })

  test('with a proxy the functions use it, and the migrations do not', () => {
    const name = 'aurora, with a proxy'
    const host = (handler: string) =>
      JSON.stringify(functionOf(name, handler).Properties.Environment.Variables.DATABASE_HOST)
    expect(host('handler')).toContain('Proxy')
    expect(host('migrate')).not.toContain('Proxy')
    const [proxy] = ofType(name, 'AWS::RDS::DBProxy')
    expect(proxy?.Properties).toMatchObject({ RequireTLS: true, DBProxyName: 'Lockstep-proxy' })
    const { DATABASE_SECRET_ARN } = functionOf(name, 'handler').Properties.Environment.Variables
    expect(proxy?.Properties.Auth.map(({ SecretArn }: Record<string, unknown>) => SecretArn)).toEqual([
      DATABASE_SECRET_ARN,
    ])
  })

  test('aurora pauses if its minimum is 0', () => {
    const [cluster] = ofType('aurora that pauses', 'AWS::RDS::DBCluster')
    expect(cluster?.Properties.ServerlessV2ScalingConfiguration).toEqual({
      MinCapacity: 0,
      MaxCapacity: 4,
      SecondsUntilAutoPause: 300,
    })
  })

  test('executions are limited, unless the option is none', () => {
    const bounds = (name: string) =>
      ['handler', 'stream', 'scheduled'].map((each) => functionOf(name, each).Properties.ReservedConcurrentExecutions)
    expect(bounds('rds, in two zones')).toEqual([20, 10, 1])
    expect(bounds('rds, as cheap as possible')).toEqual([undefined, 10, undefined])
  })
})

test('an existing database has its address from its secret, or from the options', () => {
  const variables = (name: string) => functionOf(name, 'handler').Properties.Environment.Variables
  expect(variables('an existing database, without a network')).toMatchObject({
    DATABASE_HOST: `{{resolve:secretsmanager:${SECRET}:SecretString:host}}`,
    DATABASE_PORT: `{{resolve:secretsmanager:${SECRET}:SecretString:port}}`,
    DATABASE_NAME: `{{resolve:secretsmanager:${SECRET}:SecretString:dbname}}`,
  })
  const name = 'an existing database, in its network'
  expect(variables(name)).toMatchObject({
    DATABASE_HOST: 'db.internal',
    DATABASE_PORT: '5432',
    DATABASE_NAME: 'postgres',
  })
  const [rule] = ofType(name, 'AWS::EC2::SecurityGroupIngress')
  expect(rule?.Properties).toMatchObject({ GroupId: 'sg-0123456789abcdef0', FromPort: 5432, ToPort: 5432 })
  expect(functionOf(name, 'migrate').Properties.VpcConfig.SubnetIds).toEqual(SUBNETS)
  expect(functionOf('an existing database, without a network', 'migrate').Properties.VpcConfig).toBeUndefined()
})

test('every handler is in the bundle', async () => {
  const folder = await lambdaFolder()
  const handlers = Object.values(resources('aurora, with a proxy')).flatMap(({ Type, Properties }) =>
    Type === 'AWS::Lambda::Function' && /^(index|migrate)\./.test(Properties?.Handler)
      ? [Properties?.Handler as string]
      : [],
  )
  expect(handlers.sort()).toEqual(['index.handler', 'index.scheduled', 'index.stream', 'migrate.handler'])
  for (const [file, name] of handlers.map((handler) => handler.split('.'))) {
    const [exported = ''] = /export\s*\{[^}]*\}[^{}]*$/.exec(fs.readFileSync(`${folder}/${file}.mjs`, 'utf8')) ?? []
    expect(exported).toMatch(new RegExp(`\\bas ${name}\\b`))
  }
})

test('cdk-nag finds an open bucket and an open security group', () => {
  const { stack } = synthesise({ database: 'rds' }, (stack) => {
    new s3.Bucket(stack, 'Bucket')
    const vpc = ec2.Vpc.fromVpcAttributes(stack, 'Vpc', {
      vpcId: OURS.vpc,
      availabilityZones: ['a'],
      privateSubnetIds: ['b'],
    })
    new ec2.SecurityGroup(stack, 'Open', { vpc }).addIngressRule(ec2.Peer.anyIpv4(), ec2.Port.tcp(8080))
  })
  expect(Object.keys(findings(stack, true))).toEqual(expect.arrayContaining(['S1', 'S10', 'EC23']))
})

describe('options', () => {
  const wrong: [Record<string, string>, RegExp][] = [
    [{}, /^The option database is missing: it must be aurora, rds, or the complete ARN/],
    [{ database: 'mysql' }, /^The option database must be aurora, rds, or .*, not "mysql"$/],
    [{ database: 'arn:aws:secretsmanager:eu-west-1:123456789012:secret:short' }, /^The option database must be/],
    [{ database: 'rds', proxi: 'true' }, /^There is no option proxi: there are database, .*proxy/],
    [{ database: 'rds', proxy: 'yes' }, /^The option proxy must be true or false, not "yes"$/],
    [{ database: 'rds', vpc: 'none' }, /^The option vpc must be new or a VPC/],
    [{ database: 'rds', vpc: 'vpc-1' }, /^The option subnets is missing/],
    [{ database: 'rds', ...OURS, zones: 'a' }, /^The option zones must name as many as the option subnets$/],
    [{ database: 'rds', ...OURS, subnets: 'subnet-1', zones: 'a' }, /^The option subnets must name two or more/],
    [{ database: SECRET, vpc: 'new' }, /^The option vpc must be none or a VPC/],
    [{ database: SECRET, proxy: 'true' }, /^The option proxy must be false for an existing database/],
    [
      { database: SECRET, databaseSecurityGroup: 'sg-0123456789abcdef0' },
      /^The option databaseSecurityGroup needs a VPC/,
    ],
    [{ database: 'rds', databasePort: '5433' }, /^The option databasePort is for an existing database, not for rds$/],
    [{ database: 'rds', databaseHost: 'db' }, /^The option databaseHost is for an existing database, not for rds$/],
    [{ database: 'rds', logRetentionDays: '31' }, /^The option logRetentionDays must be one of 1, 3, 5, 7, 14, 30, /],
    [{ database: 'rds', tickMinutes: '0' }, /^The option tickMinutes must be a whole number, 1–60, not "0"$/],
    [{ database: 'rds', maxStreams: '0' }, /^The option maxStreams must be a whole number, 1–10000, or none/],
    [{ database: 'aurora', minCapacity: '0.3' }, /^The option minCapacity must be ACU in steps of a half/],
    [{ database: 'aurora', minCapacity: '8' }, /^The option maxCapacity must be at least 1, and minCapacity$/],
    [{ database: 'aurora', minCapacity: '0', proxy: 'true' }, /^The option minCapacity must not be 0 with proxy/],
    [{ database: 'rds', alarmEmail: 'ops' }, /^The option alarmEmail must be an e-mail address/],
    [{ database: SECRET, databaseHost: '[::1]:5432' }, /^The option databaseHost must be the name or the address/],
    [{ database: 'rds', trustedNtpServer: 'a,b' }, /^The option trustedNtpServer must be one NTP server/],
    [
      { database: 'rds', trustedNtpServer: 'a', ntpServers: 'a,b,c' },
      /^The option trustedNtpServer is one server without/,
    ],
    [{ database: 'rds', ntpServers: 'a,b' }, /^The option ntpServers must be off, or host/],
  ]
  test.each(wrong)('%j', (options, sentence) => {
    expect(() => readOptions(options)).toThrow(sentence)
  })

  test('may be written as JSON in cdk.json, beside the keys of the CDK', () => {
    const flags = { '@aws-cdk/core:newStyle': true, 'aws:cdk:bundling-stacks': [] }
    const options = readOptions({ database: 'rds', multiAz: false, tickMinutes: 5, lostLeases: 3, ...flags })
    expect(options).toMatchObject({ multiAz: false, tickMinutes: 5, lostLeases: 3, maxConcurrency: 20 })
  })

  test('are all described in the README', () => {
    const readme = fs.readFileSync(path.join(ROOT, 'infra/aws/README.md'), 'utf8')
    const known = /there are (.*)$/.exec(sentenceOf(() => readOptions({ database: 'rds', other: 'x' })))?.[1]
    expect(known?.split(', ').filter((name) => !readme.includes(`\`${name}\``))).toEqual([])
  })
})

function sentenceOf(work: () => unknown): string {
  try {
    return String(work())
  } catch (error) {
    return (error as Error).message
  }
}

describe('the command', () => {
  const run = (command: string, args: string[], env: Record<string, string> = {}) => {
    const { PATH } = environmentOf('infra/aws')
    return promisify(execFile)(command, args, {
      cwd: path.join(ROOT, 'infra/aws'),
      env: { PATH, HOME: folder, CDK_DISABLE_CLI_TELEMETRY: 'true', AWS_EC2_METADATA_DISABLED: 'true', ...env },
    })
  }

  test('synthesises with the bundle, without a network', async () => {
    const output = path.join(folder, 'whole')
    await run('cdk', ['synth', '--quiet', '-o', output, '-c', 'database=rds', '-c', 'stackName=Coordination'])
    const template = JSON.parse(fs.readFileSync(path.join(output, 'Coordination.template.json'), 'utf8'))
    const handler = Object.values<Resource>(template.Resources).find(
      (each) => each.Properties?.Handler === 'index.handler',
    )
    const asset = path.join(output, `asset.${handler?.Properties.Code.S3Key.replace('.zip', '')}`)
    expect(fs.readdirSync(asset)).toEqual(expect.arrayContaining(['index.mjs', 'migrations']))
    expect(fs.readdirSync(path.join(asset, 'migrations'))).toEqual(fs.readdirSync(path.join(ROOT, 'db/migrations')))
    expect(JSON.stringify(template)).toContain('rules_to_suppress') // each reason, at the resource concerned
  }, 60_000)

  test('ends with one sentence if an option is invalid', async () => {
    const context = { CDK_CONTEXT_JSON: JSON.stringify({ database: 'oracle' }) }
    const failure = await run('node', ['app.ts'], context).catch((error) => error)
    expect(failure.code).toBe(1)
    expect(failure.stderr).toMatch(/^The option database must be aurora, rds, or .*, not "oracle"\n$/)
  }, 60_000)
})
