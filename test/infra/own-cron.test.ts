/** What stands for cron-parser where Lockstep is bundled: pg-boss gets from it the slots that ticks send. */
import { expect, test } from 'vitest'
import { CronExpressionParser } from '../../infra/own-cron.ts'

test('the parser of the bundles walks along the slots that ticks send', () => {
  const walk = CronExpressionParser.parse('30 2 * * *', {
    ...{ tz: 'Europe/Berlin', strict: false, currentDate: new Date('2026-03-28T12:00:00Z') },
  })
  expect([walk.next().toDate(), walk.next().toDate()]).toEqual([
    ...[new Date('2026-03-29T01:00:00Z'), new Date('2026-03-30T00:30:00Z')],
  ])
  expect(+CronExpressionParser.parse('@hourly', { tz: 'UTC' }).next().toDate()).toBeGreaterThan(Date.now())
})

test.each([
  ['0 0 30 2 *', 'UTC', 'cron'],
  ['H * * * *', 'UTC', 'cron'],
  ['@daily', 'Mars/Olympus', 'timezone'],
])('and refuses %s in %s, before pg-boss stores it', (cron, tz, field) => {
  expect(() => CronExpressionParser.parse(cron, { tz })).toThrow(expect.objectContaining({ field }))
})
