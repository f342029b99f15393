/**
 * The source of ticks: EventBridge Scheduler calls the scheduled function, by default each minute.
 *
 * Scheduler may be late or call twice. A tick tolerates that (lib/task/tick.ts): each slot of a schedule is sent once, and the next
 * tick does the work that one tick has missed. So a failed call is not retried for long. A call that could not be
 * delivered at all is kept in a queue, with the reason in its attributes, and raises an alarm.
 *
 * The role may call this one function and write to this one queue, and only Scheduler of this account may assume it.
 */
import { Aws, Duration } from 'aws-cdk-lib'
import * as iam from 'aws-cdk-lib/aws-iam'
import type * as lambda from 'aws-cdk-lib/aws-lambda'
import { CfnSchedule } from 'aws-cdk-lib/aws-scheduler'
import * as sqs from 'aws-cdk-lib/aws-sqs'
import { Construct } from 'constructs'
import { accept } from './accept.ts'
import type { Options } from './options.ts'

export class Clockwork extends Construct {
  readonly undelivered: sqs.Queue

  constructor(scope: Construct, id: string, scheduled: lambda.Function, { tickMinutes }: Options) {
    super(scope, id)
    this.undelivered = new sqs.Queue(this, 'Undelivered', {
      encryption: sqs.QueueEncryption.SQS_MANAGED,
      enforceSSL: true,
      retentionPeriod: Duration.days(14),
    })
    accept(this.undelivered, 'AwsSolutions-SQS3', 'It is itself the dead-letter queue of the schedule')
    const call = (action: string, resource: string) =>
      new iam.PolicyDocument({ statements: [new iam.PolicyStatement({ actions: [action], resources: [resource] })] })
    const role = new iam.Role(this, 'Role', {
      assumedBy: new iam.ServicePrincipal('scheduler.amazonaws.com', {
        conditions: { StringEquals: { 'aws:SourceAccount': Aws.ACCOUNT_ID } },
      }),
      inlinePolicies: {
        Tick: call('lambda:InvokeFunction', scheduled.functionArn),
        Undelivered: call('sqs:SendMessage', this.undelivered.queueArn),
      },
    })
    new CfnSchedule(this, 'Tick', {
      description: 'Ticks Lockstep: schedules, maintenance of queues, removal of expired rows',
      scheduleExpression: `rate(${tickMinutes} ${tickMinutes === 1 ? 'minute' : 'minutes'})`,
      flexibleTimeWindow: { mode: 'OFF' },
      target: {
        arn: scheduled.functionArn,
        roleArn: role.roleArn,
        deadLetterConfig: { arn: this.undelivered.queueArn },
        retryPolicy: { maximumEventAgeInSeconds: 60, maximumRetryAttempts: 3 },
      },
    })
  }
}
