/**
 * Stands for the package `cron-parser` in what is deployed to Cloudflare and to Lambda: it and luxon, on which it is built, are 30 kB
 * of gzip.
 *
 * pg-boss imports it (dist/timekeeper.js, dist/timezone.js) for its own schedules. Ticks of Lockstep send those, by the rule of
 * lib/task/schedule/slots.ts. So what `bossOf(tasks)` accepts and previews here is what will be sent. (cloudflare/wrangler.jsonc
 * and aws/bundle.ts put it there.)
 */
import { checkCron, checkTimezone, slotAfter } from '../lib/task/schedule/slots.ts'

export const CronExpressionParser = {
  /** @throws {RangeError} what is no cron expression or no time zone, as `tasks.schedule` does. */
  parse(expression: string, { tz, currentDate = new Date() }: { tz: string; currentDate?: Date }) {
    const rule = { cron: checkCron(expression), timezone: tz }
    checkTimezone(tz)
    let at = currentDate
    return {
      next() {
        at = slotAfter(rule, at)
        return { toDate: () => at }
      },
    }
  },
}
