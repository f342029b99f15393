/** What others use of this room. */

export { Cron, type Schedule, type ScheduleOptions } from './schedules.ts'
