/** What other folders use of this one. */

export { type Schedule, type ScheduleOptions, Schedules } from './schedules.ts'
