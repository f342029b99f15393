/**
 * The functions: one bundle with four handlers (main.ts, migrate.ts), each with its own log, role and limit.
 *
 * A role may do three things: write its own log, read the secrets that its function needs, and, in a VPC, let Lambda
 * attach a network interface. AWS's managed policies would let it write every log of the account. Some actions on network
 * interfaces must be allowed on all resources, because interfaces have no names beforehand. So the function's code, which
 * runs under the same role, is denied these actions.
 *
 * Each execution environment opens its own connections to the database. So the database, and not the traffic, sets the limit
 * of executions. Beyond the limit Lambda responds 429 and API Gateway 503, and the caller retries, which is better
 * than a database that refuses every connection.
 *
 * Migrations run at a deployment, as a step of CloudFormation between the database and the functions. The functions change only
 * after that step has succeeded. The CDK's provider of the step has a managed policy and a log that is kept for ever; both
 * are replaced.
 */
import { Aws, type CfnResource, Duration, RemovalPolicy, Stack } from 'aws-cdk-lib'
import * as iam from 'aws-cdk-lib/aws-iam'
import * as lambda from 'aws-cdk-lib/aws-lambda'
import * as logs from 'aws-cdk-lib/aws-logs'
import type * as secrets from 'aws-cdk-lib/aws-secretsmanager'
import { Trigger } from 'aws-cdk-lib/triggers'
import { Construct } from 'constructs'
import { accept } from './accept.ts'
import type { Database, Network } from './database.ts'
import type { Options } from './options.ts'

export class Functions extends Construct {
  readonly http: lambda.Function
  readonly stream: lambda.Function
  readonly scheduled: lambda.Function
  readonly migrate: lambda.Function
  readonly #options: Options
  readonly #network: Network | undefined
  readonly #code: lambda.Code

  constructor(
    scope: Construct,
    id: string,
    database: Database,
    keys: secrets.Secret,
    options: Options,
    code: lambda.Code,
  ) {
    super(scope, id)
    this.#options = options
    this.#network = database.network
    this.#code = code
    const { ownerSecret, roleSecret } = database
    this.migrate = this.#function('Migrate', 'migrate.handler', {
      timeout: MIGRATION,
      secrets: [ownerSecret.secretArn, roleSecret.secretArn],
      environment: {
        ...database.direct,
        DATABASE_SECRET_ARN: ownerSecret.secretArn,
        LOCKSTEP_ROLE_SECRET_ARN: roleSecret.secretArn,
      },
    })
    const environment = {
      ...database.pooled,
      DATABASE_SECRET_ARN: roleSecret.secretArn,
      LOCKSTEP_API_KEYS_SECRET_ARN: keys.secretArn,
      LOCKSTEP_NTP_SERVERS: options.ntpServers,
      ...(options.trustedNtpServer && { LOCKSTEP_TRUSTED_NTP_SERVER: options.trustedNtpServer }),
    }
    const common = { secrets: [roleSecret.secretArn, keys.secretArn], environment }
    this.http = this.#function('Http', 'index.handler', {
      ...common,
      timeout: Duration.seconds(29), // API Gateway gives up after 30
      concurrency: options.maxConcurrency,
    })
    this.stream = this.#function('Stream', 'index.stream', {
      ...common,
      // An execution continues, and is billed, when its client has gone. A client that is still there reconnects with its last id.
      timeout: Duration.minutes(2),
      concurrency: options.maxStreams,
    })
    const longTick = options.tickMinutes >= 5
    this.scheduled = this.#function('Scheduled', 'index.scheduled', {
      ...common,
      timeout: Duration.seconds(Math.min(options.tickMinutes * 60 - 5, 900)), // ends before the next tick
      concurrency: options.maxConcurrency && 1,
      retryAttempts: longTick ? 2 : 0, // the next tick does the missed work
      maxEventAge: Duration.minutes(longTick ? 5 : 1),
    })
    this.#migrateBefore([this.http, this.stream, this.scheduled], database)
  }

  #function(name: string, handler: string, props: FunctionProps): lambda.Function {
    const logGroup = new logs.LogGroup(this, `${name}Log`, {
      retention: this.#options.logRetentionDays as logs.RetentionDays,
      removalPolicy: RemovalPolicy.DESTROY,
    })
    const { vpc, subnets, securityGroup } = this.#network ?? {}
    return new lambda.Function(this, name, {
      code: this.#code,
      handler,
      runtime: lambda.Runtime.NODEJS_24_X,
      architecture: lambda.Architecture.ARM_64,
      memorySize: 512,
      timeout: props.timeout,
      environment: { ...props.environment, ...ALWAYS },
      role: this.#role(`${name}Role`, logGroup, props.secrets),
      logGroup,
      loggingFormat: lambda.LoggingFormat.JSON,
      ...(vpc && subnets && securityGroup ? { vpc, vpcSubnets: subnets, securityGroups: [securityGroup] } : {}),
      ...(props.concurrency === undefined ? {} : { reservedConcurrentExecutions: props.concurrency }),
      ...(props.retryAttempts === undefined ? {} : { retryAttempts: props.retryAttempts }),
      ...(props.maxEventAge === undefined ? {} : { maxEventAge: props.maxEventAge }),
    })
  }

  #role(name: string, logGroup: logs.LogGroup, secretArns: string[]): iam.IRole {
    const role = new iam.Role(this, name, {
      assumedBy: new iam.ServicePrincipal('lambda.amazonaws.com'),
      inlinePolicies: {
        Log: policy(allow(['logs:CreateLogStream', 'logs:PutLogEvents'], [logGroup.logGroupArn])),
        Secrets: policy(allow(['secretsmanager:GetSecretValue'], secretArns)),
        ...(this.#network ? { Network: policy(...interfaces()) } : {}),
      },
    })
    if (this.#network) {
      const reason = 'Network interfaces have no names beforehand. The code of the functions is denied these actions'
      for (const what of ['arn:<AWS::Partition>:ec2:<AWS::Region>:<AWS::AccountId>:*/*', '*'])
        accept(role, `AwsSolutions-IAM5[Resource::${what}]`, reason)
    }
    return role.withoutPolicyUpdates() // it is complete: constructs that come later may not add to it
  }

  #migrateBefore(others: Construct[], database: Database): void {
    const trigger = new Trigger(this, 'Migration', { handler: this.migrate, timeout: MIGRATION })
    trigger.executeAfter(database.roleSecret, ...database.before)
    trigger.executeBefore(...others, ...(database.proxy ? [database.proxy] : []))

    const provider = Stack.of(this).node.findChild('AWSCDK.TriggerCustomResourceProviderCustomResourceProvider')
    const handler = provider.node.findChild('Handler') as CfnResource
    const role = provider.node.findChild('Role') as CfnResource
    const logGroup = new logs.LogGroup(this, 'MigrationLog', {
      retention: this.#options.logRetentionDays as logs.RetentionDays,
      removalPolicy: RemovalPolicy.DESTROY,
    })
    handler.addPropertyOverride('LoggingConfig', { LogGroup: logGroup.logGroupName })
    role.addPropertyDeletionOverride('ManagedPolicyArns')
    const log = policy(allow(['logs:CreateLogStream', 'logs:PutLogEvents'], [logGroup.logGroupArn]))
    role.addPropertyOverride('Policies.1', { PolicyName: 'Log', PolicyDocument: log })
  }
}

interface FunctionProps {
  timeout: Duration
  secrets: string[]
  environment: Record<string, string>
  concurrency?: number | undefined
  retryAttempts?: number
  maxEventAge?: Duration
}

const MIGRATION = Duration.minutes(10)

const ALWAYS = {
  NODE_EXTRA_CA_CERTS: '/var/runtime/ca-cert.pem', // RDS has its own certificate authority
  NODE_OPTIONS: '--enable-source-maps',
}

const INTERFACES = `arn:${Aws.PARTITION}:ec2:${Aws.REGION}:${Aws.ACCOUNT_ID}:*/*`

function interfaces(): iam.PolicyStatement[] {
  const named = [
    'CreateNetworkInterface',
    'DeleteNetworkInterface',
    'AssignPrivateIpAddresses',
    'UnassignPrivateIpAddresses',
  ]
  const all = ['DescribeNetworkInterfaces', 'DescribeSubnets']
  const actions = (names: string[]) => names.map((name) => `ec2:${name}`)
  return [
    allow(actions(named), [INTERFACES]),
    allow(actions(all), ['*']),
    new iam.PolicyStatement({
      effect: iam.Effect.DENY,
      actions: actions([...named, ...all]),
      resources: ['*'],
      // This key is present only in calls from within a function.
      conditions: { ArnLike: { 'lambda:SourceFunctionArn': `arn:${Aws.PARTITION}:lambda:*:*:function:*` } },
    }),
  ]
}

const allow = (actions: string[], resources: string[]) => new iam.PolicyStatement({ actions, resources })
const policy = (...statements: iam.PolicyStatement[]) => new iam.PolicyDocument({ statements })
