/**
 * The database and its network. The database is new (Aurora Serverless, or an instance of RDS) or an existing one, of which only
 * a secret is known.
 *
 * There are two secrets, because there are two database roles. The owner's secret is for migrations, at a deployment. All other
 * functions connect as a role that may only read and write the data of Lockstep. The migrations create that role
 * (infra/aws/migrate.ts); its secret is created here, also for an existing database.
 *
 * A new network has no way out: no NAT, which would cost more than such a database, and which only NTP would use.
 * Secrets Manager is reached through an endpoint in the network.
 *
 * The proxy is created after the migrations, because it logs in as the role that they create. CloudFormation waits until the
 * proxy can log in.
 */
import { Duration, Fn, RemovalPolicy, Stack } from 'aws-cdk-lib'
import * as ec2 from 'aws-cdk-lib/aws-ec2'
import * as logs from 'aws-cdk-lib/aws-logs'
import * as rds from 'aws-cdk-lib/aws-rds'
import * as secrets from 'aws-cdk-lib/aws-secretsmanager'
import { Construct } from 'constructs'
import { accept } from './accept.ts'
import type { Options } from './options.ts'

/** The network of the functions. */
export interface Network {
  vpc: ec2.IVpc
  subnets: ec2.SubnetSelection
  securityGroup: ec2.SecurityGroup
}

/** Variables with the address of a database; user and password are in a secret. */
interface Address {
  DATABASE_HOST: string
  DATABASE_PORT: string
  DATABASE_NAME: string
}

export class Database extends Construct {
  readonly network: Network | undefined
  readonly ownerSecret: secrets.ISecret
  readonly roleSecret: secrets.Secret
  /** The address that migrations connect to: the database itself. */
  readonly direct: Address
  /** The address that the functions connect to: the proxy, if there is one. */
  readonly pooled: Address
  readonly proxy: rds.DatabaseProxy | undefined
  /** The constructs that the migrations depend on. */
  readonly before: Construct[] = []

  constructor(scope: Construct, id: string, options: Options) {
    super(scope, id)
    this.network = this.#network(options)
    this.roleSecret = this.#roleSecret()
    if (options.database.startsWith('arn:')) {
      this.ownerSecret = secrets.Secret.fromSecretCompleteArn(this, 'Given', options.database)
      this.direct = this.pooled = addressOf(this.ownerSecret, options)
      const { databaseSecurityGroup, databasePort = 5432 } = options
      if (databaseSecurityGroup && this.network) this.#open(databaseSecurityGroup, this.network, databasePort)
      return
    }
    const made = this.#make(options, this.network as Network)
    this.before.push(made.database)
    this.ownerSecret = made.database.secret as secrets.ISecret
    this.direct = { DATABASE_HOST: made.host, DATABASE_PORT: String(PORT), DATABASE_NAME: NAME }
    this.proxy = options.proxy ? this.#proxy(made, this.network as Network) : undefined
    this.pooled = this.proxy
      ? { ...this.direct, DATABASE_HOST: this.proxy.endpoint, DATABASE_PORT: '5432' }
      : this.direct
  }

  #network(options: Options): Network | undefined {
    if (options.vpc === 'none') return undefined
    const isNew = options.vpc === 'new'
    const vpc = isNew
      ? (this.#newVpc(options) as ec2.IVpc)
      : ec2.Vpc.fromVpcAttributes(this, 'Vpc', {
          vpcId: options.vpc,
          availabilityZones: options.zones,
          privateSubnetIds: options.subnets,
        })
    const securityGroup = new ec2.SecurityGroup(this, 'Functions', {
      vpc,
      description: 'The functions of Lockstep',
      allowAllOutbound: !isNew, // in an existing network the routes to Secrets Manager and to NTP are not known
    })
    if (isNew) {
      const endpoint = vpc.addInterfaceEndpoint('Secrets', {
        service: ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
        open: false,
      })
      endpoint.connections.allowDefaultPortFrom(securityGroup)
      this.before.push(endpoint)
    }
    this.before.push(securityGroup)
    return { vpc, subnets: { subnets: isNew ? vpc.isolatedSubnets : vpc.privateSubnets }, securityGroup }
  }

  #newVpc(options: Options): ec2.Vpc {
    const vpc = new ec2.Vpc(this, 'Vpc', {
      maxAzs: 2,
      natGateways: 0,
      subnetConfiguration: [{ name: 'isolated', subnetType: ec2.SubnetType.PRIVATE_ISOLATED, cidrMask: 24 }],
    })
    const logGroup = new logs.LogGroup(this, 'Rejected', {
      retention: options.logRetentionDays as logs.RetentionDays,
      removalPolicy: RemovalPolicy.DESTROY,
    })
    vpc.addFlowLog('Rejected', {
      destination: ec2.FlowLogDestination.toCloudWatchLogs(logGroup),
      trafficType: ec2.FlowLogTrafficType.REJECT, // rejected traffic only: nearly nothing
    })
    return vpc
  }

  #roleSecret(): secrets.Secret {
    const secret = new secrets.Secret(this, 'Role', {
      description: 'Role and password of the functions of Lockstep in the database',
      generateSecretString: {
        secretStringTemplate: JSON.stringify({ username: ROLE }),
        generateStringKey: 'password',
        passwordLength: 32,
        excludePunctuation: true,
      },
    })
    accept(secret, 'AwsSolutions-SMG4', 'The password is set in the database by a run of the migrations: see README.md')
    return secret
  }

  #make(options: Options, network: Network): Made {
    const made = options.database === 'aurora' ? this.#aurora(options, network) : this.#instance(options, network)
    made.database.connections.allowDefaultPortFrom(network.securityGroup)
    accept(made.database, 'AwsSolutions-SMG4', 'Only migrations use the password of the owner: see README.md')
    if (!options.deletionProtection) {
      accept(made.database, 'AwsSolutions-RDS10', 'The option deletionProtection is false, to remove the database')
    }
    return made
  }

  #aurora(options: Options, network: Network): Made {
    const paused = options.minCapacity === 0
    const cluster = new rds.DatabaseCluster(this, 'Cluster', {
      ...common(options, network),
      engine: rds.DatabaseClusterEngine.auroraPostgres({ version: rds.AuroraPostgresEngineVersion.VER_18_4 }),
      writer: rds.ClusterInstance.serverlessV2('Writer', { publiclyAccessible: false }),
      serverlessV2MinCapacity: options.minCapacity,
      serverlessV2MaxCapacity: options.maxCapacity,
      ...(paused ? { serverlessV2AutoPauseDuration: Duration.minutes(5) } : {}),
      defaultDatabaseName: NAME,
      backup: { retention: Duration.days(7) },
    })
    return { database: cluster, host: cluster.clusterEndpoint.hostname, target: rds.ProxyTarget.fromCluster(cluster) }
  }

  #instance(options: Options, network: Network): Made {
    const instance = new rds.DatabaseInstance(this, 'Instance', {
      ...common(options, network),
      engine: rds.DatabaseInstanceEngine.postgres({ version: rds.PostgresEngineVersion.VER_18 }),
      instanceType: new ec2.InstanceType(options.instanceType),
      multiAz: options.multiAz,
      publiclyAccessible: false,
      allocatedStorage: 20,
      maxAllocatedStorage: 100,
      storageType: rds.StorageType.GP3,
      databaseName: NAME,
      backupRetention: Duration.days(7),
    })
    if (!options.multiAz) {
      accept(
        instance,
        'AwsSolutions-RDS3',
        'The option multiAz is false: half the price, minutes of outage at a failure',
      )
    }
    return {
      database: instance,
      host: instance.instanceEndpoint.hostname,
      target: rds.ProxyTarget.fromInstance(instance),
    }
  }

  #proxy({ database, target }: Made, { vpc, subnets, securityGroup }: Network): rds.DatabaseProxy {
    const group = new ec2.SecurityGroup(this, 'ProxyGroup', {
      vpc,
      description: 'The proxy between the functions of Lockstep and their database',
      allowAllOutbound: false,
    })
    const proxy = new rds.DatabaseProxy(this, 'Proxy', {
      dbProxyName: `${Stack.of(this).stackName}-proxy`,
      proxyTarget: target,
      secrets: [this.roleSecret as secrets.ISecret],
      vpc,
      vpcSubnets: subnets,
      securityGroups: [group],
      requireTLS: true,
      clientPasswordAuthType: rds.ClientPasswordAuthType.POSTGRES_SCRAM_SHA_256,
    })
    database.connections.allowDefaultPortFrom(group)
    group.connections.allowFrom(securityGroup, ec2.Port.tcp(5432))
    return proxy
  }

  #open(groupId: string, network: Network, port: number): void {
    const group = ec2.SecurityGroup.fromSecurityGroupId(this, 'Group', groupId)
    group.connections.allowFrom(network.securityGroup, ec2.Port.tcp(port))
    this.before.push(group as unknown as Construct)
  }
}

interface Made {
  database: rds.DatabaseCluster | rds.DatabaseInstance
  host: string
  target: rds.ProxyTarget
}

const common = (options: Options, { vpc, subnets }: Network) => ({
  vpc,
  vpcSubnets: subnets,
  port: PORT,
  credentials: rds.Credentials.fromUsername('postgres'),
  storageEncrypted: true,
  deletionProtection: options.deletionProtection,
  removalPolicy: RemovalPolicy.SNAPSHOT,
  iamAuthentication: true, // for people; the functions use a password, which is cheaper to check
})

/** Not the default port, which scanners try first; a proxy always has 5432. */
const PORT = 5433
const NAME = 'lockstep'
const ROLE = 'lockstep_functions'

/** The address is not secret: CloudFormation reads it from the owner's secret at a deployment. */
function addressOf(secret: secrets.ISecret, options: Options): Address {
  const from = (field: string) =>
    Fn.join('', ['{{resolve:secretsmanager:', secret.secretArn, `:SecretString:${field}}}`])
  const { databaseHost: host, databasePort: port, databaseName: name } = options
  return {
    DATABASE_HOST: host ?? from('host'),
    DATABASE_PORT: port ? String(port) : host ? '5432' : from('port'),
    DATABASE_NAME: name ?? (host ? 'postgres' : from('dbname')),
  }
}
