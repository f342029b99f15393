/**
 * The two entrances: an HTTP API for responses in one piece, and a function URL for streamed responses.
 *
 * API Gateway limits the rate of requests and logs them. But it waits for the whole response, thirty seconds at most, so
 * server-sent events need the function URL. That URL has no limit except the number of concurrent streams. Both URLs serve
 * every path.
 *
 * Neither authenticates callers with IAM. The function does that by API keys, for both URLs and in the same way as everywhere
 * else (functions/http/auth.ts). Without keys the function refuses every request.
 */
import { RemovalPolicy } from 'aws-cdk-lib'
import { AccessLogFormat } from 'aws-cdk-lib/aws-apigateway'
import * as apigateway from 'aws-cdk-lib/aws-apigatewayv2'
import { HttpLambdaIntegration } from 'aws-cdk-lib/aws-apigatewayv2-integrations'
import * as lambda from 'aws-cdk-lib/aws-lambda'
import * as logs from 'aws-cdk-lib/aws-logs'
import { Construct } from 'constructs'
import { accept } from './accept.ts'
import type { Functions } from './functions.ts'
import type { Options } from './options.ts'

export class Entrances extends Construct {
  readonly api: apigateway.HttpApi
  readonly url: string
  readonly streamUrl: string

  constructor(scope: Construct, id: string, { http, stream }: Functions, options: Options) {
    super(scope, id)
    this.api = new apigateway.HttpApi(this, 'Api', {
      description: 'Lockstep',
      defaultIntegration: new HttpLambdaIntegration('Http', http),
      createDefaultStage: false,
    })
    const reason = 'The API keys of Lockstep authorize, in the function: one way for all clouds and both entrances'
    accept(this.api, 'AwsSolutions-APIG4', reason)
    const logGroup = new logs.LogGroup(this, 'AccessLog', {
      retention: options.logRetentionDays as logs.RetentionDays,
      removalPolicy: RemovalPolicy.DESTROY,
    })
    const stage = new apigateway.HttpStage(this, 'Stage', {
      httpApi: this.api,
      stageName: '$default',
      autoDeploy: true,
      throttle: { rateLimit: options.requestsPerSecond, burstLimit: 2 * options.requestsPerSecond },
      accessLogSettings: {
        destination: new apigateway.LogGroupLogDestination(logGroup),
        format: AccessLogFormat.custom(JSON.stringify(LINE)),
      },
    })
    const urls = stream.addFunctionUrl({
      authType: lambda.FunctionUrlAuthType.NONE,
      invokeMode: lambda.InvokeMode.RESPONSE_STREAM,
    })
    this.url = stage.url
    this.streamUrl = urls.url
  }
}

/** The path, but not the query, which contains tokens. */
const LINE = {
  at: '$context.requestTime',
  requestId: '$context.requestId',
  ip: '$context.identity.sourceIp',
  method: '$context.httpMethod',
  path: '$context.path',
  status: '$context.status',
  bytes: '$context.responseLength',
  ms: '$context.responseLatency',
  error: '$context.error.message',
  integrationError: '$context.integrationErrorMessage',
}
