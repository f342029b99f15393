/**
 * Accepts one finding of cdk-nag, at one construct, with a reason.
 *
 * The rules run at every synthesis (app.ts), and a finding without a reason ends it. So a search for `accept(` shows every
 * accepted finding.
 */
import { Validations } from 'aws-cdk-lib'
import type { IConstruct } from 'constructs'

export function accept(at: IConstruct, id: string, reason: string): void {
  Validations.of(at).acknowledge({ id, reason })
}
