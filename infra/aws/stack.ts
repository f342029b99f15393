/**
 * Lockstep on AWS: a database, the functions in front of it, their two entrances, the source of ticks, and the alarms.
 *
 *     API Gateway ─── http ──┐
 *     function URL ── stream ┼─ (proxy) ─ database ─ migrate, at a deployment, as its owner
 *     Scheduler ── scheduled ┘
 *
 * The order of a deployment: the database, then the migrations, then the functions, then their callers. Each step waits for the
 * one before it, so a migration that fails leaves the running functions as they are.
 *
 * The secret of the API keys is created with a text that is not a key, and the functions refuse to serve until an operator has
 * stored keys in it: a new deployment is closed, not open. Later deployments do not change the stored keys.
 */
import { CfnOutput, SecretValue, Stack, type StackProps } from 'aws-cdk-lib'
import type * as lambda from 'aws-cdk-lib/aws-lambda'
import * as secrets from 'aws-cdk-lib/aws-secretsmanager'
import type { Construct } from 'constructs'
import { accept } from './accept.ts'
import { Alarms } from './alarms.ts'
import { Clockwork } from './clockwork.ts'
import { Database } from './database.ts'
import { Functions } from './functions.ts'
import { Entrances } from './http.ts'
import type { Options } from './options.ts'

export interface LockstepProps extends StackProps {
  options: Options
  /** A folder with `index.mjs` and the migrations (bundle.ts). */
  code: lambda.Code
}

export class LockstepStack extends Stack {
  constructor(scope: Construct, id: string, { options, code, ...props }: LockstepProps) {
    super(scope, id, { description: 'Lockstep: distributed coordination on Postgres', ...props })
    const database = new Database(this, 'Database', options)
    const keys = new secrets.Secret(this, 'Keys', {
      description: 'LOCKSTEP_API_KEYS: id:sha256-of-secret:scope+scope[:name-prefix],…',
      secretStringValue: SecretValue.unsafePlainText('no keys yet'), // not a secret, and not a key
    })
    accept(keys, 'AwsSolutions-SMG4', 'The operator changes the keys: see README.md')
    const functions = new Functions(this, 'Functions', database, keys, options, code)
    const entrances = new Entrances(this, 'Http', functions, options)
    const clockwork = new Clockwork(this, 'Clockwork', functions.scheduled, options)
    new Alarms(this, 'Alarms', { functions, entrances, clockwork }, options)

    const outputs = {
      Url: entrances.url,
      StreamUrl: entrances.streamUrl,
      KeysSecret: keys.secretArn,
      OwnerSecret: database.ownerSecret.secretArn,
      RoleSecret: database.roleSecret.secretArn,
      MigrateFunction: functions.migrate.functionName,
      HttpLog: functions.http.logGroup.logGroupName,
    }
    for (const [name, value] of Object.entries(outputs)) new CfnOutput(this, name, { value })
  }
}
