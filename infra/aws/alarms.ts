/**
 * The alarms.
 *
 * Lost leases are counted in the log, where the adapter writes a line for each (functions/adapters/lambda.ts), because a response
 * 409 is not an error for Lambda or API Gateway. A lost lease now and then is normal. Many of them mean that holders are
 * stopped for long, renew too late, or release twice.
 *
 * A tick that fails is seen by its error. A tick that does not happen is seen only by its absence: so absence is an alarm
 * too, and missing data counts as absence. Ticks that Scheduler could not deliver are kept in a queue.
 */
import { Aws, Duration, Stack } from 'aws-cdk-lib'
import * as cloudwatch from 'aws-cdk-lib/aws-cloudwatch'
import { SnsAction } from 'aws-cdk-lib/aws-cloudwatch-actions'
import * as iam from 'aws-cdk-lib/aws-iam'
import type * as lambda from 'aws-cdk-lib/aws-lambda'
import * as logs from 'aws-cdk-lib/aws-logs'
import * as sns from 'aws-cdk-lib/aws-sns'
import { EmailSubscription } from 'aws-cdk-lib/aws-sns-subscriptions'
import { Construct } from 'constructs'
import type { Clockwork } from './clockwork.ts'
import type { Functions } from './functions.ts'
import type { Entrances } from './http.ts'
import type { Options } from './options.ts'

export class Alarms extends Construct {
  readonly topic: sns.ITopic
  readonly #options: Options

  constructor(scope: Construct, id: string, parts: Parts, options: Options) {
    super(scope, id)
    this.#options = options
    const { functions, entrances, clockwork } = parts
    const { http, stream, scheduled } = functions
    this.topic = this.#topic()

    this.#alarm('LostLeases', 'Callers lost leases, or released them too late', {
      metric: this.#counted('LostLeases', 'LEASE_LOST', [http, stream]),
      threshold: options.lostLeases,
    })
    this.#alarm('InternalErrors', 'A bug: see the log of the function for its stack', {
      metric: this.#counted('InternalErrors', 'INTERNAL', [http, stream, scheduled]),
      threshold: 1,
    })
    this.#alarm('HttpErrors', 'The HTTP API answers 5xx: no database, no keys, or more requests than maxConcurrency', {
      metric: entrances.api.metricServerError(EVERY_FIVE),
      threshold: 10,
    })
    this.#alarm('StreamErrors', 'The function of streams fails: no database, no keys, or a crash', {
      metric: stream.metricErrors(EVERY_FIVE),
      threshold: 1,
    })
    this.#alarm('FailedTicks', 'A tick failed: due jobs may not have been sent', {
      metric: scheduled.metricErrors(EVERY_FIVE),
      threshold: 1,
    })
    this.#alarm('NoTicks', 'No ticks: schedules are stopped', {
      metric: scheduled.metricInvocations({
        statistic: cloudwatch.Stats.SUM,
        period: Duration.minutes(Math.max(5, 3 * options.tickMinutes)),
      }),
      threshold: 1,
      comparisonOperator: cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
      treatMissingData: cloudwatch.TreatMissingData.BREACHING,
    })
    this.#alarm('UndeliveredTicks', 'Scheduler could not call the function: see the queue for the reason', {
      metric: clockwork.undelivered.metricApproximateNumberOfMessagesVisible({ ...EVERY_FIVE, statistic: 'Maximum' }),
      threshold: 1,
    })
  }

  #topic(): sns.ITopic {
    const { alarmTopic, alarmEmail } = this.#options
    if (alarmTopic) return sns.Topic.fromTopicArn(this, 'Given', alarmTopic)
    const topic = new sns.Topic(this, 'Topic', { displayName: 'Alarms of Lockstep', enforceSSL: true })
    // A topic with a policy of its own is no longer open to its account.
    topic.addToResourcePolicy(
      new iam.PolicyStatement({
        principals: [new iam.ServicePrincipal('cloudwatch.amazonaws.com')],
        actions: ['sns:Publish'],
        resources: [topic.topicArn],
        conditions: { StringEquals: { 'aws:SourceAccount': Aws.ACCOUNT_ID } },
      }),
    )
    if (alarmEmail) topic.addSubscription(new EmailSubscription(alarmEmail))
    return topic
  }

  /** The number of lines in these functions' logs whose message has this code. */
  #counted(metricName: string, code: string, functions: lambda.Function[]): cloudwatch.Metric {
    const metricNamespace = `Lockstep/${Stack.of(this).stackName}`
    for (const each of functions) {
      new logs.MetricFilter(this, `${metricName}${each.node.id}`, {
        logGroup: each.logGroup,
        filterPattern: logs.FilterPattern.literal(`{ $.message.code = "${code}" }`),
        metricNamespace,
        metricName,
        metricValue: '1',
      })
    }
    return new cloudwatch.Metric({ namespace: metricNamespace, metricName, ...EVERY_FIVE })
  }

  #alarm(name: string, alarmDescription: string, props: Omit<cloudwatch.AlarmProps, 'evaluationPeriods'>): void {
    const alarm = new cloudwatch.Alarm(this, name, {
      alarmDescription,
      evaluationPeriods: 1,
      comparisonOperator: cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
      treatMissingData: cloudwatch.TreatMissingData.NOT_BREACHING,
      ...props,
    })
    alarm.addAlarmAction(new SnsAction(this.topic))
    alarm.addOkAction(new SnsAction(this.topic))
  }
}

interface Parts {
  functions: Functions
  entrances: Entrances
  clockwork: Clockwork
}

const EVERY_FIVE = { statistic: cloudwatch.Stats.SUM, period: Duration.minutes(5) }
