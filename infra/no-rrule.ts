/**
 * Stands for the package `rrule-temporal` in what is deployed to Cloudflare and to Lambda: 53 kB of gzip, a sixth of either.
 *
 * pg-boss imports it (dist/rrule.js) for schedules that are written as recurrence rules of RFC 5545 (`FREQ=DAILY;BYHOUR=9`).
 * Lockstep's schedules are all cron expressions, and it asks pg-boss only for the slots of a recurrence rule that was given to
 * pg-boss's own `schedule()`. Such a rule is refused here. (cloudflare/wrangler.jsonc and aws/bundle.ts put it there.)
 */
export class RRuleTemporal {
  /** @throws {Error} always. */
  constructor() {
    throw new Error('this deployment reads cron expressions only: recurrence rules (FREQ=…) are left out of its bundle')
  }
}
