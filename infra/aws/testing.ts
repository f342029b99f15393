/** What test/infra/aws.long.test.ts uses of the CDK, whose packages are found only from within this folder. */
export { App, type Stack } from 'aws-cdk-lib'
export { Match, Template } from 'aws-cdk-lib/assertions'
export * as ec2 from 'aws-cdk-lib/aws-ec2'
export * as lambda from 'aws-cdk-lib/aws-lambda'
export * as s3 from 'aws-cdk-lib/aws-s3'
export { AwsSolutionsChecks } from 'cdk-nag'
export { readOptions } from './options.ts'
export { LockstepStack } from './stack.ts'
