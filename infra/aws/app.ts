/**
 * The CDK application: options → bundle → stack, checked by cdk-nag. `npm run deploy:aws -- -c database=rds` runs it.
 *
 * The stack names no account and no region: it is deployed to those of the credentials. So it needs no lookups, and it can be
 * synthesised without a network.
 *
 * A finding of cdk-nag that has no reason (accept.ts) ends the synthesis, and so the deployment. Each reason is also written
 * into the template, at the resource concerned.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import * as path from 'node:path'
import { App, Validations } from 'aws-cdk-lib'
import * as lambda from 'aws-cdk-lib/aws-lambda'
import { AwsSolutionsChecks } from 'cdk-nag'
import { bundle } from './bundle.ts'
import { readOptions } from './options.ts'
import { LockstepStack } from './stack.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'lockstep-lambda-'))
try {
  const app = new App()
  const { stackName = 'Lockstep', ...context } = app.node.getAllContext()
  const options = readOptions(context)
  await bundle(folder)
  Validations.of(app).addPlugins(new AwsSolutionsChecks(app, { writeSuppressionsToCloudFormation: true }))
  new LockstepStack(app, String(stackName), { options, code: lambda.Code.fromAsset(folder) })
  app.synth()
} catch (error) {
  console.error((error as Error).message)
  process.exitCode = 1
} finally {
  await rm(folder, { recursive: true, force: true })
}
